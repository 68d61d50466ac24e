"""Defences of the embedded models attacked: ``python -m benchmarks.defences.run --out docs/reference/defences.json``.

Interrupted, the same command goes on where it stopped: cells are kept in ``FILE.json.work``. ``--only NAME`` measures
some of the studies and leaves the others of the file as they are. ``--set NAME=JSON`` changes a field of ``Setup``,
``--quick`` runs a corner, to see that it works. ``python -m benchmarks.defences.page`` makes the page from the file.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.defences.arms import main_arms, other_arms, units
from benchmarks.defences.real import RealSetup, real_study
from benchmarks.freezing.grid import changed
from safecircuits import organism
from safecircuits.base.files import write_text
from safecircuits.results.provenance import provenance
from safecircuits.studies.arms import Arm, sppft
from safecircuits.studies.attack.attackers import Attacker, DataAttack
from safecircuits.studies.attack.grid import organism_attackers
from safecircuits.studies.attack.outcome import AttackStudy
from safecircuits.studies.attack.study import attack_study
from safecircuits.training.settings import TrainingSettings

MODULE = "python -m benchmarks.defences.run"
STUDIES = ("aligned", "planted-layers", "more", "slow", "slow-planted", "slow-more", "scenarios")
REAL = "real"
"""The study of a real model, which has a budget in hours and takes no part in ``attackers``."""
MODELS = {"planted-layers": "planted-layers", "slow-planted": "planted-layers"}
"""By study, where it is not the aligned one."""
FAST = (5e-5, 2e-4, 8e-4)
"""Rates of attackers who may choose any."""
SLOW = 1e-5
"""The rate of attackers who are held to a low one, as a service can hold them."""


@dataclass(frozen=True)
class Setup:
    """What is run.

    Attributes:
        attackers: how many, from the first, in each study; those of ``grid``.
        stops: steps after which a run is measured; ``slow_stops`` at the low rate.
        prompts: harmful prompts of each side, and questions with known answers.
        align_steps: of the arms that align the unaligned model anew.
        workers: processes that attack side by side.
        others: names of the other methods' arms that are attacked, all if empty; the one without a defence always is.
        real: of the study of a real model.
    """

    attackers: tuple[int, ...] = (9, 8, 4, 3, 3, 1, 5)
    seeds: tuple[int, ...] = (0, 1, 2)
    stops: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    slow_stops: tuple[int, ...] = (8, 12, 16, 20, 24, 28, 32)
    batch_size: int = 4
    prompts: int = 25
    align_steps: int = 60
    align_batch: int = 16
    workers: int = 1
    others: tuple[str, ...] = ()
    real: RealSetup = field(default_factory=RealSetup)

    def __post_init__(self) -> None:
        if isinstance(self.real, dict):  # --set 'real={"hours": 1}'
            object.__setattr__(self, "real", RealSetup(**self.real))

    def quick(self) -> Setup:
        """One attacker, one seed, few steps."""
        one = (1,) * len(STUDIES)
        return Setup(one, (0,), (1, 2), (1, 2), 4, 6, 3, 4, others=("wise-ft", "vaccine"), real=self.real.quick())


def study(name: str, setup: Setup, work: Path) -> AttackStudy:
    """One of the studies."""
    torch.set_num_threads(1)
    if name == REAL:
        return real_study(setup.real, work)
    asked = organism.prompts("malicious", "test", n=2 * setup.prompts, seed=11)
    model = MODELS.get(name, "aligned")
    if model == "planted-layers":
        arms = main_arms(sppft((3, 5), "freeze"))
    else:
        kind = units(model)
        arms = _others(kind, setup) if name.endswith("more") else main_arms(kind)
    return attack_study(
        model,
        arms,
        grid(name)[: dict(zip(STUDIES, setup.attackers, strict=True))[name]],
        selection=asked[: setup.prompts],
        reported=asked[setup.prompts :],
        utility=organism.prompts("utility", "test", n=setup.prompts, seed=11),
        seeds=setup.seeds,
        stops=setup.slow_stops if name.startswith("slow") else setup.stops,
        settings=TrainingSettings(batch_size=setup.batch_size, schedule="constant"),
        evaluation={"refusal_tokens": 10},
        workers=setup.workers,
        out=work,
    )


def _others(kind: Arm, setup: Setup) -> list[Arm]:
    """The other methods' arms that the setup names."""
    bare, *arms = other_arms(kind, setup.align_steps, setup.align_batch)
    if unknown := set(setup.others) - {arm.name for arm in arms}:
        raise ValueError(f"no other arm {min(unknown)!r}; there are {', '.join(arm.name for arm in arms)}")
    return [bare, *(arm for arm in arms if not setup.others or arm.name in setup.others)]


