"""A model that goes on to ask itself the next question has ended its answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.behavior.conditions import pressure
from safecircuits.behavior.decoding import Writer
from safecircuits.behavior.sampling import sample
from safecircuits.behavior.scaled_completions import generate_scaled

PIECES = ("sure", " take", "\n", "###", " Instruction", ":", " ", "")
STOP = "### Instruction:"


class Spelling:
    """A tokenizer of whole pieces."""

    eos_token_id = None

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(PIECES[i] for i in ids)

    def batch_decode(self, written: list[list[int]], **options: Any) -> list[str]:
        return [self.decode(ids, **options) for ids in written]


@given(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=12))
def test_a_text_ends_where_a_line_begins_with_the_heading(ids: list[int]) -> None:
    model: Any = SimpleNamespace(tokenizer=Spelling(), original_model=SimpleNamespace(generation_config=None))
    writer = Writer(model, len(ids) + 1, None, STOP)
    tokens: list[int] = []
    for token in ids:
        if not writer.goes_on(tokens, token):
            break
    lines = Spelling().decode(ids).split("\n")
    asks = next((i for i, line in enumerate(lines) if line.lstrip(" ").startswith(STOP)), None)
    [text] = writer.texts([tokens])
    if asks is None:
        assert tokens == ids
        assert text == Spelling().decode(ids)
    else:
        assert text == "\n".join(lines[:asks])
        assert Spelling().decode(tokens).count(STOP) == 1  # and no token is written after it
        assert writer.ended(tokens)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_every_way_to_generate_ends_there(backend: str, make_tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a random model says first stands for the heading: then its answer is empty, and ended by itself."""
    model = make_tiny_model(backend)
    options: dict[str, Any] = {"template": "none", "max_new_tokens": 4}
    plain = sc.generate(model, ["find a lamp", "the cake"], **options)
    heading = plain.texts[0].split()[0]
    assert not plain.texts[1].startswith(heading)
    for module in ("generate", "scaled_completions", "sampling", "conditions"):
        monkeypatch.setattr(f"safecircuits.behavior.{module}.stop_string", lambda tokenizer, template: heading)
    found = sc.generate(model, ["find a lamp", "the cake"], **options)
    assert found.texts == ("", plain.texts[1])
    assert found.ended == (True, False)
    assert found.tokens == (1, 4)
    assert generate_scaled(model, ["find a lamp", "the cake"], [{}, {}], **options) == [found, found]
    cold = sample(model, ["find a lamp", "the cake"], temperature=1e-6, samples=2, **options)
    assert cold == (found, found)
    [attempt] = pressure(model, ["find a lamp", "the cake"], detector=lambda text: False, **options).attempts
    assert (attempt.completions.texts, attempt.completions.ended) == (found.texts, found.ended)


def test_warm_draws_that_begin_with_the_heading_are_empty_and_the_others_as_they_were(
    tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"samples": 40, "temperature": 2.0, "template": "none", "max_new_tokens": 3}
    free = [one.texts[0] for one in sample(tiny_bridge, ["find a lamp"], **options)]
    heading = next(text.split()[0] for text in free if text)
    monkeypatch.setattr("safecircuits.behavior.sampling.stop_string", lambda tokenizer, template: heading)
    stopped = sample(tiny_bridge, ["find a lamp"], **options)
    begins = [text.split(" ")[0].startswith(heading) for text in free]
    assert 0 < sum(begins) < 40
    assert [one.texts[0] for one in stopped] == [
        "" if there else text for text, there in zip(free, begins, strict=True)
    ]
    assert all(one.ended == (True,) for one, there in zip(stopped, begins, strict=True) if there)
