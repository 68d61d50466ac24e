"""The text that is put to a model: a prompt in its template, and a chat in the tokenizer's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date as Date
from functools import cached_property
from itertools import takewhile
from typing import Any

from safecircuits.prompts.templates import TEMPLATES, Template, resolve_template
from safecircuits.prompts.trial import UnboundedTemplate, try_template

PINNED = "2024-07-26"
"""Today, for chat templates that write the date: otherwise the same prompts would be others tomorrow."""


def render(tokenizer: Any, prompt: str, template: str = "auto", system: str | None = None) -> str:
    """The text that is put to the model, up to the point where its answer starts.

    A system prompt goes where the chat template wants it, and in front of the other templates; ``""`` is none.

    Examples:
        >>> print(sc.prompts.render(model.tokenizer, "name a fruit ."))
        <bos><user> name a fruit .<assistant>
        >>> print(sc.prompts.render(model.tokenizer, "name a fruit .", template="none"))
        name a fruit .
    """
    resolved = resolve_template(tokenizer, Template.of(template, system))
    return Chat(tokenizer, resolved).asked(prompt) if resolved.name == "chat" else fill(tokenizer, resolved, prompt)


def fill(tokenizer: Any, template: Template, prompt: str) -> str:
    """A prompt in a template that is not the tokenizer's own; a beginning that the template spells stays in front."""
    text = TEMPLATES.get(template.name, template.name)
    bos = tokenizer.bos_token or ""
    start = bos if template.system and bos and text.startswith(bos) else ""
    system = f"{template.system}\n\n" if template.system else ""
    return start + system + text.removeprefix(start).replace("{instruction}", prompt)


def chat_text(tokenizer: Any, messages: list[dict[str, str]], *, date: str | None = None, **options: Any) -> str:
    """``apply_chat_template`` as text, on a day that stays the same; a template that is new is tried apart first.

    Raises:
        UnboundedTemplate: a ValueError, for a template that loops without end or builds gigabytes.

    Examples:
        >>> messages = [{"role": "user", "content": "name a fruit ."}]
        >>> print(sc.prompts.chat_text(model.tokenizer, messages, add_generation_prompt=True))
        <bos><user> name a fruit .<assistant>
    """
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **_tried(tokenizer, date), **options)
    return text


def _tried(tokenizer: Any, date: str | None) -> dict[str, Any]:
    """What ``apply_chat_template`` is given for the day to stay the same; a template that is new is tried first."""
    template = chat_source(tokenizer)
    if isinstance(template, str):
        special = getattr(tokenizer, "special_tokens_map", None) or {}
        try_template(template, tuple((name, str(token)) for name, token in special.items() if isinstance(token, str)))
    if isinstance(template, str) and "strftime_now" in template:
        return {"chat_template": _on_day(Date.fromisoformat(date or PINNED)) + template}
    return {}


def chat_source(tokenizer: Any) -> Any:
    """The chat template; the one of several that is for chats."""
    return tokenizer.get_chat_template() if hasattr(tokenizer, "get_chat_template") else tokenizer.chat_template


_DIRECTIVES = ("%-d", "%-m", "%a", "%A", "%d", "%b", "%B", "%m", "%y", "%Y", "%H", "%I", "%M", "%S", "%p", "%j", "%x")


def _on_day(day: Date) -> str:
    """The beginning of a chat template in which ``strftime_now``, Transformers' function, writes this day, at 0:00.

    The line break at its end is the one that Jinja takes away after a block there.
    """
    written = {form: day.strftime(form.replace("-", "")) for form in _DIRECTIVES}
    written |= {"%-d": str(day.day), "%-m": str(day.month), "%%": "%"}
    replacing = "".join(f".replace({form!r}, {text!r})" for form, text in written.items())
    return f"{{%- macro strftime_now(form) -%}}{{{{ form{replacing} }}}}{{%- endmacro %}}\n"


