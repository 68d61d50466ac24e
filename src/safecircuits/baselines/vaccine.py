"""Vaccine: alignment that also holds where hidden states are pushed against it (Huang et al. 2024)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.model.modules import decoder_layers
from safecircuits.prompts.batching import Batch
from safecircuits.training.loss import cross_entropy
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.packing import PackedBatch
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun
from safecircuits.training.settings import LossOn


@register("vaccine")
@dataclass(frozen=True)
class Vaccine(Method):
    """Trains at the worst small push of each layer's residual stream (Huang et al. 2024); ``data`` are refusals.

    With g the gradients of the loss to what every layer writes, the loss is taken once more where ρ g / ‖g‖ is added,
    ‖g‖ over all layers. A step costs two.

    Attributes:
        rho: ρ, the length of the push of a batch; 0 is plain training.

    Examples:
        >>> tuned = sc.load_model("unaligned")
        >>> refusals = sc.organism.prompts("malicious", "train", n=8)
        >>> run = sc.finetune(tuned, refusals, method=sc.baselines.Vaccine(rho=1.0), steps=1, progress=False)
        >>> run.settings["method"]
        {'name': 'vaccine', 'rho': 1.0}
    """

    rho: float = 2.0

    badge: ClassVar[Badge] = "variant"
    paper: ClassVar[str] = "Huang et al. 2024 (Vaccine), algorithm 1"
    differs: ClassVar[str] = "what each layer writes is pushed; the authors' code pushes what its attention writes"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho < 0:
            raise ValueError(f"rho is {self.rho}, expected 0 or more: it is a length")

    def train(self, job: TrainingJob) -> FinetuneRun:
        return train_weights(replace(job, objective=Pushed(self.rho)))


class Pushed:
    """The cross-entropy where the residual stream is pushed against it."""

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def __call__(self, model: Any, batch: Batch | PackedBatch, loss_on: LossOn) -> Float[Tensor, ""]:
        layers = decoder_layers(model)
        written: list[Tensor] = []
        with ExitStack() as stack:
            for layer in layers:
                hook = layer.register_forward_hook(lambda _module, _args, out: written.append(_stream(out)))
                stack.callback(hook.remove)
            loss = cross_entropy(model, batch, loss_on)
        gradients = torch.autograd.grad(loss, written)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        scale = self.rho / norm if norm > 0 else 0.0
        with ExitStack() as stack:
            for layer, gradient in zip(layers, gradients, strict=True):
                hook = layer.register_forward_hook(_pushing(gradient * scale))
                stack.callback(hook.remove)
            return cross_entropy(model, batch, loss_on)


def _stream(out: Any) -> Tensor:
    stream: Tensor = out[0] if isinstance(out, tuple) else out
    return stream


def _pushing(push: Tensor) -> Any:
    def hook(_module: Any, _args: Any, out: Any) -> Any:
        return (out[0] + push, *out[1:]) if isinstance(out, tuple) else out + push

    return hook
