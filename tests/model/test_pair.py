"""Whatever puts two checkpoints side by side refuses two that do not correspond, in one error that says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer

PROMPTS = sc.PromptSet("p", ("make the cake", "find a lamp", "fix the road", "bake tea"))

USES: dict[str, Callable[[Any, Any], Any]] = {
    "change scores": lambda a, b: sc.units.change_scores(a, b, PROMPTS),
    "patching curves": lambda a, b: sc.units.patching_curves(
        a, b, {2: sc.FreezeMask.of_units({"mlp": {0: [1, 2]}}, b)}, PROMPTS
    ),
    "patched answers": lambda a, b: sc.behavior.generate_patched(
        a, b, PROMPTS, {"": sc.FreezeMask.of_units({"mlp": {0: [1]}}, a)}
    ),
    "patched divergences": lambda a, b: sc.behavior.patched_divergences(
        a, b, sc.behavior.KLReference.of(a, PROMPTS, n_tokens=1), {"": sc.FreezeMask.of_units({"mlp": {0: [1]}}, a)}
    ),
    "depth": lambda a, b: sc.behavior.alignment_depth(b, a, PROMPTS),
}


def model(seed: int = 0, tokenizer: Any = None, **changes: Any) -> Any:
    return sc.load_model(build_tiny_llama(seed, **changes), tokenizer=tokenizer or build_tiny_tokenizer())


def other_tokenizer() -> Any:
    """The same words, two of them changed for each other."""
    tokenizer = build_tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    words = state["model"]["vocab"]
    words["cake"], words["lamp"] = words["lamp"], words["cake"]
    tokenizer._tokenizer = type(backend).from_str(json.dumps(state))
    return tokenizer


@pytest.mark.parametrize("use", USES)
def test_two_that_do_not_correspond_are_refused(use: str) -> None:
    aligned = model(1)
    cases: list[tuple[Any, str]] = [
        (model(num_hidden_layers=2), "n_layers 2 in the one, 3 in the other|n_layers 3 in the one, 2 in the other"),
        (model(intermediate_size=40), "d_mlp (40|48) in the one"),
        (model(tokenizer=other_tokenizer()), r"tokenizers differ .*'cake'"),
        (aligned, "one and the same model"),
    ]
    for base, message in cases:
        with pytest.raises(ValueError, match=message):
            USES[use](base, aligned)
