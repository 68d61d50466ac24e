"""Chats as tokens, with the places of what the assistant says.

Where the template marks that itself (``{% generation %}``), its marks count, as ``apply_chat_template`` reads them.
Otherwise an answer is what the text of the chat up to it has more than the text before it, which must be how the whole
chat begins; a template for which that is not so, as one that takes reasoning out of earlier turns, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from safecircuits.prompts.chat_set import ChatSet, TrainingData
from safecircuits.prompts.prompt_set import Encoded, encode
from safecircuits.prompts.rendering import Chat, chat_source, common_prefix_length
from safecircuits.prompts.templates import Template, resolve_template
from safecircuits.prompts.trial import UnboundedTemplate
from safecircuits.prompts.turns import Turn

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_training(
    tokenizer: Any, data: TrainingData, *, template: str = "auto", last_only: bool = False
) -> list[Encoded]:
    """Prompts with responses, or chats, as tokens to train on."""
    if isinstance(data, ChatSet):
        return encode_chats(tokenizer, data, template=template, last_only=last_only)
    return encode(tokenizer, data, template=template, with_responses=True)


def encode_chats(tokenizer: Any, chats: ChatSet, *, template: str = "auto", last_only: bool = False) -> list[Encoded]:
    """Tokens of whole chats in the tokenizer's chat template; ``Encoded.answers`` are the places of the answers.

    An answer is what the assistant says with its end of turn, and what the template writes after that and before the
    next turn begins; as much as the template marks, where it marks answers.

    Args:
        template: ``"auto"``, ``"chat"`` or a ``Template``; its system prompt is that of chats without a system turn.
        last_only: only the last answer of each chat counts.

    Raises:
        ValueError: for a tokenizer without a chat template, and for a chat that the template does not take, writes in
            part, or writes otherwise once it goes on.

    Examples:
        >>> talk = [{"role": "user", "content": "find a tool ."}, {"role": "assistant", "content": "take the rope ."}]
        >>> example = sc.prompts.encode_chats(model.tokenizer, sc.prompts.ChatSet("mine", [talk + talk]))[0]
        >>> [model.tokenizer.decode(example.ids[start:stop]) for start, stop in example.answers]
        ['take the rope . <eos>', 'take the rope . <eos>']
    """
    resolved = resolve_template(tokenizer, template)
    if resolved.name != "chat":
        raise ValueError(
            f"set {chats.name!r} holds chats of several turns, which only a chat template can write: template "
            f"{resolved.name!r} is for one instruction; give the tokenizer a chat template, or cut the chats to one "
            "exchange"
        )
    return [
        _encoded(tokenizer, resolved, turns, last_only, f"chat {i} of set {chats.name!r}")
        for i, turns in enumerate(chats, 1)
    ]


def _encoded(tokenizer: Any, template: Template, turns: Sequence[Turn], last_only: bool, where: str) -> Encoded:
    if turns[0].role == "system" and template.system is not None:
        raise ValueError(f"{where} has a system turn, and the template a system prompt: give one of them")
    chat = Chat(tokenizer, template)
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    trained = [i for i in answers if turns[i].trained]
    trained = trained[-1:] if last_only else trained
    said = [(turn.role, turn.content) for turn in turns]
    try:
        return _placed(tokenizer, chat, said, answers, trained)
    except UnboundedTemplate:
        raise
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _placed(
    tokenizer: Any, chat: Chat, said: Sequence[tuple[str, str]], answers: list[int], trained: list[int]
) -> Encoded:
    """A chat as tokens, with the places of the turns ``trained`` among the ``answers``."""
    if chat.can_mark and _MARKS.search(chat_source(tokenizer)):
        ids, runs = _marked(chat, said)
        if len(runs) != len(answers):
            raise ValueError(
                f"the tokenizer's chat template marks {len(runs)} answers where the chat has {len(answers)}"
            )
        places = [runs[answers.index(i)] for i in trained]
    else:
        whole, around = chat.dialogue(said, trained)
        texts = [whole, *(text for pair in around for text in pair)]
        ids, *parts = tokenizer(texts, add_special_tokens=False)["input_ids"]
        ends = [common_prefix_length(ids, part) for part in parts]
        places = list(zip(ends[::2], ends[1::2], strict=True))
    if silent := [i for i, (start, stop) in zip(trained, places, strict=True) if start >= stop]:
        raise ValueError(f"turn {silent[0] + 1}, an answer, has no tokens")
    return Encoded(tuple(ids), places[0][0], answers=tuple(places))


def _marked(chat: Chat, said: Sequence[tuple[str, str]]) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and the runs of them that the template marks as the assistant's."""
    ids, marks = chat.marked(said)
    runs, start = [], 0
    for mark, run in groupby(marks):
        stop = start + len(list(run))
        if mark:
            runs.append((start, stop))
        start = stop
    return ids, runs
