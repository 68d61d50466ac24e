"""What of the support table is another computation in a mixture of experts: checks by the name of the capability."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mixtures
import safecircuits as sc
import support
import zoo
from safecircuits.model.forward import logits
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

DATA = sc.PromptSet("zoo", support.PROMPTS, support.ANSWERS)
LAST = zoo.LAYERS - 1
UNITS: Any = {"expert": {LAST: {0: (1, 5), 2: (7,)}}, "attn": {0: (1,), 1: (2, 3)}}


def unit_activations(member: zoo.Member, backend: str) -> float:
    """Of the last layer's experts, token by token and expert by expert."""
    hf, model = zoo.hugging_face(member.name), zoo.hooked_model(member.name, backend)
    where = f"blocks.{LAST}.mlp"
    names = {"x": f"{where}.hook_in", "at": f"{where}.hook_experts", "to": f"{where}.hook_expert_index"}
    got: dict[str, Tensor] = {}
    hooks = {name: (lambda t, key=key: got.update({key: t.clone()})) for key, name in names.items()}
    examples = encode(zoo.tokenizer(), support.PROMPTS)
    with torch.no_grad(), sc.attached(model, hooks):
        logits(model, pad_left(examples))
    experts = hf.model.layers[LAST].mlp.experts
    want = torch.zeros_like(got["at"])
    for row, position in torch.cartesian_prod(*(torch.arange(n) for n in got["x"].shape[:2])).tolist():
        for slot, expert in enumerate(got["to"][row, position].tolist()):
            want[row, position, slot] = mixtures.neurons(experts, expert, got["x"][row, position])
    return support.relative(got["at"], want)


def unit_scores(member: zoo.Member, backend: str) -> float:
    hf, model = zoo.hugging_face(member.name), zoo.hooked_model(member.name, backend)
    scores = sc.score_units(model, DATA, tokens="response", template="none").scores["expert"][LAST]
    rows = mixtures.neurons_by_expert(hf, LAST, DATA, "response")
    norms = mixtures.outgoing(hf, LAST).square().sum(2)
    want = [
        (rows[e].var(0) if len(rows.get(e, ())) > 1 else torch.zeros(norms.shape[1])) * norms[e]
        for e in range(len(norms))
    ]
    return support.relative(scores, torch.cat(want))


def marked(member: zoo.Member) -> dict[str, Tensor]:
    """The entries of ``UNITS`` by Hugging Face parameter name, marked by hand."""
    marks = copy.deepcopy(zoo.hugging_face(member.name))
    for parameter in marks.parameters():
        parameter.data.zero_()
    experts = marks.model.layers[LAST].mlp.experts
    for expert, chosen in UNITS["expert"][LAST].items():
        for neuron in chosen:
            half = experts.down_proj.shape[1 if experts.is_transposed else 2]
            gate, up = (2 * neuron, 2 * neuron + 1) if experts.is_transposed else (neuron, neuron + half)
            into, out = experts.gate_up_proj.data[expert], experts.down_proj.data[expert]
            (into.T if experts.is_transposed else into)[[gate, up]] = 1
            (out if experts.is_transposed else out.T)[neuron] = 1
            if hasattr(experts, "gate_up_proj_bias"):
                experts.gate_up_proj_bias.data[expert, [gate, up]] = 1
    kv_heads = member.kv_heads(marks)
    group = zoo.HEADS // kv_heads
    for layer, heads in UNITS["attn"].items():
        shared = [g for g in range(kv_heads) if set(range(g * group, (g + 1) * group)) <= set(heads)]
        for component, count, of in (("q", zoo.HEADS, list(heads)), ("k", kv_heads, shared), ("v", kv_heads, shared)):
            for view in (member.weight(marks, layer, component), member.bias(marks, layer, component)):
                if view is not None:
                    view.unflatten(0, (count, -1))[of] = 1
        member.weight(marks, layer, "o").unflatten(1, (zoo.HEADS, -1))[:, list(heads)] = 1
    return {name: parameter != 0 for name, parameter in marks.named_parameters() if bool(parameter.any())}


def ablated_logits(model: Any) -> Tensor:
    with torch.no_grad(), sc.ablated(model, sc.FreezeMask.of_units(UNITS, model)):
        return logits(model, pad_left(encode(zoo.tokenizer(), support.PROMPTS)))[:, -1]


def ablation(member: zoo.Member, backend: str) -> float:
    """Outgoing weights alone are zeroed."""
    changed, marks = copy.deepcopy(zoo.hugging_face(member.name)), marked(member)
    for name, parameter in changed.named_parameters():
        if name in marks and name.rsplit(".", 2)[-2 if name.endswith("weight") else -1] in ("down_proj", "o_proj"):
            parameter.data[marks[name]] = 0
    return support.relative(ablated_logits(zoo.hooked_model(member.name, backend)), support.plain_logits(changed))


def freeze_masks(member: zoo.Member, backend: str) -> float:
    """Wrong entries of the masks."""
    hf, model = zoo.hugging_face(member.name), zoo.hooked_model(member.name, backend)
    mask, want = sc.FreezeMask.of_units(UNITS, model), marked(member)
    return float(sum(support.mask_differences(mask.parameter_masks(one), want) for one in (model, hf)))


CHECKS: dict[str, Callable[[zoo.Member, str], float]] = {
    "unit activations": unit_activations,
    "unit scores": unit_scores,
    "ablation": ablation,
    "freeze masks": freeze_masks,
}
