"""LoRA in the same loop: the parameter-efficient baseline that SSAH's Table 3 compares freezing with.

The adapters are PEFT's, over the weights of the model itself. What callbacks see, and what is left at the end, is the
model with the adapters' product added to its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from safecircuits.baselines.hf_modules import hugging_face_model
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import HookedModel
from safecircuits.training.freeze import Places
from safecircuits.training.method import Badge, Callback, Method, TrainingJob, register
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun


@register("lora")
@dataclass(frozen=True)
class Lora(Method):
    """Only PEFT's adapters train, and their product is then added to the weights (Hu et al. 2021); needs a bridge.

    The defaults are those of Qi et al. (2023), whose rows SSAH cites. Dropout is off in ``finetune``, here too.

    With a mask, matrices that are frozen whole get no adapter. Of those frozen in part, the rows of B or columns of A
    that reach frozen entries are zero and stay it, so that the model that trains is the one that is merged, and what is
    frozen stays bit for bit.

    Attributes:
        r: rank of the adapters.
        alpha: the adapters' product is scaled by alpha / r.
        target_modules: names of the linear modules that are adapted; PEFT's choice for the architecture unless given.

    Raises:
        ImportError: without PEFT.
        ValueError: for a HookedTransformer, a bridge that computes with copies of fused matrices, phases, and a mask
            that leaves no matrix to adapt.

    Examples:
        >>> tuned = sc.load_model("aligned")
        >>> run = sc.finetune(tuned, utility, method=sc.baselines.Lora(r=2), steps=1, batch_size=2, progress=False)
        >>> run.settings["method"]
        {'name': 'lora', 'r': 2, 'alpha': 32, 'target_modules': None}
    """

    r: int = 8
    alpha: float = 32
    target_modules: tuple[str, ...] | None = None

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Hu et al. 2021, equation 3; PEFT's"

    def __post_init__(self) -> None:
        super().__post_init__()
        names: Any = self.target_modules
        if names is not None:
            if not isinstance(names, tuple | list) or not names or not all(isinstance(n, str) for n in names):
                raise ValueError(f"target_modules are names in a tuple, such as ('q_proj', 'v_proj'), not {names!r}")
            object.__setattr__(self, "target_modules", tuple(names))
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}: the adapters would add nothing")

    def train(self, job: TrainingJob) -> FinetuneRun:
        mask = job.freeze
        if not (mask is None or isinstance(mask, FreezeMask)):
            raise ValueError("lora takes one freeze mask for the whole run, and no phases")
        places = None if mask is None else Places.of(job.model, mask)
        adapted = _Adapted(job.model, self, job.seed, places)
        callbacks = [adapted.shown(callback) for callback in job.callbacks]
        job = replace(job, model=adapted.peft, callbacks=callbacks)
        if places is None or mask is None:
            run = train_weights(job)
            adapted.merge()
            return run
        digest = places.digest(adapted.model)
        held = {"adapters_hold": [mask.on(adapted.model).fingerprint, digest]}
        run = train_weights(replace(job, freeze=None, decides={**job.decides, **held}))
        adapted.merge()
        if places.digest(adapted.model) != digest:
            raise RuntimeError("frozen entries have changed while adapters trained")
        return replace(
            run,
            frozen_bit_identical=True,
            frozen_digest=digest,
            n_frozen=places.n_frozen,
            settings={**run.settings, "frozen": digest, "freeze": dict(mask.provenance)},
        )


class _Adapted:
    """A bridge with adapters over its weights, which stay what they were until ``merge``.

    Attributes:
        peft: PEFT's model of it, whose adapters train.
    """

    def __init__(self, model: HookedModel, settings: Lora, seed: int, places: Places | None = None) -> None:
        try:
            from peft import LoraConfig, get_peft_model
            from peft.tuners.lora import Linear as LoraLinear
        except ImportError as error:
            raise ImportError("LoRA needs PEFT: pip install 'safecircuits[peft]'") from error
        self.model, plain = model, hugging_face_model(model, "LoRA's adapters go")
        named = {id(module): name for name, module in plain.named_modules()}
        frozen = {} if places is None else places.stored
        whole = [name.removesuffix(".weight") for name, place in frozen.items() if place is None]
        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r
            lora_dropout=0.0,
            target_modules=None if settings.target_modules is None else list(settings.target_modules),
            exclude_modules=[name for name in named.values() if name in whole] or None,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self.peft: Any = get_peft_model(plain, config)
            except ValueError as error:
                if not whole:
                    raise
                raise ValueError("the freeze mask leaves no matrix to adapt: freeze less, or adapt others") from error
        self._adapters = {
            f"{named[id(module.base_layer)]}.weight": module
            for module in self.peft.modules()
            if isinstance(module, LoraLinear)
        }
        self._stored = checkpoint_parameters(model)
        self._before = {name: self._stored[name].detach().clone() for name in self._adapters}
        self._frozen = {name: place for name, place in frozen.items() if place is not None and name in self._adapters}
        for name, place in self._frozen.items():
            _hold(self._adapters[name], place[0].at, place[1])

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters' product to the weights."""
        self._write({name: self._merged(name, adapter) for name, adapter in self._adapters.items()})

    def shown(self, callback: Callback) -> Callback:
        """A callback that sees the model with the adapters' product in its weights."""

        def call(_: Any, step: int) -> Any:
            self.merge()
            try:
                return callback(self.model, step)
            finally:
                self._write(self._before)

        return call

    def _merged(self, name: str, adapter: Any) -> Tensor:
        before, product = self._before[name], adapter.get_delta_weight("default")
        merged: Tensor = before + product
        if name in self._frozen:
            along, index = self._frozen[name]
            axis, index = along.at, index.to(merged.device)
            if product.index_select(axis, index).any():
                raise RuntimeError(
                    f"the adapters of {name} reach frozen entries: something wrote to them past training"
                )
            # Not the sum, which makes a plus of a minus zero.
            merged.index_copy_(axis, index, before.index_select(axis, index))
        return merged

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._stored[name].copy_(value)


@torch.no_grad()
def _hold(adapter: Any, axis: int, index: Tensor) -> None:
    """Let the product of an adapter be zero, for good, at these rows or columns of its matrix."""
    is_row = (axis == 0) != bool(adapter.fan_in_fan_out)
    weight, dim = (adapter.lora_B if is_row else adapter.lora_A)["default"].weight, 0 if is_row else 1
    index = index.to(weight.device)
    weight.index_fill_(dim, index, 0.0)
    weight.register_hook(lambda gradient: gradient.index_fill(dim, index, 0.0))
