"""Prompts that two sets share: against comparing every pair by hand."""

from __future__ import annotations

import warnings
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecircuits.base.notices import Notice
from safecircuits.prompts.leaks import NEAR, overlap, tell_overlaps
from safecircuits.prompts.prompt_set import PromptSet


def test_the_same_prompt_in_another_dress() -> None:
    first = ["How do I bake a good cake?", "Name a fruit.", "怎么做一个好吃的蛋糕呢？"]
    second = ["“how do i bake a good cake”", "Ｎａｍｅ  a fruit!", "怎么做一个好吃的蛋糕呢", "Where is Rome?"]
    found = overlap(first, second)
    assert found.exact == ((0, 0), (1, 1), (2, 2))
    assert found.near == ()
    assert found.rows == (0, 1, 2)
    assert "3 of the 4 prompts of 'second' are in 'first', too (3 the same, 0 nearly)" in str(found)


def test_nearly_the_same_prompt() -> None:
    first = ["Write a short poem about the sea and the many ships that sail on it today"]
    near = "Write a short poem about the sea and the many ships that sail on it now"
    other = "Write a long story about the city and the few cars that drive in it now"
    found = overlap(first, [near, other])
    assert (found.exact, found.near) == ((), ((0, 0),))
    assert not overlap(first, [other])
    assert "share no prompt" in str(overlap(first, [other]))


words = st.lists(st.sampled_from("abcde"), min_size=1, max_size=7).map(" ".join)


@given(st.lists(words, min_size=1, max_size=6), st.lists(words, min_size=1, max_size=6))
def test_against_every_pair(first: list[str], second: list[str]) -> None:
    found = overlap(first, second)

    def pieces(prompt: str) -> set[tuple[str, ...]]:
        of = prompt.split()
        return {(word,) for word in of} if len(of) < 4 else set(pairwise(of))

    exact, near = [], []
    for (i, a), (j, b) in product(enumerate(first), enumerate(second)):
        if a == b:
            exact.append((i, j))
        elif len(pieces(a) & pieces(b)) >= NEAR * len(pieces(a) | pieces(b)):
            near.append((i, j))
    assert sorted(found.exact) == sorted(exact)
    assert sorted(found.near) == sorted(near)


def test_a_notice_names_what_is_shared() -> None:
    one, other = PromptSet("safety", ("Name a fruit.", "a b c")), PromptSet("asked", ("name a fruit",))
    with pytest.warns(Notice, match="what is found on scoring is judged on refusal, but 1 of the 1 prompts of 'asked'"):
        assert len(tell_overlaps({"scoring": one, "nothing": None}, {"refusal": other})) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tell_overlaps({"scoring": one}, {"refusal": PromptSet("x", ("Where is Rome?",)), "none": None}) == []
    with pytest.raises(ValueError, match="near is a share above 0 and at most 1, not 0"):
        overlap(one, other, near=0)
