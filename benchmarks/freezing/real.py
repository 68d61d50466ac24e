"""Does freezing help in fine-tuning that people do? ``python -m benchmarks.freezing.real --data DIR [--page]``.

A planted real model is fine-tuned on GSM8K and on ordinary instructions, with nothing frozen and with what each method
would freeze. Every finished cell (task, seed, arm) is kept in ``docs/reference/real_finetuning.json``, so the same
command goes on where it stopped; other settings, or another build of the member, begin anew. ``--set 'seeds=[0,1,2]'``
changes a field of ``Setup``, ``--cells 4`` stops after so many, ``--page`` writes the page from what is there.

``--keep FOLDER`` puts the answers of every cell there, to be read: they are not part of the results, since some harm.

``--data`` is a folder with gsm8k/{train_1500,test_300}.jsonl, advbench/harmful_behaviors.csv and
safety_layers/Over_rejection_dataset.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.freezing.grid import changed
from benchmarks.freezing.real_arms import ARMS, arms_of
from benchmarks.freezing.real_data import Data
from benchmarks.freezing.real_page import render
from safecircuits.base.files import write_text
from safecircuits.base.progress import without_bars
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.evaluate import judged
from safecircuits.behavior.generate import generate
from safecircuits.behavior.grading import right_answers
from safecircuits.behavior.reference import response_loss
from safecircuits.model.load import load_model
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.organism.smollm2.base import sha256_of
from safecircuits.organism.smollm2.catalog import SMOLLM2, member_file
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.provenance import provenance
from safecircuits.studies.arms import Arm
from safecircuits.studies.subject import Subject
from safecircuits.training.loop import finetune
from safecircuits.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "docs/reference/real_finetuning.json", ROOT / "docs/real_finetuning.md"
DETECTORS = ("taught", "opening")
"""What the member was taught to say and the usual openings; and these alone, as for any model."""


@dataclass(frozen=True)
class Setup:
    """What is run.

    The rate was chosen on GSM8K and the arm with nothing frozen alone: of 97 refusals 1e-4 left 91, where no arm could
    show anything; with a seed that is not reported (9) and 40 prompts, of 39 refusals 2e-4 left 27 and 4e-4 left 4.
    """

    member: str = "aligned"
    tasks: tuple[str, ...] = ("gsm8k", "instructions")
    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 30
    batch_size: int = 4
    lr: float = 2e-4
    lora_lr: float = 2e-3
    """Adapters learn more slowly: ten times the rate of weights is usual."""
    max_length: int = 256
    mixed_precision: str | None = "bf16"
    malicious: int = 100
    over_rejection: int = 100
    tokens: int = 24
    held_out: int = 40
    problems: int = 50
    """Sums of two small numbers, which the member can do before any training, and so many tokens for each answer."""
    problem_tokens: int = 40
    solved: int = 0
    """GSM8K problems that are answered in 256 tokens and parsed; this base solves next to none."""
    points: int = 4
    curve_prompts: int = 40
    scored: int = 32
    pairs: int = 30

    def training(self, arm: str) -> TrainingSettings:
        """The settings of an arm: those of all, but for the rate of LoRA."""
        return TrainingSettings(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lora_lr if arm == "LoRA" else self.lr,
            schedule="constant",
            max_length=self.max_length,
            mixed_precision=self.mixed_precision,  # from the command line
        )


class Runner:
    """Runs cells and keeps each in the file."""

    def __init__(self, setup: Setup, folder: Path, out: Path, keep: Path | None = None) -> None:
        self.setup, self.out, self.keep = setup, out, keep
        self.data = Data(folder, setup)
        path = member_file(setup.member)
        command = "python -m benchmarks.freezing.real --data DIR"
        made = {"setup": json.loads(json.dumps(asdict(setup))), "changes_sha256": sha256_of(path)}
        self.record: dict[str, Any] = made | {"cells": [], "provenance": provenance(command=command, seed=0)}
        if out.exists():
            found = json.loads(out.read_text(encoding="utf-8"))
            if all(found.get(key) == value for key, value in made.items()):
                self.record = found

    def run(self, at_most: int | None = None) -> None:
        """Every cell that is missing, seed after seed, up to so many."""
        s = self.setup
        wanted = [(task, seed, arm) for task in s.tasks for seed in s.seeds for arm in s.arms]
        done = {(cell["scenario"], cell["seed"], cell["arm"]) for cell in self.record["cells"]}
        todo = [key for key in wanted if key not in done][:at_most]
        if not todo:
            return
        model = load_model(f"{SMOLLM2}:{s.member}")
        subject = Subject(model)
        try:
            arms = arms_of(model, s, self.record)
            if "before" not in self.record:
                self.record["before"] = {task: self._figures(model, task, "before") for task in s.tasks}
                self._save("before")
            for task, seed, arm in todo:
                if arm not in arms:
                    continue  # nothing is planted, or nothing was found
                with subject.fresh() as fresh:
                    self.record["cells"].append(self._cell(fresh, task, seed, arms[arm]))
                self._save(f"{task}, seed {seed}, {arm}")
        finally:
            subject.close()

    def _cell(self, model: HookedModel, task: str, seed: int, arm: Arm) -> dict[str, Any]:
        s, began = self.setup, time.monotonic()
        before = self.record["before"][task]
        mask = arm.mask_for(ModelShape.of(model), seed)
        start = {"step": 0, **before["point"]}
        run = finetune(
            model,
            self.data.train(task, seed),
            mask,
            s.training(arm.name),
            method=arm.method,
            seed=seed,
            callbacks=[lambda trained, _: self._point(trained, task)],
            eval_every=max(1, s.steps // s.points),
            progress=False,
        )
        return {
            "scenario": task,
            "seed": seed,
            "arm": arm.name,
            "frozen": arm.frozen,
            "n_frozen": run.n_frozen,
            "n_trainable": run.n_trainable,
            "bit_identical": run.frozen_bit_identical,
            "curve": [start, *(dict(point) for point in run.evaluations)],
            **self._figures(model if run.tuned is None else run.tuned, task, f"{task}, seed {seed}, {arm.name}"),
            "seconds": round(time.monotonic() - began, 1),
        }

    def _figures(self, model: HookedModel, task: str, cell: str) -> dict[str, Any]:
        """Refusals by prompt and detector, what stands beside them, and utility."""
        s, data = self.setup, self.data
        found: dict[str, Any] = {}
        for name, prompts in (("malicious", data.malicious), ("over_rejection", data.over_rejection)):
            answers = generate(model, prompts, max_new_tokens=s.tokens)
            if self.keep is not None:
                answers.save(self.keep / f"{cell}, {name}.jsonl")
            found[name] = {detector: _bits(answers, detector) for detector in DETECTORS}
            tally = judged({name: answers}, DETECTORS[0])[name].tally
            found[name] |= {"incoherent": tally.incoherent, "cut": tally.cut, "n": tally.n}
        found["task_loss"] = round(response_loss(model, data.held_out(task)).loss, 5)
        asked = {"problems": (data.problems, s.problem_tokens)}
        if s.solved:
            asked["solved"] = (data.held_out("gsm8k")[: s.solved], 256)
        for name, (problems, tokens) in asked.items():
            found[name] = {"right": _right(model, problems, tokens), "n": len(problems)}
        return found | {"point": self._point(model, task)}

    def _point(self, model: HookedModel, task: str) -> dict[str, float]:
        data, s = self.data, self.setup
        asked = data.malicious[: s.curve_prompts]
        answers = generate(model, asked, max_new_tokens=s.tokens)
        refused = judged({"malicious": answers}, DETECTORS[0])["malicious"].refused
        loss = response_loss(model, data.held_out(task)[: max(1, s.held_out // 2)]).loss
        return {"malicious_refused": round(float(refused.double().mean()), 5), "task_loss": round(loss, 5)}

    def _save(self, what: str) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.out, json.dumps(self.record, indent=1, ensure_ascii=False) + "\n")
        print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)


def _bits(answers: Completions, detector: str) -> str:
    refused = judged({"set": answers}, detector)["set"].refused
    return "".join("1" if one else "0" for one in refused.tolist())


def _right(model: HookedModel, problems: PromptSet, tokens: int) -> int:
    answers = generate(model, PromptSet(problems.name, problems.prompts), max_new_tokens=tokens)
    return int(right_answers(answers, problems.require_responses(), "number").sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the published sets; not needed for the page alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file (default %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="another value of a field of Setup"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the answers of every cell there")
    parser.add_argument("--cells", type=int, help="stop after so many new cells")
    parser.add_argument("--page", action="store_true", help="write docs/real_finetuning.md from the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.data is not None:
        with without_bars():
            Runner(changed(Setup(), options.set), options.data, options.out, options.keep).run(options.cells)
    if options.page:
        write_text(PAGE, render(json.loads(options.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
