"""That alignment opens a gap has to beat what training does to gaps of anything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import safecircuits as sc

A = ("how do i make the cake", "find a lamp", "how do i fix the road with some water", "bake tea", "a dog")
B = ("the house is here on it", "take the tea", "sorry i cannot", "sure", "find the wood and the salt")
C = ("help is here", "make the bomb", "fix a house", "take some wood then", "how do you find it")


def test_a_control_of_the_same_sets_leaves_nothing(make_tiny_model: Any, tmp_path: Any) -> None:
    models = {"aligned": make_tiny_model("bridge", 3), "base": make_tiny_model("bridge", 0)}
    found = sc.compare_gaps(models, A, B, controls={"same": (A, B), "topic": (A, C)}, draws=100)
    same = found.beyond["same"]["base"]
    assert torch.equal(same.mean, torch.zeros_like(same.mean))
    assert found.opened("base") == ()  # whatever the models' gaps are, this control has the same
    assert "beyond same, topic in 0" in str(found)
    alone = sc.compare_gaps(models, A, B, draws=100)
    control = sc.compare_gaps(models, A, C, draws=100)
    want = alone.differences["base"].mean - control.differences["base"].mean
    torch.testing.assert_close(found.beyond["topic"]["base"].mean, want)
    torch.testing.assert_close(found.gaps["base"].gap_deg, alone.gaps["base"].gap_deg)
    assert alone.opened("base") == tuple((alone.differences["base"].low > 0).nonzero().flatten().tolist())
    assert type(found).load(found.save(tmp_path / "g")).equals(found)
    with pytest.raises(ValueError, match="'other' is not among base"):
        found.opened("other")


def test_sets_of_few_prompts_have_fewer_resamples(make_tiny_model: Any) -> None:
    models = {"aligned": make_tiny_model("bridge", 3), "base": make_tiny_model("bridge", 0)}
    found = sc.compare_gaps(models, A, B, controls={"few": (A[:2], B[:2])}, draws=100)
    few = found.controls["few"]["base"].resampled
    assert few is not None
    assert len(few) < 100  # or there is nothing to see here
    assert bool(torch.isfinite(found.beyond["few"]["base"].low).all())


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"topic": A}, "control 'topic' is a pair"),
        ({"": (A, C)}, "by a name"),
        ({"topic": (A, C[:1])}, "pairs need at least two"),
    ],
)
def test_controls_are_pairs_of_sets(controls: Any, message: str, make_tiny_model: Any) -> None:
    with pytest.raises(ValueError, match=message):
        sc.compare_gaps({"one": make_tiny_model("bridge")}, A, B, controls=controls)


def test_benign_controls_are_halves_of_the_normal_prompts_and_borderline_ones() -> None:
    found = sc.layers.benign_controls(A, C)
    first, second = found["benign A against B"]
    assert (first.prompts, second.prompts) == (A[::2], A[1::2])
    assert [one.prompts for one in found["borderline against normal"]] == [A, C]
    with pytest.raises(ValueError, match="has 3 prompts: two halves of pairs need at least 4"):
        sc.layers.benign_controls(A[:3])
    with pytest.raises(ValueError, match="has one prompt"):
        sc.layers.benign_controls(A, C[:1])


def test_on_the_planted_family_refusal_opens_a_gap_that_topic_does_not() -> None:
    """Where nothing but refusal was trained, the harmful prompts' gap grows beyond both controls, above the base's."""
    sets = [sc.organism.prompts(kind, n=40) for kind in ("normal", "malicious", "over_rejection")]
    controls = sc.layers.benign_controls(sets[0], sets[2])
    found = sc.compare_gaps(
        {name: name for name in ("planted-layers", "base")}, *sets[:2], controls=controls, draws=200
    )
    opened = found.opened("base")
    assert opened
    assert min(opened) >= 3  # planted in layers 3 to 5: below, both models are one
    assert set(opened) <= set(found.differences["base"].layers_apart)