# Stand-ins by which a template's own words are told from what is said.
_ASKED, _ANSWERED, _AGAIN, _SYSTEM = "first instruction", "first response", "second instruction", "system instruction"


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, with a system prompt, without one, or as it comes."""

    tokenizer: Any
    template: Template

    def asked(self, prompt: str) -> str:
        """The text up to where the answer to a prompt starts."""
        return self._text([("user", prompt)], answered=False)

    def answered(self, prompt: str, response: str) -> str:
        """Both turns as the template writes them; closed by the end of sequence where it closes an answer by nothing.

        End tokens that close the response already are not written twice.

        Raises:
            ValueError: for a template that writes a prompt otherwise once it is answered, or leaves part of the
                response out.
        """
        response = without_ends(response, self.ends)
        whole = self._text([("user", prompt), ("assistant", response)])
        begun = self.asked(prompt)
        first = common_prefix_length(self._text([("user", prompt)]), begun)
        if not whole.startswith(begun[:first]):
            raise ValueError(
                "the tokenizer's chat template writes a prompt otherwise once it is answered, so that what the model "
                f"sees is not what it would be trained on: {begun[:first][-60:]!r}; pass template= with {{instruction}}"
            )
        if response.strip() not in whole[first:]:
            raise ValueError(
                f"the tokenizer's chat template leaves out part of the response {response[:60]!r}; change the response "
                "or pass template= with {instruction} in it"
            )
        return whole if self._closing.strip() else whole + (self.tokenizer.eos_token or "")

    def dialogue(self, turns: Sequence[tuple[str, str]], answers: Sequence[int]) -> tuple[str, list[tuple[str, str]]]:
        """A whole chat, and for each of the turns ``answers`` the text up to where it starts and up to its end.

        Raises:
            ValueError: for a template that leaves out part of a turn, or writes what was said otherwise once the chat
                goes on.
        """
        said = self._said(turns)
        whole, last = self._text(said), len(said) - 1
        if said[last][0] == "assistant" and not self._closing.strip():
            whole += self.tokenizer.eos_token or ""
        around = []
        for i in answers:
            stem, begun = self._stem(said[:i])
            ended = whole if i == last else self._stem(said[: i + 1])[0]
            for text in (stem, ended):
                if not whole.startswith(text):
                    start = max(0, common_prefix_length(whole, text) - 20)
                    raise ValueError(
                        "the tokenizer's chat template writes earlier turns otherwise once the chat goes on "
                        f"({text[start : start + 60]!r} becomes {whole[start : start + 60]!r}), so that the answer "
                        f"of turn {i + 1} has no place of its own in it: train on the last answer alone "
                        "(loss_on='last'), cut the chats into several, or mark answers in the template "
                        "({% generation %})"
                    )
            if said[i][1].strip() not in ended[len(stem) :]:
                raise ValueError(
                    f"the tokenizer's chat template leaves out part of the answer {said[i][1][:60]!r} of turn {i + 1}"
                )
            around.append((begun, ended))
        return whole, around

    def _said(self, turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The turns, answers without the tokens that end them; a ValueError for one that the template leaves out."""
        said = [(role, without_ends(text, self.ends) if role == "assistant" else text) for role, text in turns]
        whole = self._text(said)
        lost = next((text for _, text in said if text.rpartition("</think>")[2].strip() not in whole), None)
        if lost is not None:
            raise ValueError(f"the tokenizer's chat template leaves out part of the turn {lost[:60]!r}")
        return said

    def _stem(self, turns: list[tuple[str, str]]) -> tuple[str, str]:
        """The text of a chat that may go on with either side, and with the beginning of an answer."""
        begun = self._text(turns, answered=False)
        return begun[: common_prefix_length(self._text(turns), begun)], begun

    @property
    def can_mark(self) -> bool:
        """Whether the template's own marks of what the assistant says can be read: they are places in its own text."""
        fast = getattr(self.tokenizer, "is_fast", False)
        return bool(fast) and (self.template.system != "" or self._own_system is None)

    def marked(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """The tokens of a whole chat, and for each whether the template marks it (``{% generation %}``)."""
        said = self._said(turns)
        found = self._apply(
            said, self.template.system or None, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(found["input_ids"]), list(found["assistant_masks"])

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """What the template closes an answer with, and the tokenizer's end of sequence."""
        special = [token for token in _special(self.tokenizer) if token in self._closing]
        return tuple(filter(None, (self._closing.rstrip(), self._closing.strip(), *special, self.tokenizer.eos_token)))

    @cached_property
    def _closing(self) -> str:
        return self._text([("user", _ASKED), ("assistant", _ANSWERED)]).rpartition(_ANSWERED)[2]

    def _text(self, turns: list[tuple[str, str]], *, answered: bool = True) -> str:
        text = self._as_it_comes(turns, self.template.system or None, answered=answered)
        if self.template.system and self.template.system.strip() not in text:
            raise ValueError(
                f"the tokenizer's chat template leaves out the system prompt {self.template.system[:60]!r}: leave "
                "system= out, or pass template= with {instruction} in it"
            )
        if self.template.system != "" or self._own_system is None:
            return text
        before, instead = self._own_system
        if not text.startswith(before):
            raise ValueError(_CANNOT_TAKE_OUT)
        return instead + text.removeprefix(before)

    def _as_it_comes(self, turns: list[tuple[str, str]], system: str | None, *, answered: bool = True) -> str:
        text: str = self._apply(turns, system, tokenize=False, add_generation_prompt=not answered)
        return text

    def _apply(self, turns: list[tuple[str, str]], system: str | None, **how: Any) -> Any:
        said = ([("system", system)] if system else []) + turns
        messages = [{"role": role, "content": content} for role, content in said]
        try:
            dated = _tried(self.tokenizer, self.template.date)
            return self.tokenizer.apply_chat_template(messages, **dated, **how, **self._options)
        except UnboundedTemplate:
            raise
        except Exception as error:  # Jinja's own, which the template raises: Gemma's takes no system prompt
            what = "this prompt" if said[0][0] != "system" else "a system prompt" if len(turns) < 3 else "this chat"
            raise ValueError(
                f"the tokenizer's chat template does not take {what} ({error}): leave system= out, or pass template= "
                "with {instruction} in it"
            ) from error

    @cached_property
    def _options(self) -> dict[str, Any]:
        """The options, each of which the chat template reads: Jinja ignores what it does not know."""
        text = chat_source(self.tokenizer)
        for option in self.template.options if isinstance(text, str) else ():
            if not re.search(rf"\b{option}\b", text):
                raise ValueError(f"the tokenizer's chat template does not take the option {option!r}: leave it out")
        return self.template.options

    @cached_property
    def _own_system(self) -> tuple[str, str] | None:
        """What a template that writes a system prompt of its own begins with, and what it would without; else None.

        It writes one if a given one takes the place of something, instead of being put between. What stands without
        it is how a later prompt begins, which has no system prompt before it.
        """
        plain = self._as_it_comes([("user", _ASKED)], None).partition(_ASKED)[0]
        try:
            given = self._as_it_comes([("user", _ASKED)], _SYSTEM).partition(_ASKED)[0]
        except ValueError:
            return None
        same = common_prefix_length(plain, given)
        if _SYSTEM not in given or plain.endswith(given[len(given) - (len(plain) - same) :]):
            return None
        exchange = [("user", _ASKED), ("assistant", _ANSWERED)]
        between = self._as_it_comes([*exchange, ("user", _AGAIN)], None)
        between = between.partition(_ANSWERED)[2].partition(_AGAIN)[0]
        closing = self._as_it_comes(exchange, None).partition(_ANSWERED)[2]
        opening = between[_shared(between, closing, _special(self.tokenizer)) :]
        bos = self.tokenizer.bos_token or ""
        head = bos if bos and plain.startswith(bos) and not opening.startswith(bos) else ""
        if not opening or not (plain.endswith(opening) or plain.startswith(head + opening)):
            raise ValueError(_CANNOT_TAKE_OUT)
        return plain, head + opening


_CANNOT_TAKE_OUT = (
    "the tokenizer's chat template writes a system prompt of its own, which cannot be told from the rest: give a "
    "system prompt, or pass template= with {instruction} in it"
)


def without_ends(response: str, ends: tuple[str, ...]) -> str:
    """A response without the end tokens that it ends in."""
    closed = True
    while closed:
        closed = False
        for end in ends:
            if response.rstrip().endswith(end):
                response, closed = response.rstrip().removesuffix(end), True
    return response


def common_prefix_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many characters or tokens two begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _special(tokenizer: Any) -> list[str]:
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return [*map(str, added.values()), *map(str, getattr(tokenizer, "all_special_tokens", ()))]


def _shared(a: str, b: str, tokens: list[str]) -> int:
    """How many characters two texts begin with alike, up to the last token that is whole."""
    end = common_prefix_length(a, b)
    for token in tokens:
        start = a.find(token, max(0, end - len(token) + 1))
        if 0 <= start < end < start + len(token):
            end = start
    return end
