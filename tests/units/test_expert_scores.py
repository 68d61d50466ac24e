"""Scores of experts' neurons: over the tokens routed to the expert, as a slow plain re-implementation has them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixtures
import safecircuits as sc
import zoo
from conftest import randomised
from safecircuits.hooks.lockstep import UnitPatching
from safecircuits.units.routed import RoutedMoments

DATA = sc.PromptSet(
    "data",
    ("find a lamp", "how do i bake the cake", "make some tea and then find the dog", "fix the road"),
    ("sure", "sorry i cannot help with that", "take some water", "here is wood and salt"),
)
PLAIN: Any = {"template": "none"}
every = pytest.mark.parametrize("name", mixtures.MIXTURES)


@every
@pytest.mark.parametrize("tokens", ["all", "response"])
def test_scores_are_those_of_the_routed_tokens(name: str, tokens: Any) -> None:
    hf, model = mixtures.hugging_face(name), mixtures.bridge(name)
    scores = sc.score_units(model, DATA, tokens=tokens, **PLAIN)
    shape = sc.ModelShape.of(model)
    layer, mixture = shape.mixture.layers[-1], shape.mixture
    want = {e: rows.numpy() for e, rows in mixtures.neurons_by_expert(hf, layer, DATA, tokens).items()}
    down = mixtures.outgoing(hf, layer).numpy()
    moments = scores.moments["expert"]
    assert isinstance(moments, RoutedMoments)
    assert moments.routed[layer].tolist() == [len(want.get(e, ())) for e in range(mixture.n_experts)]
    for expert in range(mixture.n_experts):
        rows = want.get(expert, np.zeros((0, mixture.d_expert)))
        variance = rows.var(0, ddof=1) if len(rows) > 1 else np.zeros(mixture.d_expert)
        square = (rows**2).mean(0) if len(rows) else np.zeros(mixture.d_expert)
        at = slice(expert * mixture.d_expert, (expert + 1) * mixture.d_expert)
        got = scores.scores["expert"][layer, at].numpy()
        assert np.allclose(got, variance * (down[expert] ** 2).sum(1), rtol=1e-4, atol=1e-9)
        got = scores.rescore("wanda").scores["expert"][layer, at].numpy()
        assert np.allclose(got, np.sqrt(square) * np.abs(down[expert]).sum(1), rtol=1e-4, atol=1e-9)


@every
def test_scores_in_any_batches_and_parts_are_the_same(name: str) -> None:
    model = mixtures.bridge(name)
    whole = sc.score_units(model, DATA, **PLAIN)
    small = sc.score_units(model, DATA, max_tokens=1, **PLAIN)
    first, second = (sc.score_units(model, part, **PLAIN) for part in (DATA.take(2), DATA.subset([2, 3])))
    for other in (small, first.merge(second)):
        assert torch.equal(other.moments["expert"].routed, whole.moments["expert"].routed)
        for site in whole.scores:
            assert torch.allclose(other.scores[site], whole.scores[site], rtol=1e-4, atol=1e-9), site


def test_a_dense_model_as_a_mixture_of_one_expert_has_its_scores() -> None:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        dense = randomised(AutoModelForCausalLM.from_config(zoo._of("MistralConfig", sliding_window=None)())).eval()
        same = {key: getattr(dense.config, key) for key in ("rms_norm_eps", "rope_parameters", "sliding_window")}
        settings: Any = {"num_local_experts": 1, "num_experts_per_tok": 1, **same}
        mixed = AutoModelForCausalLM.from_config(zoo._of("MixtralConfig", **settings)()).eval()
    state = {key: value for key, value in dense.state_dict().items() if ".mlp." not in key}
    for layer, block in enumerate(dense.model.layers):
        where, mlp = f"model.layers.{layer}.mlp", block.mlp
        state[f"{where}.experts.gate_up_proj"] = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])[None].detach()
        state[f"{where}.experts.down_proj"] = mlp.down_proj.weight[None].detach()
        state[f"{where}.gate.weight"] = torch.randn(1, zoo.D_MODEL)
    mixed.load_state_dict(state)
    one, other = zoo.load(dense, "bridge"), zoo.load(mixed, "bridge")
    for method in ("wifv", "ifv", "wifn", "wanda", "wrms", "magnitude", "removal"):
        want, got = (sc.score_units(model, DATA, method=method, **PLAIN) for model in (one, other))
        assert torch.allclose(got.scores["expert"], want.scores["mlp"], rtol=1e-4, atol=1e-9), method
        assert torch.allclose(got.scores["attn"], want.scores["attn"], rtol=1e-4, atol=1e-9), method
        assert torch.equal(got.top(20).at("expert"), want.top(20).at("mlp"))


@every
def test_scores_go_on_to_masks_groups_and_files(name: str, tmp_path: Path) -> None:
    model = mixtures.bridge(name)
    scores, other = (sc.score_units(model, DATA, tokens=tokens, **PLAIN) for tokens in ("all", "all"))
    top = scores.top(9)
    assert top.n_units() == 9
    assert sc.FreezeMask.load(top.save(tmp_path / "top.safetensors"), model) == top
    back = sc.UnitScores.load(scores.save(tmp_path / "scores"))
    assert all(torch.equal(back.scores[site], scores.scores[site]) for site in scores.scores)
    assert back.verdict == scores.verdict
    assert "routed to it" in scores.verdict
    frame = scores.to_frame()
    of_experts = frame[frame.site == "expert"].iloc[0]
    mixture = sc.ModelShape.of(model).mixture
    assert mixture.unit(int(of_experts.expert), int(of_experts.neuron)) == of_experts.unit
    assert np.isfinite(frame.score).all()
    with sc.ablated(model, top, to=scores.mean):
        sc.generate(model, DATA, max_new_tokens=2, **PLAIN)
    shape = sc.ModelShape.of(model)
    cut = sc.units.set_difference(scores, other, p=0.1, q=0.2)
    groups = sc.classify_units(scores, other, scu=0.1, ucu=0.1, ru=0.1)
    assert groups.n_units == cut.n_units == shape.total_units - shape.n_units("router") * len(mixture.layers)
    every = groups["SCU"] | groups["UCU"] | groups["CU"] | groups["RU"]
    assert every == (~sc.FreezeMask.of_units({}, shape)).restrict(sites=("mlp", "attn", "expert", "shared"))
    assert groups["SCU"].n_units("expert") > 0
    assert sum(groups.shares().values()) == pytest.approx(1)
    assert groups["RU"].restrict(sites="expert").parameter_masks(model)


def test_an_expert_without_tokens_is_said_and_scores_nothing() -> None:
    hf = copy.deepcopy(mixtures.hugging_face("gpt-oss"))
    hf.model.layers[1].mlp.router.bias.data[2:] = -1e4
    scores = sc.score_units(zoo.load(hf, "bridge"), DATA, method="wrms", **PLAIN)
    routed = scores.moments["expert"].routed[1]
    assert routed[:2].min() > 1
    assert routed[2:].tolist() == [0, 0]
    none = (routed == 0).repeat_interleave(48)
    assert torch.all(scores.scores["expert"][1][none] == 0)
    assert torch.isfinite(scores.scores["expert"]).all()
    assert f"{int((scores.moments['expert'].routed == 0).sum())} got no token" in scores.verdict


def test_what_is_not_scored_is_refused_by_name() -> None:
    model = mixtures.bridge("Qwen2-MoE")
    for method in ("snip", "taylor", "flap_wifv"):
        with pytest.raises(ValueError, match=r"units of a mixture of experts, of the site .* not scored this way"):
            sc.score_units(model, DATA, method=method, **PLAIN)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sites are some of 'mlp', 'attn'"):
        sc.score_units(zoo.hooked_model("Llama-3", "bridge"), DATA, sites=("expert",), **PLAIN)
    with pytest.raises(ValueError, match="sites are some of 'attn', 'expert', 'shared'"):
        sc.score_units(model, DATA, sites=("router",), **PLAIN)
    mask, other = sc.FreezeMask.of_units({"expert": {0: {1: [2]}}}, model), mixtures.build("Qwen2-MoE")
    with pytest.raises(ValueError, match="cannot be patched from one checkpoint into another"):
        UnitPatching(model, zoo.load(other, "bridge"), [mask])
