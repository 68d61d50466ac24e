"""Take units out of the weights: a smaller Hugging Face checkpoint that plain transformers reloads.

A configuration has one width for all layers, but a group of units is not spread evenly. So every layer gets the width
of the layer that keeps most, and the others are filled up with neurons and heads that are all zero: their output is
zero whatever comes in, so the checkpoint computes exactly what the hooks do. Under GQA a key/value head goes when all
of its query heads do; the layout is then as many query heads a key/value head as the fullest one keeps, widened where
the architecture's configuration refuses it (Llama wants d_model to be a multiple of the heads). How much is filling
stands in the result; ``lowest_even`` selects so that there is none.

A HookedTransformer of a checkpoint with fewer heads cannot be built where TransformerLens takes the width of a head to
be d_model / heads (Llama); transformers itself and a bridge read ``head_dim``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from safecircuits.base.arguments import checked
from safecircuits.base.vocabulary import Site
from safecircuits.hooks.ablate import UnitValues, ablated
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.checkpoint_folder import write_checkpoint
from safecircuits.model.forward import logits, n_embeddings
from safecircuits.model.load import to_hugging_face
from safecircuits.model.modules import decoder_layers
from safecircuits.model.parameters import as_hooked
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.batching import Batch

_NEURON_ROWS, _NEURON_COLUMNS = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
_QUERY, _KEY_VALUE, _OUTPUT = "self_attn.q_proj", ("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"
_LINEARS = (*_NEURON_ROWS, _NEURON_COLUMNS, _QUERY, *_KEY_VALUE, _OUTPUT)

# What the smaller model is compared on, and how far apart rounding may take it, in full and in half precision.
_TOKENS, _CLOSE, _CLOSE_ROUNDED = 8, 1e-3, 0.1

Slots = Sequence[int | None]
"""For each place in the new matrix the old neuron or head that takes it; None for one that is all zero."""


@dataclass(frozen=True)
class PrunedModel:
    """A model without some units, as plain Hugging Face.

    Examples:
        >>> scores = sc.score_units(model, utility)
        >>> redundant = sc.units.lowest_even(scores.scores, scores.shape, neurons=64)
        >>> smaller = sc.units.prune_units(model, redundant)
        >>> smaller.n_units, smaller.parameters_after < smaller.parameters_before
        (512, True)
        >>> folder = smaller.save("smaller")
    """

    hf_model: Any
    tokenizer: Any
    n_units: int
    parameters_before: int
    parameters_after: int
    filling: dict[Site, int]
    """All-zero neurons and heads, over all layers, that give every layer the same width."""

    def __repr__(self) -> str:
        return (
            f"PrunedModel({type(self.hf_model).__name__} without {self.n_units} units, "
            f"{self.parameters_before:,} → {self.parameters_after:,} parameters)"
        )

    def save(self, folder: str | Path) -> Path:
        """Write model and tokenizer so that ``from_pretrained`` reads them; see ``save_pretrained``."""
        write_checkpoint(self.hf_model, self.tokenizer, folder)
        return Path(folder)


@torch.no_grad()
def prune_units(model: Any, units: FreezeMask, *, compensate: UnitValues | None = None) -> PrunedModel:
    """Remove units from the weights of a copy of the model (a hooked or a plain Hugging Face one).

    Args:
        compensate: mean activations (``UnitScores.mean``); what they write through the removed columns becomes a bias
            of the output projection, as FLAP does. The architecture must have a place for it (Llama's ``mlp_bias`` and
            ``attention_bias``).

    Raises:
        ValueError: for another model's units, an architecture without Llama's separate projections, one without a
            place for the bias, or one whose smaller model computes something else than ``ablated`` does: a norm over
            the queries of all heads (OLMo-2) is another one without some of them.

    Examples:
        >>> scores = sc.score_units(model, utility)
        >>> redundant = sc.units.lowest_even(scores.scores, scores.shape, neurons=64)
        >>> smaller = sc.units.prune_units(model, redundant)
        >>> smaller.hf_model.config.intermediate_size
        320
    """
    source = to_hugging_face(model)
    layers = decoder_layers(source)
    for name in _LINEARS:
        if not all(isinstance(_at(layer, name), nn.Linear) for layer in layers):
            raise ValueError(
                f"{type(source).__name__} has no linear map {name!r} in each of its layers, so its units cannot be cut "
                "out of the weights; ablate them by hooks: ablated(model, units)"
            )
    shape = ModelShape.of(as_hooked(model))
    units = units_of(shape, units)
    mlp, attn = units.members("mlp"), units.members("attn")
    neurons = [[j for j in range(shape.d_mlp) if j not in set(mlp.get(i, ()))] for i in range(shape.n_layers)]
    width = max(1, *(len(kept) for kept in neurons))
    neuron_slots: list[Slots] = [kept + [None] * (width - len(kept)) for kept in neurons]
    config = copy.deepcopy(source.config)
    config.intermediate_size = width
    queries, key_values = _head_slots(source, shape, attn)
    config.num_attention_heads, config.num_key_value_heads = len(queries[0]), len(key_values[0])
    head_dim = _head_dim(source)
    config.head_dim = head_dim
    if compensate is not None:
        for flag, site in (("mlp_bias", mlp), ("attention_bias", attn)):
            if any(site.values()) and hasattr(config, flag):
                setattr(config, flag, True)
    smaller = type(source)(config).to(next(source.parameters()).dtype)
    state = {key: value.clone() for key, value in source.state_dict().items()}
    prefix = next(name for name, module in source.named_modules() if module is layers)
    for i, layer in enumerate(layers):
        slots = {**dict.fromkeys(_NEURON_ROWS, neuron_slots[i]), _QUERY: queries[i]}
        slots |= dict.fromkeys(_KEY_VALUE, key_values[i])
        for name, places in slots.items():
            block = 1 if name in _NEURON_ROWS else head_dim
            for key, value in _at(layer, name).named_parameters():
                state[f"{prefix}.{i}.{name}.{key}"] = _taken(value, places, 0, block)
        for name, places, block in ((_NEURON_COLUMNS, neuron_slots[i], 1), (_OUTPUT, queries[i], head_dim)):
            state[f"{prefix}.{i}.{name}.weight"] = _taken(_at(layer, name).weight, places, 1, block)
    wanted = smaller.state_dict()
    for key in set(wanted) - set(state):
        state[key] = torch.zeros_like(wanted[key])  # biases that the configuration only now has
    if compensate is not None:
        for where, removed, name in (("mlp", mlp, _NEURON_COLUMNS), ("attn", attn, _OUTPUT)):
            for i, indices in removed.items():
                if indices:
                    key = f"{prefix}.{i}.{name}.bias"
                    if key not in wanted:
                        raise ValueError(f"{type(source).__name__} has no bias at {name!r} that could compensate")
                    state[key] += _bias(_at(layers[i], name).weight, compensate[where][i], indices)  # type: ignore[index]
    try:
        smaller.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the layers of a {type(source).__name__} have parameters that count heads and are no projections, such as "
            "a norm over all heads' queries, so heads cannot be cut out of its weights; ablate them by hooks: "
            f"ablated(model, units) ({str(error).strip().splitlines()[-1].strip()})"
        ) from error
    smaller.generation_config = copy.deepcopy(source.generation_config)
    smaller.to(next(source.parameters()).device).eval()
    _require_same_as_ablated(source, smaller, units, compensate)
    filled = sum(places.count(None) for places in (list(slots) for slots in neuron_slots))
    filled_heads = sum(list(places).count(None) for places in queries)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (source, smaller))
    return PrunedModel(
        smaller,
        getattr(model, "tokenizer", None),
        units.n_units(),
        before,
        after,
        {"mlp": filled, "attn": filled_heads},
    )


def _require_same_as_ablated(source: Any, smaller: Any, units: FreezeMask, means: UnitValues | None) -> None:
    """A ValueError unless on a few tokens the smaller model gives what the whole one does with the units removed."""
    ids = torch.arange(_TOKENS, device=next(source.parameters()).device)[None] * 7 % n_embeddings(source)
    batch = Batch((0,), ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))
    whole = as_hooked(source)
    with ablated(whole, units, to=means):
        want = logits(whole, batch).double()
    apart = float((smaller(input_ids=ids, use_cache=False).logits.double() - want).norm() / want.norm())
    if not apart <= (_CLOSE if smaller.dtype.itemsize > 2 else _CLOSE_ROUNDED):
        raise ValueError(
            f"a {type(source).__name__} without these units in its weights computes something else than with them "
            f"removed by hooks (the logits of {_TOKENS} tokens are {apart:.0%} apart): a norm over all heads' queries "
            "or keys, for one, changes with every head that is cut out; ablate them by hooks, ablated(model, units), "
            "or prune neurons alone"
        )


@checked
def lowest_even(
    order: Mapping[Site, Float[Tensor, "layer unit"]], shape: ModelShape, *, neurons: int = 0, kv_heads: int = 0
) -> FreezeMask:
    """The lowest units of every layer, the same number in each: what a checkpoint can lose without any filling.

    Args:
        order: by site, such as ``UnitGroups.total`` (low is redundant) or ``UnitScores.scores``.
        neurons: how many MLP neurons go from each layer.
        kv_heads: how many key/value heads go from each layer, with all of their query heads (lowest mean first).

    Raises:
        ValueError: for more than a layer has.

    Examples:
        >>> scores = sc.score_units(model, utility)
        >>> units = sc.units.lowest_even(scores.scores, scores.shape, neurons=64)
        >>> units.at("mlp").sum(1).tolist()
        [64, 64, 64, 64, 64, 64, 64, 64]
    """
    group = shape.n_heads // shape.n_kv_heads
    layouts: tuple[tuple[Site, int, int, int], ...] = (
        ("mlp", neurons, shape.d_mlp, 1),
        ("attn", kv_heads, shape.n_kv_heads, group),
    )
    chosen: dict[Site, Tensor] = {}
    for site, n, available, width in layouts:
        if not 0 <= n <= available:
            raise ValueError(f"cannot take {n} of the {available} {'neurons' if site == 'mlp' else 'key/value heads'}")
        if n:
            values = reduce(order[site], "layer (unit width) -> layer unit", "mean", width=width)
            lowest = torch.zeros(values.shape, dtype=torch.bool)
            lowest.scatter_(1, values.argsort(dim=-1, stable=True)[:, :n], True)
            chosen[site] = lowest.repeat_interleave(width, 1)
    return FreezeMask.where(chosen, shape, {"lowest_even": {"neurons": neurons, "kv_heads": kv_heads}})


def _head_slots(source: Any, shape: ModelShape, removed: Any) -> tuple[list[Slots], list[Slots]]:
    """Query and key/value heads of every layer in their new places."""
    group = shape.n_heads // shape.n_kv_heads
    survivors: list[list[tuple[int, list[int]]]] = []  # by layer: key/value heads with the query heads they keep
    for i in range(shape.n_layers):
        gone = set(removed.get(i, ()))
        kept = [(g, [h for h in range(g * group, (g + 1) * group) if h not in gone]) for g in range(shape.n_kv_heads)]
        survivors.append([(g, heads) for g, heads in kept if heads])
    n_kv = max(1, *(len(layer) for layer in survivors))
    per_kv = max([1, *(len(heads) for layer in survivors for _, heads in layer)])
    n_kv, per_kv = _allowed_layout(source, n_kv, per_kv, shape.n_kv_heads, group)
    queries: list[Slots] = []
    key_values: list[Slots] = []
    for layer in survivors:
        padded = [*layer, *[(None, [])] * (n_kv - len(layer))]
        key_values.append([g for g, _ in padded])
        queries.append([h for _, heads in padded for h in [*heads, *[None] * (per_kv - len(heads))]])
    return queries, key_values


def _allowed_layout(source: Any, n_kv: int, per_kv: int, most_kv: int, most_per_kv: int) -> tuple[int, int]:
    """The smallest layout of at least this size that the architecture's configuration accepts."""
    layouts = [(kv, q) for kv in range(n_kv, most_kv + 1) for q in range(per_kv, most_per_kv + 1)]
    settings = source.config.to_dict()
    for kv, q in sorted(layouts, key=lambda layout: (layout[0] * layout[1], layout[0])):
        changed = settings | {"num_attention_heads": kv * q, "num_key_value_heads": kv}
        changed |= {"head_dim": _head_dim(source)}
        try:
            type(source.config)(**changed)
        except Exception:
            continue
        return kv, q
    return most_kv, most_per_kv


def _taken(value: Tensor, slots: Slots, dim: int, block: int) -> Tensor:
    """Rows (``dim`` 0) or columns in their new places, ``block`` of them a neuron or head, zeros where none goes."""
    size = list(value.shape)
    size[dim] = len(slots) * block
    out = value.new_zeros(size)
    for place, old in enumerate(slots):
        if old is not None:
            out.narrow(dim, place * block, block).copy_(value.narrow(dim, old * block, block))
    return out


def _bias(weight: Tensor, means: Tensor, indices: Sequence[int]) -> Tensor:
    """What the mean activations of the removed units write: ``weight`` is ``[d_model channel]``."""
    n_units = len(means)
    per_unit = weight.unflatten(1, (n_units, -1))[:, list(indices)]
    return torch.einsum("duc,uc->d", per_unit, means.to(weight).reshape(n_units, -1)[list(indices)])


def _head_dim(hf_model: Any) -> int:
    attention: Any = decoder_layers(hf_model)[0].self_attn
    return int(attention.head_dim)


def _at(layer: nn.Module, name: str) -> Any:
    try:
        return layer.get_submodule(name)
    except AttributeError:
        return None
