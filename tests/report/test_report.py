"""Figures and a page of invented results: what is drawn is what was given, and the page stands on its own."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.measured import Behavior
from safecircuits.layers.localization import Localization, Sweep
from safecircuits.layers.pairs import PairCurve
from safecircuits.layers.similarity import LayerGap
from safecircuits.layers.sweep_point import SweepPoint
from safecircuits.papers.page import StudyPage, behavior_exhibit
from safecircuits.plots.layers import plot_gap, plot_pair_curves, plot_sweeps
from safecircuits.plots.rates import plot_behavior, plot_finetune
from safecircuits.plots.style import PALETTE, styled
from safecircuits.plots.units import plot_ablation, plot_ablation_curve, plot_unit_map
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.report import captions, tables
from safecircuits.report.html import page
from safecircuits.report.scripts import script, style
from safecircuits.report.sections import Exhibit
from safecircuits.units.ablation import Ablation, AblationTable

STAGES = ("base", "unaligned", "aligned", "planted-layers", "planted-units")
N_LAYERS = 8


def rate(value: float, half: float = 0.02) -> tuple[float, list[float]]:
    value = float(np.clip(value, 0, 1))
    return value, [max(0.0, value - half), min(1.0, value + half)]


def with_intervals(values: dict[str, float], half: float = 0.02) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in values.items():
        row[name], row[f"{name}_interval"] = rate(value, half)
    return row


def invented_results() -> dict[str, Any]:
    """A complete results record with numbers of the size the embedded models give."""
    rng = np.random.default_rng(0)

    def similarity(scale: float, start: int) -> dict[str, Any]:
        layer = np.arange(N_LAYERS)
        gap = scale / (1 + np.exp(-(layer - start - 1) * 2.2)) + rng.normal(0, 0.1, N_LAYERS)
        nn = 0.97 - 0.03 * layer + rng.normal(0, 0.004, N_LAYERS)
        row = {"gap_deg": gap, "nn_mean": nn, "nn_std": 0.01 + 0.01 * layer, "mm_mean": nn - 0.03}
        row |= {"mm_std": 0.02 + 0.01 * layer, "nm_mean": nn - gap / 80, "nm_std": 0.02 + 0.008 * layer}
        return {key: values.tolist() for key, values in row.items()}

    def sweep(rows: list[tuple[int, int, int]], baseline: int) -> list[dict[str, Any]]:
        best = max(count for _, _, count in rows)
        return [
            {
                "first": first,
                "last": last,
                "refused": count,
                "change": count - baseline,
                "change_low": count - baseline - 7.0,
                "change_high": count - baseline + 6.5,
                "degenerate": 0.2 if count == 55 else 0.0,
                "best": count == best,
            }
            for first, last, count in rows
        ]

    def localization(first: int, last: int, baseline: int, verdict: str) -> dict[str, Any]:
        uppers = [(first, last + d, baseline + c) for d, c in ((-2, -7), (-1, 4), (0, 18), (1, 16), (2, 9))]
        lowers = [(first + d, last, baseline + c) for d, c in ((-2, 3), (-1, 11), (0, 18), (1, 12), (2, 2))]
        return {
            "alpha": 1.1,
            "direction": "up",
            "alpha_found": True,
            "baseline_refused": baseline,
            "n_prompts": 300,
            "start": [2, 4],
            "layers": [first, last],
            "upper": sweep([row for row in uppers if row[0] <= row[1] < N_LAYERS], baseline),
            "lower": sweep([row for row in lowers if 0 <= row[0] <= row[1]], baseline),
            "within_noise": True,
            "verdict": verdict,
        }

    def three(malicious: float, over: float, utility: float) -> dict[str, float]:
        return {"malicious_refused": malicious, "over_rejected": over, "utility": utility}

    def arm(label: str, frozen: str, share: float, *means: float) -> dict[str, Any]:
        row: dict[str, Any] = {"label": label, "frozen": frozen, "share_of_parameters": share}
        row["frozen_bit_identical"] = True
        names = ("malicious_refused", "over_rejected", "utility", "new_task")
        for name, mean in zip(names, means, strict=True):
            seeds = np.clip(mean + rng.normal(0, 0.035, 3), 0, 1)
            center, half = float(seeds.mean()), 4.303 * float(seeds.std(ddof=1)) / 3**0.5
            row[name], row[f"{name}_seeds"] = center, seeds.tolist()
            row[f"{name}_interval"] = [center - half, center + half]
        row["train_loss"], row["train_loss_seeds"] = 0.2, [0.19, 0.2, 0.21]
        return row

    counts = (6, 15, 41, 92, 192)
    refusal, useful, planted = (
        (0.93, 0.96, 0.02, 0.0, 0.0),
        (0.98, 0.9, 1.0, 1.0, 0.99),
        (0.9, 0.8, 0.7, 0.6, 0.54),
    )
    curve = [
        {"removed": k, "share": k / 3072, "malicious_refused": r, "utility": u, "planted_share": p}
        for k, r, u, p in zip(counts, refusal, useful, planted, strict=True)
    ]
    random_curve = [
        {"removed": k, "share": k / 3072, "malicious_refused": r, "utility": u, "planted_share": 0.06}
        for k, r, u in zip(counts, (0.91, 0.92, 0.9, 0.86, 0.83), (1, 1, 0.99, 0.97, 0.95), strict=True)
    ]
    per_layer = {
        "mlp": {"SCU": [0, 1, 4, 14, 11, 5, 3, 0], "UCU": [20, 40, 61, 66, 70, 72, 50, 23]},
        "attn": {"SCU": [0, 0, 1, 1, 1, 0, 0, 0], "UCU": [1, 0, 2, 1, 0, 1, 1, 0]},
    }
    per_layer["mlp"] |= {
        "CU": [250, 262, 270, 268, 266, 270, 280, 290],
        "RU": [114, 81, 49, 36, 37, 37, 51, 71],
    }
    per_layer["attn"] |= {"CU": [6, 7, 4, 5, 6, 6, 6, 7], "RU": [1, 1, 1, 1, 1, 1, 1, 1]}
    behavior = {
        stage: with_intervals({**three(m, o, u), "normal_refused": n})
        for stage, m, o, u, n in zip(
            STAGES,
            (0.0, 0.004, 0.985, 0.99, 0.91),
            (0.0, 0.0, 0.21, 0.06, 0.12),
            (1.0, 0.97, 0.96, 0.98, 0.995),
            (0.0, 0.0, 0.007, 0.003, 0.0),
            strict=True,
        )
    }
    aligned_sweep = "layers [3, 5] at alpha 1.1: 80 of 300 refused, 62 unscaled; within noise of [3, 6], [2, 5]"
    return {
        "schema": 1,
        "model": {
            "name": "aligned",
            "architecture": "LlamaForCausalLM",
            "n_layers": N_LAYERS,
            "d_model": 128,
            "d_mlp": 384,
            "n_heads": 8,
            "n_kv_heads": 4,
            "n_parameters": 1_600_000,
            "backend": "bridge",
        },
        "behavior": behavior,
        "similarity": {
            "base": {**similarity(0.5, 3), "onset": None},
            "aligned": {**similarity(50.0, 2), "onset": [2, 4]},
            "planted-layers": {**similarity(39.0, 2), "onset": [3, 4]},
            "onset_rule": {"min_gap_deg": 2.0, "appear": 0.1, "smooth": 0.25},
            "n_prompts": {"normal": 100, "malicious": 100},
        },
        "localization": localization(3, 5, 62, aligned_sweep),
        "units": {
            "method": "wifv",
            "tokens": "response",
            "normalize": "none",
            "n_units": 3136,
            "share": {"SCU": 0.013, "UCU": 0.13, "CU": 0.707, "RU": 0.15},
            "share_of_parameters": {"SCU": 0.011, "UCU": 0.105, "CU": 0.6, "RU": 0.12},
            "per_layer": per_layer,
            "ablation": {
                "nothing": {"units": 0, **three(0.985, 0.21, 0.96)},
                "SCU": {"units": 41, **three(0.03, 0.0, 0.93)},
                "UCU": {"units": 408, **three(0.99, 0.6, 0.0)},
                "RU": {"units": 470, **three(0.98, 0.2, 0.95)},
            },
            "random_control": {
                "SCU": {"units": 41, "draws": 3, **three(0.98, 0.2, 0.95)},
                "UCU": {"units": 408, "draws": 3, **three(0.6, 0.1, 0.4)},
                "RU": {"units": 470, "draws": 3, **three(0.55, 0.1, 0.35)},
            },
        },
        "planted": {
            "layers": {
                "planted": [3, 5],
                "onset": [3, 4],
                "onset_overlap": 2 / 3,
                "localized": [2, 5],
                "overlap": 0.75,
                "localization": localization(2, 5, 17, "layers [2, 5] at alpha 1.1: 35 of 300 refused, 17 unscaled"),
            },
            "units": {
                "planted_units": 192,
                "n_units": 3072,
                "curve": curve,
                "random_curve": random_curve,
                "remove_planted": {"removed": 192, "malicious_refused": 0.0, "utility": 1.0},
            },
        },
        "finetune": {
            "task": "new_task",
            "settings": {"steps": 60, "batch_size": 16, "lr": 3e-4},
            "before": {**three(0.985, 0.21, 0.96), "new_task": 0.02},
            "none": arm("no freeze", "nothing", 0.0, 0.37, 0.08, 0.94, 0.93),
            "safety_layers": arm("safety layers frozen", "layers [3, 5]", 0.37, 0.56, 0.12, 0.95, 0.91),
            "random_layers": arm("other layers frozen", "layers [0, 2]", 0.37, 0.42, 0.1, 0.93, 0.9),
            "scu_cu": arm("SCU + top CU frozen", "SCU and 10 % CU", 0.11, 0.61, 0.13, 0.94, 0.92),
            "random": arm("random units frozen", "as many random units", 0.11, 0.39, 0.09, 0.92, 0.93),
        },
        "conclusions": [
            {
                "effect": "Safety layers exist",
                "paper": "Safety Layers",
                "shows": "yes",
                "text": "The angle gap of the aligned model reaches 50.1° and that of the base model 0.5°.",
            },
            {
                "effect": "The scaled block can be located",
                "paper": "Safety Layers",
                "shows": "unclear",
                "text": "The best block [3, 5] is within noise of [3, 6] and [2, 5].",
            },
            {
                "effect": "Redundant units can go",
                "paper": "SSAH",
                "shows": "no",
                "text": "Removing 470 random units instead leaves 55 % of refusals.",
            },
        ],
        "provenance": {
            "command": "safecircuits demo --out demo",
            "version": "0.1.0",
            "versions": {"torch": "2.13.0", "transformer-lens": "3.9.0"},
            "seconds": 241.3,
            "python": "3.11.9",
            "seed": 0,
            "datasets": {
                "malicious": {"n": 300, "sha": "4f2a" * 16},
                "normal": {"n": 300, "sha": "09bc" * 16},
            },
            "date": "2026-01-31T12:00:00+00:00",
        },
    }


class Balanced(HTMLParser):
    """Collects ids and references, and fails on a tag that closes what is not open."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input", "col", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str | None] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_attributes(tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_attributes(tag, dict(attrs))

    def handle_attributes(self, tag: str, attributes: dict[str, str | None]) -> None:
        if attributes.get("id"):
            self.ids.append(str(attributes["id"]))
        self.references += [str(attributes[key]) for key in ("href", "src", "xlink:href") if attributes.get(key)]
        if tag == "svg":
            self.labels.append(attributes.get("aria-label") if attributes.get("role") == "img" else None)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(path: Path) -> Balanced:
    page = Balanced()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return invented_results()


@styled
def invented_page(results: dict[str, Any]) -> str:
    """A page with a figure of each kind, and their numbers."""
    made = StudyPage()
    made.add("behavior", "Rates", "", [behavior_exhibit(made, "behavior", "Rates of each model", results["behavior"])])
    stages = {name: row for name, row in results["similarity"].items() if "gap_deg" in row}
    plot_gap(stages, ax=made.axes("gap"))
    plot_sweeps(results["localization"], made.axes("sweeps"))
    plot_unit_map(results["units"]["per_layer"], ax=made.axes("unit_map", 3.2))
    plot_finetune(results["finetune"], ax=made.axes("finetune", 3.5))
    units, counts = results["units"], tables.unit_map(results["units"]["per_layer"])
    removed = tables.ablation(units["ablation"], units["random_control"])
    exhibits = [
        Exhibit("gap", "Angle gap by layer, a line a model", "Degrees.", [tables.gaps(stages)]),
        Exhibit("sweeps", "Refused prompts by bound", captions.sweeps(results["localization"]), []),
        Exhibit(None, "Counts", "Of both.", tables.sweeps(results["localization"])),
        Exhibit("unit_map", "Units of each group by layer", "Counts.", [counts, removed], half=True),
        Exhibit("finetune", "Rates after fine-tuning, by arm", "Dots are seeds."),
    ]
    made.add("found", "What was found", "In every layer.", exhibits)
    html, _ = made.render(results["model"]["name"], results["model"], results["conclusions"], results["provenance"])
    return html


def written(results: dict[str, Any], folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(invented_page(results), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def report(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(results, tmp_path_factory.mktemp("report"))


def axis() -> Axes:
    return Figure().subplots()


def lines(ax: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in ax.lines}


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


# What is drawn


def test_gap_curves_and_ranges(results: dict[str, Any]) -> None:
    stages = {name: results["similarity"][name] for name in ("base", "aligned")}
    ax = axis()
    assert plot_gap(stages, planted=(3, 5), localized=[2, 5], ax=ax) is ax
    for name, row in stages.items():
        assert lines(ax)[name].get_ydata() == pytest.approx(row["gap_deg"])
        assert list(lines(ax)[name].get_xdata()) == list(range(N_LAYERS))
    assert {"planted [3, 5]", "onset [2, 4]", "located [2, 5]"} <= set(texts(ax))
    assert "onset" not in " ".join(texts(plot_gap(stages, onset=None, ax=axis())))
    with pytest.raises(ValueError, match="no gap curve"):
        plot_gap({}, ax=axis())


def test_gap_takes_result_objects_and_plain_numbers(results: dict[str, Any]) -> None:
    row = results["similarity"]["aligned"]
    curve = torch.tensor(row["gap_deg"])
    pair = {
        k: PairCurve(torch.tensor(row[f"{k}_mean"]), torch.tensor(row[f"{k}_std"]), curve) for k in ("nn", "mm", "nm")
    }
    gap = LayerGap(pair["nn"], pair["mm"], pair["nm"], curve, "all", "paper", {})
    ax = gap.plot(axis())
    onset = gap.onset()
    assert onset is not None
    assert f"onset {onset.layers}" in texts(ax)
    assert lines(ax)["gap"].get_ydata() == pytest.approx(row["gap_deg"])
    assert lines(plot_gap({"mine": [0.0, 1.0, 2.0]}, ax=axis()))["mine"].get_ydata() == pytest.approx([0, 1, 2])
    assert lines(plot_pair_curves(gap, ax=axis()))["N–M"].get_ydata() == pytest.approx(row["nm_mean"])


def test_pair_curves_have_their_bands(results: dict[str, Any]) -> None:
    row = results["similarity"]["aligned"]
    ax = plot_pair_curves(row, ax=axis())
    for label, kind in (("N–N", "nn"), ("M–M", "mm"), ("N–M", "nm")):
        assert lines(ax)[label].get_ydata() == pytest.approx(row[f"{kind}_mean"])
    band = ax.collections[2].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(m + s for m, s in zip(row["nm_mean"], row["nm_std"], strict=True)))


def test_sweeps_draw_counts_intervals_and_the_unscaled_model(results: dict[str, Any]) -> None:
    record = results["localization"]
    ax = plot_sweeps(record, axis())
    drawn = lines(ax)
    assert list(drawn["last layer moves, first is 3"].get_ydata()) == [row["refused"] for row in record["upper"]]
    assert list(drawn["first layer moves, last is 5"].get_ydata()) == [row["refused"] for row in record["lower"]]
    ends = [y for bar in ax.collections for y in bar.get_segments()[0][:, 1]]
    rows = (*record["upper"], *record["lower"])
    wanted = [62 + row[end] for row in rows for end in ("change_low", "change_high")]
    assert ends == pytest.approx(wanted)
    assert "62\nunscaled" in texts(ax)
    hollow = [line for line in ax.lines if line.get_label() == "_mark" and line.get_markerfacecolor() == "#ffffff"]
    assert [line.get_ydata()[0] for line in hollow] == [55]  # the degenerate one


def test_sweeps_of_a_localization_object() -> None:
    def point(layers: LayerRange | None, count: int) -> SweepPoint:
        texts = tuple(map(str, range(10)))
        return SweepPoint(layers, 1.1, torch.arange(10) < count, 0.0, Completions(PromptSet("own", texts), texts))

    upper = Sweep("upper", tuple(point(LayerRange(1, last), c) for last, c in ((1, 3), (2, 7), (3, 5))), "up")
    lower = Sweep("lower", tuple(point(LayerRange(first, 2), c) for first, c in ((0, 4), (1, 7), (2, 6))), "up")
    found = Localization(LayerRange(1, 2), 1.1, "up", point(None, 0), upper, lower, (), True, {})
    ax = found.plot(axis())
    assert list(lines(ax)["last layer moves, first is 1"].get_ydata()) == [3, 7, 5]
    assert "located [1, 2]" in texts(ax)


def test_ablation_bars_and_random_controls(results: dict[str, Any]) -> None:
    units = results["units"]
    ax = plot_ablation(units["ablation"], units["random_control"], ax=axis())
    for bars, name in zip(ax.containers, ("malicious_refused", "utility"), strict=True):
        assert [bar.get_height() for bar in bars] == [row[name] for row in units["ablation"].values()]
    random = [line.get_ydata()[0] for line in ax.lines if line.get_label() == "_random"]
    control = units["random_control"].values()
    assert random == [row[name] for name in ("malicious_refused", "utility") for row in control]


def test_ablation_of_a_table_object() -> None:
    def behavior(refused: int, right: int) -> Behavior:
        return Behavior(torch.arange(10) < refused, None, torch.arange(10) < right)

    row = Ablation("SCU", 4, behavior(1, 9), (behavior(8, 9), behavior(10, 7)))
    ax = plot_ablation(AblationTable(behavior(10, 10), (row,)), ax=axis())
    assert [bar.get_height() for bar in ax.containers[0]] == [1.0, 0.1]
    assert [line.get_ydata()[0] for line in ax.lines if line.get_label() == "_random"] == pytest.approx([0.9, 0.8])
    assert [line.get_ydata()[0] for line in ax.lines if line.get_label() == "_draw"] == pytest.approx(
        [0.8, 1.0, 0.9, 0.7]
    )
    curve = plot_ablation_curve({0: behavior(10, 10), 4: behavior(1, 9)}, ax=axis())
    assert list(lines(curve)["malicious refused"].get_ydata()) == [1.0, 0.1]


def test_ablation_curve(results: dict[str, Any]) -> None:
    neurons = results["planted"]["units"]
    ax = plot_ablation_curve(neurons["curve"], neurons["random_curve"], planted=neurons["remove_planted"], ax=axis())
    drawn = lines(ax)
    for label, rows, name in (
        ("malicious refused", neurons["curve"], "malicious_refused"),
        ("utility", neurons["curve"], "utility"),
        ("random malicious refused", neurons["random_curve"], "malicious_refused"),
        ("planted_share", neurons["curve"], "planted_share"),
    ):
        assert list(drawn[label].get_xdata()) == [row["removed"] for row in rows]
        assert list(drawn[label].get_ydata()) == [row[name] for row in rows]
    assert [line.get_ydata()[0] for line in ax.lines if line.get_label() == "_planted"] == [0.0, 1.0]
    assert ax.get_xticklabels()[0].get_text() == "6\n0.2\u00a0%"


def test_unit_map_prints_every_count(results: dict[str, Any]) -> None:
    per_layer = results["units"]["per_layer"]
    ax = plot_unit_map(per_layer, ax=axis())
    wanted = [str(count) for groups in per_layer.values() for row in groups.values() for count in row]
    assert texts(ax) == wanted
    assert [label.get_text() for label in ax.get_yticklabels()][:2] == ["MLP  SCU", "MLP  UCU"]
    with pytest.raises(ValueError, match="no unit groups"):
        plot_unit_map({}, ax=axis())


def test_finetune_means_seeds_intervals_and_before(results: dict[str, Any]) -> None:
    record = results["finetune"]
    ax = plot_finetune(record, metrics=("malicious_refused",), ax=axis())
    arms = [record[name] for name in ("none", "safety_layers", "random_layers", "scu_cu", "random")]
    by_label = [(line.get_label(), line.get_xdata()[0]) for line in ax.lines]
    assert [x for label, x in by_label if label == "malicious_refused"] == [arm["malicious_refused"] for arm in arms]
    seeds = [x for label, x in by_label if label == "malicious_refused seed"]
    assert seeds == [seed for arm in arms for seed in arm["malicious_refused_seeds"]]
    assert ax.lines[0].get_xdata()[0] == record["before"]["malicious_refused"]
    spans = [x for bar in ax.collections for x in bar.get_segments()[0][:, 0]]
    assert spans == pytest.approx([end for arm in arms for end in arm["malicious_refused_interval"]])
    assert [label.get_text() for label in ax.get_yticklabels()][1] == "safety layers frozen\n37\u00a0% of weights"


def test_behavior_rows(results: dict[str, Any]) -> None:
    ax = plot_behavior(results["behavior"], ax=axis())
    drawn = [line.get_xdata()[0] for line in ax.lines if line.get_label() == "over_rejected"]
    assert drawn == [row["over_rejected"] for row in results["behavior"].values()]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(STAGES)


def test_the_style_stays_inside() -> None:
    before, open_figures = dict(matplotlib.rcParams), plt.get_fignums()
    ax = plot_gap({"mine": [0.0, 1.0]})
    assert dict(matplotlib.rcParams) == before
    plt.close(ax.figure)
    invented_page(invented_results())
    assert plt.get_fignums() == open_figures


# The page


def test_the_page_is_well_formed_with_unique_ids_and_live_references(report: Path) -> None:
    page = parsed(report)
    assert len(page.ids) == len(set(page.ids))
    targets = set(page.ids)
    assert page.references
    assert all(reference.startswith("#") and reference[1:] in targets for reference in page.references)
    urls = re.findall(r"url\(([^)]*)\)", report.read_text(encoding="utf-8").replace(style(), "").replace(script(), ""))
    assert all(url.startswith("#") and url[1:] in targets for url in urls)


def test_the_page_asks_the_network_for_nothing(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    bare = text.replace(script(), "")
    assert len(bare) < len(text)
    assert not re.search(r"https?:|//[a-z]+\.|@import|<link|<img|<iframe", bare)
    assert re.findall(r"<script[^>]*>", bare) == ['<script type="module">']


def test_every_figure_is_described(report: Path) -> None:
    labels = parsed(report).labels
    assert len(labels) == 5
    assert all(label and len(label) > 30 for label in labels)


def test_nothing_at_all_is_still_a_page(tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_text(page("Nothing", [], {}, facts={}, conclusions=[], provenance={}), encoding="utf-8")
    assert parsed(path).labels == []


def test_figures_follow_the_theme_of_the_page(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawn)) == set()
    used = set(re.findall(r"var\(--([a-z]+), #", drawn))
    assert used <= PALETTE.keys()
    light, dark = re.split(r"prefers-color-scheme: dark", text)[:2]
    assert all(f"--{name}:" in light and f"--{name}:" in dark[:1000] for name in used)


def test_numbers_are_on_the_page(report: Path, results: dict[str, Any]) -> None:
    text = " ".join(parsed(report).text)
    assert results["localization"]["verdict"][1:] in text
    assert "Malicious prompts refused: base 0\u00a0%, unaligned 0.4\u00a0%, aligned 98.5\u00a0%" in text
    assert "random, as many as SCU" in text
    assert "The search settled on α = 1.1" in text
    for conclusion in results["conclusions"]:
        assert conclusion["text"] in text
    assert "Not supported" in text or "not supported" in text


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x & y')</script> $x^$ \"q\""
    results = invented_results()
    results["model"]["name"] = evil
    results["behavior"][evil] = results["behavior"].pop("base")
    results["similarity"][evil] = results["similarity"].pop("base")
    results["finetune"]["none"]["label"] = evil
    results["conclusions"][0] |= {"effect": evil, "shows": evil, "text": evil, "paper": evil}
    results["provenance"]["command"] = evil
    results["provenance"]["datasets"][evil] = {evil: evil}
    path = written(results, tmp_path)
    assert path.read_text(encoding="utf-8").replace(script(), "").count("<script") == 1
    page = parsed(path)
    assert evil in "".join(page.text)
    assert len(page.ids) == len(set(page.ids))


def test_the_package_does_not_import_matplotlib() -> None:
    code = "import sys, safecircuits; sys.exit(any(m in sys.modules for m in ('matplotlib', 'jinja2', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
