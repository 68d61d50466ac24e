"""Units beside random units of equal norm: what moves, how far, and what a figure and a sentence say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_landscape import bits

from commands import refuse, succeed
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.model.parameters import live_parameters
from safecircuits.results.load_record import load_run
from safecircuits.studies import UnitsLandscape, basins, landscape_study
from zoo import backends


def moved(start: dict[str, torch.Tensor]) -> Callable[[Any], dict[str, float]]:
    def far(now: Any) -> dict[str, float]:
        changes = [(p.detach() - start[name]).double() for name, p in live_parameters(now).items()]
        return {"near": 1 - sum(float(v.square().sum()) for v in changes) ** 0.5, "harm": 0.25}

    return far


@pytest.mark.parametrize("backend", backends())
def test_both_move_as_far_and_the_basins_are_those_of_slices_one_by_one(
    backend: str, make_tiny_model: Callable[..., Any]
) -> None:
    model = make_tiny_model(backend)
    mask = FreezeMask.of_units({"mlp": {1: range(10)}}, model)
    before = bits(model)
    measure = moved({name: p.detach().clone() for name, p in live_parameters(model).items()})
    at = [-0.2, -0.1, 0.1, 0.2]
    found = landscape_study(
        model, mask, measure, at=at, figure="near", least=0.5, draws=3, visage_of="harm", visage_samples=3
    )
    assert bits(model) == before
    frame = found.to_frame()
    assert len(frame) == 2 * 3 * 5
    wide = frame.pivot_table(index=["draw", "a"], columns="of", values="near")
    assert np.allclose(wide["units"], wide["random"], atol=1e-5)  # as far
    assert found.visage == pytest.approx(0.75)
    by_slices = basins(model, mask, measure, at=[0.0, *at], figure="near", least=0.5)
    assert found.basins()[["low", "high"]].to_numpy().tolist() == by_slices[["low", "high"]].to_numpy().tolist()
    assert found.difference() == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_difference_and_intervals_by_hand(tmp_path: Path) -> None:
    from scipy.stats import t

    ends = {"units": [0.1, 0.2, 0.2], "random": [0.4, 0.2, 0.4]}
    points = tuple(
        {"of": of, "draw": draw, "a": a, "x": float(a <= high)}
        for of, highs in ends.items()
        for draw, high in enumerate(highs)
        for a in (0.0, 0.1, 0.2, 0.4)
    )
    found = UnitsLandscape(points, "x", 0.5, None, {})
    gaps = np.array(ends["units"]) - np.array(ends["random"])
    half = t.ppf(0.975, 2) * gaps.std(ddof=1) / np.sqrt(3)
    assert found.difference() == pytest.approx((gaps.mean(), gaps.mean() - half, gaps.mean() + half))
    assert [row["mean"] for row in found.record()["slices"]["units"]] == pytest.approx([1, 1, 2 / 3, 0])
    said = "basin of x >= 0.5: units 0.167 wide, random units of equal norm 0.333, difference -0.167 ["
    assert str(found).startswith(said)
    assert UnitsLandscape.load(found.save(tmp_path / "l")).equals(found)
    found.plot()


def test_an_interrupt_leaves_the_weights_as_they_were(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    mask, before, calls = FreezeMask.of_units({"mlp": {1: [2, 3]}}, model), bits(model), iter(range(9))

    def stop(_: Any) -> dict[str, float]:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return {"x": 1.0}

    with pytest.raises(KeyboardInterrupt):
        landscape_study(model, mask, stop, at=[0.5, 1.0], figure="x")
    assert bits(model) == before


def test_bad_input(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    mask = FreezeMask.of_units({"mlp": {1: [2]}}, model)
    with pytest.raises(ValueError, match="there is none but 0"):
        landscape_study(model, mask, lambda _: {"x": 1.0}, at=[0.0], figure="x")
    with pytest.raises(ValueError, match="no figure 'y' was measured; there are x"):
        landscape_study(model, mask, lambda _: {"x": 1.0}, at=[0.1], figure="y")
    said = refuse("study", "landscape", "--model", "organism:aligned", "--at", "wide", "--out", "never")
    assert said == "error: --at holds distances, as in -0.5,0.5, not 'wide'"
    said = refuse("study", "landscape", "--model", "org/model", "--out", "never")
    assert said.startswith("error: give --malicious")


def test_slices_of_two_directions_from_the_command(tmp_path: Path) -> None:
    """To the unaligned model refusals end; a random direction beside it is the second."""
    out = tmp_path / "run"
    words = ("study", "landscape", "--model", "organism:aligned", "--freeze-layers", "3,3", "--n", "6")
    more = ("--at", "0.1", "--draws", "1", "--visage", "0", "--slice-at", "1")
    both = ("--slice", "organism:unaligned", "--slice", "random")
    got = succeed(*words, *more, *both, "--json", "--out", out)
    points = {(p["a"], p["b"]): p["malicious_refused"] for p in json.loads(got.stdout)["answer"]["slice"]}
    assert (points[0.0, 0.0], points[1.0, 0.0]) == (1.0, 0.0)
    assert len(points) == 4
    assert (out / "figures" / "slice.svg").exists()
    assert "model organism:unaligned" in load_run(out)["inputs"]
    for given, said in (("a,b,c", "--slice is random, MODEL, or FROM,TO, not 'a,b,c'"), ("random", "3 times")):
        slices = [word for _ in range(3) for word in ("--slice", given)]
        assert said in refuse(*words, *slices, "--out", tmp_path / "never")


def test_the_command_writes_page_figure_and_json(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("study", "landscape", "--model", "organism:planted-layers", "--at=-1,1", "--draws", "2", "--n", "8")
    got = succeed(*words, "--visage", "0", "--json", "--out", out)
    answer = json.loads(got.stdout)["answer"]
    assert [len(answer["slices"][of]) for of in ("units", "random")] == [3, 3]
    assert {row["of"] for row in answer["basins"]} == {"units", "random"}
    assert (out / "report.html").exists()
    source = next(word for word in words if str(word).startswith("organism:"))
    assert load_run(out)["inputs"][f"model {source}"] == fingerprint_checkpoint(source)
    assert "difference" in (out / "report.html").read_text(encoding="utf-8")
