"""Units put back as an earlier model had them: after fine-tuning (Wei et al. §5), or as a removal before it.

Freezing keeps units where they are while the others train around them; rewinding lets all train and takes the units
back afterwards. With a base model as the earlier one, an aligned model's units lose what alignment gave them, which is
milder than taking them out (their ``recover_from_base``). Single weights: ``without_weights(model, mask, base=...)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from safecircuits.baselines.repair import Edit, Repair
from safecircuits.masks.freeze_mask import FreezeMask, require_mask
from safecircuits.model.fused import fuse_again
from safecircuits.model.in_use import used_alone
from safecircuits.model.parameters import as_hooked
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import Plain
from safecircuits.training.run import FinetuneRun
from safecircuits.training.settings import TrainingSettings

Entries = Mapping[str, Tensor]
"""By parameter name the values of a mask's entries, in a row."""


@register("rewind")
@dataclass(frozen=True)
class Rewind(Repair):
    """Everything trains, and the units that ``freeze`` names are put back when training is over (Wei et al. §5).

    Whole layers or single units: what the mask names. Callbacks see the model as it is when it is put back.

    Attributes:
        training: how it trains before.

    Examples:
        >>> tuned, mask = sc.load_model("aligned"), sc.FreezeMask.layers((3, 5))
        >>> run = sc.finetune(tuned, utility, mask, method=sc.baselines.Rewind(), steps=1, batch_size=2, progress=False)
        >>> sc.training.frozen_digest(tuned, mask) == sc.training.frozen_digest(sc.load_model("aligned"), mask)
        True
    """

    training: Method = field(default_factory=Plain)

    refuses: ClassVar[Mapping[str, str]] = {}
    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Wei et al. 2024, §5; layer and unit restore"

    def require(self, settings: TrainingSettings, **arguments: Any) -> None:
        super().require(settings, **arguments)
        mask = arguments.get("freeze")
        if not isinstance(mask, FreezeMask) or not mask:
            raise ValueError(f"freeze is a mask of the units that are put back, not {mask!r}")

    def edit(self, job: TrainingJob) -> Edit:
        assert isinstance(job.freeze, FreezeMask)
        places = list(_places(as_hooked(job.model), job.freeze))
        before = [parameter.detach()[where].clone() for _, parameter, where in places]

        def put_back() -> None:
            for (_, parameter, where), values in zip(places, before, strict=True):
                parameter[where] = values

        return put_back

    def train(self, job: TrainingJob) -> FinetuneRun:
        assert isinstance(job.freeze, FreezeMask)
        run = super().train(job)
        return replace(run, settings={**run.settings, "rewound": job.freeze.fingerprint})


def entries_of(model: Any, mask: FreezeMask) -> dict[str, Tensor]:
    """A copy of what belongs to the mask's units, to ``rewind`` to when only one model fits into memory."""
    return {name: parameter.detach()[where].clone() for name, parameter, where in _places(as_hooked(model), mask)}


@torch.no_grad()
def rewind(model: Any, before: Any, mask: FreezeMask) -> int:
    """Put the mask's units back, in place, as ``before`` has them; returns how many entries were different.

    Args:
        model, before: two plain Hugging Face models, bridges or HookedTransformers of the same shape; ``before`` may
            also be what ``entries_of`` took from one.
        mask: which units; what is shared by several belongs to it as in freezing.

    Raises:
        ValueError: for another model's mask, one that names no unit, or an earlier model of another shape or backend.

    Examples:
        >>> tuned = sc.load_model("base")
        >>> mask = sc.FreezeMask.of_units({"mlp": {3: range(8)}}, sc.ModelShape.of(model))
        >>> sc.baselines.rewind(tuned, model, mask) > 0
        True
        >>> sc.training.frozen_digest(tuned, mask) == sc.training.frozen_digest(model, mask)
        True
    """
    if not require_mask(mask, "units to put back"):
        raise ValueError("the mask names no unit, so there is nothing to put back")
    hooked = as_hooked(model)
    kept: Entries = before if isinstance(before, Mapping) else entries_of(before, mask)
    places = list(_places(hooked, mask))
    sizes = {name: int(where.sum()) for name, _, where in places}
    if sizes != {name: values.numel() for name, values in kept.items()}:
        raise ValueError("the earlier weights are not of these units of such a model: load both with one backend")
    changed = 0
    for name, parameter, where in places:
        values = kept[name].to(parameter)
        changed += int((parameter[where] != values).sum())
        parameter[where] = values
    fuse_again(hooked)
    return changed


@contextmanager
def rewound(model: Any, before: Any, mask: FreezeMask) -> Iterator[None]:
    """Inside the block the mask's units are as ``before`` has them; afterwards they are bit for bit what they were.

    Examples:
        >>> tuned = sc.load_model("base")
        >>> mask = sc.FreezeMask.of_units({"mlp": {3: range(8)}}, sc.ModelShape.of(model))
        >>> with sc.baselines.rewound(tuned, model, mask):
        ...     measured = sc.evaluate(tuned, malicious=malicious)
    """
    with used_alone(model):
        kept = entries_of(model, mask)
        rewind(model, before, mask)
        try:
            yield
        finally:
            rewind(model, kept, mask)


def _places(hooked: Any, mask: FreezeMask) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every parameter that the mask reaches, with its name and which entries."""
    own = dict(hooked.named_parameters())
    for name, where in require_mask(mask, "units to put back").hooked_masks(hooked).items():
        yield name, own[name], where.to(own[name].device)
