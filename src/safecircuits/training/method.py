"""What a way to fine-tune is: one class, whose fields are its settings and whose ``train`` is its trainer.

A new method is one file with one such class, registered under a short name:

    @register("decoupled")
    @dataclass(frozen=True)
    class Decoupled(Method):
        \"\"\"Pulls what trains back to where it began (Loshchilov and Hutter 2019, towards the start).

        Attributes:
            strength: share of the way that a step takes back.
        \"\"\"

        strength: float = 0.01

        def train(self, job: TrainingJob) -> FinetuneRun:
            return train_weights(replace(job, on_gradients=...))

``finetune(model, data, mask, method=Decoupled(0.1))`` trains with it, and so does an arm of a study that holds it, or
``safecircuits finetune --method decoupled --set strength=0.1``; it stands in the records of runs and in the table of
the docs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from safecircuits.base.arguments import read_fields
from safecircuits.prompts.batching import Batch
from safecircuits.prompts.chat_set import TrainingData
from safecircuits.training.halting import Halt
from safecircuits.training.packing import PackedBatch
from safecircuits.training.phases import Freeze
from safecircuits.training.run import FinetuneRun
from safecircuits.training.settings import LossOn, TrainingSettings

Badge = Literal["faithful", "option", "variant"]
"""What a method is of its paper: its equations at its defaults; these among others, by a setting; or the same idea with
a difference that is named."""
Objective = Callable[[Any, Batch | PackedBatch, LossOn], Tensor]
"""In place of the cross-entropy: called with the model that trains, a batch and the tokens that are targets; returns a
sum over the targets, of which the loop takes the mean over a step."""
Callback = Callable[[Any, int], Any]
"""Called with the model and the number of steps done; what it returns, numbers by name, a ``Behavior`` or nothing, is
logged and kept in the run; a ``Halt`` ends it."""
OnStep = Callable[[Mapping[str, Any]], Any]
"""Called after each step with its line of the log: ``step, loss, lr, grad_norm, tokens, seconds``."""
Rows = Callable[[int], Sequence[int]]
"""Which rows of the data a step (from 0) sees."""


class OnGradients(Protocol):
    """Called with the step (from 0) and all that trains, once its gradients are there and before they are clipped."""

    def __call__(self, step: int, trained: Mapping[str, nn.Parameter], /) -> None: ...


@runtime_checkable
class HasState(OnGradients, Protocol):
    """An ``OnGradients`` that remembers tensors from step to step: a checkpoint keeps them."""

    def state(self) -> Mapping[str, Tensor]:
        """What it remembers, by names of its own."""
        ...

    def restore(self, state: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> None:
        """Remember that again, beside what trains."""
        ...


class Method:
    """A way to fine-tune: a frozen dataclass of its settings with a trainer.

    Attributes:
        name: what it is registered as.
        refuses: what of the shared settings and of the arguments of ``finetune`` it cannot serve, and why.
        starts_from: the shared settings where a call gives none.
        badge: what it is of the paper's method; tables show it.
        paper: whose method it is, with the equation that its test holds it to.
        differs: what is other than in the paper.
        trains_beside: whether it leaves the weights as they are, and trains something beside them.
        own_loop: whether it trains in a loop of another library, which knows no ``objective`` and no ``on_gradients``.

    Examples:
        >>> sc.baselines.Lora(r=4).record()
        {'name': 'lora', 'r': 4, 'alpha': 32, 'target_modules': None}
    """

    name: ClassVar[str] = ""
    refuses: ClassVar[Mapping[str, str]] = {}
    starts_from: ClassVar[TrainingSettings] = TrainingSettings()
    badge: ClassVar[Badge | None] = None
    paper: ClassVar[str] = ""
    differs: ClassVar[str] = ""
    trains_beside: ClassVar[bool] = False
    own_loop: ClassVar[bool] = False

    def __post_init__(self) -> None:
        read_fields(self)

    def train(self, job: TrainingJob) -> FinetuneRun:
        """Train ``job.model`` in place."""
        raise NotImplementedError

    def require(self, settings: TrainingSettings, **arguments: Any) -> None:
        """Raise a ValueError, before anything is done, for shared settings or arguments that this cannot serve.

        Args:
            arguments: of ``finetune``, those that are given.
        """
        given = {**{f.name: getattr(settings, f.name) for f in fields(settings)}, **arguments}
        usual = self.starts_from.record()
        for name, why in self.refuses.items():
            if given.get(name) not in (None, usual.get(name)):
                raise ValueError(f"{self.name} does not take {name}: {why}")

    def record(self) -> dict[str, Any]:
        """Name and settings as JSON holds them; prompts and masks by their fingerprints."""
        return {"name": self.name, **{f.name: _plain(getattr(self, f.name)) for f in self.settings()}}

    @classmethod
    def settings(cls) -> tuple[Field[Any], ...]:
        """The fields of its dataclass."""
        return fields(cls)  # type: ignore[arg-type]  # each method is one, this class is not


@dataclass(frozen=True)
class TrainingJob:
    """A call of ``finetune`` as a trainer gets it; see there for what the fields mean.

    Trainers that work in the usual loop hand it on changed: ``train_weights(replace(job, on_gradients=penalty))``.

    Attributes:
        keeps_good: whether weights are copied wherever callbacks have nothing to say against them.
        rows: which rows of ``data`` each step sees, in place of the order that ``settings.batches`` gives.
        on_gradients: may change the gradients of a step, as a penalty on the weights does. What it remembers from
            step to step outlives a resume if it ``HasState``.
        objective: what is minimised in place of the cross-entropy.
        decides: more that decides the weights that a run ends with, by name: a checkpoint goes on only in a run that
            has the same.

    Examples:
        >>> settings = sc.TrainingSettings(epochs=2, batch_size=1)
        >>> job = sc.training.TrainingJob(model, utility, None, settings, sc.training.Plain(), model.tokenizer)
        >>> job.settings.steps_on(len(job.data)) == 2 * len(utility)
        True
    """

    model: Any
    data: TrainingData
    freeze: Freeze
    settings: TrainingSettings
    method: Method
    tokenizer: Any
    seed: int = 0
    callbacks: Sequence[Callback] = ()
    on_step: Sequence[OnStep] = ()
    report_to: Any = None
    report_dir: str | Path = "runs"
    keeps_good: bool = False
    eval_every: int | None = None
    checkpoint_dir: Path | None = None
    checkpoint_every: int = 100
    log: str | Path | None = None
    shard: bool | None = None
    progress: bool = True
    rows: Rows | None = None
    on_gradients: OnGradients | None = None
    objective: Objective | None = None
    decides: Mapping[str, Any] = field(default_factory=dict)


def point_of(callbacks: Sequence[Callback], model: Any, step: int) -> dict[str, Any] | None:
    """What callbacks say of a model after a step, with that step; None if they say nothing.

    Raises:
        ValueError: if one returns neither numbers by name, nor a ``Behavior``, nor nothing; or asks to halt, which is
            for the usual loop.
    """
    point, halt = point_and_halt(callbacks, model, step)
    if halt is not None:
        raise ValueError(f"a callback asked to halt ({halt.reason}), which this method cannot do")
    return point


@torch.no_grad()
def point_and_halt(callbacks: Sequence[Callback], model: Any, step: int) -> tuple[dict[str, Any] | None, Halt | None]:
    """The same, and the first wish to halt with it."""
    figures: dict[str, Any] = {}
    halt: Halt | None = None
    for callback in callbacks:
        found = callback(model, step)
        if isinstance(found, Halt):
            halt, found = halt or found, found.figures
        found = getattr(found, "figures", found)  # what ``evaluate`` returns has them
        if not isinstance(found, Mapping | None):
            raise ValueError(
                f"a callback returns numbers by name, {{'loss': 0.5}}, a Behavior or nothing, not a "
                f"{type(found).__name__}"
            )
        figures.update(found or {})
    return ({"step": step, **figures} if figures else None), halt


METHODS: dict[str, type[Method]] = {}
"""The methods by name, those of modules that were imported; ``safecircuits.baselines.methods()`` has all."""

M = TypeVar("M", bound=Method)


def register(name: str) -> Callable[[type[M]], type[M]]:
    """Register a method's class under a name, which command line and records use.

    Raises:
        ValueError: if the name is taken, or the class is no dataclass.

    Examples:
        >>> sc.training.register("plain")(sc.training.Plain).name
        'plain'
    """

    def registered(kind: type[M]) -> type[M]:
        if "__dataclass_fields__" not in vars(kind):
            raise ValueError(f"{kind.__qualname__} is no dataclass: put @dataclass(frozen=True) below @register")
        if name in METHODS and METHODS[name].__qualname__ != kind.__qualname__:
            raise ValueError(f"the method {name!r} is there already: {METHODS[name].__qualname__}")
        kind.name = name
        METHODS[name] = kind
        return kind

    return registered


def _plain(value: Any) -> Any:
    return value.record() if isinstance(value, Method) else getattr(value, "fingerprint", value)
