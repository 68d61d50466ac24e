"""Which entries of a mixture's parameters belong to its units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from safecircuits.base.vocabulary import Site
from safecircuits.model.mixtures import Mixture, rows_of


def mixture_masks(
    mixture: Mixture, site: Site, units: Sequence[int]
) -> Iterator[tuple[nn.Parameter, Bool[Tensor, "..."]]]:
    """Each parameter with entries of ``units``, and a boolean tensor of its shape that is True there.

    An expert's neuron owns its two rows of ``gate_up_proj`` with their biases and its column of ``down_proj``; the
    output bias of an expert belongs to all of its neurons together. Of the router's matrix and bias an expert owns its
    row. Neurons of a shared expert own rows and a column as those of any MLP, and all of them together what multiplies
    what they write.
    """
    if site == "expert":
        yield from _of_experts(mixture, units)
    elif site == "router":
        for parameter in mixture.parameters(site):
            yield parameter, _filled(parameter, (torch.tensor(units),))
    elif mixture.shared is not None:
        at = torch.tensor(units)
        for linear in mixture.shared[:2]:
            for parameter in linear.parameters():
                yield parameter, _filled(parameter, (at,))
        outgoing: nn.Parameter = mixture.shared[2].weight  # type: ignore[assignment]
        yield outgoing, _filled(outgoing, (slice(None), at))
        if len(units) == mixture.d_shared:
            rest = [
                p
                for p in mixture.parameters(site)
                if all(p is not q for m in mixture.shared[:2] for q in m.parameters())
            ]
            for parameter in rest:
                yield parameter, torch.ones(parameter.shape, dtype=torch.bool)


def unit_slices(mixture: Mixture, site: Site) -> list[Float[Tensor, "unit ..."]]:
    """The entries of each unit alone, unit by unit: of an expert's neuron its two rows, their biases and its column."""
    if site == "router":
        return [parameter.detach() for parameter in mixture.parameters(site)]
    if site == "shared":
        assert mixture.shared is not None
        into = [p.detach() for linear in mixture.shared[:2] for p in linear.parameters()]
        return [*into, mixture.shared[2].weight.detach().T]
    experts = mixture.experts
    rows = rows_of(experts, torch.arange(mixture.d_expert)).to(experts.gate_up_proj.device)
    whole = experts.gate_up_proj.detach()
    parts = [whole.transpose(1, 2) if experts.is_transposed else whole]
    if experts.has_bias:
        parts.append(experts.gate_up_proj_bias.detach())
    pairs = [part.index_select(1, rows).unflatten(1, (2, mixture.d_expert)).transpose(1, 2) for part in parts]
    return [*(pair.flatten(0, 1) for pair in pairs), mixture.down().flatten(0, 1)]


def _of_experts(mixture: Mixture, units: Sequence[int]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    experts, width = mixture.experts, mixture.d_expert
    named = dict(experts.named_parameters(recurse=False))
    masks = {name: torch.zeros(parameter.shape, dtype=torch.bool) for name, parameter in named.items()}
    at = torch.tensor(units)
    for expert in (at // width).unique().tolist():
        neurons = at[at // width == expert] % width
        rows = rows_of(experts, neurons)
        into, out = masks["gate_up_proj"][expert], masks["down_proj"][expert]
        if experts.is_transposed:
            into[:, rows], out[neurons] = True, True
        else:
            into[rows], out[:, neurons] = True, True
        if experts.has_bias:
            masks["gate_up_proj_bias"][expert, rows] = True
            masks["down_proj_bias"][expert] = len(neurons) == width
    yield from ((named[name], mask) for name, mask in masks.items())


def _filled(parameter: Tensor, at: tuple[slice | Tensor, ...]) -> Tensor:
    mask = torch.zeros(parameter.shape, dtype=torch.bool)
    mask[at] = True
    return mask
