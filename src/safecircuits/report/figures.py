"""All figures that a set of results allows, by stable names; and the plot functions for single ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from safecircuits.base.files import replacing
from safecircuits.base.outputs import SOFTWARE, require_replaceable
from safecircuits.base.record import Record, arms
from safecircuits.plots.layers import plot_gap, plot_pair_curves, plot_planted_layers, plot_sweeps
from safecircuits.plots.pairs import similarity_limits
from safecircuits.plots.rates import plot_behavior, plot_finetune
from safecircuits.plots.style import COLUMN, styled
from safecircuits.plots.units import plot_ablation, plot_ablation_curve, plot_unit_map
from safecircuits.report.captions import gap_stages
from safecircuits.report.overview import plot_overview

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "figures",
    "plot_ablation",
    "plot_ablation_curve",
    "plot_behavior",
    "plot_finetune",
    "plot_gap",
    "plot_overview",
    "plot_pair_curves",
    "plot_planted_layers",
    "plot_sweeps",
    "plot_unit_map",
    "save_figures",
]

DPI = 200


@styled
def figures(results: Record) -> dict[str, Figure]:
    """Every figure that ``results`` (see ``results.json``) has the data for; parts that are absent are left out.

    Names: ``overview``, ``behavior``, ``gap``, ``pairs_<stage>``, ``sweeps``, ``unit_map``, ``ablation``,
    ``planted_layers``, ``planted_sweeps``, ``planted_units``, ``finetune``. The figures are not pyplot's.
    """
    drawn: dict[str, Figure] = {}
    if (overview := plot_overview(results)) is not None:
        drawn["overview"] = overview
    return drawn | single_figures(results)


@styled
def single_figures(results: Record) -> dict[str, Figure]:
    """``figures`` without the overview."""
    drawn: dict[str, Figure] = {}
    for name, size, draw in _drawings(results):
        figure = Figure(figsize=size)
        draw(figure.subplots())
        drawn[name] = figure
    return drawn


@styled
def save_figures(results: Record, folder: str | Path) -> list[Path]:
    """Write every figure as ``<name>.png`` (200 dpi) into ``folder``, each complete or not at all.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> results = json.loads(Path("demo/results.json").read_text())  # doctest: +SKIP
        >>> sc.report.save_figures(results, "figures")  # doctest: +SKIP
    """
    paths = []
    for name, figure in figures(results).items():
        path = Path(folder) / f"{name}.png"
        with replacing(require_replaceable(path, "figure")) as partial:
            figure.savefig(partial, format="png", dpi=DPI, metadata=SOFTWARE)
        paths.append(path)
    return paths


def _drawings(results: Record) -> Iterator[tuple[str, tuple[float, float], Callable[[Axes], Any]]]:
    """Name, size in inches and drawing of each figure with one axis."""
    if behavior := results.get("behavior"):
        yield "behavior", (COLUMN[0], 0.85 + 0.42 * len(behavior)), lambda ax: plot_behavior(behavior, ax=ax)

    similarity = results.get("similarity") or {}
    stages = gap_stages(similarity)
    if stages:
        onsets = {name: row.get("onset") for name, row in stages.items()}
        yield "gap", COLUMN, lambda ax: plot_gap(stages, onset=onsets, ax=ax)
    with_pairs = {name: row for name, row in stages.items() if "nm_mean" in row}
    for name, row in with_pairs.items():
        yield (
            f"pairs_{slugs(stages)[name]}",
            (2.3, 2.15),
            _pair_curves(row, similarity_limits(list(with_pairs.values()))),
        )

    if localization := results.get("localization"):
        yield "sweeps", COLUMN, lambda ax: plot_sweeps(localization, ax=ax)

    units = results.get("units") or {}
    if per_layer := units.get("per_layer"):
        n_rows = sum(map(len, per_layer.values()))
        yield "unit_map", (COLUMN[0], 0.7 + 0.27 * n_rows), lambda ax: plot_unit_map(per_layer, ax=ax)
    if ablation := units.get("ablation"):
        yield "ablation", COLUMN, lambda ax: plot_ablation(ablation, units.get("random_control"), ax=ax)

    planted = results.get("planted") or {}
    if (block := planted.get("layers")) and "planted-layers" in stages:
        yield (
            "planted_layers",
            COLUMN,
            lambda ax: plot_planted_layers(block, stages["planted-layers"], ax=ax),
        )
    if block and (swept := block.get("localization")):
        yield "planted_sweeps", COLUMN, lambda ax: plot_sweeps(swept, ax=ax)
    if (neurons := planted.get("units")) and neurons.get("curve"):
        yield (
            "planted_units",
            (COLUMN[0], 2.9),
            lambda ax: plot_ablation_curve(
                neurons["curve"], neurons.get("random_curve"), planted=neurons.get("remove_planted"), ax=ax
            ),
        )

    finetune = results.get("finetune") or {}
    if n_arms := len(arms(finetune)):
        yield "finetune", (COLUMN[0], 0.9 + 0.52 * n_arms), lambda ax: plot_finetune(finetune, ax=ax)


def _pair_curves(row: Record, limits: tuple[float, float]) -> Callable[[Axes], Any]:
    def draw(ax: Axes) -> None:
        plot_pair_curves(row, ax=ax)
        ax.set_ylim(limits)

    return draw


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Names as parts of file names and ids, all different: ``planted-layers`` becomes ``planted_layers``."""
    made: dict[str, str] = {}
    for name in names:
        plain = slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "unnamed"
        number = 1
        while slug in made.values():
            number += 1
            slug = f"{plain}_{number}"
        made[name] = slug
    return made