def grid(study: str) -> list[Attacker]:
    """The attackers of a study: those who choose rate and edit, those held to a low rate, or the published scenarios.

    Other methods are attacked by training alone: what no training-time method could stop has been seen by then.
    """
    if study.startswith("slow"):
        slow = organism_attackers(lrs=(SLOW,), counts=(100, 10, 50), families=("harmful data",))
        return [one for one in slow if isinstance(one, DataAttack) and one.lora is None]
    everyone = {one.name: one for one in organism_attackers(lrs=FAST, counts=(10, 50, 100, 1000))}
    if study == "scenarios":
        return [one for one in everyone.values() if one.family == "harmless data"]
    first = [everyone[name] for name in FIRST]
    others = [one for one in everyone.values() if one not in first]
    return [one for one in (*first, *others) if study != "more" or one.family != "edit"]


FIRST = (
    "100 harmful, lr 0.0002",
    "100 harmful, lr 0.0008",
    "refusal direction ablated",
    "pruning, mask known",
    "pruning, mask not known",
    "100 harmful, LoRA, lr 0.001",
    "100 harmful, LoRA, lr 0.004",
    "10 harmful, lr 0.0002",
    "D_H, 40 harmful in 400",
)
"""The order in which attackers with any rate come."""


def document(setup: Setup, found: dict[str, AttackStudy], command: str) -> dict[str, Any]:
    """The studies as plain JSON, rounded to what numbers can mean; of the answers the first few of each arm.

    None of a real model's: what it says where it is attacked is not to be shipped.
    """
    names = ("arms", "before", "left_out", "max_utility_loss", "breaks_at", "stops", "provenance")
    parts = {}
    for name, one in found.items():
        cells = [asdict(cell) for cell in one.cells]
        read = {
            arm: list(zip(said.prompts or (), said.answers, said.verdicts, strict=True))[:4]
            for arm, said in one.answers.items()
            if name != REAL
        }
        parts[name] = {**{key: getattr(one, key) for key in names}, "cells": cells, "read": read}
    origin = provenance(command=command, seed=0, threads=torch.get_num_threads())
    rounded: dict[str, Any] = _rounded({"setup": asdict(setup), "provenance": origin, "studies": parts})
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a corner of it, to see that it works")
    parser.add_argument("--only", action="append", choices=(*STUDIES, REAL), help="measure this study, keep the others")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="another value of a field")
    parser.add_argument("--work", type=Path, help="where cells are kept; FILE.json.work unless given")
    chosen = parser.parse_args(arguments)
    setup = changed(Setup().quick() if chosen.quick else Setup(), chosen.set)
    flags = [*(["--quick"] if chosen.quick else []), *(part for one in chosen.set for part in ("--set", one))]
    command = f"{MODULE} --out {chosen.out} {shlex.join(flags)}".rstrip()
    work = chosen.work or chosen.out.with_name(f"{chosen.out.name}.work")
    found = {name: study(name, setup, work) for name in chosen.only or (*STUDIES, REAL)}
    record = document(setup, found, command)
    if chosen.only and chosen.out.exists():
        parts = json.loads(chosen.out.read_text(encoding="utf-8"))["studies"] | record["studies"]
        record["studies"] = {name: parts[name] for name in (*STUDIES, REAL) if name in parts}
    write_text(chosen.out, json.dumps(record, separators=(",", ":")) + "\n")
    for name, one in found.items():
        print(f"{name}\n{one}\n")


if __name__ == "__main__":
    main()
