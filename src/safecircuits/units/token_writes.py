"""Direct logit attribution: which tokens a unit adds to, straight from what it writes into the residual stream.

A neuron of activation a writes a · W_out[neuron] and a head z · W_O[head]. The final norm divides the whole residual
stream by its scale, which is taken as it is (frozen); what is left is linear, so that the logits are the sum of what
every unit adds to them, of the embedding, and of the biases, before any scale or cap of the logits themselves. What
later layers make of a unit's write is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.vocabulary import SITES, Site
from safecircuits.hooks.collect import final_normed
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.forward import device_of, run
from safecircuits.model.sites import HookedModel, has_units, output_weight, resid_post, sublayer_of, unit_hook
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import Encoded

_LARGE = 100.0
"""Size of what the final norm is tried on, beside which its ε is nothing."""
_STRAIGHT = 0.02
"""Share of a block's output that its units and biases may leave unexplained, by rounding in half precision."""


@dataclass(frozen=True)
class FinalNorm:
    """The linear part of a final norm, found by trying it: what it does to a direction once its scale is frozen."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    there: bool = True

    @classmethod
    def of(cls, model: HookedModel) -> FinalNorm:
        width = int(model.cfg.d_model)
        if getattr(model, "ln_final", None) is None or model.cfg.normalization_type is None:
            return cls(torch.ones(width), torch.zeros(width), centred=False, there=False)
        signs = torch.ones(width)
        signs[1::2] = -1
        bias, swung, level = final_normed(model, _LARGE * torch.stack([0 * signs, signs, signs.abs()]))
        gain = (swung - bias) * signs
        return cls(gain, bias, centred=bool((level - bias).norm() < 0.1 * gain.norm()))

    def scale(self, model: HookedModel, resid: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
        """What each of these is divided by."""
        if not self.there:
            return torch.ones(len(resid))
        before, after = self.along(resid), final_normed(model, resid) - self.bias
        largest = before.abs().argmax(1, keepdim=True)
        return (before.gather(1, largest) / after.gather(1, largest))[:, 0]

    def along(self, written: Float[Tensor, "some d_model"]) -> Float[Tensor, "some d_model"]:
        """The norm of a direction, but for its scale."""
        return self.gain * (written - written.mean(1, keepdim=True) if self.centred else written)


@torch.inference_mode()
def token_logits(
    model: HookedModel, norm: FinalNorm, written: Float[Tensor, "some d_model"]
) -> Float[Tensor, "some d_vocab"]:
    """What directions of the residual stream, divided by the final norm's scale, add to the logit of every token."""
    unembed = cast(Any, model).unembed  # both backends have it
    rows = torch.cat([torch.zeros_like(written[:1]), norm.along(written)])
    out: Tensor = unembed(rows[:, None].to(device_of(model), next(model.parameters()).dtype))[:, 0].float().cpu()
    return out[1:] - out[0]


@torch.inference_mode()
def straight_layers(model: HookedModel, layers: Sequence[int], examples: Sequence[Encoded]) -> set[int]:
    """The layers whose output is what their units write, with biases, and nothing else.

    It is not behind a norm after a sublayer (Gemma-2, OLMo-2), with a factor on what a block adds (Granite), or in a
    mixture of experts. A unit of such a layer writes something else than its row of the weights.
    """
    known = [layer for layer in layers if all(has_units(model, site, layer) for site in SITES)]
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> HookFn:
        def store(value: Tensor) -> None:
            kept[name] = value[:, -1].flatten(1).float().cpu()

        return store

    before = {layer: f"blocks.{layer}.hook_resid_pre" for layer in known}
    names = [*before.values(), *map(resid_post, known), *(unit_hook(site, layer) for site in SITES for layer in known)]
    if not known:
        return set()
    with attached(model, {name: keep(name) for name in names}):
        run(model, pad_left(examples))
    straight = set()
    for layer in known:
        added = kept[resid_post(layer)] - kept[before[layer]]
        ours = sum((_written(model, site, layer, kept[unit_hook(site, layer)]) for site in SITES), torch.zeros(()))
        if (added - ours).norm() <= _STRAIGHT * added.norm():
            straight.add(layer)
    return straight


def _written(model: HookedModel, site: Site, layer: int, values: Float[Tensor, "row channel"]) -> Tensor:
    part = sublayer_of(model, layer, site)
    bias = getattr(part, "b_out" if site == "mlp" else "b_O", None)
    written = values @ output_weight(model, site, layer).float().cpu()
    return written if bias is None else written + bias.detach().float().cpu()
