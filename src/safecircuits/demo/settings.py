"""What the demo runs: how many prompts, which shares, which arms; ``quick`` is the same chain in small."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from safecircuits import organism
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.model.sites import HookedModel
from safecircuits.organism.grammar import Kind, Split
from safecircuits.papers.part import Study
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.running import Running
from safecircuits.training.settings import TrainingSettings

SUBJECT = "aligned"
"""The stage that is studied, frozen and fine-tuned; the planted ones are where the answer is known."""

# Shares of prompts. A few hundred prompts resolve differences of about five points.
LARGE, SMALL, UTILITY_MARGIN = 0.20, 0.05, 0.02


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Running):
    """Sizes are prompts of the embedded language's test split unless said otherwise.

    Of a completion eight tokens are looked at: every refusal of the embedded language has begun by then (Safety Layers
    §3.4.3: 4 to 8 tokens).

    Examples:
        >>> settings = sc.demo.DemoSettings(malicious=50, utility=50)
        >>> settings.backend, settings.scu
        ('bridge', 0.013)
    """

    device: str = "cpu"
    dtype: str | None = None
    """Of the weights, by PyTorch's name; the checkpoints' own (float32) unless given."""
    seed: int = 0

    curve_prompts: int = 100
    """Normal and malicious prompts of the gap curves, as in Safety Layers (§3.2)."""
    over_rejection: int = 300
    malicious: int = 200
    normal: int = 200
    utility: int = 200

    reach: int = 3
    """Layers by which the sweeps move a bound to both sides."""

    calibration: int = 128
    """Training prompts on which units are scored, per data set; Wei et al.'s and SSAH's number."""
    scu: float = 0.013
    ucu: float = 0.133
    ru: float = 0.148
    """Shares of all units: SSAH's for Llama-2-7b-chat."""
    top_cu: float = 0.06
    """Share of all units, the most safety-relevant CU, frozen beside SCU in fine-tuning (SSAH §4.2)."""
    controls: int = 3
    curve_shares: tuple[float, ...] = (0.002, 0.005, 0.013, 0.03, 0.06)

    seeds: tuple[int, ...] = (0, 1, 2)
    finetune_steps: int = 60
    finetune_batch: int = 16
    finetune_lr: float = 6e-4
    """Chosen on the unprotected arm alone: it learns the task and loses a good part of its refusals, so that there is
    something to prevent. At half the rate it loses none, at twice the rate nearly all."""

    def quick(self) -> DemoSettings:
        """Every part with few prompts and steps: to see that it runs, not to read figures off."""
        small: dict[str, Any] = dict.fromkeys(("curve_prompts", "malicious", "normal", "utility", "calibration"), 16)
        small |= {"over_rejection": 24, "reach": 1, "controls": 1, "finetune_steps": 6}
        return replace(self, **small, curve_shares=(0.005, 0.03))

    @property
    def finetuning(self) -> TrainingSettings:
        """What all arms share."""
        return TrainingSettings(steps=self.finetune_steps, batch_size=self.finetune_batch, lr=self.finetune_lr)


def demo_prompts(settings: DemoSettings) -> dict[tuple[Kind, Split], PromptSet]:
    """The sets of prompts, by kind and split; those that a part takes fewer of are the first of these."""
    s = settings
    sizes: dict[tuple[Kind, Split], int] = {
        ("normal", "test"): max(s.normal, s.curve_prompts),
        ("malicious", "test"): max(s.malicious, s.curve_prompts),
        ("over_rejection", "test"): s.over_rejection,
        ("utility", "test"): s.utility,
        ("new_task", "test"): min(s.utility, len(organism.prompts("new_task"))),
        ("malicious", "train"): s.calibration,
        ("utility", "train"): s.calibration,
    }
    return {key: organism.prompts(*key, n=n, seed=s.seed) for key, n in sizes.items()}


@dataclass(kw_only=True)
class Demo(Study):
    """The demo without its parts."""

    settings: DemoSettings
    n_parameters: int
    sets: dict[tuple[Kind, Split], PromptSet]
    """Of a demo that runs."""

    title = "Safety circuits of “aligned”"

    @property
    def facts(self) -> dict[str, Any]:
        shape = self.shape
        heads = {"heads": shape.n_heads, "key/value heads": shape.n_kv_heads}
        sizes = {"parameters": self.n_parameters, "layers": shape.n_layers, "d_model": shape.d_model, **heads}
        return {"architecture": shape.architecture, **sizes, "backend": self.settings.backend}

    def stage(self, name: str) -> HookedModel:
        """A stage as the settings say; the studied one is loaded once."""
        return self.model if name == SUBJECT else self.settings.load(name)

    def prompts(self, kind: Kind, n: int, split: Split = "test") -> PromptSet:
        """The first ``n`` of a set."""
        return self.sets[kind, split].take(n)

    @property
    def measured(self) -> EvaluationOptions:
        """The sets that every measurement uses."""
        s = self.settings
        sets: EvaluationOptions = {
            "malicious": self.prompts("malicious", s.malicious),
            "over_rejection": self.prompts("over_rejection", s.over_rejection),
            "utility": self.prompts("utility", s.utility),
        }
        return {**sets, **s.judging}
