"""LoRA in the same loop: the parameter-efficient baseline that SSAH's Table 3 compares freezing with.

The adapters are PEFT's, over the weights of the model itself. What callbacks see, and what is left at the end, is the
model with the adapters' product added to its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safecircuits.base.arguments import checked, read_fields
from safecircuits.model.fused import copies_of_fused
from safecircuits.model.load import to_hugging_face
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import HookedModel, is_bridge
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.training.loop import finetune
from safecircuits.training.run import FinetuneRun


@dataclass(frozen=True)
class LoraSettings:
    """Rank, scale and place of the adapters; the defaults are those of Qi et al. (2023), whose rows SSAH cites.

    Attributes:
        r, alpha: the adapters' product is scaled by alpha / r. Dropout is off in ``finetune``, here too.
        target_modules: names of the linear modules that are adapted; PEFT's choice for the architecture unless given.
    """

    r: int = 8
    alpha: float = 32
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        read_fields(self)


@checked
def lora(
    model: HookedModel, data: PromptSet, *, settings: LoraSettings | None = None, seed: int = 0, **options: Any
) -> FinetuneRun:
    """Fine-tune ``model`` in place by LoRA: only adapters train, and their product is then added to the weights.

    Args:
        model: a TransformerBridge.
        seed: of the adapters' start and the order of the data.
        options: as for ``finetune``, but for ``freeze`` and checkpoints.

    Raises:
        ImportError: without PEFT.
        ValueError: for a HookedTransformer, a bridge that computes with copies of fused matrices, and a freeze mask.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import Linear as LoraLinear
    except ImportError as error:
        raise ImportError("LoRA needs PEFT: pip install 'safecircuits[peft]'") from error
    for name in ("freeze", "checkpoint_dir"):
        if options.pop(name, None) is not None:
            raise ValueError(f"lora does not take {name}: the weights are frozen all, and only adapters train")
    if not is_bridge(model) or copies_of_fused(model):
        raise ValueError(
            "LoRA's adapters go on Hugging Face's own modules: give a TransformerBridge of an architecture with "
            "separate query, key and value matrices"
        )
    settings = settings or LoraSettings()
    plain = to_hugging_face(model)
    named = {id(module): name for name, module in plain.named_modules()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r
            lora_dropout=0.0,
            target_modules=None if settings.target_modules is None else list(settings.target_modules),
            task_type="CAUSAL_LM",
        )
        adapted: Any = get_peft_model(plain, config)
    stored = checkpoint_parameters(model)
    layers = {
        f"{named[id(module.base_layer)]}.weight": module
        for module in adapted.modules()
        if isinstance(module, LoraLinear)
    }
    before = {name: stored[name].detach().clone() for name in layers}

    @torch.no_grad()
    def write(values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            stored[name].copy_(value)

    def merged() -> dict[str, Tensor]:
        return {name: before[name] + layer.get_delta_weight("default") for name, layer in layers.items()}

    @contextmanager
    def in_the_weights() -> Iterator[None]:
        write(merged())
        try:
            yield
        finally:
            write(before)

    def seen(callback: Callable[..., Any]) -> Callable[..., Any]:
        def call(_: Any, step: int) -> Any:
            with in_the_weights():
                return callback(model, step)

        return call

    callbacks = [seen(callback) for callback in options.pop("callbacks", ())]
    run = finetune(adapted, data, seed=seed, callbacks=callbacks, tokenizer=model.tokenizer, **options)
    with torch.no_grad():
        write(merged())
    return run
