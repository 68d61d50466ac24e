"""What the demo runs: how many prompts, which shares, which arms; ``quick`` is the same chain in small."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from safecircuits.model.load import Backend


@dataclass(frozen=True)
class DemoSettings:
    """Sizes are prompts of the embedded language's test split unless said otherwise.

    Examples:
        >>> settings = sc.demo.DemoSettings(malicious=50, utility=50)
        >>> settings.backend, settings.scu
        ('bridge', 0.013)
    """

    backend: Backend = "bridge"
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
        """Every station with few prompts and steps: to see that it runs, not to read figures off."""
        return replace(
            self,
            curve_prompts=16,
            over_rejection=24,
            malicious=16,
            normal=16,
            utility=16,
            reach=1,
            calibration=16,
            controls=1,
            curve_shares=(0.005, 0.03),
            finetune_steps=6,
        )

    @property
    def finetuning(self) -> dict[str, Any]:
        """Arguments of ``finetune`` that all arms share."""
        return {"steps": self.finetune_steps, "batch_size": self.finetune_batch, "lr": self.finetune_lr}
