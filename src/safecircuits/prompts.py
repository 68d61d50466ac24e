"""Prompts: a named, fingerprinted set of instructions, and how they are put to a model as tokens."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = {
    "alpaca": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    ),
    "alpaca-short": "### Instruction:\n{instruction}\n\n### Response:\n",
    "none": "{instruction}",
}
"""Templates by name; ``"chat"`` is the tokenizer's own, and any other string with ``{instruction}`` is one itself."""


@dataclass(frozen=True)
class PromptSet:
    """Instructions with, where the set has them, the responses that go with them.

    Raises:
        ValueError: if the set is empty, a prompt is blank or a response no text, or they do not match in number.
    """

    name: str
    prompts: tuple[str, ...]
    responses: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for field, texts in (("prompts", self.prompts), ("responses", self.responses)):
            if isinstance(texts, str):
                raise ValueError(f"{field} are several texts: give [{texts!r}], not the text itself")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.prompts:
            raise ValueError(f"prompt set {self.name!r} is empty")
        blank = next((i for i, p in enumerate(self.prompts) if not isinstance(p, str) or not p.strip()), None)
        if blank is not None:
            what = "is blank" if isinstance(self.prompts[blank], str) else f"is not text: {self.prompts[blank]!r}"
            raise ValueError(f"prompt {blank + 1} of the {len(self.prompts)} of set {self.name!r} {what}")
        if self.responses is not None:
            object.__setattr__(self, "responses", tuple(self.responses))
            if len(self.responses) != len(self.prompts):
                raise ValueError(
                    f"prompt set {self.name!r} has {len(self.prompts)} prompts but {len(self.responses)} responses"
                )
            odd = next((i for i, response in enumerate(self.responses) if not isinstance(response, str)), None)
            if odd is not None:
                raise ValueError(
                    f"response {odd + 1} of the {len(self)} of set {self.name!r} is not text: {self.responses[odd]!r}"
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.prompts)

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> PromptSet: ...
    def __getitem__(self, which: int | slice) -> str | PromptSet:
        """One prompt by its index, or the set of those in a slice, with their responses."""
        if not isinstance(which, slice):
            return self.prompts[which]
        return PromptSet(self.name, self.prompts[which], self.responses and self.responses[which])

    def __repr__(self) -> str:
        with_responses = "" if self.responses is None else " with responses"
        return f"PromptSet({self.name!r}, {len(self)} prompts{with_responses}, {self.fingerprint})"

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt: ``prompt`` and, where the set has them, ``response``."""
        import pandas as pd

        columns = {"prompt": self.prompts} | ({} if self.responses is None else {"response": self.responses})
        return pd.DataFrame(columns)

    def _repr_html_(self) -> str:
        shown = self.to_frame().to_html(max_rows=6, border=0)
        return f"<div><strong>{escape(repr(self))}</strong>{shown}</div>"

    def __add__(self, other: PromptSet) -> PromptSet:
        """Both sets, one after the other; either both have responses or neither."""
        if (self.responses is None) != (other.responses is None):
            lacking = self if self.responses is None else other
            raise ValueError(f"cannot join {self.name!r} and {other.name!r}: {lacking.name!r} has no responses")
        responses = None if self.responses is None else self.responses + other.require_responses()
        return PromptSet(f"{self.name}+{other.name}", self.prompts + other.prompts, responses)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of prompts and responses, in order; the name does not count."""
        text = json.dumps([self.prompts, self.responses], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def take(self, n: int | None, *, seed: int | None = None) -> PromptSet:
        """The first ``n`` prompts (all if None), or ``n`` drawn without replacement when a seed is given."""
        if n is None:
            return self
        if not hasattr(n, "__index__") or not 0 < n <= len(self):
            raise ValueError(f"cannot take {n} of the {len(self)} prompts of set {self.name!r}")
        chosen = range(n) if seed is None else random.Random(int(seed)).sample(range(len(self)), n)
        responses = self.responses and tuple(self.responses[i] for i in chosen)
        return PromptSet(self.name, tuple(self.prompts[i] for i in chosen), responses)

    def at_most(self, n: int | None) -> PromptSet:
        """The first ``n`` prompts; all of them if there are fewer, or if None."""
        return self.take(None if n is None else min(n, len(self)))

    def require_responses(self) -> tuple[str, ...]:
        """The responses, or a ValueError that says the set has none."""
        if self.responses is None:
            raise ValueError(
                f"prompt set {self.name!r} has no responses, which this needs; "
                "name their column (responses=, or --responses)"
            )
        return self.responses


def as_prompt_set(prompts: PromptSet | Sequence[str], name: str = "prompts") -> PromptSet:
    """A PromptSet as it is, or one made of a list of instructions."""
    if isinstance(prompts, str):
        raise ValueError(f"expected a PromptSet or a list of prompts, not the single string {prompts!r}")
    if isinstance(prompts, Mapping) or hasattr(prompts, "columns") or hasattr(prompts, "column_names"):
        # Going through a table gives the names of its columns.
        raise ValueError(f"a {type(prompts).__name__} is a table: load_prompts(table, column=...) makes prompts of it")
    return prompts if isinstance(prompts, PromptSet) else PromptSet(name, tuple(prompts))


def resolve_template(tokenizer: Any, template: str = "auto") -> str:
    """The template's name or text, checked: ``"auto"`` is the chat template where there is one, else ``"alpaca"``."""
    has_chat = getattr(tokenizer, "chat_template", None) is not None
    if template == "auto":
        return "chat" if has_chat else "alpaca"
    if template == "chat" and not has_chat:
        raise ValueError("the tokenizer has no chat template; use template='alpaca' or a string with {instruction}")
    if template != "chat" and template not in TEMPLATES and "{instruction}" not in template:
        raise ValueError(
            f"template {template!r} is neither 'auto', 'chat', {', '.join(map(repr, TEMPLATES))} "
            "nor a string that contains {instruction}"
        )
    return template


def render(tokenizer: Any, prompt: str, template: str = "auto", system: str | None = None) -> str:
    """The text that is put to the model, up to the point where its answer starts.

    A system prompt goes where the chat template wants it, and in front of the other templates.
    """
    template = resolve_template(tokenizer, template)
    if template == "chat":
        messages = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # Jinja's own, which the template raises: Gemma's takes no system prompt
            what = "a system prompt" if system else "this prompt"
            raise ValueError(
                f"the tokenizer's chat template does not take {what} ({error}): leave system= out, or pass template= "
                "with {instruction} in it"
            ) from error
        return text
    filled = TEMPLATES.get(template, template).replace("{instruction}", prompt)
    return f"{system}\n\n{filled}" if system else filled


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, with its response where there is one: ``ids[response_start:]`` are the response's."""

    ids: tuple[int, ...]
    response_start: int
    beginning: int = 0
    """How many leading tokens do not count in a score, because every prompt begins with them (``beginning.py``)."""

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    tokenizer: Any,
    prompts: PromptSet | Sequence[str],
    *,
    template: str = "auto",
    system: str | None = None,
    with_responses: bool = False,
) -> list[Encoded]:
    """Tokenize prompts in a template and, on request, their responses, each closed by the end-of-sequence token.

    A chat template writes its own special tokens; with the others the tokenizer adds its beginning of sequence. The
    response is tokenized apart from the prompt, so that the boundary falls between tokens.
    """
    prompts = as_prompt_set(prompts)
    template = resolve_template(tokenizer, template)
    texts = [render(tokenizer, prompt, template, system) for prompt in prompts]
    prompt_ids = tokenizer(texts, add_special_tokens=template != "chat")["input_ids"]
    if template != "chat" and tokenizer.eos_token_id is not None:
        # Some tokenizers close every text with an end of sequence; a prompt must stay open.
        prompt_ids = [ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids for ids in prompt_ids]
    empty = next((i for i, ids in enumerate(prompt_ids) if not ids), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} of set {prompts.name!r} has no tokens: {prompts.prompts[empty]!r}")
    if not with_responses:
        return [Encoded(tuple(ids), len(ids)) for ids in prompt_ids]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer_ids = tokenizer(list(prompts.require_responses()), add_special_tokens=False)["input_ids"]
    silent = next((i for i, ids in enumerate(answer_ids) if not ids), None)
    if silent is not None:
        raise ValueError(f"response {silent} of set {prompts.name!r} has no tokens; every prompt needs a response")
    return [Encoded((*p, *a, *end), len(p)) for p, a in zip(prompt_ids, answer_ids, strict=True)]
