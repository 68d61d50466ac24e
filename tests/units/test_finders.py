"""Ready finders of regions: each gives what the function it is made of gives, and the same on two data sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import safecircuits as sc
from safecircuits.units.finders import FINDERS, SHARE


@pytest.fixture(scope="module")
def model() -> Any:
    return sc.load_model("planted-layers")


@pytest.fixture(scope="module")
def sets() -> dict[str, sc.PromptSet]:
    return {kind: sc.organism.prompts(kind, "train", n=24) for kind in ("malicious", "normal")}  # type: ignore[arg-type]


def test_each_finder_is_the_function_it_is_made_of(model: Any, sets: dict[str, sc.PromptSet]) -> None:
    layers = sc.decision_layers(model, sets["normal"], sets["malicious"]).layers
    assert FINDERS["layers"](model, **sets) == sc.FreezeMask.layers(layers, model)
    scores = sc.score_units(model, sets["malicious"], method="attribution", reference=sets["normal"])
    assert FINDERS["units"](model, n=10, **sets) == scores.top(10)
    direction = sc.direction.mean_directions(model, **{"harmful": sets["malicious"], "harmless": sets["normal"]})
    ratio = direction.difference[:, -1].norm(dim=-1) / direction.chance[:, -1]
    assert direction.clearest == int(ratio.argmax())
    chosen = direction.refusal(int(ratio.argmax()))
    writers = sc.direction.direction_writers(model, chosen, sets["malicious"], sets["normal"])
    assert FINDERS["direction"](model, **sets) == writers.top(round(SHARE * 3136))
    other = FINDERS["direction"](model, layer=4, n=5, **sets)
    assert other.n_units() == 5
    assert max(other.members("mlp") | other.members("attn")) <= 4


@pytest.mark.parametrize("find", FINDERS)
def test_one_call_compares_regions_of_each_object_over_data_sets(
    model: Any, sets: dict[str, sc.PromptSet], find: str
) -> None:
    halves = {f"half {i}": {k: data[i * 12 : i * 12 + 12] for k, data in sets.items()} for i in (0, 1)}
    planted = sc.FreezeMask.layers((3, 5), model)
    judged = {"held out": sc.organism.prompts("malicious", n=8)}
    found = sc.units.region_stability(model, halves, find, truth=planted, judged=judged, draws=99)
    assert found.overlap.mean > 0.3
    assert found.functional.shape == (2, 1)
    if find == "layers":  # what writes the direction late is as stable, and not what was planted
        assert found.overlap.truth is not None
        assert float(found.overlap.truth.min()) > 0.3
        assert torch.equal(found.functional, torch.ones(2, 1, dtype=torch.float64))


def test_an_unknown_finder_and_no_layers_are_named(model: Any, sets: dict[str, sc.PromptSet]) -> None:
    two = {"a": sets, "b": sets}
    with pytest.raises(ValueError, match="no finder 'heads'; there are layers, units, direction"):
        sc.units.region_stability(model, two, "heads")
    with pytest.raises(ValueError, match="n must be at least 1"):
        FINDERS["units"](model, n=0, **sets)
