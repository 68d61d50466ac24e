"""Data sets that are streamed are read as far as is asked for, however training data are read from them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from datasets import IterableDataset

import safecircuits as sc

READ: list[int] = []


def asks(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"what is {number} ?"}


def says(number: int) -> dict[str, str]:
    return {"role": "assistant", "content": str(number)}


def chats() -> Iterator[dict[str, Any]]:
    """Every second chat has no answer, and is left out."""
    for number in count():
        READ.append(number)
        yield {"messages": [asks(number), says(number), asks(2 * number), *([says(2 * number)] if number % 2 else [])][
            : 4 if number % 2 else 1
        ]}  # fmt: skip


def exchanges() -> Iterator[dict[str, Any]]:
    for number in count():
        READ.append(number)
        yield {"messages": [asks(number), says(number)]}


def rows() -> Iterator[dict[str, Any]]:
    """Two of three have no response, and are left out."""
    for number in count():
        READ.append(number)
        yield {"prompt": f"what is {number} ?", "response": None if number % 3 else str(number)}


@pytest.mark.parametrize("load", [sc.data.load_chats, sc.data.load_training_data])
def test_chats_without_an_end_are_read_as_far_as_asked(load: Any) -> None:
    READ.clear()
    with pytest.warns(UserWarning, match="have no answer"):
        found = load(IterableDataset.from_generator(chats), n=3)
    assert [chat[-1].content for chat in found.chats] == ["2", "6", "10"]
    assert max(READ) < 20


@pytest.mark.parametrize("source", [exchanges, rows])
def test_prompts_without_an_end_to_train_on_are_read_as_far_as_asked(source: Any) -> None:
    READ.clear()
    found = sc.data.load_training_data(IterableDataset.from_generator(source), n=3)
    step = 3 if source is rows else 1
    assert found.responses == ("0", str(step), str(2 * step))
    assert max(READ) < 20
