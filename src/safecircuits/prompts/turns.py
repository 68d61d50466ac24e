"""The turns of a chat, from messages as OpenAI and TRL write them, or as ShareGPT does.

``{"role": "user", "content": …}``, or ``{"from": "human", "value": …}``; a content may be a list of parts of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from safecircuits.prompts.cells import is_missing, plain, text_of

Role = Literal["system", "user", "assistant"]
ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt"), "assistant"),
}
"""Who speaks, by the names that data sets have for them."""
_NOT_TEXT = ("tool_calls", "function_call", "reasoning_content", "thinking", "images", "audio")
"""Fields of a message that a template would write, and that are no text of its content."""


@dataclass(frozen=True)
class Turn:
    """What one says in a chat. ``trained`` is whether the loss counts it, where it is the assistant's.

    Raises:
        ValueError: for a role other than these three.

    Examples:
        >>> sc.prompts.Turn("assistant", "an apple .")
        Turn(role='assistant', content='an apple .', trained=True)
    """

    role: Role
    content: str
    trained: bool = True

    def __post_init__(self) -> None:
        if self.role not in ("system", "user", "assistant"):
            raise ValueError(f"a turn is of the system, the user or the assistant, not of {self.role!r}")


def is_chat(cell: Any) -> bool:
    """Whether this is a list (or, from a parquet file, an array) of messages."""
    cell = plain(cell)
    if not isinstance(cell, list | tuple) or not cell:
        return False
    return all(isinstance(one, Mapping) and isinstance(one.get("role", one.get("from")), str) for one in cell)


def turns_of(chat: Any, where: str, column: str) -> tuple[Turn, ...]:
    """The turns of a chat.

    Raises:
        ValueError: for a role that is none, such as a tool's; for contents that are no text; and for what a message
            has beside its content that would be lost: calls of tools, reasoning, images.
    """
    return tuple(_turn(message, f"message {i} of {where}", column) for i, message in enumerate(chat, 1))


def _turn(message: Mapping[str, Any], where: str, column: str) -> Turn:
    said = str(message.get("role") or message.get("from"))
    role = ROLES.get(said.strip().lower())
    if role is None:
        raise ValueError(
            f"{where} is of the role {said!r}: chats here are of system, user and assistant; leave chats with calls of "
            "tools out, or write what the tools said into the user's turns"
        )
    for name in _NOT_TEXT:
        value: Any = message.get(name)
        if not is_missing(value) and (not hasattr(value, "__len__") or len(value)):
            raise ValueError(
                f"{where} has {name!r} beside its content, which would be lost: write it into the content as the "
                "model's template does, or leave the chat out"
            )
    weight = message.get("weight")
    if not is_missing(weight) and weight not in (0, 1):
        raise ValueError(f"{where} has the weight {weight!r}: a turn counts in the loss (1) or does not (0)")
    content = message.get("content", message.get("value"))
    return Turn(role, _content(content, where, column), is_missing(weight) or weight == 1)


def _content(content: Any, where: str, column: str) -> str:
    """A text, also where it comes in parts."""
    parts = not isinstance(content, str | Mapping) and hasattr(content, "__len__")
    if not parts or not all(isinstance(part, Mapping) for part in content):
        return text_of(content, where, column)
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{where} has a part of type {part.get('type')!r}: only texts are read")
    return "".join(part["text"] for part in content)
