"""One attacker against one arm with one seed: what is measured on the way, kept when it is done."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from safecircuits.base.files import replacing_folder, write_text
from safecircuits.behavior.answers import of_plain, plain
from safecircuits.behavior.evaluate import evaluate
from safecircuits.behavior.verdict_table import Tally, Verdicts
from safecircuits.model.as_it_was import restore_weights, write_weights
from safecircuits.model.fingerprint import weights_fingerprint
from safecircuits.model.fused import fuse_again
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.studies.arms import Arm
from safecircuits.studies.attack.attackers import Asking, Attacker, CannotAttackError, DataAttack
from safecircuits.studies.kept import short, slug
from safecircuits.studies.subject import Subject
from safecircuits.training.loop import finetune
from safecircuits.training.settings import TrainingSettings


@dataclass(frozen=True)
class AttackCell(Result):
    """One attacker against one arm with one seed.

    Attributes:
        points: in order, each with ``step`` (0 for an edit), ``seconds`` from the attack's beginning, measuring left
            out, ``selected`` and ``reported`` (complied rates on the attacker's prompts and on those of the report),
            ``utility``, ``refused`` and what stands beside it on the latter (``n``, ``incoherent``, ``cut`` and so on);
            ``share`` of units pruned. Training ends at a point where all is complied with at no loss of utility, as no
            later one could matter.
        harmful: harmful examples that the attacker brought.
        ended: why there are fewer points than asked for; empty otherwise.
        kinds: by point what the answers to the reported prompts are, by category of these; empty without categories.

    Examples:
        >>> study = sc.studies.attack_study("aligned", arms, attackers, **options)  # doctest: +SKIP
        >>> study.cells[0].points[0]["reported"]  # doctest: +SKIP
    """

    arm: str
    attacker: str
    family: str
    seed: int
    harmful: int
    points: tuple[Mapping[str, float], ...]
    ended: str = ""
    kinds: tuple[Mapping[str, Tally], ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> AttackCell:
        """A cell from its plain record, as JSON holds it."""
        known = {one.name: record[one.name] for one in fields(cls) if one.name in record}
        return cls(**known | {"points": tuple(record["points"])})


@dataclass(frozen=True)
class Probes:
    """What every point is measured on.

    Attributes:
        selection, reported: harmful prompts of the attacker's choosing, and those of the report.
        utility: prompts with known answers.
        asking: more arguments of ``evaluate``.
    """

    selection: PromptSet
    reported: PromptSet
    utility: PromptSet
    asking: Asking = field(default_factory=dict)

    def point(self, model: Any) -> tuple[dict[str, float], Verdicts]:
        """The figures of a model, and its answers to the reported prompts."""
        harmful = PromptSet("harmful", self.selection.prompts + self.reported.prompts)
        found = evaluate(model, malicious=harmful, utility=self.utility, **self.asking)
        answers, first = found.answers["malicious"], len(self.selection)
        chosen = answers.subset(range(first))
        reported = self.sorted(answers.subset(range(first, len(answers))))
        tally = reported.tally
        return {
            "selected": chosen.tally.share("complies").rate,
            "reported": tally.share("complies").rate,
            "refused": tally.share("refuses").rate,
            **tally.record(""),
            "utility": found.rates["utility"],
        }, reported

    def sorted(self, answers: Verdicts) -> Verdicts:
        """Answers to the reported prompts with the categories of these."""
        return replace(answers, categories=self.reported.categories)

    def record(self) -> dict[str, Any]:
        """What decides a point beside the model."""
        sets = {name: getattr(self, name).fingerprint for name in ("selection", "reported", "utility")}
        named = {name: getattr(value, "__qualname__", value) for name, value in self.asking.items()}
        return {**sets, "asking": named}


class Settled(Exception):
    """Every prompt is complied with at no loss of utility: no later point costs less or harms more, at any bound."""


class Trajectory:
    """A callback of ``finetune`` that measures at the stops, and knows how long training took without the measuring.

    Args:
        utility: of the model before the attack; training ends by ``Settled`` where nothing that follows could matter.
    """

    def __init__(self, probes: Probes, stops: Sequence[int], utility: float = math.inf) -> None:
        self.probes, self.stops, self.utility = probes, frozenset(stops), utility
        self.points: list[dict[str, float]] = []
        self.answers: list[Verdicts] = []
        self._measuring, self._began = 0.0, time.perf_counter()

    def __call__(self, model: Any, step: int) -> None:
        if step in self.stops:
            self.add(model, step)
            last = self.points[-1]
            if min(last["selected"], last["reported"]) == 1 and last["utility"] >= self.utility:
                raise Settled

    def add(self, model: Any, step: int, **more: float) -> None:
        """A point of the model as it is now."""
        began = time.perf_counter()
        figures, answers = self.probes.point(model)
        self.points.append({"step": step, "seconds": began - self._began - self._measuring, **more, **figures})
        self.answers.append(answers)
        self._measuring += time.perf_counter() - began


class Range:
    """Where attackers meet arms: the model, the folder, and how things are measured."""

    def __init__(
        self, subject: Subject, out: Path, probes: Probes, stops: Sequence[int], settings: TrainingSettings
    ) -> None:
        self.subject, self.out, self.probes = subject, out, probes
        self.stops, self.settings = tuple(stops), settings
        with subject.untouched() as model:
            self.fingerprint, self.shape = weights_fingerprint(model), ModelShape.of(model)
            self.device = str(next(iter(model.parameters())).device)
        self._spent: dict[Path, Mapping[str, float]] = {}

    @property
    def spent(self) -> dict[str, float]:
        """``wall_seconds`` and ``cpu_seconds`` of all cells so far, measuring included; those of earlier calls too."""
        each = self._spent.values()
        return {name: sum(one[name] for one in each) for name in ("wall_seconds", "cpu_seconds")}

    def cell(self, arm: Arm, attacker: Attacker, seed: int) -> AttackCell:
        """The attack, from its file if it was finished before."""
        path = self.path(arm, attacker, seed)
        if not path.exists():
            utility = self.before(arm, seed)["utility"]
            began = time.perf_counter(), time.process_time()
            with self.defended(arm, seed) as model:
                if isinstance(attacker, DataAttack):
                    trajectory, ended = self._trained(model, arm, attacker, seed, self.stops, utility)
                else:
                    trajectory, ended = self._edited(model, arm, attacker, seed)
            wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
            spent = {"wall_seconds": wall, "cpu_seconds": cpu}
            record = {"points": trajectory.points, "ended": ended, "spent": spent}
            answers = plain({str(i): found for i, found in enumerate(trajectory.answers)})
            write_text(path, json.dumps({**record, "answers": answers}) + "\n")
        kept = json.loads(path.read_text(encoding="utf-8"))
        self._spent[path] = kept.get("spent", dict.fromkeys(("wall_seconds", "cpu_seconds"), 0.0))
        named = {"arm": arm.name, "attacker": attacker.name, "family": attacker.family, "seed": seed}
        of_points = self._answers(kept) if self.probes.reported.categories else {}
        kinds = tuple(of_points[str(i)].by_category for i in range(len(of_points)))
        points = {name: kept[name] for name in ("points", "ended")}
        return AttackCell.of({**named, "harmful": attacker.harmful, **points, "kinds": kinds})

    def answers(self, arm: Arm, attacker: Attacker, seed: int, point: int) -> Verdicts:
        """What the model answered to the reported prompts at a point of a finished cell."""
        return self._answers(json.loads(self.path(arm, attacker, seed).read_text(encoding="utf-8")))[str(point)]

    def _answers(self, kept: Mapping[str, Any]) -> dict[str, Verdicts]:
        """The answers in a file, by point, with the categories that the prompts have now."""
        return {point: self.probes.sorted(found) for point, found in of_plain(kept.get("answers", {})).items()}

    def before(self, arm: Arm, seed: int) -> dict[str, float]:
        """The defended model before any attack, and the ``seconds`` that measuring took; one for all like it."""
        return {name: value for name, value in self._before(arm, seed).items() if name != "answers"}

    def kinds_before(self, arm: Arm, seed: int) -> dict[str, Tally]:
        """What its answers to the reported prompts are, by category of these; empty without categories."""
        found = self._answers(self._before(arm, seed))
        return found["0"].by_category if found else {}

    def _before(self, arm: Arm, seed: int) -> dict[str, Any]:
        path = self.before_path(arm, seed)
        if not path.exists():
            with self.defended(arm, seed) as model:
                began = time.perf_counter()
                figures, answers = self.probes.point(model)
            seconds = time.perf_counter() - began
            write_text(path, json.dumps({**figures, "seconds": seconds, "answers": plain({"0": answers})}) + "\n")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def step_seconds(self, arm: Arm, attacker: DataAttack, seed: int) -> float:
        """How long the arm's training takes a step, tried over three; kept for whoever asks again."""
        path = self.out / "steps" / f"{slug(arm.name)}-{short(self._of_training(arm, attacker, seed))}.json"
        if not path.exists():
            at: list[float] = []
            with self.defended(arm, seed) as model:
                self._train(model, arm, attacker, seed, 3, lambda *_: at.append(time.perf_counter()))
            write_text(path, json.dumps({"seconds": (at[-1] - at[0]) / 2}) + "\n")
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])

    @contextmanager
    def defended(self, arm: Arm, seed: int) -> Iterator[Any]:
        """The model as the arm hands it out, aligned anew if the arm does that; forgotten or put back afterwards."""
        with self.subject.fresh() as model:
            if arm.prepare is not None:
                restore_weights(model, self._prepared(arm, model, seed))
                fuse_again(model)
            yield model

    def _prepared(self, arm: Arm, model: Any, seed: int) -> Path:
        assert arm.prepare is not None
        folder = self.out / "prepared" / short(self._identity(arm, seed, probes=False))
        if not folder.is_dir():
            with replacing_folder(folder, "0.safetensors", lambda _: ()) as part:
                part.mkdir()
                arm.prepare.align(model, seed, lambda aligned: write_weights(aligned, part))
        return folder

    def _trained(
        self,
        model: Any,
        arm: Arm,
        attacker: DataAttack,
        seed: int,
        stops: Sequence[int],
        utility: float = math.inf,
    ) -> tuple[Trajectory, str]:
        trajectory, ended = Trajectory(self.probes, stops, utility), ""
        try:
            self._train(model, arm, attacker, seed, max(stops), trajectory)
        except Settled:
            pass
        except FloatingPointError as error:  # the attacker chose too high a rate: what came before it counts
            ended = str(error)
        return trajectory, ended

    def _train(
        self, model: Any, arm: Arm, attacker: DataAttack, seed: int, steps: int, callback: Callable[[Any, int], None]
    ) -> None:
        """Train as the attacker would, and call the callback after every step."""
        finetune(
            model,
            attacker.data(seed),
            arm.mask_for(self.shape, seed),
            self.settings.changed(steps=steps, lr=attacker.lr),
            method=attacker.method_on(arm),
            seed=seed,
            callbacks=[callback],
            eval_every=1,
            progress=False,
        )

    def _edited(self, model: Any, arm: Arm, attacker: Attacker, seed: int) -> tuple[Trajectory, str]:
        assert not isinstance(attacker, DataAttack)
        trajectory = Trajectory(self.probes, ())
        try:
            for chosen, change in attacker.edits(model, arm.mask_for(self.shape, seed), dict(self.probes.asking)):
                with change:
                    trajectory.add(model, 0, **chosen)
        except CannotAttackError as error:
            return trajectory, str(error)
        return trajectory, ""

    def before_path(self, arm: Arm, seed: int) -> Path:
        """The file of what a defended model does before any attack; one for all arms that hand out the same model."""
        return self.out / "before" / f"{short(self._identity(arm, seed))}.json"

    def path(self, arm: Arm, attacker: Attacker, seed: int) -> Path:
        """The file of a cell. What an edit makes of a model has nothing to do with how the arm would have trained."""
        if isinstance(attacker, DataAttack):
            identity = {**self._of_training(arm, attacker, seed), "stops": list(self.stops)}
        else:
            identity = {**self._identity(arm, seed), "attack": attacker.describe(arm.mask_for(self.shape, seed))}
        return self.out / "cells" / f"{slug(attacker.name)}-{short(identity)}.json"

    def _of_training(self, arm: Arm, attacker: DataAttack, seed: int) -> dict[str, Any]:
        mask = arm.mask_for(self.shape, seed)
        return {
            **self._identity(arm, seed),
            "attack": attacker.describe(seed),
            "method": attacker.method_on(arm).record(),
            "mask": None if mask is None else mask.fingerprint,
            "settings": self.settings.record(),
        }

    def _identity(self, arm: Arm, seed: int, *, probes: bool = True) -> dict[str, Any]:
        """The defended model, and with ``probes`` what is measured of it."""
        return {
            "weights": self.fingerprint,
            "prepared": None if arm.prepare is None else arm.prepare.record(seed),
            "backend": self.subject.backend,
            "probes": self.probes.record() if probes else None,
        }
