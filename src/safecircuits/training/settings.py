"""How a run is optimised, whatever its method: how long, on which batches, at which rate, in which precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

from safecircuits.base.arguments import read_fields

Schedule = Literal["linear", "constant", "cosine"]
"""How the learning rate goes on after warm-up."""
OptimizerName = Literal["adamw", "sgd", "adafactor"]
Batches = Literal["random", "length", "packed"]
"""Examples in random order; steps of examples of similar length, in random order; or random, packed into rows."""
LossOn = Literal["response", "last", "all"]
"""Which tokens are targets: the response with its end of sequence (of a chat every answer, or the last alone), or every
token but an example's first."""
Precision = Literal["no", "bf16"]
"""What the forward pass computes in: the dtype of the weights, or bfloat16 where autocast finds it safe."""

if TYPE_CHECKING:
    import torch
    from torch import nn

    MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
else:  # the command line reads these settings without PyTorch
    MakeOptimizer = Callable[[list], Any]


class TrainingOptions(TypedDict, total=False):
    """The fields of ``TrainingSettings`` as keyword arguments."""

    steps: int | None
    epochs: int | None
    batch_size: int
    grad_accumulation: int
    lr: float
    weight_decay: float
    warmup_steps: int
    schedule: Schedule
    max_grad_norm: float | None
    optimizer: OptimizerName | MakeOptimizer
    batches: Batches
    max_length: int | None
    loss_on: LossOn
    template: str
    mixed_precision: Precision | None
    gradient_checkpointing: bool
    stop_at_loss: float | None


@dataclass(frozen=True)
class TrainingSettings:
    """The optimisation settings that all methods share; ``preset`` returns the published ones.

    Attributes:
        steps: optimizer steps.
        epochs: passes over the data, in the place of steps; one pass if neither is given. Phases have their own.
        batch_size: examples in one forward pass; a step sees ``batch_size * grad_accumulation`` of them, of all
            processes together. The last step of an epoch sees what is left.
        grad_accumulation: forward passes in a step.
        lr: peak learning rate. A custom optimizer keeps its own rate and decay.
        weight_decay: decay of everything that trains.
        warmup_steps: steps in which the rate rises linearly to its peak.
        schedule: after warm-up the rate stays (``"constant"``) or falls to zero at the last step.
        max_grad_norm: the gradient of all that trains is clipped to this norm; None for no clipping.
        optimizer: ``"adamw"``, ``"sgd"`` (momentum 0.9), ``"adafactor"`` (PyTorch's, whose rate is a share of each
            tensor's size), or a function that makes one from a list of parameters.
        batches: ``"random"``; ``"length"`` puts examples of similar length into the same step, so that little is
            padded; ``"packed"`` puts several examples into one row, each computed as if it were alone, which is
            checked on this model before the first step.
        max_length: longer examples are cut at their end (tokens), with a warning; a run's ``settings["truncated"]``
            says how many.
        loss_on: mean cross-entropy over the ``"response"`` tokens of a step (of a chat all answers), over those of the
            ``"last"`` answer of each chat, or over ``"all"`` tokens.
        template: the prompt template, as in ``safecircuits.prompts.prompt_set.encode``.
        mixed_precision: ``"bf16"`` computes in bfloat16 and updates in the dtype of the weights; None for what was
            launched.
        gradient_checkpointing: keep only the input of each layer for the backward pass, and compute the rest again:
            the same bits, less memory, more time.
        stop_at_loss: stop once the mean training loss of the last 20 steps is below this, to compare runs at matched
            task loss.

    Raises:
        ValueError: for a value that is none of these, or steps and epochs together.

    Examples:
        >>> published = sc.training.preset("paper", "Llama-2")
        >>> published.epochs, published.changed(steps=10).epochs
        (3, None)
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 16
    grad_accumulation: int = 1
    lr: float = 3e-4
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Schedule = "linear"
    max_grad_norm: float | None = 1.0
    optimizer: OptimizerName | MakeOptimizer = "adamw"
    batches: Batches = "random"
    max_length: int | None = None
    loss_on: LossOn = "response"
    template: str = "auto"
    mixed_precision: Precision | None = None
    gradient_checkpointing: bool = False
    stop_at_loss: float | None = None

    def __post_init__(self) -> None:
        read_fields(self)
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"give steps or epochs, not both (steps={self.steps}, epochs={self.epochs})")
        for name, least in (("warmup_steps", self.warmup_steps), ("weight_decay", self.weight_decay)):
            if not least >= 0:
                raise ValueError(f"{name} must be at least 0, not {least}")
        for name, positive in (("lr", self.lr), ("max_grad_norm", self.max_grad_norm)):
            if positive is not None and not positive > 0:
                raise ValueError(f"{name} must be above 0, not {positive}: nothing would be learnt")
        _require_one_of("schedule", self.schedule, get_args(Schedule))
        _require_one_of("loss_on", self.loss_on, get_args(LossOn))
        _require_one_of("batches", self.batches, get_args(Batches))
        if self.mixed_precision not in (None, *get_args(Precision)):
            raise ValueError(
                f"mixed_precision is 'no' or 'bf16', not {self.mixed_precision!r}: the others need their loss scaled"
            )
        if not callable(self.optimizer) and self.optimizer not in get_args(OptimizerName):
            names = ", ".join(repr(name) for name in get_args(OptimizerName))
            raise ValueError(f"optimizer is {names} or a function that makes one, not {self.optimizer!r}")

    @property
    def per_step(self) -> int:
        """Examples that a step sees."""
        return self.batch_size * self.grad_accumulation

    def steps_on(self, rows: int) -> int:
        """Optimizer steps of a run on so many rows."""
        return self.steps if self.steps is not None else (self.epochs or 1) * math.ceil(rows / self.per_step)

    def changed(self, **changes: Unpack[TrainingOptions]) -> TrainingSettings:
        """The same with some fields as given; steps take the place of epochs, and epochs of steps.

        Raises:
            TypeError: for a name that is no field.
        """
        known = {field.name for field in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise TypeError(f"{unknown[0]!r} is no training setting; these are {', '.join(sorted(known))}")
        if changes.get("steps") is not None:
            changes = {"epochs": None, **changes}
        elif changes.get("epochs") is not None:
            changes = {"steps": None, **changes}
        return replace(self, **changes)

    def record(self) -> dict[str, Any]:
        """All fields as JSON holds them; an optimizer of one's own by its name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        kind = self.optimizer
        return {**found, "optimizer": kind if isinstance(kind, str) else getattr(kind, "__qualname__", "custom")}


def _require_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}, not {value!r}")
