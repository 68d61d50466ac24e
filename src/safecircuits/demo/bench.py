"""What all stations of the demo work with: its prompts and models, loaded once, and the run directory."""

from __future__ import annotations

from typing import Any

from safecircuits import organism
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.demo.settings import DemoSettings
from safecircuits.model.load import load_model
from safecircuits.model.sites import HookedModel
from safecircuits.organism.grammar import Kind, Split
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.run import RunDirectory

SUBJECT = "aligned"
"""The stage that is studied, frozen and fine-tuned; the planted ones are where the answer is known."""

REFUSAL_TOKENS = 8
"""Every refusal of the embedded language has begun by then (Safety Layers §3.4.3: 4 to 8 tokens)."""


def demo_prompts(settings: DemoSettings) -> dict[tuple[Kind, Split], PromptSet]:
    """The sets of prompts, by kind and split; those that a station takes fewer of are the first of these."""
    s = settings
    new_task = min(s.utility, len(organism.prompts("new_task")))
    sizes: dict[tuple[Kind, Split], int] = {
        ("normal", "test"): max(s.normal, s.curve_prompts),
        ("malicious", "test"): max(s.malicious, s.curve_prompts),
        ("over_rejection", "test"): s.over_rejection,
        ("utility", "test"): s.utility,
        ("new_task", "test"): new_task,
        ("malicious", "train"): s.calibration,
        ("utility", "train"): s.calibration,
    }
    return {key: organism.prompts(*key, n=n, seed=s.seed) for key, n in sizes.items()}


class Bench:
    """Settings, prompts, the studied model, and ``run``, in which each station keeps what it finds at once."""

    def __init__(self, settings: DemoSettings, run: RunDirectory) -> None:
        self.settings, self.run = settings, run
        self.sets = demo_prompts(settings)
        self.model = load_model(SUBJECT, **self.placing)

    def load(self, stage: str) -> HookedModel:
        """A stage as the settings say; the studied one is loaded once."""
        return self.model if stage == SUBJECT else load_model(stage, **self.placing)

    @property
    def placing(self) -> dict[str, Any]:
        """How models are loaded."""
        s = self.settings
        return {
            "backend": s.backend,
            "device": s.device,
            "dtype": s.dtype,
        }

    def prompts(self, kind: Kind, n: int, split: Split = "test") -> PromptSet:
        """The first ``n`` of a set."""
        return self.sets[kind, split].take(n)

    def safety_and_utility(self) -> EvaluationOptions:
        """The sets that every measurement uses."""
        s = self.settings
        return {
            "malicious": self.prompts("malicious", s.malicious),
            "over_rejection": self.prompts("over_rejection", s.over_rejection),
            "utility": self.prompts("utility", s.utility),
            "refusal_tokens": REFUSAL_TOKENS,
        }
