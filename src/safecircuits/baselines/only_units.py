"""Training nothing but chosen units: SN-Tune (Zhao et al. 2025) and NeST, and which units moved most in hindsight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.vocabulary import MIXTURE_SITES, SITES, Site
from safecircuits.baselines.earlier import matrices_of
from safecircuits.baselines.unit_entries import require_units_of
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.parameters import as_hooked
from safecircuits.model.sites import ModelShape
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.only_units import only_units
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun
from safecircuits.units.selection import top


@register("only-units")
@dataclass(frozen=True)
class OnlyUnits(Method):
    """Nothing but these units trains: no other neuron or head, no embedding, norm or unembedding (SN-Tune, NeST).

    On refusals it aligns by the safety units alone; it is compared with ``FreezeMask.random_units(units)`` and with
    ``moved_most``. What several units share (output biases, a key/value head) trains if one of them is among the units
    and stays if all are others.

    Attributes:
        units: what trains, such as ``groups["SCU"]``.

    Examples:
        >>> tuned, units = sc.load_model("aligned"), sc.FreezeMask.of_units({"mlp": {3: range(8)}}, model)
        >>> method = sc.baselines.OnlyUnits(units)
        >>> run = sc.finetune(tuned, utility, method=method, steps=1, batch_size=2, progress=False)
        >>> run.n_trainable == 8 * 3 * model.cfg.d_model
        True
    """

    units: FreezeMask

    badge: ClassVar[Badge] = "variant"
    paper: ClassVar[str] = "Zhao et al. 2025 (SN-Tune), NeST"
    differs: ClassVar[str] = "whole neurons and heads, that are given; theirs are rows of matrices, by their own search"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_units_of(self.units, "units")

    def train(self, job: TrainingJob) -> FinetuneRun:
        if not (job.freeze is None or isinstance(job.freeze, FreezeMask)):
            raise ValueError("only-units takes one freeze mask beside its units, and no phases")
        hooked = as_hooked(job.model)
        others = ~units_of(hooked, self.units)
        with only_units(hooked):
            return train_weights(replace(job, freeze=(others if job.freeze is None else others | job.freeze) or None))


@torch.no_grad()
def moved_most(before: Any, after: Any, like: FreezeMask) -> FreezeMask:
    """As many units of each site as ``like`` has, those that moved most from one model to the other.

    The units of an optimal edit in hindsight: what training that may move everything has moved. A neuron's movement is
    the norm of what changed in its rows of the input matrices and its column of the output matrix; a head's of its
    query and output entries, as keys and values may be shared.

    Args:
        before, after: models with hook points, or plain ones, of one shape.

    Examples:
        >>> like = sc.FreezeMask.of_units({"mlp": {3: range(8)}}, model)
        >>> sc.baselines.moved_most(sc.load_model("unaligned"), model, like).n_units("mlp")
        8
    """
    shape = ModelShape.of(as_hooked(after))
    ModelShape.of(as_hooked(before)).require_same(shape, "the model before")
    old, new = matrices_of(before), matrices_of(after)
    change = {key: (new[key].read() - old[key].read()).double().square() for key in new}
    wanted = units_of(shape, like, "as many units")
    if any(wanted.n_units(site) for site in MIXTURE_SITES):
        raise ValueError("how far neurons of experts moved is not ranked here: give units of the sites mlp and attn")
    found = FreezeMask.of_units({}, shape)
    for site in SITES:
        if n := wanted.n_units(site):
            found |= top({site: _movement(change, site, shape)}, n, shape)
    return found


def _movement(change: dict[str, Tensor], site: Site, shape: ModelShape) -> Float[Tensor, "layer unit"]:
    into, out = (("in", "gate"), "out") if site == "mlp" else (("q",), "o")
    rows = []
    for layer in range(shape.n_layers):
        parts = [change[f"{layer}.{part}"].sum(1) for part in into if f"{layer}.{part}" in change]
        whole = torch.stack([*parts, change[f"{layer}.{out}"].sum(0)]).sum(0)
        rows.append(whole.reshape(shape.n_units(site), -1).sum(1).sqrt())
    return torch.stack(rows)
