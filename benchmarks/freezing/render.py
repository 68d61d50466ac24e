"""The page about when freezing helps, from the grid's numbers: ``python -m benchmarks.freezing.render`` writes it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from safecircuits.base.files import write_text
from safecircuits.studies.comparison import MARGIN, At
from safecircuits.studies.grid import FreezingGrid, GridCell
from safecircuits.studies.outcome import FinetuningStudy, StudyRun

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).parents[2]
NUMBERS, PAGE = ROOT / "docs/reference/freezing_grid.json", ROOT / "docs/freezing.md"

VERDICTS = ("helps", "harms", "no difference", "unclear")


def grid_of(record: dict[str, Any]) -> FreezingGrid:
    """The grid from its JSON."""
    cells = []
    for cell in record["cells"]:
        runs = tuple(StudyRun.of(run) for run in cell["runs"])
        cells.append(GridCell(cell["model"], cell["lr"], FinetuningStudy(runs, cell["frozen"], {}, {})))
    return FreezingGrid(tuple(cells))


def page(record: dict[str, Any]) -> str:
    """The page as Markdown. Every figure on it is computed here from the record."""
    grid = grid_of(record)
    frame = grid.to_frame()
    sections = [_introduction(record), _answer(frame)]
    for scenario in dict.fromkeys(frame["scenario"]):
        sections.append(_scenario(grid, frame[frame["scenario"] == scenario], scenario))
    sections += [_cost(grid), _limits(record)]
    return "\n".join(sections)


def _introduction(record: dict[str, Any]) -> str:
    setup, origin = record["setup"], record["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    return f"""\
# When does freezing help?

SPPFT freezes a block of layers during fine-tuning to keep refusals (Safety Layers §4). This page measures whether
that helps, on the embedded models, for several learning rates, amounts of alignment and frozen blocks, compared with
full fine-tuning on the same data, in the same order, for as many steps. There are three comparisons. At **equal
steps** an arm may keep refusals only because it has learnt less of the task. At **matched loss** both arms are
compared where their training curves have the same held-out task loss: the lowest that all runs of the two arms reach.
Since refusals are often all gone by then, **all losses** is the mean over every task loss that both pass through,
from the start to that level.

A difference is in percentage points of malicious prompts refused, frozen minus full: above zero, freezing kept more.
It is the mean over {len(setup["seeds"])} seeds (order of the data), paired by seed, with its 95 % Student-t interval.
*No difference* means that the interval lies within ±{100 * MARGIN:.0f} points, *helps* and *harms* that it lies on
one side of zero, *unclear* everything else.

Each run takes {setup["steps"]} steps of {setup["batch_size"]} examples with AdamW at a constant learning rate.
Refusal is measured on {setup["malicious"]} held-out malicious prompts. `aligned-N` is the embedded base, aligned with
all weights trainable for N steps (250 is the shipped stage); in `planted-layers` alignment was confined to layers 3
to 5. There are {_n_runs(record)} runs.

