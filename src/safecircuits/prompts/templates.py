"""Templates: what stands around a prompt when it is put to a model. A tokenizer's chat template is the authority.

Wherever a function takes ``template=`` it takes a name, a text with ``{instruction}``, or a ``Template``, which says
more: the system prompt, and the day on which a chat template that writes the date believes to be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date as Date
from typing import Any

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


class Template(str):
    """A template with what goes with it; ``template=`` takes it everywhere, and its text is its name in records.

    Args:
        name: ``"auto"``, ``"chat"``, one of ``TEMPLATES``, or a text with ``{instruction}``.
        system: a system prompt, which goes where the chat template wants it, and in front of other templates. ``""``
            is no system prompt, also where a chat template writes one of its own; None leaves that to the template.
        date: the day that a chat template which writes today's date is given, ``PINNED`` unless given: ``2026-01-31``.
        options: what a chat template takes by name, such as ``{"enable_thinking": False}``.

    Raises:
        ValueError: for a date that is none, and options that are no names with values of JSON.

    Examples:
        >>> sc.prompts.Template("chat", system="Be careful.", options={"enable_thinking": False})
        "chat, system prompt 'Be careful.', enable_thinking=false"
    """

    name: str
    system: str | None
    date: str | None
    options: dict[str, Any]

    def __new__(
        cls,
        name: str = "auto",
        *,
        system: str | None = None,
        date: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Template:
        if date is not None:
            try:
                Date.fromisoformat(date)
            except (TypeError, ValueError):
                raise ValueError(f"date is a day as 2026-01-31, not {date!r}") from None
        said = "" if system is None else f", system prompt {system!r}" if system else ", no system prompt"
        said += "" if date is None else f", on {date}"
        made = super().__new__(cls, f"{name}{said}{_spelled(options or {})}")
        made.name, made.system, made.date, made.options = str(name), system, date, dict(options or {})
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (self.name,), {"system": self.system, "date": self.date, "options": self.options}

    @classmethod
    def of(cls, template: str, system: str | None = None) -> Template:
        """A template as given, with the ``system`` that a function was given beside it.

        Raises:
            ValueError: if both name a system prompt, and not the same.
        """
        made = template if isinstance(template, Template) else cls(template)
        if system is None or system == made.system:
            return made
        if made.system is not None:
            raise ValueError(f"the template has the system prompt {made.system!r}, but system={system!r}: give one")
        return cls(made.name, system=system, date=made.date, options=made.options)

    def named(self, name: str) -> Template:
        return Template(name, system=self.system, date=self.date, options=self.options)


_OURS = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
)


def _spelled(options: Mapping[str, Any]) -> str:
    """Options as they stand in a template's name."""
    for key, value in options.items():
        if not isinstance(key, str) or not key.isidentifier() or key in _OURS or key.startswith("return_"):
            raise ValueError(f"a template option is what its chat template takes, as enable_thinking, not {key!r}")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(f"the template option {key} has a value of JSON, not {value!r}") from None
    return "".join(f", {key}={json.dumps(value)}" for key, value in options.items())


def resolve_template(tokenizer: Any, template: str = "auto") -> Template:
    """The template, checked: ``"auto"`` is the chat template where there is one, else ``"alpaca"``.

    Examples:
        >>> sc.prompts.resolve_template(model.tokenizer)
        'chat'
        >>> sc.prompts.resolve_template(model.tokenizer, "{instruction} Answer:")
        '{instruction} Answer:'
    """
    asked = Template.of(template)
    has_chat = getattr(tokenizer, "chat_template", None) is not None
    if asked.name == "auto":
        asked = asked.named("chat" if has_chat else "alpaca")
    name = asked.name
    if name == "chat" and not has_chat:
        raise ValueError("the tokenizer has no chat template; use template='alpaca' or a string with {instruction}")
    if name != "chat" and name not in TEMPLATES and "{instruction}" not in name:
        raise ValueError(
            f"template {name!r} is neither 'auto', 'chat', {', '.join(map(repr, TEMPLATES))} "
            "nor a string that contains {instruction}"
        )
    if asked.options and name != "chat":
        raise ValueError(f"options are of chat templates; {name!r} takes no {', '.join(asked.options)}")
    return asked


def stop_string(tokenizer: Any, template: str = "auto") -> str | None:
    """What a model begins a line with when it goes on to ask itself the next question; None where it has an end token.

    In a template that is plain text that is the heading in front of the instruction: ``### Instruction:``, ``Q:``.
    """
    name = resolve_template(tokenizer, template).name
    if name == "chat":
        return None
    before = TEMPLATES.get(name, name).partition("{instruction}")[0]
    heading = before.rstrip().rpartition("\n")[2].strip()
    is_heading = heading.endswith(":") or heading.startswith(("#", "<", "["))
    return heading if is_heading and any(map(str.isalnum, heading)) else None
