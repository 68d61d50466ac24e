"""Two checkpoints whose units correspond: of one architecture, one shape and one vocabulary."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from safecircuits.model.sites import HookedModel, ModelShape, tokenizer_of


def require_pair(one: HookedModel, other: HookedModel) -> None:
    """Raise a ValueError unless unit for unit, and token for token, the two checkpoints can be put beside each other.

    Nothing is asked of their weights: a base and what was made of it by any training are a pair.
    """
    if one is other:
        raise ValueError("the two checkpoints are one and the same model: load the base and the aligned one apart")
    mine, theirs = _traits(one), _traits(other)
    differs = [
        f"{name} {mine[name]} in the one, {theirs[name]} in the other" for name in mine if mine[name] != theirs[name]
    ]
    if differs:
        raise ValueError(
            f"the units of these two checkpoints do not correspond: {'; '.join(differs)}; take two of one architecture "
            "and shape, such as a base and the model that was aligned from it"
        )
    ours, other_vocabulary = (tokenizer_of(model).get_vocab() for model in (one, other))
    if ours != other_vocabulary:
        token = next(iter(sorted(set(ours.items()) ^ set(other_vocabulary.items()))))[0]
        raise ValueError(
            f"the two checkpoints' tokenizers differ ({len(ours)} and {len(other_vocabulary)} tokens; {token!r} is "
            "not the same in both), so that they would read other tokens: take two of one vocabulary"
        )


def _traits(model: HookedModel) -> dict[str, Any]:
    return {**asdict(ModelShape.of(model)), "d_head": int(model.cfg.d_head)}
