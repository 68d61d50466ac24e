"""Mixtures of experts of the zoo, and what their experts compute, taken apart by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import zoo
from safecircuits.model.beginning import chosen_positions, encode_to_score
from safecircuits.prompts.batching import pad_left

MIXTURES = tuple(name for name, member in zoo.ZOO.items() if isinstance(member, zoo.MixtureMember))


def build(name: str) -> Any:
    """A fresh Hugging Face model with random weights and biases."""
    return zoo.ZOO[name].build()


@cache
def hugging_face(name: str) -> Any:
    """The plain model, shared: copy it before changing it."""
    return build(name)


@cache
def bridge(name: str) -> Any:
    """A TransformerBridge over the same parameters, shared: do not change it."""
    return zoo.load(hugging_face(name), "bridge")


def neurons_by_expert(hf: Any, layer: int, data: Any, tokens: str = "all") -> dict[int, Tensor]:
    """Each expert's neurons for each of its tokens, in float64, one prompt at a time and expert by expert."""
    block = hf.model.layers[layer].mlp
    experts, given = block.experts, {}
    kept = [
        block.register_forward_pre_hook(lambda _, args: given.update(x=args[0])),
        experts.register_forward_pre_hook(lambda _, args: given.update(to=args[1])),
    ]
    found: dict[int, list[Tensor]] = {}
    examples = encode_to_score(zoo.tokenizer(), data, tokens=tokens, template="none", count_beginning=False)
    for example in examples:
        batch = pad_left([example], (0,))
        with torch.no_grad():
            hf(batch.input_ids)
        for position in chosen_positions(batch, tokens)[0].nonzero().flatten().tolist():
            for expert in given["to"][position].tolist():
                found.setdefault(expert, []).append(neurons(experts, expert, given["x"][0, position].double()))
    for handle in kept:
        handle.remove()
    return {expert: torch.stack(rows) for expert, rows in found.items()}


def neurons(experts: Any, expert: int, x: Tensor) -> Tensor:
    """What an expert makes of one token before its output projection."""
    matrix, bias = experts.gate_up_proj[expert].detach().to(x), getattr(experts, "gate_up_proj_bias", None)
    out = x @ (matrix if experts.is_transposed else matrix.T)
    out = out if bias is None else out + bias[expert].detach().to(x)
    result: Tensor = type(experts)._apply_gate(experts, out[None])[0]
    return result


def outgoing(hf: Any, layer: int) -> Tensor:
    """``[expert, neuron, d_model]`` in float64."""
    experts = hf.model.layers[layer].mlp.experts
    down = experts.down_proj.detach().double()
    return down if experts.is_transposed else down.transpose(1, 2)