The numbers are in `docs/reference/freezing_grid.json`, made by `{origin["command"]}` ({versions}), and this page by
`python -m benchmarks.freezing.render`.
"""


def _n_runs(record: dict[str, Any]) -> int:
    return sum(len(cell["runs"]) for cell in record["cells"])


def _answer(frame: pd.DataFrame) -> str:
    rows = []
    for at, found in frame.groupby("at", sort=False):
        counts = found["verdict"].value_counts()
        rows.append([at, len(found), *(int(counts.get(verdict, 0)) for verdict in VERDICTS)])
    both = frame.pivot_table(
        index=["scenario", "model", "lr", "arm"], columns="at", values="verdict", aggfunc="first", dropna=False
    )
    text = ["## In short\n", _table(["compared at", "comparisons", *VERDICTS], rows)]
    for at in ("matched loss", "all losses"):
        for verdict in ("helps", "harms"):
            found = frame[(frame["verdict"] == verdict) & (frame["at"] == at)]
            cells = [f"- {r.model}, {r.scenario}, lr {r.lr:g}, {r.arm}: {_points(r)}" for r in found.itertuples()]
            text.append(f"At {at} freezing **{verdict}** in {_cells(len(cells))}\n")
            text += [*cells, ""] if cells else []
    text.append(
        f"These are {len(frame)} intervals, each of which misses the true value once in twenty times: a single cell "
        "proves little; whole rows and columns say more.\n"
    )
    if {"equal steps", "matched loss"} <= set(both.columns):
        apparent = both[(both["equal steps"] == "helps") & (both["matched loss"] != "helps")]
        helped = int((both["equal steps"] == "helps").sum())
        text.append(
            f"Cells where it helps at equal steps: {helped}; of these not at matched loss: {len(apparent)}, where the "
            "frozen model had only learnt less, or the seeds vary too much to tell.\n"
        )
    rows = []
    for (scenario, arm), values in frame[frame["at"] == "all losses"].groupby(["scenario", "arm"], sort=False):
        points = values["difference"]
        rows.append([scenario, arm, *(f"{100 * p:+.0f}" for p in (points.mean(), points.min(), points.max()))])
    text += ["Percentage points at all losses, by frozen block, over the cells of a scenario:\n"]
    text.append(_table(["scenario", "frozen", "mean", "least", "most"], rows))
    return "\n".join(text)


def _scenario(grid: FreezingGrid, frame: pd.DataFrame, scenario: str) -> str:
    arms = list(dict.fromkeys(frame["arm"]))
    text = [f"## {scenario}\n"]
    for at in get_args(At):
        rows = []
        for (model, lr), found in frame[frame["at"] == at].groupby(["model", "lr"], sort=False):
            by_arm = {row.arm: row for row in found.itertuples()}
            first = found.iloc[0]
            cells = [f"{_points(by_arm[arm])}<br>{by_arm[arm].verdict}" if arm in by_arm else "–" for arm in arms]
            kept = [_percent(first["before"]), _percent(first["full"])] if at == "equal steps" else []
            rows.append([model, f"{lr:g}", *kept, *cells])
        head = ["model", "lr", *(["refused before", "after full"] if at == "equal steps" else []), *arms]
        text += [f"Refusal kept beyond full fine-tuning, at {at}, in points:\n", _table(head, rows)]
    rows = []
    for cell in grid.cells:
        for _, row in cell.study.summary().iterrows():
            if row["scenario"] == scenario:
                figures = [_percent(row["malicious_refused"]), f"{row['task_loss']:.3g}"]
                rows.append([cell.model, f"{cell.lr:g}", row["arm"], *figures])
    text += ["What every arm ends with (means over seeds):\n"]
    text += [_table(["model", "lr", "arm", "malicious refused", "task loss"], rows)]
    return "\n".join(text)


def _cost(grid: FreezingGrid) -> str:
    runs = [run for cell in grid.cells for run in cell.study.runs]
    rows = []
    full = min(run.step_seconds for run in runs if run.arm == "full")
    for arm in dict.fromkeys(run.arm for run in runs):
        of = [run for run in runs if run.arm == arm]
        fastest = min(run.step_seconds for run in of)
        rows.append(
            [
                arm,
                _percent(of[0].share_frozen),
                f"{of[0].n_trainable:,}",
                f"{of[0].gradient_bytes / 2**20:.1f}",
                f"{of[0].optimizer_bytes / 2**20:.1f}",
                f"{1000 * fastest:.0f}",
                f"{fastest / full:.2f}",
            ]
        )
    head = ["frozen", "share of parameters", "trained", "gradients, MiB", "optimizer, MiB", "ms a step", "of full"]
    return f"""\
## What freezing saves

Memory is counted from the tensors themselves. The time of a step is the fastest run's mean, on one thread; the arms
took turns. Other work was running on the machine, so small differences in time are noise.

{_table(head, rows)}"""


def _limits(record: dict[str, Any]) -> str:
    return f"""\
## Limits

- These are toy models with one alignment run for each amount of alignment: seeds vary the order of the fine-tuning
  data only.
- {len(record["setup"]["seeds"])} seeds give wide intervals, especially because a run tends to lose nearly all
  refusals or nearly none. *Unclear* is not *no difference*.
- Refusal often falls within a few steps, and may come back, so a single point of a curve depends on where it is read.
  The curves are in the JSON file.
- Blocks are of equal size, and not the ones that a search would find in each model.
- A learning rate that suits full fine-tuning need not suit a model with fewer trainable layers; here all arms share
  it.
"""


def _cells(n: int) -> str:
    return "no cell." if n == 0 else f"{n} cell{'s' if n > 1 else ''}:"


def _points(row: Any) -> str:
    difference, low, high = row.difference, row.low, row.high
    if math.isnan(low):
        return f"{100 * difference:+.0f}"
    return f"{100 * difference:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--numbers", type=Path, default=NUMBERS, help="the JSON that benchmarks.freezing.grid wrote")
    parser.add_argument("--out", type=Path, default=PAGE, help="the Markdown file to write")
    chosen = parser.parse_args(arguments)
    write_text(chosen.out, page(json.loads(chosen.numbers.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
