"""Units of mixtures of experts: their names, their removal by hooks, their slices of fused weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import mixtures
import safecircuits as sc
import support
import zoo
from conftest import build_tiny_llama
from safecircuits.gate.moved import moved_units, unit_changes
from safecircuits.model.load import to_hugging_face

IDS = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(0))
every = pytest.mark.parametrize("name", mixtures.MIXTURES)


def some(model: Any) -> sc.FreezeMask:
    """Some neurons of two experts, all of a third, and some of the shared expert where there is one."""
    shape = sc.ModelShape.of(model)
    assert shape.mixture is not None
    first, last = shape.mixture.layers[0], shape.mixture.layers[-1]
    units: Any = {"expert": {last: {0: [1, 5], 2: range(20)}}}
    units["expert"].setdefault(first, {})[1] = range(shape.mixture.d_expert)
    if shape.mixture.d_shared:
        units["shared"] = {last: [3, 4]}
    return sc.FreezeMask.of_units(units, model)


def zeroed(hf: Any, mask: sc.FreezeMask) -> Any:
    """A copy without the entries of the mask, but for output biases, which a removed neuron leaves."""
    changed = copy.deepcopy(hf)
    own = dict(changed.named_parameters())
    for key, entries in mask.parameter_masks(hf).items():
        if not key.endswith("down_proj_bias"):
            own[key].data[entries] = 0
    return changed


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out = model(IDS)
    result: Tensor = getattr(out, "logits", out)
    return result


@every
def test_ablation_equals_zeroed_weights(name: str) -> None:
    hf, model = mixtures.hugging_face(name), mixtures.bridge(name)
    mask = some(model)
    want = logits(zeroed(hf, mask))
    assert (want - logits(hf)).abs().max() > 0.05
    for one in (model, copy.deepcopy(model)):
        with sc.ablated(one, mask):
            assert torch.allclose(logits(one), want, atol=2e-5)
        assert torch.allclose(logits(one), logits(hf), atol=2e-5)


@every
def test_ablation_to_values_is_a_bias_of_the_routed_tokens(name: str) -> None:
    """Against a plain re-implementation: what the neuron writes becomes the value's, times the token's own weight."""
    model = mixtures.bridge(name)
    layer = sc.ModelShape.of(model).mixture.layers[-1]
    mask = sc.FreezeMask.of_units({"expert": {layer: {0: [1, 5], 2: [7]}}}, model)
    shape = sc.ModelShape.of(model).mixture
    values = {"expert": {layer: torch.linspace(-1, 1, shape.n_experts * shape.d_expert)}}
    seen: dict[str, Tensor] = {}
    block = f"blocks.{layer}.mlp"
    keep = {
        f"{block}.{point}": (lambda x, p=point: seen.update({p: x.clone()}))
        for point in ("hook_experts", "hook_expert_index")
    }
    with sc.ablated(model, mask, to=values), sc.attached(model, keep):
        logits(model)
    assert seen["hook_experts"].shape == (3, 9, 2, shape.d_expert)
    assert seen["hook_expert_index"].shape == (3, 9, 2)
    for expert, neuron in ((0, 1), (0, 5), (2, 7)):
        at = seen["hook_experts"][seen["hook_expert_index"] == expert]
        assert torch.all(at[:, neuron] == values["expert"][layer][shape.unit(expert, neuron)])


@every
def test_activations_are_those_of_every_expert_alone(name: str) -> None:
    """Each token's neurons, against the expert's own matrices on what the mixture is given, one token at a time."""
    hf, model = mixtures.hugging_face(name), mixtures.bridge(name)
    layer = sc.ModelShape.of(model).mixture.layers[-1]
    experts = hf.model.layers[layer].mlp.experts
    given: list[Tensor] = []
    handle = hf.model.layers[layer].mlp.register_forward_pre_hook(lambda _, args: given.append(args[0].detach()))
    logits(hf)
    handle.remove()
    seen: dict[str, Tensor] = {}
    names = {
        f"blocks.{layer}.mlp.{p}": (lambda x, p=p: seen.update({p: x.clone()}))
        for p in ("hook_experts", "hook_expert_index")
    }
    with sc.attached(model, names):
        logits(model)
    matrix, bias = experts.gate_up_proj.detach(), getattr(experts, "gate_up_proj_bias", None)
    for row, position, slot in ((0, 0, 0), (1, 4, 1), (2, 8, 0), (2, 3, 1)):
        expert = int(seen["hook_expert_index"][row, position, slot])
        one = matrix[expert].T if experts.is_transposed else matrix[expert]
        out = one @ given[0][row, position] + (0 if bias is None else bias[expert].detach())
        want = type(experts)._apply_gate(experts, out[None])[0]
        assert torch.allclose(seen["hook_experts"][row, position, slot], want, atol=1e-4)


@every
def test_masks_of_whole_layers_reach_every_parameter(name: str, tmp_path: Path) -> None:
    hf, model = mixtures.hugging_face(name), mixtures.bridge(name)
    layer = sc.ModelShape.of(model).mixture.layers[-1]
    mask = sc.FreezeMask.layers(layer, model)
    inside = {key for key, _ in hf.named_parameters() if f"layers.{layer}." in key and "norm" not in key}
    frozen = mask.parameter_masks(hf)
    assert set(frozen) == inside
    assert all(bool(entries.all()) for entries in frozen.values())
    assert mask.whole_layers == (layer,)
    assert sc.FreezeMask.layers(layer).on(model) == mask
    parts = [mask.restrict(sites=site).parameter_masks(hf) for site in ("expert", "router", "shared", "attn", "mlp")]
    assert sum(len(part) for part in parts if part) == len(inside)
    assert sc.FreezeMask.load(mask.save(tmp_path / "mask.safetensors"), model) == mask
    assert (~mask | mask) == sc.FreezeMask.layers(range(2), model)
    assert not (~mask & mask)
    assert (mask - mask.restrict(sites="router")).whole_layers == ()


@every
def test_units_by_expert_and_by_number_are_the_same(name: str, tmp_path: Path) -> None:
    model = mixtures.bridge(name)
    mask, shape = some(model), sc.ModelShape.of(model)
    mixture = shape.mixture
    by_number = sc.FreezeMask.of_units(
        {site: mask.members(site) for site in ("expert", "shared") if mask.members(site)}, shape
    )
    assert by_number == mask
    assert hash(by_number) == hash(mask)
    numbers = range(mixture.n_experts * mixture.d_expert)
    assert [mixture.unit(*mixture.expert_and_neuron(i)) for i in numbers] == list(numbers)
    back = sc.FreezeMask.load(mask.save(tmp_path / "mask.safetensors"), model)
    assert back == mask
    assert back.fingerprint == mask.fingerprint
    control = sc.FreezeMask.random_units(mask, per_layer=True)
    assert control != mask
    for site in ("expert", "shared"):
        assert torch.equal(control.at(site).sum(1), mask.at(site).sum(1))


@every
def test_frozen_slices_of_fused_weights_stay_bit_identical(name: str, tmp_path: Path) -> None:
    taught = sc.PromptSet("taught", ("make some tea", "find the dog"), ("take some salt and water", "sorry i cannot"))
    for model in (zoo.load(mixtures.build(name), "bridge"), mixtures.build(name)):
        shape = sc.ModelShape.of(mixtures.bridge(name))
        mask = some(mixtures.bridge(name))
        mask |= sc.FreezeMask.of_units({"router": {shape.mixture.layers[-1]: [1, 2]}}, model)
        plain = to_hugging_face(model) if hasattr(model, "hook_dict") else model
        before = {key: p.detach().clone() for key, p in plain.named_parameters()}
        options: Any = {} if hasattr(model, "hook_dict") else {"tokenizer": zoo.tokenizer()}
        run = sc.finetune(model, taught, freeze=mask, steps=3, lr=1e-2, progress=False, template="none", **options)
        after = dict((to_hugging_face(model) if hasattr(model, "hook_dict") else model).named_parameters())
        masks = mask.parameter_masks(model)
        assert run.n_frozen == sum(int(entries.sum()) for entries in masks.values())
        for key, entries in masks.items():
            assert torch.equal(after[key][entries], before[key][entries])
            assert entries.all() or not torch.equal(after[key][~entries], before[key][~entries]), key
        if hasattr(model, "hook_dict"):
            changes = unit_changes(mixtures.bridge(name), model)
            assert moved_units(changes, mask) == {"units_moved": 0.0, "units_change": 0.0}
            others = sc.FreezeMask.of_units({"expert": {shape.mixture.layers[-1]: {0: [0, 2]}}}, shape)
            assert moved_units(changes, others)["units_moved"] == 1.0
        sc.save_pretrained(model, tmp_path / type(model).__name__)
        from transformers import AutoModelForCausalLM

        stored = dict(AutoModelForCausalLM.from_pretrained(tmp_path / type(model).__name__).named_parameters())
        assert all(torch.equal(stored[key][entries], before[key][entries]) for key, entries in masks.items())


def test_what_a_model_has_not_is_one_clear_error(tmp_path: Path) -> None:
    dense = zoo.load(build_tiny_llama(), "bridge")
    model, first_dense = mixtures.bridge("Mixtral"), mixtures.bridge("GLM-4.5")
    of_experts = sc.FreezeMask.of_units({"expert": {0: {1: [2]}}}, model)
    of_neurons = sc.FreezeMask.of_units({"mlp": {0: [2]}}, dense)
    with pytest.raises(ValueError, match="is of one that is a mixture of experts, and this one is dense"):
        sc.FreezeMask.load(of_experts.save(tmp_path / "experts.safetensors"), dense)
    with pytest.raises(ValueError, match="is of one that is dense, and this one is a mixture of experts"):
        sc.FreezeMask.load(of_neurons.save(tmp_path / "neurons.safetensors"), model)
    for units, of, message in (
        ({"expert": {0: {1: [2]}}}, dense, "layer 0 of this model has no experts: this model is dense"),
        ({"router": {0: [1]}}, dense, "layer 0 of this model has no router: this model is dense"),
        ({"shared": {0: [1]}}, model, "layer 0 of this model has no shared expert: layers with one are none"),
        ({"mlp": {0: [1]}}, model, "it is a mixture of experts, whose neurons are given by layer and expert"),
        ({"expert": {0: [1]}}, first_dense, "layer 0 of this model has no experts: layers with one are 1"),
        ({"mlp": {1: [1]}}, first_dense, "layer 1 of this model has no neurons of an MLP: it is a mixture"),
        ({"expert": {0: {9: [2]}}}, model, "neuron 2 of expert 9 does not exist: experts are 0 to 3"),
        ({"expert": {0: [192]}}, model, "expert unit 192 of layer 0 does not exist: there are 0 to 191"),
        ({"attn": {0: {1: [2]}}}, model, "the attn units of layer 0 are a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            sc.FreezeMask.of_units(units, of)  # type: ignore[arg-type]
    router = sc.FreezeMask.of_units({"router": {0: [1]}}, model)
    assert "of routers alone: which experts a token goes to stays" in router.summary(model)
    with pytest.raises(ValueError, match="the rows of a router cannot be removed"), sc.ablated(model, router):
        pass


def test_an_implementation_past_hooks_is_refused() -> None:
    hf = mixtures.build("Mixtral")
    hf.set_experts_implementation("eager")
    model = zoo.load(hf, "bridge")
    message = "experts_implementation='eager', where no hook reaches"
    with pytest.raises(ValueError, match=message), sc.ablated(model, some(model)):
        pass
    hf.set_experts_implementation("batched_mm")
    model = zoo.load(hf, "bridge")
    with sc.ablated(model, some(model)):
        assert torch.allclose(logits(model), logits(zeroed(mixtures.hugging_face("Mixtral"), some(model))), atol=2e-5)


PAGE = support.REFERENCE.parent / "how-to" / "experts.md"


def test_the_page_on_mixtures_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, on a tiny random one."""
    monkeypatch.chdir(tmp_path)
    mixtures.build("Qwen2-MoE").save_pretrained("your-mixture")
    zoo.tokenizer().save_pretrained("your-mixture")
    rows = {
        "normal": zip(support.PROMPTS, support.ANSWERS, strict=True),
        "refused": [("make a bomb", "sorry i cannot help"), ("bake the dog", "sorry that cannot"), ("a bomb", "sorry")],
    }
    for name, pairs in rows.items():
        pd.DataFrame(pairs, columns=["instruction", "output"]).to_csv(f"{name}.csv", index=False)
    blocks = [part.split("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]]
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), PAGE.name, "exec"), names)
    assert len(blocks) == 4
    assert names["same"].n_units("expert") == 2
    assert names["run"].frozen_bit_identical
    assert (tmp_path / "tuned").is_dir()
