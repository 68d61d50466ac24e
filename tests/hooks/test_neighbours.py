"""What else is in a batch changes no row: as a property over configurations, up to the context and beyond it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import configurations
import safecircuits as sc
import zoo
from conftest import WORDS

CONTEXT = 64
PLAIN: dict[str, Any] = {"template": "none"}
# Positions, windows, states and learned tables, each of which could look at the longest row.
BRIDGES = [
    "Llama, dynamic positions", "Llama, yarn", "Phi-3, longrope", "Mistral, window", "Qwen2, window", "Gemma-3",
    "OLMo-3", "GPT-2", "GPT-Neo", "GPT-J", "BLOOM", "OPT", "Mamba", "LFM2", "Jamba", "gpt-oss", "SmolLM3",
]  # fmt: skip
HOOKED = [
    "Llama, dynamic positions", "Llama, yarn", "Phi-3, longrope", "Mistral, window", "Qwen2, window", "OLMo-3", "GPT-2",
    "GPT-Neo", "GPT-J", "BLOOM",
]  # fmt: skip
CASES = [(name, "bridge") for name in BRIDGES] + [(n, "hooked") for n in HOOKED if "hooked" in zoo.backends()]
every_case = pytest.mark.parametrize(("name", "backend"), CASES)


@cache
def both(name: str, backend: str) -> tuple[Any, Any]:
    hf = configurations.build(name)
    return hf, sc.load_model(hf, tokenizer=zoo.tokenizer(), backend=backend)


def prompt(start: int, length: int) -> str:
    return " ".join(WORDS[(start + 5 * i) % len(WORDS)] for i in range(length))


@every_case
@given(lengths=st.lists(st.tuples(st.integers(0, 30), st.integers(1, CONTEXT - 4)), min_size=2, max_size=4))
@settings(max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_row_is_what_it_is_alone(name: str, backend: str, lengths: list[tuple[int, int]]) -> None:
    hf, model = both(name, backend)
    prompts = [prompt(start, length) for start, length in lengths]
    want = configurations.alone(hf, prompts)
    assert configurations.apart(sc.collect_residuals(model, prompts, **PLAIN).values, want) < 1e-4
    tokens: list[list[int]] = []
    sc.generate(model, prompts, max_new_tokens=3, token_ids=tokens, **PLAIN)
    assert tokens == configurations.continued(hf, prompts, 3)


@every_case
def test_beyond_the_context_a_row_is_right_or_refused(name: str, backend: str) -> None:
    """Where positions are computed there is no end; in a table, or scaled by the longest row, there is."""
    hf, model = both(name, backend)
    prompts = [prompt(0, CONTEXT + 6), prompt(3, 5)]
    said = []
    for measure in (
        lambda: sc.collect_residuals(model, prompts, **PLAIN),
        lambda: sc.generate(model, prompts, max_new_tokens=2, **PLAIN),
        lambda: sc.response_loss(model, sc.PromptSet("p", tuple(prompts), ("sure", "a dog")), **PLAIN),
    ):
        try:
            measure()
        except ValueError as error:
            said.append(str(error))
    if said:
        limits = rf"have 7\d tokens or more(, but the model's context is|: beyond) {CONTEXT}"
        assert len(said) == 3, said
        assert all(re.search(limits, text) for text in said)
    else:
        want = configurations.alone(hf, prompts)
        assert configurations.apart(sc.collect_residuals(model, prompts, **PLAIN).values, want) < 1e-4
    scaled_or_placed = name in ("Llama, dynamic positions", "Phi-3, longrope", "GPT-2", "GPT-Neo", "GPT-J", "OPT")
    assert bool(said) or not scaled_or_placed


def test_without_the_limit_a_neighbour_would_change_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    hf, model = both("Phi-3, longrope", "bridge")
    monkeypatch.setattr("safecircuits.model.context.unscaled_positions", lambda config: None)
    prompts = [prompt(0, CONTEXT + 6), prompt(3, 5)]
    values = sc.collect_residuals(model, prompts, **PLAIN).values
    assert configurations.apart(values, configurations.alone(hf, prompts)) > 1e-3
