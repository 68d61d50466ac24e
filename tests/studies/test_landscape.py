"""Slices of the safety landscape against weights set by hand, and weights that are afterwards what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from safecircuits import organism
from safecircuits.behavior.evaluate import evaluate
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.parameters import live_parameters
from safecircuits.studies import Landscape, basins, direction_between, of_equal_norm, random_direction, slices, visage

MALICIOUS = organism.prompts("malicious", n=10)


def refused(model: Any) -> dict[str, float]:
    return {"malicious_refused": evaluate(model, malicious=MALICIOUS, refusal_tokens=6).rates["malicious_refused"]}


def bits(model: Any) -> list[bytes]:
    return [p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for p in live_parameters(model).values()]


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_points_are_weights_set_by_hand_and_weights_come_back_bit_for_bit(
    backend: str, make_tiny_model: Callable[..., Any]
) -> None:
    model, other = make_tiny_model(backend), make_tiny_model(backend)
    one, two = (random_direction(model, seed) for seed in (1, 2))
    before, ids = bits(model), torch.tensor([[1, 2, 3, 4]])

    def logit(now: Any) -> dict[str, float]:
        return {"logit": float(now(ids)[0, -1, 3])}

    found = slices(model, [one, two], logit, at=[0.0, 0.3], across=[-0.2, 0.1])
    assert bits(model) == before
    start = {name: p.detach().clone() for name, p in live_parameters(other).items()}
    assert [(p["a"], p["b"]) for p in found.points] == [(0.0, -0.2), (0.0, 0.1), (0.3, -0.2), (0.3, 0.1)]
    for point in found.points:
        with torch.no_grad():
            for name, parameter in live_parameters(other).items():
                if name in one:
                    parameter.copy_(
                        start[name].double() + point["a"] * one[name].double() + point["b"] * two[name].double()
                    )
            assert point["logit"] == pytest.approx(float(other(ids)[0, -1, 3]), abs=1e-4)


def test_a_failure_on_the_way_leaves_the_weights_as_they_were(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    before = bits(model)
    with pytest.raises(KeyboardInterrupt):
        slices(model, [random_direction(model)], lambda _: (_ for _ in ()).throw(KeyboardInterrupt), at=[0.5])
    assert bits(model) == before


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_random_directions_are_normalised_row_by_row(backend: str, make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model(backend)
    found = random_direction(model, seed=4)
    for name, parameter in live_parameters(model).items():
        if parameter.ndim < 2:
            assert name not in found
            continue
        weight, drawn = (value.detach().double().numpy() for value in (parameter, found[name]))
        assert np.allclose(np.sqrt((drawn**2).sum(-1)), np.sqrt((weight**2).sum(-1)), rtol=1e-5)
    for name, drawn in random_direction(model, seed=4, scaled="matrix").items():
        weight, whole = (float(value.detach().double().norm()) for value in (live_parameters(model)[name], drawn))
        assert whole == pytest.approx(weight, rel=1e-5)
    again, others = random_direction(model, seed=4), random_direction(model, seed=5)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not any(torch.equal(found[name], others[name]) for name in found)


def test_units_alone_move() -> None:
    model, unaligned = load_model("aligned"), load_model("unaligned")
    mask = FreezeMask.of_units({"mlp": {3: range(40)}, "attn": {4: [0, 1]}}, model)
    for direction in (random_direction(model, units=mask), direction_between(model, unaligned, units=mask)):
        moved = load_model("aligned")
        with torch.no_grad():
            for name, parameter in live_parameters(moved).items():
                if name in direction:
                    parameter.add_(direction[name])
        from safecircuits.baselines import rewind

        assert rewind(moved, model, mask) > 0
        assert bits(moved) == bits(model)  # nothing else had moved


def test_the_way_to_an_unaligned_model_loses_refusals_and_its_basin_is_where_they_last() -> None:
    model = load_model("aligned")
    way = direction_between(model, load_model("unaligned"))
    found = slices(model, [way], refused, at=[-0.5, 0.0, 0.5, 1.0])
    by_hand = {a: found.points[i]["malicious_refused"] for i, a in enumerate([-0.5, 0.0, 0.5, 1.0])}
    assert (by_hand[0.0], by_hand[1.0]) == (1.0, 0.0)
    low, high = found.basin(least=0.5)
    assert high == (0.5 if by_hand[0.5] >= 0.5 else 0.0)
    assert low == (-0.5 if by_hand[-0.5] >= 0.5 else 0.0)
    with pytest.raises(ValueError, match="with the unmoved model"):
        slices(model, [way], refused, at=[1.0]).basin()
    with pytest.raises(ValueError, match="no figure 'harm'"):
        found.basin("harm")


def test_basin_by_hand() -> None:
    values = {-2.0: 1.0, -1.0: 0.2, 0.0: 1.0, 1.0: 0.6, 2.0: 0.5, 3.0: 0.1, 4.0: 1.0}
    found = Landscape(tuple({"a": a, "x": x} for a, x in values.items()))
    assert found.basin("x") == (0.0, 2.0)
    assert found.basin("x", least=0.6) == (0.0, 1.0)


def test_figures_hold_the_points() -> None:
    line = Landscape(tuple({"a": a, "x": x} for a, x in ((1.0, 0.25), (0.0, 1.0), (-1.0, 0.5))))
    shown = np.asarray(line.plot("x").lines[0].get_xydata())
    assert shown.tolist() == [[-1.0, 0.5], [0.0, 1.0], [1.0, 0.25]]
    values = {(0.0, 0.0): 1.0, (1.0, 0.0): 0.5, (0.0, 2.0): 0.25, (1.0, 2.0): 0.0}
    plane = Landscape(tuple({"a": a, "b": b, "x": x} for (a, b), x in values.items())).plot("x")
    assert np.asarray(plane.collections[0].get_array()).tolist() == [[100.0, 50.0], [25.0, 0.0]]  # a row a step up
    with pytest.raises(ValueError, match="no figure 'y' was measured"):
        line.plot("y")


def test_basins_of_units_and_of_as_many_random_ones_of_equal_norm(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    mask = FreezeMask.of_units({"mlp": {1: range(10)}}, model)
    start = {name: p.detach().clone() for name, p in live_parameters(model).items()}

    def far(now: Any) -> dict[str, float]:
        moved = {name: (p - start[name]).double() for name, p in live_parameters(now).items()}
        return {"near": 1.0 - sum(float(v.square().sum()) for v in moved.values()) ** 0.5}

    length = sum(float(v.double().square().sum()) for v in random_direction(model, 0, mask).values()) ** 0.5
    found = basins(model, mask, far, at=[0.0, 0.4 / length, 0.6 / length], figure="near", controls=2)
    assert found["of"].tolist() == ["units", "random"] * 2
    assert found["high"].tolist()[:2] == [pytest.approx(0.4 / length)] * 2


def test_visage_is_the_mean_of_what_is_left(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    harms = iter([0.25, 1.0, 0.5, 0.75, 1.0, 0.0])
    assert visage(model, lambda _: next(harms), directions=2, samples=3) == pytest.approx((0.75 + 0.5 + 0.25 + 1.0) / 4)
    assert visage(model, lambda _: 1.0, directions=1, samples=2) == 0.0
    start = {name: p.detach().double().clone() for name, p in live_parameters(model).items()}
    far: list[float] = []

    def harm(now: Any) -> float:
        name, weight = next((n, p) for n, p in live_parameters(now).items() if p.ndim == 2)
        far.append(float((weight.detach().double() - start[name]).norm() / start[name].norm()))
        return 0.0

    visage(model, harm, directions=1, samples=5, reach=0.4)
    assert far == pytest.approx([0.4, 0.2, 0.0, 0.2, 0.4], abs=1e-6)


def test_bad_input(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    with pytest.raises(ValueError, match="one direction or two, not 3"):
        slices(model, [{}, {}, {}], refused, at=[0.0])
    with pytest.raises(ValueError, match="which this model does not have in that shape"):
        slices(model, [{"no.weight": torch.ones(2)}], refused, at=[0.1])
    with pytest.raises(ValueError, match="zero everywhere"):
        of_equal_norm({"a": torch.zeros(2)}, {"a": torch.ones(2)})
    with pytest.raises(ValueError, match="the model before"):
        direction_between(load_model("aligned"), model)
