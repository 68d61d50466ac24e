"""Prompt sets, templates, tokens and batches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safecircuits.prompts.batching import batches, pad_left, position_ids
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode
from safecircuits.prompts.rendering import render


def test_fingerprint_follows_content_and_order_only() -> None:
    a = PromptSet("a", ("x", "y"), ("1", "2"))
    assert a.fingerprint == PromptSet("b", ("x", "y"), ("1", "2")).fingerprint
    others = [
        PromptSet("a", ("y", "x"), ("2", "1")),
        PromptSet("a", ("x", "y")),
        PromptSet("a", ("x", "y"), ("1", "3")),
    ]
    assert len({p.fingerprint for p in [a, *others]}) == 4


def test_take_keeps_responses_with_their_prompts() -> None:
    full = PromptSet("a", tuple("abcdef"), tuple("ABCDEF"))
    some = full.take(3, seed=1)
    assert len(some) == 3
    assert all(p.upper() == r for p, r in zip(some.prompts, some.require_responses(), strict=True))
    assert full.take(2).prompts == ("a", "b")
    assert [len(full.at_most(n)) for n in (2, 6, 7, None)] == [2, 6, 6, 6]
    assert full.at_most(2).responses == ("A", "B")


def test_joining_keeps_order_and_needs_responses_on_both_or_neither() -> None:
    a, b = PromptSet("a", ("x",), ("1",)), PromptSet("b", ("y",), ("2",))
    assert (a + b).prompts == ("x", "y")
    assert (a + b).responses == ("1", "2")
    with pytest.raises(ValueError, match="'c' has no responses"):
        a + PromptSet("c", ("z",))


def test_joining_keeps_the_categories_that_one_set_has() -> None:
    told, untold = PromptSet("a", ("x", "y"), categories=("fraud", "harm")), PromptSet("b", ("z",))
    assert (told + told).categories == ("fraud", "harm", "fraud", "harm")
    assert (told + untold).categories == ("fraud", "harm", "none")
    assert (untold + told).categories == ("none", "fraud", "harm")
    assert (untold + untold).categories is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptSet("n", ()), "set 'n' is empty"),
        (lambda: PromptSet("n", ("a", "  ")), "prompt 2 of the 2 of set 'n' is blank"),
        (lambda: PromptSet("n", ("a", "b"), ("1",)), "2 prompts but 1 responses"),
        (lambda: PromptSet("n", ("a",)).take(2), "cannot take 2 of the 1"),
        (lambda: PromptSet("n", ("a",)).require_responses(), "has no responses"),
    ],
)
def test_bad_sets_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_templates(tiny_tokenizer: Any) -> None:
    assert render(tiny_tokenizer, "find a lamp") == "<user> find a lamp <assistant>"
    assert render(tiny_tokenizer, "find a lamp", system="sure") == "<system> sure <user> find a lamp <assistant>"
    alpaca = render(tiny_tokenizer, "find a lamp", "alpaca")
    assert alpaca.startswith("Below is an instruction")
    assert alpaca.endswith("### Instruction:\nfind a lamp\n\n### Response:\n")
    assert render(tiny_tokenizer, "find {x}", "Q: {instruction}?") == "Q: find {x}?"
    with pytest.raises(ValueError, match="template 'Q' is neither"):
        render(tiny_tokenizer, "x", "Q")


def test_a_tokenizer_without_chat_template_falls_back_or_says_so(tiny_tokenizer: Any) -> None:
    import copy

    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    assert render(plain, "find a lamp").startswith("Below is")
    with pytest.raises(ValueError, match="no chat template"):
        render(plain, "find a lamp", "chat")


def test_responses_start_where_the_prompt_ends_and_end_with_eos(tiny_tokenizer: Any) -> None:
    data = PromptSet("a", ("find a lamp",), ("sure take it",))
    (alone,) = encode(tiny_tokenizer, data)
    (both,) = encode(tiny_tokenizer, data, with_responses=True)
    assert both.ids[: both.response_start] == alone.ids
    answer = both.ids[both.response_start :]
    assert tiny_tokenizer.convert_ids_to_tokens(answer) == ["sure", "take", "it", "<eos>"]


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)


@given(lengths, st.integers(1, 40))
def test_batches_hold_every_prompt_once_within_the_budget(sizes: list[int], budget: int) -> None:
    examples = [Encoded(tuple(range(1, size + 1)), size - 1) for size in sizes]
    seen: list[int] = []
    for batch in batches(examples, budget):
        seen += batch.rows
        assert batch.input_ids.numel() <= budget or len(batch) == 1
        for row, i in enumerate(batch.rows):
            real = batch.attention_mask[row].bool()
            assert tuple(batch.input_ids[row][real].tolist()) == examples[i].ids
            assert real.tolist() == sorted(real.tolist()), "padding is on the left"
            assert batch.is_response[row].sum() == 1
            assert position_ids(batch.attention_mask)[row][real].tolist() == list(range(sizes[i]))
    assert sorted(seen) == list(range(len(sizes)))


def test_pad_left_keeps_the_last_token_last() -> None:
    batch = pad_left([Encoded((5, 6, 7), 3), Encoded((9,), 1)])
    assert batch.input_ids[:, -1].tolist() == [7, 9]
    assert not batch.is_response.any()


def test_identity_names_a_set_its_size_and_its_content() -> None:
    some = PromptSet("a", ("x", "y"))
    assert some.identity == {"name": "a", "n": 2, "sha": some.fingerprint}
    assert some.take(1).identity == {"name": "a", "n": 1, "sha": PromptSet("b", ("x",)).fingerprint}
