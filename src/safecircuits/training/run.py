"""What a fine-tuning run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.base.files import plain, write_text
from safecircuits.base.outputs import require_replaceable
from safecircuits.base.reading import read_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class FinetuneRun:
    """What ``finetune`` returns: losses, settings and checks. The trained weights are in the model itself.

    Attributes:
        losses: training loss of each step, mean cross-entropy in nats per target token.
        steps: optimizer steps done, those before a resume included.
        seconds: wall-clock time of this call.
        stopped_early: whether ``stop_at_loss`` or a callback ended the run.
        frozen_bit_identical: whether the frozen entries are what they were, by digest; None if nothing was frozen.
        frozen_digest: SHA-256 (hex) of the frozen entries; None if nothing was frozen.
        n_trainable: entries that trained.
        n_frozen: entries that the mask froze.
        evaluations: what the callbacks returned, each with its ``step``.
        settings: all that decides the run: method, hyper-parameters, seed, fingerprint of the data, versions.
        by_step: more that the method has to say of each step, such as how many pairs prefer the chosen answer.
        halted: where a callback ended the run, its ``reason``, the ``step``, and ``rewound_to``, the step after which
            the weights were as they are now (0: before training), or None where they were left.
        tuned: the tuned model, where a method leaves the one that was passed as it is and puts something beside it
            (virtual tokens); None where that model itself was trained. It is not saved.

    Examples:
        >>> run = sc.finetune(sc.load_model("aligned"), utility, steps=2, batch_size=4, progress=False)
        >>> run.steps, run.n_frozen
        (2, 0)
        >>> run.to_frame().shape
        (2, 2)
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
    by_step: Mapping[str, Sequence[float]] = field(default_factory=dict)
    halted: Mapping[str, Any] | None = None
    tuned: Any = field(default=None, compare=False)

    def final_loss(self, window: int = 20) -> float:
        """Mean training loss of the last ``window`` steps."""
        last = self.losses[-window:]
        return sum(last) / len(last)

    def left(self, before: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What callbacks said of the weights that the run left, which are not the last ones where it was rewound.

        Args:
            before: what is known of the weights before training.
        """
        to = None if self.halted is None else self.halted["rewound_to"]
        if to is None:
            return self.evaluations[-1] if self.evaluations else {}
        return next((point for point in self.evaluations if point["step"] == to), {"step": to, **(before or {})})

    def summary(self) -> str:
        """How far the run came and what stayed as it was, in a few lines."""
        lines = [f"steps: {self.steps}{' (stopped early)' if self.stopped_early else ''} in {self.seconds:.1f} s"]
        if self.halted is not None:
            to = self.halted["rewound_to"]
            back = "" if to is None else f"; the weights are those of step {to}"
            lines.append(f"halted after step {self.halted['step']}: {self.halted['reason']}{back}")
        if self.losses:
            lines.append(
                f"training loss: {self.losses[0]:.3g} at first, {self.final_loss():.3g} over the last 20 steps"
            )
        lines.append(f"trained entries: {self.n_trainable:,}")
        if self.frozen_bit_identical is not None:
            verdict = "bit-identical" if self.frozen_bit_identical else "CHANGED"
            lines.append(f"frozen entries: {self.n_frozen:,}, {verdict} (SHA-256 {str(self.frozen_digest)[:12]}…)")
        for evaluation in self.evaluations[-1:]:
            lines.append("last evaluation: " + ", ".join(f"{name} {value}" for name, value in evaluation.items()))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"FinetuneRun({'; '.join(self.summary().splitlines())})"

    def _repr_html_(self) -> str:
        from safecircuits.results.notebook import facts_table

        return facts_table("FinetuneRun", self.summary().splitlines())

    def record(self) -> dict[str, Any]:
        """All but the tuned model, as ``run.json`` holds it."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "tuned"}

    def to_frame(self) -> pd.DataFrame:
        """One row a step: ``step`` (from 1), ``loss``, and what the method says of it."""
        import pandas as pd

        return pd.DataFrame({"step": range(1, len(self.losses) + 1), "loss": self.losses, **self.by_step})

    def plot(self, ax: Axes | None = None) -> Axes:
        """The training loss over steps."""
        from safecircuits.plots.loss import plot_loss

        return plot_loss(self.losses, ax=ax)

    def save(self, folder: str | Path) -> Path:
        """Write ``run.json`` into ``folder``; a ValueError if that is the record of something else."""
        path = require_replaceable(Path(folder) / "run.json", "fine-tuning run")
        return write_text(path, json.dumps(self.record(), indent=1, default=plain) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> FinetuneRun:
        """Read what ``save`` wrote.

        Raises:
            ValueError: if the folder holds no such record, or one of another version.
        """
        try:
            record = read_json(Path(folder) / "run.json")
            record["losses"], record["evaluations"] = tuple(record["losses"]), tuple(record["evaluations"])
            return cls(**record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(folder)!r} holds no readable fine-tuning run: {error}") from error
