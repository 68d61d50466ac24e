"""Freely aligned models of several doses: the shipped base, aligned for fewer or more steps than the shipped stage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safecircuits.organism import stage_path
from safecircuits.organism.recipe import Recipe
from safecircuits.organism.stages import build


def dose(folder: Path, steps: int) -> Path:
    """The Hugging Face folder of a model aligned for ``steps`` steps; built under ``folder`` unless it is there."""
    recipe = Recipe()
    shipped = recipe.phases["aligned"]
    if steps == shipped.steps:
        return stage_path("aligned")
    root = folder / f"aligned-{steps}"
    if not (root / "base").exists():
        shutil.copytree(stage_path("base"), root / "base")  # the same recipe made it, so that build keeps it
    phases = recipe.phases | {"aligned": replace(shipped, steps=steps)}
    return build(root, stages=("aligned",), recipe=replace(recipe, phases=phases))["aligned"]


def doses(folder: Path, steps: Sequence[int]) -> dict[int, Path]:
    """The same for several doses, by their steps."""
    return {n: dose(folder, n) for n in steps}
