"""What decides the steps of a run, beside the model, the data and the mask."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

from safecircuits.base.arguments import read_fields, whole
from safecircuits.training.loss import LossOn, Precision
from safecircuits.training.optimizers import MakeOptimizer, OptimizerName, Schedule
from safecircuits.training.order import Batches


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of ``finetune``, checked. See there for what they mean."""

    batch_size: int
    grad_accumulation: int
    lr: float
    weight_decay: float
    warmup_steps: int
    schedule: Schedule
    max_grad_norm: float | None
    seed: int
    loss_on: LossOn
    optimizer: OptimizerName | MakeOptimizer
    stop_at_loss: float | None
    batches: Batches
    max_length: int | None
    mixed_precision: Precision

    def __post_init__(self) -> None:
        read_fields(self)
        require_counts(batch_size=self.batch_size, grad_accumulation=self.grad_accumulation, max_length=self.max_length)
        for name, least in (("warmup_steps", self.warmup_steps), ("weight_decay", self.weight_decay)):
            if not least >= 0:
                raise ValueError(f"{name} must be at least 0, not {least}")
        for name, positive in (("lr", self.lr), ("max_grad_norm", self.max_grad_norm)):
            if positive is not None and not positive > 0:
                raise ValueError(f"{name} must be above 0, not {positive}: nothing would be learnt")
        _require_one_of("schedule", self.schedule, get_args(Schedule))
        _require_one_of("loss_on", self.loss_on, get_args(LossOn))
        _require_one_of("batches", self.batches, get_args(Batches))
        if isinstance(self.optimizer, str) and self.optimizer not in get_args(OptimizerName):
            names = ", ".join(repr(name) for name in get_args(OptimizerName))
            raise ValueError(f"optimizer is {names} or a function that makes one, not {self.optimizer!r}")

    @property
    def per_step(self) -> int:
        """Examples that a step sees."""
        return self.batch_size * self.grad_accumulation

    def settings(self) -> dict[str, Any]:
        """As JSON; an optimizer of one's own by its name."""
        name = self.optimizer if isinstance(self.optimizer, str) else getattr(self.optimizer, "__qualname__", "custom")
        return {**asdict(self), "optimizer": name}


def require_counts(**counts: int | None) -> None:
    """A ValueError for a number below 1."""
    for name, value in counts.items():
        if value is not None:
            whole(value, name, 1)


def _require_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}, not {value!r}")
