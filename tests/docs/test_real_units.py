"""Unit scores on the real family: overlaps against numpy, smallest sets by hand, the page against its results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.ground_truth.compact import compact
from benchmarks.ground_truth.real_units import known_units, smallest
from benchmarks.ground_truth.real_units_page import render
from benchmarks.ground_truth.real_units_scores import halves, layers_of_top, overlap_row, ways

from safecircuits.model.sites import ModelShape
from safecircuits.organism.smollm2.catalog import planted
from safecircuits.organism.smollm2.members import MEMBERS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("k", [1, 7, 40])
def test_overlaps_are_what_numpy_counts(k: int) -> None:
    rng = np.random.default_rng(k)
    scores, known = rng.normal(size=(5, 20)), rng.random((5, 20)) < 0.3
    others = [scores + rng.normal(size=scores.shape) for _ in halves()]

    def above(values: np.ndarray) -> float:
        best = sorted(range(values.size), key=lambda i: -values.flat[i])[:k]
        return sum(known.flat[i] for i in best) / k - known.sum() / known.size

    row = overlap_row(torch.tensor(scores), [torch.tensor(one) for one in others], torch.tensor(known), k)
    low, high = np.percentile([above(one) for one in others], [5, 95])
    assert row["chance"] == pytest.approx(known.mean(), abs=1e-4)
    assert row["above"] == pytest.approx(above(scores), abs=1e-4)
    assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    best = np.argsort(-scores, axis=None)[:k] // 20
    assert layers_of_top(torch.tensor(scores), k) == [int((best == layer).sum()) for layer in range(5)]


def test_the_smallest_set_is_found_wherever_it_is() -> None:
    sizes = (16, 64, 256, 1024)
    for needed in (1, 16, 17, 64, 200, 256, 1000, 1024, 5000):
        asked: list[int] = []

        def refused(n: int, needed: int = needed, asked: list[int] = asked) -> float:
            asked.append(n)
            return 0.5 if n >= needed else 0.6

        assert smallest(sizes, refused, 0.5) == next((n for n in sizes if n >= needed), None)
        assert len(asked) <= 3


@pytest.mark.parametrize("name", [name for name, one in MEMBERS.items() if one.kind != "aligned"])
def test_known_units_are_those_that_were_planted(name: str) -> None:
    """Of members of every kind, blocks of three to nine layers among them."""
    one, shape = MEMBERS[name], ModelShape("LlamaForCausalLM", 30, 576, 1536, 9, 3)
    known = known_units(name, shape).numpy()
    assert known.shape == ((30, 9) if one.kind == "heads" else (30, 1536))
    expected = np.zeros(known.shape, dtype=bool)
    for layer in one.layers:
        those = {"neurons": one.neurons(), "heads": one.heads()}.get(one.kind)
        expected[layer, slice(None) if those is None else list(those[layer])] = True
    assert np.array_equal(known, expected)


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "smollm2_units.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_its_results_say(published: dict[str, Any]) -> None:
    assert (DOCS / "smollm2_units.md").read_text(encoding="utf-8") == render(published)
    assert (DOCS / "smollm2_units.json").read_text(encoding="utf-8") == compact(published)
    changed = copy.deepcopy(published)
    next(iter(next(iter(changed["members"].values()))["overlap"].values()))["above"] = 0.0123
    assert render(changed) != render(published)


def test_the_published_results_are_of_members_as_declared(published: dict[str, Any]) -> None:
    known = {str(way) for way in ways()}
    for name, record in published["members"].items():
        assert (record["role"], record["kind"]) == (MEMBERS[name].role, MEMBERS[name].kind)
        assert tuple(record["planted"]) == planted(name).layers
        assert set(record["overlap"]) <= known
        assert set(record["removed"]) <= known | {"planted"}
        for way, curves in record["removed"].items():
            for curve in curves.values() if way != "planted" else ():
                enough = [int(n) for n, left in curve["tried"].items() if left["refused"] <= record["intact"] / 2]
                assert curve["smallest"] == (min(enough) if enough else None)
