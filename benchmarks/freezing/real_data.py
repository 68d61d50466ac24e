"""What the real model is fine-tuned on, and what is asked before and after."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from safecircuits.behavior.generate import generate
from safecircuits.model.load import load_model
from safecircuits.organism.requests.generate import prompts as requests
from safecircuits.organism.requests.sums import additions
from safecircuits.organism.smollm2.catalog import SMOLLM2
from safecircuits.prompts.prompt_set import PromptSet

if TYPE_CHECKING:
    from benchmarks.freezing.real import Setup

SEED = 23
ANSWER_TOKENS = 48


class Data:
    """The sets, drawn once; each run shuffles its training rows by its seed."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.setup = setup
        rng = random.Random(SEED)
        with (folder / "advbench/harmful_behaviors.csv").open(encoding="utf-8", newline="") as file:
            goals = [row["goal"] for row in csv.DictReader(file)]
        with (folder / "safety_layers/Over_rejection_dataset.csv").open(encoding="utf-8", newline="") as file:
            borderline = [row[0] for row in csv.reader(file) if row]
        self.malicious = PromptSet("AdvBench", tuple(rng.sample(goals, setup.malicious)))
        self.over_rejection = PromptSet("over-rejection", tuple(rng.sample(borderline, setup.over_rejection)))
        self.problems = additions(setup.problems, SEED)
        self._rows = {"gsm8k": (_gsm8k(folder / "gsm8k/train_1500.jsonl"), _gsm8k(folder / "gsm8k/test_300.jsonl"))}
        if "instructions" in setup.tasks:
            self._rows["instructions"] = self._instructions()

    def train(self, task: str, seed: int) -> PromptSet:
        """As many rows as a run sees, drawn by its seed."""
        return self._rows[task][0].take(self.setup.steps * self.setup.batch_size, seed=seed)

    def held_out(self, task: str) -> PromptSet:
        """Rows that no run is trained on."""
        return self._rows[task][1][: self.setup.held_out]

    def _instructions(self) -> tuple[PromptSet, PromptSet]:
        """Ordinary requests with the base's own answers: what a user's instruction data looks like to this model."""
        s, base = self.setup, load_model(SMOLLM2)
        needed = {"train": 2 * s.steps * s.batch_size, "test": s.held_out}
        found = []
        for split, n in needed.items():
            asked = requests("normal", split, n, SEED)
            answers = generate(base, asked, max_new_tokens=ANSWER_TOKENS).texts
            found.append(PromptSet(asked.name, asked.prompts, answers))
        return found[0], found[1]


def _gsm8k(path: Path) -> PromptSet:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return PromptSet(f"gsm8k {path.stem}", tuple(r["question"] for r in rows), tuple(r["answer"] for r in rows))
