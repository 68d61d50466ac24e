"""What a fine-tuning run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.files import write_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FinetuneRun:
    """The record of one call of ``finetune``; the trained weights are in the model.

    Attributes:
        losses: training loss of each step, mean cross-entropy in nats per target token.
        steps: optimizer steps done, those before a resume included.
        seconds: wall-clock time of this call.
        stopped_early: whether ``stop_at_loss`` ended the run.
        frozen_bit_identical: whether the frozen entries are what they were, by digest; None if nothing was frozen.
        frozen_digest: SHA-256 (hex) of the frozen entries; None if nothing was frozen.
        n_trainable: entries that trained.
        n_frozen: entries that the mask froze.
        evaluations: what the callbacks returned, each with its ``step``.
        settings: all that decides the run: hyper-parameters, seed, fingerprint of the data, versions.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float
    stopped_early: bool
    frozen_bit_identical: bool | None
    frozen_digest: str | None
    n_trainable: int
    n_frozen: int
    evaluations: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def final_loss(self, window: int = 20) -> float:
        """Mean training loss of the last ``window`` steps."""
        last = self.losses[-window:]
        return sum(last) / len(last)

    def to_frame(self) -> pd.DataFrame:
        """One row a step: ``step`` (from 1) and ``loss``."""
        import pandas as pd

        return pd.DataFrame({"step": range(1, len(self.losses) + 1), "loss": self.losses})

    def plot(self, ax: Any = None) -> Any:
        """The training loss over steps."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        ax.plot(range(1, len(self.losses) + 1), self.losses)
        ax.set(xlabel="step", ylabel="training loss (nats per token)")
        return ax

    def save(self, folder: str | Path) -> Path:
        """Write ``run.json`` into ``folder``."""
        return write_text(Path(folder) / "run.json", json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> FinetuneRun:
        """Read what ``save`` wrote."""
        record = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        record["losses"], record["evaluations"] = tuple(record["losses"]), tuple(record["evaluations"])
        return cls(**record)
