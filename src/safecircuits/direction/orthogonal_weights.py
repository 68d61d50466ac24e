"""A direction taken out of a model for good: no matrix that writes to the residual stream can write it any more.

W ← (I − r̂ r̂ᵀ) W for the embeddings, the output projections of attention and MLP, and their biases (Arditi et al. 2024,
§4.1). The model then computes what ``direction_ablated`` makes of the intact one, and is an ordinary checkpoint.

That needs a residual stream that is the sum of what matrices write. A norm behind a projection (Gemma-2, OLMo-2) or
behind the embedding (BLOOM) scales every channel by its own factor, which turns the direction into another one. Whether
anything still writes the direction is therefore looked at in the edited model, place by place; by what it does, not by
its name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safecircuits.base.notices import notify
from safecircuits.base.vocabulary import Component, Site
from safecircuits.direction.vector import Direction, direction_of, residual_places, unit_of
from safecircuits.hooks.linear_maps import Matrix
from safecircuits.model.attach import HookFn, attached, without_hooks
from safecircuits.model.bridge import hf_config_of
from safecircuits.model.forward import device_of, n_embeddings, run
from safecircuits.model.sites import HookedModel, ModelShape, is_bridge, require_unprocessed, sublayer_of
from safecircuits.prompts.batching import Batch

_LEFT = 1e-3  # of what a random vector would have of the direction: rounding of float32
_LEFT_IN_HALF = 0.1

_TOKENS = 8

_WRITERS: dict[Site, Component] = {"attn": "o", "mlp": "out"}
"""What writes to the residual stream: the matrix of each sublayer."""


def orthogonalised(model: HookedModel, direction: Direction | Float[Tensor, " d_model"]) -> HookedModel:
    """A copy of the model whose weights cannot write the direction; the model itself stays as it is.

    It has the same backend and tokenizer, runs without hooks, computes what ``direction_ablated(model, direction)``
    does, and is saved by ``save_pretrained``. Embeddings that are tied come apart: the edit is of what is embedded, and
    the unembedding must stay. The checkpoint is larger by that matrix then, and a notice says so.

    Raises:
        ValueError: for another model's direction or width; and where no edit of these weights is exact, naming the
            first place that would still write the direction: use ``direction_ablated`` there.

    Examples:
        >>> found = sc.direction.mean_directions(model, malicious, normal).at(layer=5)
        >>> edited = sc.direction.orthogonalised(model, found)
        >>> with sc.direction.direction_ablated(model, found):
        ...     ablated = sc.generate(model, normal).texts
        >>> sc.generate(edited, normal).texts == ablated
        True
    """
    found = direction_of(model, direction)
    require_unprocessed(model)
    unit = unit_of(found.vector if isinstance(found, Direction) else found)
    with without_hooks(model):
        changed = copy.deepcopy(model)
    with torch.no_grad():
        _untie(changed)
        for tensor in _embeddings(changed):
            _take_out(tensor, unit)
        for layer in range(int(changed.cfg.n_layers)):
            for site, component in _WRITERS.items():
                if getattr(changed.blocks[layer], site, None) is None:
                    continue  # what writes instead shows below
                matrix = Matrix.of(changed, layer, component)
                weight = matrix.read().T.clone()  # [in out]
                _take_out(weight, unit)
                matrix.write(weight.T)
                bias = _bias(changed, layer, site, component)
                if bias is not None:
                    _take_out(bias, unit)
        _require_gone(changed, unit)
    return changed


def _take_out(rows: Float[Tensor, "*row d_model"], unit: Float[Tensor, " d_model"]) -> None:
    """Project what each row writes, in place; in float64, so that rounding happens once."""
    wide, unit = rows.detach().double(), unit.to(rows.device)
    rows.detach().copy_(wide - (wide @ unit)[..., None] * unit)


def _untie(model: Any) -> None:
    """An unembedding of its own, where it is the embedding."""
    if not is_bridge(model):
        return  # a HookedTransformer has two
    hf = model.original_model
    taken, given = hf.get_input_embeddings(), hf.get_output_embeddings()
    if given is None or given.weight is not taken.weight:
        return
    given.weight = nn.Parameter(given.weight.detach().clone(), requires_grad=given.weight.requires_grad)
    for config in {id(c): c for c in (hf.config, hf.config.get_text_config(), hf_config_of(model))}.values():
        config.tie_word_embeddings = False
    notify(
        "this model's unembedding is its embedding; they come apart, since the direction is taken out of what is "
        f"embedded alone: {given.weight.numel():,} parameters more"
    )


def _embeddings(model: Any) -> Iterator[Tensor]:
    """The embeddings of tokens and of positions, ``[... d_model]``."""
    width = int(model.cfg.d_model)
    if is_bridge(model):
        places = getattr(model, "pos_embed", None)
        parts = [model.original_model.get_input_embeddings(), getattr(places, "original_component", None)]
        found = [part.weight for part in parts if getattr(part, "weight", None) is not None]
    else:
        found = [model.W_E, *([model.W_pos] if model.cfg.positional_embedding_type == "standard" else [])]
    for weight in found:
        if weight.shape[-1] != width:
            raise ValueError(
                f"this {ModelShape.of(model).architecture} embeds tokens in {weight.shape[-1]} dimensions and not in "
                f"the {width} of its residual stream, so no edit of the embedding is exact: use direction_ablated"
            )
        yield weight


def _bias(model: Any, layer: int, site: Site, component: Component) -> Tensor | None:
    part = sublayer_of(model, layer, site)
    if is_bridge(model):
        found: Tensor | None = getattr(getattr(part, component).original_component, "bias", None)
    else:
        found = part.b_O if component == "o" else part.b_out
    return found


def _require_gone(model: HookedModel, unit: Float[Tensor, " d_model"]) -> None:
    """A ValueError that names the first place at which the residual stream still has some of the direction."""
    left: dict[int, float] = {}

    def look(place: int) -> HookFn:
        def see(resid: Tensor) -> None:
            wide = resid.double()
            share = (wide @ unit.to(wide.device)).abs() / wide.norm(dim=-1).clamp(min=1e-30)
            left[place] = float(share.max()) * len(unit) ** 0.5

        return see

    ids = torch.arange(1, _TOKENS + 1, device=device_of(model))[None] * 7 % n_embeddings(model)
    batch = Batch((0,), ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))
    with attached(model, {name: look(place) for place, name in residual_places(model).items()}):
        run(model, batch)
    most = _LEFT_IN_HALF if next(iter(model.parameters())).dtype.itemsize <= 2 else _LEFT
    for place in sorted(left):
        if not left[place] <= most:
            layer, end = divmod(place - 1, 2)
            part = "the embedding" if place == 0 else f"the {'MLP' if end else 'attention'} of layer {layer}"
            raise ValueError(
                f"no edit of this {ModelShape.of(model).architecture}'s matrices takes the direction out exactly: "
                f"something stands between {part} and the residual stream, such as a norm, and still writes it; "
                "direction_ablated takes it out of the running model"
            )
