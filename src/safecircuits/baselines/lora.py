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
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import HookedModel
from safecircuits.training.method import Callback, Method, TrainingJob, register
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun


@register("lora")
@dataclass(frozen=True)
class Lora(Method):
    """Only PEFT's adapters train, and their product is then added to the weights (Hu et al. 2021); needs a bridge.

    The defaults are those of Qi et al. (2023), whose rows SSAH cites. Dropout is off in ``finetune``, here too.

    Attributes:
        r: rank of the adapters.
        alpha: the adapters' product is scaled by alpha / r.
        target_modules: names of the linear modules that are adapted; PEFT's choice for the architecture unless given.

    Raises:
        ImportError: without PEFT.
        ValueError: for a HookedTransformer, a bridge that computes with copies of fused matrices, and a freeze mask.

    Examples:
        >>> tuned = sc.load_model("aligned")
        >>> run = sc.finetune(tuned, utility, method=sc.baselines.Lora(r=2), steps=1, batch_size=2, progress=False)
        >>> run.settings["method"]
        {'name': 'lora', 'r': 2, 'alpha': 32, 'target_modules': None}
    """

    r: int = 8
    alpha: float = 32
    target_modules: tuple[str, ...] | None = None

    refuses: ClassVar[Mapping[str, str]] = {"freeze": "the weights are frozen all, and only adapters train"}

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
        adapted = _Adapted(job.model, self, job.seed)
        callbacks = [adapted.shown(callback) for callback in job.callbacks]
        run = train_weights(replace(job, model=adapted.peft, callbacks=callbacks))
        adapted.merge()
        return run


class _Adapted:
    """A bridge with adapters over its weights, which stay what they were until ``merge``.

    Attributes:
        peft: PEFT's model of it, whose adapters train.
    """

    def __init__(self, model: HookedModel, settings: Lora, seed: int) -> None:
        try:
            from peft import LoraConfig, get_peft_model
            from peft.tuners.lora import Linear as LoraLinear
        except ImportError as error:
            raise ImportError("LoRA needs PEFT: pip install 'safecircuits[peft]'") from error
        self.model, plain = model, hugging_face_model(model, "LoRA's adapters go")
        named = {id(module): name for name, module in plain.named_modules()}
        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r
            lora_dropout=0.0,
            target_modules=None if settings.target_modules is None else list(settings.target_modules),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peft: Any = get_peft_model(plain, config)
        self._adapters = {
            f"{named[id(module.base_layer)]}.weight": module
            for module in self.peft.modules()
            if isinstance(module, LoraLinear)
        }
        self._stored = checkpoint_parameters(model)
        self._before = {name: self._stored[name].detach().clone() for name in self._adapters}

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters' product to the weights."""
        self._write({name: self._before[name] + a.get_delta_weight("default") for name, a in self._adapters.items()})

    def shown(self, callback: Callback) -> Callback:
        """A callback that sees the model with the adapters' product in its weights."""

        def call(_: Any, step: int) -> Any:
            self.merge()
            try:
                return callback(self.model, step)
            finally:
                self._write(self._before)

        return call

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._stored[name].copy_(value)
