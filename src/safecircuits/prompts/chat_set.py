"""Chats to train on: several turns each, with the loss on what the assistant says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from safecircuits.base.arguments import READ_AS
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set, has_lone_surrogate
from safecircuits.prompts.sources import listed, split_of, table_of
from safecircuits.prompts.turns import Turn, turns_of
from safecircuits.prompts.whole_chats import chats_in

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ChatSet:
    """Chats of any length, as ``finetune`` trains on them. Analyses take questions, which are a ``PromptSet``.

    Args:
        name: for notices and records.
        chats: each a sequence of ``Turn``, or of messages with role and content (or from and value).

    Raises:
        ValueError: for a set without chats, and a chat that does not begin with a question (after a system turn, if it
            has one), that has a blank turn, or no answer to train on.

    Examples:
        >>> talk = [{"role": "user", "content": "name a fruit ."}, {"role": "assistant", "content": "apple"}]
        >>> chats = sc.prompts.ChatSet("mine", [talk + talk, talk])
        >>> len(chats), [len(chat) for chat in chats]
        (2, [4, 2])
        >>> chats.questions().prompts
        ('name a fruit .', 'name a fruit .', 'name a fruit .')
    """

    name: str
    chats: tuple[tuple[Turn, ...], ...]

    def __post_init__(self) -> None:
        given: Sequence[Sequence[Turn | Mapping[str, Any]]] = self.chats
        if isinstance(given, str | Mapping) or not hasattr(given, "__iter__"):
            raise ValueError(f"chats are several lists of turns, not a {type(given).__name__}")
        read = []
        for i, chat in enumerate(given, 1):
            where = f"chat {i} of set {self.name!r}"
            turns = tuple(chat)
            if not all(isinstance(turn, Turn) for turn in turns):
                turns = turns_of(turns, where, "messages")
            _require_trainable(turns, where)  # type: ignore[arg-type]  # they are turns by now
            read.append(turns)
        if not read:
            raise ValueError(f"chat set {self.name!r} is empty")
        object.__setattr__(self, "chats", tuple(read))

    def __len__(self) -> int:
        return len(self.chats)

    def __iter__(self) -> Iterator[tuple[Turn, ...]]:
        return iter(self.chats)

    def __repr__(self) -> str:
        turns = sum(len(chat) for chat in self.chats)
        return f"ChatSet({self.name!r}, {len(self)} chats, {turns} turns, {self.fingerprint})"

    def __add__(self, other: ChatSet | PromptSet) -> ChatSet:
        """Both sets, one after the other; prompts with their responses are chats of one exchange."""
        more = ChatSet.of(other)
        return ChatSet(f"{self.name}+{more.name}", self.chats + more.chats)

    @classmethod
    def of(cls, data: ChatSet | PromptSet) -> ChatSet:
        """Chats as they are, or prompts with their responses as chats of one exchange."""
        if isinstance(data, ChatSet):
            return data
        rows = zip(data.prompts, data.require_responses(), strict=True)
        return cls(data.name, tuple((Turn("user", asked), Turn("assistant", said)) for asked, said in rows))

    def to_frame(self) -> pd.DataFrame:
        """One row a turn: ``chat``, ``turn`` (both from 0), ``role``, ``content``, ``trained``."""
        import pandas as pd

        rows = [
            {"chat": i, "turn": k, "role": turn.role, "content": turn.content, "trained": turn.trained}
            for i, chat in enumerate(self.chats)
            for k, turn in enumerate(chat)
        ]
        return pd.DataFrame(rows)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of all turns, in order; the name does not count."""
        text = json.dumps([[(t.role, t.content, t.trained) for t in chat] for chat in self.chats], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """What a result keeps of the set: its ``name``, the number ``n`` of chats, and ``sha``, its fingerprint."""
        return {"name": self.name, "n": len(self), "sha": self.fingerprint}

    def subset(self, rows: Sequence[int]) -> ChatSet:
        """The chats at these places, in this order."""
        return ChatSet(self.name, tuple(self.chats[row] for row in rows))

    def questions(self) -> PromptSet:
        """All that users say in them, such as to see what of it a set to judge on shares."""
        return PromptSet(self.name, tuple(t.content for chat in self.chats for t in chat if t.role == "user"))


TrainingData = PromptSet | ChatSet
"""What a model is fine-tuned on."""


def as_training_data(data: Any, name: str = "data") -> TrainingData:
    """Prompts or chats as they are; of a table chats where it holds any longer than one exchange, prompts otherwise."""
    if isinstance(data, PromptSet | ChatSet):
        return data
    data = listed(data)
    table = None if isinstance(data, str) else table_of(split_of(data, None))
    chats = None if table is None else chats_in(table, None, name)
    return as_prompt_set(data, name) if chats is None else ChatSet(name, tuple(chats))


READ_AS["TrainingData"] = as_training_data


def _require_trainable(turns: tuple[Turn, ...], where: str) -> None:
    """A ValueError for a chat that cannot be trained on."""
    system = [i for i, turn in enumerate(turns) if turn.role == "system"]
    if system not in ([], [0]):
        raise ValueError(f"{where} has a system turn that is not its first, or several: join them into the first")
    spoken = turns[len(system) :]
    if not spoken or spoken[0].role != "user":
        first = "has no turns" if not spoken else f"begins with the {spoken[0].role}"
        raise ValueError(f"{where} {first}: a chat begins with the user, after a system turn if it has one")
    for k, turn in enumerate(turns, 1):
        if not turn.content.strip():
            raise ValueError(f"{where}: turn {k}, the {turn.role}'s, is blank: leave it out, or the chat")
        if has_lone_surrogate(turn.content):
            raise ValueError(f"{where}: turn {k} holds half a character (a lone surrogate); write the data as UTF-8")
    if not any(turn.role == "assistant" and turn.trained for turn in turns):
        raise ValueError(f"{where} has no answer to train on: it needs a turn of the assistant whose weight is not 0")
