"""Attribution and the decision layers take the same tokens for refusing and for answering."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import WORDS
from safecircuits.behavior.verdict import unjudged


@pytest.mark.parametrize("seed", range(3))
def test_decision_layers_and_attribution_read_the_same_tokens(
    seed: int, make_tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many different openings on either side, some on both: no limit cuts one of the two short."""
    import safecircuits.layers.decision as decision
    import safecircuits.units.answer_tokens as answer_tokens

    model = make_tiny_model("bridge", seed)
    words = [word for word in WORDS if word not in (".",)]
    sets = [sc.PromptSet(kind, tuple(f"{kind} {a} {b}" for a, b in zip(words, words[seed + 1 :], strict=False)))
            for kind in ("tea", "bomb")]  # fmt: skip

    def is_bomb(texts: Any, _: Any) -> Any:
        return torch.tensor(["bomb" in prompt for prompt in texts.prompts])

    def judged(texts: Any, detector: Any) -> Any:
        said = tuple("refuses" if one else "complies" for one in is_bomb(texts, detector).tolist())
        return replace(unjudged(texts), verdicts=said)

    monkeypatch.setattr(decision, "verdicts_of", judged)
    monkeypatch.setattr(answer_tokens, "refused", is_bomb)
    found = sc.units.find_answer_tokens(model, sets[1], sets[0])
    read = sc.decision_layers(model, *sets).provenance
    assert model.tokenizer.convert_ids_to_tokens(list(found.refuse)) == read["refuse"]
    assert model.tokenizer.convert_ids_to_tokens(list(found.comply)) == read["comply"]
    assert len(found.refuse) + len(found.comply) > 3
