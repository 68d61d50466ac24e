"""What is said of a value stands where matplotlib drew it, and says what was drawn."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from safecircuits.plots.finetuning import plot_study
from safecircuits.plots.rates import plot_behavior
from safecircuits.plots.style import readable
from safecircuits.plots.svg import inline_svg
from safecircuits.plots.values import svg_with_values, values


def said(figure: Figure) -> list[str]:
    svg_with_values(figure)  # draws it, as the places of ticks need
    return [value.text for value in values(figure)]


def test_rates_with_their_intervals_by_the_names_of_their_rows() -> None:
    figure = Figure()
    row = {"malicious_refused": 0.5, "malicious_refused_interval": [0.4, 0.625], "utility": 0.9}
    plot_behavior({"before": row, "after": {"utility": 0.25}}, ax=figure.subplots())
    assert said(figure) == [
        "malicious refused · share of prompts (%): 50 [40, 62.5] · before",
        "utility · share of prompts (%): 90 · before",
        "utility · share of prompts (%): 25 · after",
    ]


def test_bands_bars_cells_and_panels() -> None:
    figure = Figure()
    left, right, third = figure.subplots(1, 3)
    left.set(title="gap", xlabel="layer", ylabel="degrees")
    left.fill_between([0, 1], [-1, 2], [1, 5], color="C0", alpha=0.2)
    left.fill_between([0, 1], [-9, -9], [9, 9], color="C3", alpha=0.2)  # of another colour: another line's
    left.plot([0, 1], [0, 3], color="C0", label="model")
    right.bar([0, 1], [2, 3], label="units")
    right.set_xticks([0, 1], ["SCU", "UCU"])
    right.vlines(1, 2.5, 3.5)
    third.imshow(np.array([[1.0, np.nan]]))
    assert said(figure) == [
        "gap · model · layer: 0 · degrees: 0 [−1, 1]",
        "gap · model · layer: 1 · degrees: 3 [2, 5]",
        "units · SCU · 2",
        "units · UCU · 3 [2.5, 3.5]",
        "0 · 0 · 1",
    ]


def test_they_stand_where_the_marks_are() -> None:
    """Against the places of the marks in matplotlib's own SVG, to a tenth of a point."""
    figure = Figure(layout="constrained")
    ax = figure.subplots()
    ax.plot([1, 10, 100], [3, 2, 7], "o")
    ax.set_xscale("log")
    svg = svg_with_values(figure, dpi=300)
    axes = svg[: svg.index('<g id="values"')]
    marks = re.search(r'<g id="line2d_\d+">\s*<defs>(?:(?!</defs>).)*</defs>\s*<g clip-path.*?</g>', axes, re.DOTALL)
    assert marks
    own = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', marks[0])
    ours = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert len(own) == len(ours) == 3
    assert np.asarray(ours, dtype=float) == pytest.approx(np.asarray(own, dtype=float), abs=0.06)


def test_what_is_out_of_sight_or_no_data_is_not_said() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1, 2, 3], [0, np.nan, 1, 50])
    ax.axhline(0.5)
    ax.set_ylim(0, 2)
    assert said(figure) == ["0 · 0", "2 · 1"]


def test_names_are_text_in_the_page() -> None:
    figure = Figure()
    curve = [{"task_loss": 1.0, "malicious_refused": 0.5, "step": 0}]
    run = {"scenario": "s", "arm": '<b onload="x">', "curve": curve}
    plot_study({"runs": [run]}, "s", ax=figure.subplots())
    page = str(inline_svg(figure, "f", "label"))
    assert "<b" not in page
    assert 'data-value="&lt;b onload=&quot;x&quot;>' in page.replace("&gt;", ">")


def test_ticks_that_would_run_into_each_other_have_no_label() -> None:
    ax = Figure().subplots()
    ax.set_xscale("symlog", linthresh=1, linscale=0.4)
    counts = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 41, 48, 64, 96, 128, 192]
    labels = readable(ax, counts, list(map(str, counts)))
    kept = [int(label) for label in labels if label]
    assert kept[0] == 0
    assert kept[-1] == 192
    assert 41 in kept or 48 in kept
    assert not {41, 48} <= set(kept)
    assert np.diff(np.log(kept[1:])).min() > 0.25
