"""A published template filled with a prompt and a completion: turns for a chat model, or text with its turn markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from safecircuits.prompts.trial import try_template

PROMPT_FIELDS = ("prompt", "goal", "behavior", "request", "forbidden_prompt")
COMPLETION_FIELDS = ("completion", "response", "generation", "answer")

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Question:
    """What a judge is asked: ``turns`` of a conversation (role, text), or ``raw`` text with its own turn markers."""

    turns: Turns = ()
    raw: str | None = None

    @property
    def text(self) -> str:
        """As one text: turns are put one after another, an empty line between."""
        return self.raw if self.raw is not None else "\n\n".join(text for _, text in self.turns)

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat servers and chat templates take it."""
        return [{"role": role, "content": text} for role, text in self.turns]


@dataclass(frozen=True)
class Filled:
    """A template of turns (role, text) with ``{fields}`` for prompt and completion, or with two ``%s``.

    Args:
        raw: the text holds its model's turn markers, so that it must reach the model as it stands.

    Raises:
        ValueError: if prompt or completion has no field, or there are others.
    """

    turns: Turns
    raw: bool = False
    percent: bool = False

    def __post_init__(self) -> None:
        names = [name for _, text in self.turns for _, name in self._pieces(text) if name is not None]
        if unknown := [name for name in names if name not in PROMPT_FIELDS + COMPLETION_FIELDS]:
            raise ValueError(f"the judge's template has a field {unknown[0]!r} that is neither prompt nor completion")
        for what, fields in (("the prompt", PROMPT_FIELDS), ("the completion", COMPLETION_FIELDS)):
            if not set(names) & set(fields):
                raise ValueError(f"the judge's template has no field for {what}")

    def __call__(self, prompt: str, completion: str) -> Question:
        """The question about a completion; braces and percent signs in it and its prompt are left alone."""
        value = dict.fromkeys(PROMPT_FIELDS, prompt) | dict.fromkeys(COMPLETION_FIELDS, completion)
        turns = tuple(
            (role, "".join(before + (value[name] if name is not None else "") for before, name in self._pieces(text)))
            for role, text in self.turns
        )
        return Question(raw="".join(text for _, text in turns)) if self.raw else Question(turns)

    def _pieces(self, text: str) -> list[tuple[str, str | None]]:
        """Literal text and the field after it."""
        return _percents(text) if self.percent else _braces(text)


@dataclass(frozen=True)
class Exchange:
    """The exchange itself, for a judge whose own chat template asks about it; rendered if ``template`` is given."""

    template: str | None = None
    bos: str = ""

    def __call__(self, prompt: str, completion: str) -> Question:
        """The exchange as turns, or in the template.

        Raises:
            ValueError: if the template does not take it, or leaves part of it out.
        """
        asked = Question((("user", prompt), ("assistant", completion)))
        if self.template is None:
            return asked
        return Question(raw=_rendered(self.template, self.bos, asked.messages))


def llama2(system: str, user: str) -> Turns:
    """A system prompt and a question in Llama 2's turn markers, as one text."""
    return (("user", f"[INST] <<SYS>>\n{system.strip()}\n<</SYS>>\n\n{user.strip()} [/INST]"),)


def _braces(text: str) -> list[tuple[str, str | None]]:
    try:
        found = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"the judge's template has a brace that is no field's: {error}") from error
    if odd := next((name for _, name, form, conversion in found if form or conversion), None):
        raise ValueError(f"the judge's template has a field {odd!r} with a format of its own")
    return [(before, name) for before, name, _, _ in found]


def _percents(text: str) -> list[tuple[str, str | None]]:
    """Of a template for the operator %: the first ``%s`` is the prompt and the second the completion; no others."""
    parts = re.split("(%.?)", text, flags=re.DOTALL)
    pieces: list[tuple[str, str | None]] = []
    fields = ["prompt", "completion"]
    for literal, sign in zip(parts[::2], [*parts[1::2], ""], strict=True):
        if sign in ("%%", ""):
            pieces.append((literal + sign[:1], None))
        elif sign == "%s" and fields:
            pieces.append((literal, fields.pop(0)))
        else:
            raise ValueError(f"the judge's template has {sign!r}, expected %s for the prompt and for the completion")
    return pieces


def _rendered(template: str, bos: str, messages: Sequence[dict[str, str]]) -> str:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try_template(template, (("bos_token", bos),))
    try:
        texts, _ = render_jinja_template([list(messages)], chat_template=template, bos_token=bos)
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(f"the judge's chat template takes no exchange of prompt and completion: {error}") from error
    text = str(texts[0])
    if not all(turn["content"].strip() in text for turn in messages):
        raise ValueError("the judge's chat template leaves out the prompt or the completion")
    return text
