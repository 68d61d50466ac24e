"""Train neurons and heads alone: embeddings, norms and the unembedding stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safecircuits.model.in_use import used_alone
from safecircuits.model.parameters import live_parameters
from safecircuits.model.sites import HookedModel
from safecircuits.model.unit_weights import layer_parameters


@contextmanager
def only_units(model: HookedModel) -> Iterator[None]:
    """Inside the block ``finetune`` leaves alone what belongs to no neuron and no head; a mask comes on top of that.

    A freeze mask names units alone. "Freeze all else" (SSAH §4.3) therefore needs this beside the mask's complement.
    """
    with used_alone(model):
        owned = {id(p) for p in _owned(model)}
        others = [p for p in live_parameters(model).values() if id(p) not in owned and p.requires_grad]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)


def _owned(model: HookedModel) -> Iterator[object]:
    own = dict(model.named_parameters())
    for layer in range(int(model.cfg.n_layers)):
        yield from (own[name] for name in layer_parameters(model, layer))
