"""When does freezing help? The grid on the embedded models: ``python -m benchmarks.freezing.grid --out FILE.json``.

About 15 minutes on one idle core, besides some four minutes for the two doses that are not shipped. Interrupted, the
same command goes on where it stopped: runs and models are kept in ``FILE.json.work``. ``--set 'blocks=[[3,5]]'`` runs a
part of it (any field of ``Setup``, as JSON), ``--quick`` a corner, to see that it works. ``python -m
benchmarks.freezing.render`` makes the page from the file.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from benchmarks.freezing.doses import doses
from safecircuits import organism
from safecircuits.base.files import write_text
from safecircuits.organism import stage_path
from safecircuits.results.provenance import provenance
from safecircuits.studies.grid import FreezingGrid, freezing_grid
from safecircuits.studies.scenarios import Scenario, organism_new_task, organism_scenarios
from safecircuits.training.settings import TrainingSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MODULE = "python -m benchmarks.freezing.grid"


@dataclass(frozen=True)
class Setup:
    """What the grid runs.

    Rates go from where full fine-tuning learns the task and loses next to no refusals in the given steps to where it
    loses nearly all. The attack's were chosen on full fine-tuning alone; when the task's were, some frozen runs at a
    higher rate, since dropped because nothing was left to keep, had been seen.
    """

    doses: tuple[int, ...] = (125, 250, 500)
    blocks: tuple[tuple[int, int], ...] = ((0, 2), (3, 5), (5, 7))
    task_lrs: tuple[float, ...] = (3e-4, 6e-4)
    attacked: tuple[str, ...] = ("aligned-250", "planted-layers")
    attack_lrs: tuple[float, ...] = (2e-4, 4e-4)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 40
    batch_size: int = 8
    malicious: int = 80
    points: int = 8
    held_out: int = 54

    def quick(self) -> Setup:
        """One dose, one rate, one block, few steps."""
        return Setup((250,), ((3, 5),), (6e-4,), ("planted-layers",), (2e-4,), (0, 1), 4, 8, 16, 2, 16)


def run(setup: Setup, work: Path) -> FreezingGrid:
    """All cells: the new task at every dose, then the implicit attack on the attacked models.

    Raises:
        ValueError: for an attacked model that is neither planted-layers nor of one of the doses.
    """
    names = [f"aligned-{steps}" for steps in setup.doses] + ["planted-layers"]
    if unknown := [name for name in setup.attacked if name not in names]:
        raise ValueError(f"no model {unknown[0]!r} to attack; there are {', '.join(names)}")
    torch.set_num_threads(1)
    aligned: dict[str, Any] = {f"aligned-{steps}": path for steps, path in doses(work / "models", setup.doses).items()}
    models = aligned | {"planted-layers": stage_path("planted-layers")}
    options: dict[str, Any] = {
        "malicious": organism.prompts("malicious", n=setup.malicious),
        "evaluation": {"refusal_tokens": 4},  # every refusal of the embedded language has begun by then
        "settings": TrainingSettings(steps=setup.steps, batch_size=setup.batch_size, schedule="constant"),
        "seeds": setup.seeds,
        "points": setup.points,
        "out": work / "runs",
    }
    grid = freezing_grid(aligned, [organism_new_task(setup.held_out)], setup.task_lrs, setup.blocks, **options)
    attacked = {name: models[name] for name in setup.attacked}
    if not attacked:
        return grid
    attack = freezing_grid(attacked, [implicit_attack_scenario(setup)], setup.attack_lrs, setup.blocks, **options)
    return FreezingGrid(grid.cells + attack.cells)


def implicit_attack_scenario(setup: Setup) -> Scenario:
    """D_I in the embedded language."""
    return next(scenario for scenario in organism_scenarios(held_out=setup.held_out) if scenario.kind == "D_I")


S = TypeVar("S", bound="DataclassInstance")


def changed(setup: S, settings: Sequence[str]) -> S:
    """The setup with fields replaced, each given as ``name=JSON``.

    Raises:
        ValueError: for a field that there is not, or text that is not JSON.
    """
    known = {field.name for field in fields(setup)}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            raise ValueError(f"no field {name!r} in the setup; there are {', '.join(sorted(known))}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{setting!r} is not name=JSON, such as 'blocks=[[3,5]]'") from error
        if isinstance(value, list):
            value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        setup = replace(setup, **{name: value})
    return setup


def document(setup: Setup, grid: FreezingGrid, command: str) -> dict[str, Any]:
    """The grid as plain JSON: every run with its curve, rounded to what it can mean."""
    cells = []
    for cell in grid.cells:
        runs = [{k: v for k, v in asdict(run).items() if k != "answers"} for run in cell.study.runs]
        cells.append({"model": cell.model, "lr": cell.lr, "frozen": dict(cell.study.frozen), "runs": runs})
    origin = provenance(command=command, seed=0, threads=torch.get_num_threads())
    record = {"setup": asdict(setup), "provenance": origin, "cells": cells}
    rounded: dict[str, Any] = _rounded(record)
    return rounded


def _rounded(value: Any, name: str = "") -> Any:
    if isinstance(value, float):
        return value if name == "lr" else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, name) for item in value]
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a corner of the grid, to see that it works")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="another value of a field of Setup"
    )
    parser.add_argument("--work", type=Path, help="where runs and models are kept; FILE.json.work unless given")
    chosen = parser.parse_args(arguments)
    setup = changed(Setup().quick() if chosen.quick else Setup(), chosen.set)
    flags = [*(["--quick"] if chosen.quick else []), *(part for setting in chosen.set for part in ("--set", setting))]
    command = f"{MODULE} --out {chosen.out} {shlex.join(flags)}".rstrip()
    grid = run(setup, chosen.work or chosen.out.with_name(f"{chosen.out.name}.work"))
    write_text(chosen.out, json.dumps(document(setup, grid, command), indent=None, separators=(",", ":")) + "\n")
    for cell, found in grid.comparisons():
        print(f"{cell.model}, lr {cell.lr:g}: {found}")


if __name__ == "__main__":
    main()
