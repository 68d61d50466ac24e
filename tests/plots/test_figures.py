"""Figures of unit scores show the numbers of the results they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from safecircuits.behavior.measured import Behavior
from safecircuits.model.sites import ModelShape
from safecircuits.plots.scores import plot_score_comparison, plot_score_map, plot_stability
from safecircuits.units.comparison import Candidate, CurvePoint, ScoreComparison, ScoreCurve
from safecircuits.units.moments import Moments
from safecircuits.units.resampling import Stability
from safecircuits.units.scores import UnitScores


def axis() -> Any:
    return Figure().subplots()


def test_comparison_draws_the_best_curve_of_each_method() -> None:
    def curve(method: Any, *refusal: float, smallest: int | None) -> ScoreCurve:
        points = tuple(CurvePoint(2**i, r, 1.0, None) for i, r in enumerate(refusal))
        return ScoreCurve(Candidate(method, "prompt"), points, 0.5, smallest)

    yes = torch.ones(4, dtype=torch.bool)
    curves = (
        curve("wifv", 1, 1, 0.2, smallest=4),
        curve("wifv", 1, 1, 1, smallest=None),
        curve("attribution", 0.5, 0, 0, smallest=1),
    )
    ax = plot_score_comparison(ScoreComparison(Behavior(yes, None, yes), curves, 100, None, None, {}), ax=axis())
    solid = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    assert [list(line.get_ydata()) for line in solid] == [[1, 0.5, 0, 0], [1, 1, 1, 0.2]]
    assert [str(line.get_label()).split(",")[0] for line in solid] == ["attribution", "wifv"]


def test_stability_prints_every_overlap() -> None:
    values = torch.tensor([[1.0, 0.25], [0.25, 1.0]])
    result = Stability(("a", "b"), {"SCU": values}, {"SCU": 0.05}, values, {})
    ax = plot_stability(result, ax=axis())
    assert [text.get_text() for text in ax.texts] == ["100", "25", "25", "100"]
    assert ax.get_title() == "SCU: Jaccard overlap (%)\nmean 25, by chance 5.0"  # two sets have no interval
    with pytest.raises(ValueError, match="no group 'UCU'"):
        plot_stability(result, "UCU", ax=axis())


def test_score_map_counts_the_highest_by_layer() -> None:
    values: Any = {"mlp": torch.tensor([[9.0, 8, 0], [7, 0, 0]]), "attn": torch.tensor([[0.0], [6.0]])}
    moments: Any = {site: Moments(9, v, v) for site, v in values.items()}
    shape = ModelShape("LlamaForCausalLM", 2, 8, 3, 1, 1)
    scores = UnitScores(values, moments, values, "wifv", "response", shape, {})
    ax = plot_score_map(scores.record(4), ax=axis())
    chance = [4 * 3 / 8, 4 * 1 / 8]  # of three neurons and one head in each of two layers, four are taken
    assert [list(line.get_ydata()) for line in ax.lines] == [[2, 1], 2 * chance[:1], [0, 1], 2 * chance[1:]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["MLP", "heads"]
