"""FLAP's scores and its standardisation, against its published procedure written out (An et al. 2024, AL-AM)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import encode
from safecircuits.units.groups import normalised_scores

DATA = sc.PromptSet(
    "d",
    ("how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "bake the tea"),
    ("sure take some water", "here it is .", "you take the wood and then the salt", "sorry i cannot help with that"),
)
N_LAYERS, N_HEADS, D_HEAD = 3, 4, 8


def inputs_of(hf_model: Any, tokenizer: Any) -> dict[tuple[str, int], np.ndarray]:
    """All tokens that enter each output projection, ``[token, channel]``."""
    seen: dict[tuple[str, int], list[np.ndarray]] = {}
    handles = []
    for i, layer in enumerate(hf_model.model.layers):
        for site, module in (("mlp", layer.mlp.down_proj), ("attn", layer.self_attn.o_proj)):

            def keep(_: Any, args: Any, key: tuple[str, int] = (site, i)) -> None:
                seen.setdefault(key, []).append(args[0][0].double().numpy())

            handles.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        for example in encode(tokenizer, DATA, with_responses=True):
            hf_model(torch.tensor([example.ids]))
    for handle in handles:
        handle.remove()
    return {key: np.concatenate(rows) for key, rows in seen.items()}


def weights_of(hf_model: Any, site: str, i: int) -> np.ndarray:
    layer = hf_model.model.layers[i]
    module = layer.mlp.down_proj if site == "mlp" else layer.self_attn.o_proj
    weight: np.ndarray = module.weight.detach().double().numpy()
    return weight


def flap_metrics(hf_model: Any, tokenizer: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Standardised metrics of neurons and of heads, as FLAP compares them over the whole model."""
    inputs, rows = inputs_of(hf_model, tokenizer), {"mlp": [], "attn": []}
    for i in range(N_LAYERS):
        for site in ("mlp", "attn"):
            x, weight = inputs[site, i], weights_of(hf_model, site, i)
            if metric == "wifv":
                w_metric = x.var(0, ddof=1) * (weight**2).sum(0)
            else:
                w_metric = (np.abs(weight) * np.sqrt((x**2).mean(0))).mean(0)
            rows[site].append(w_metric**2 if site == "attn" else w_metric)

    def standardised(stacked: np.ndarray) -> np.ndarray:
        out: np.ndarray = (stacked - stacked.mean(1, keepdims=True)) / stacked.std(1, ddof=1, keepdims=True)
        return out

    attn = standardised(np.stack(rows["attn"])).reshape(N_LAYERS, -1, D_HEAD).mean(2)
    return standardised(np.stack(rows["mlp"])), attn


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize("metric", ["wifv", "wifn"])
def test_standardisation_is_flaps(backend: Any, metric: Any) -> None:
    hf_model, tokenizer = build_tiny_llama(), build_tiny_tokenizer()
    model = load_model(hf_model, tokenizer=tokenizer, backend=backend)
    mlp, attn = flap_metrics(hf_model, tokenizer, metric)
    got = normalised_scores(sc.score_units(model, DATA, method=metric, count_beginning=True), "flap")
    np.testing.assert_allclose(got["mlp"].numpy(), mlp, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got["attn"].numpy(), attn, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_a_budget_prunes_the_units_that_flap_prunes(ratio: float) -> None:
    """Its compression weights count a head as the neurons of as many parameters (512 / 3 in Llama; here 768 / 96)."""
    hf_model, tokenizer = build_tiny_llama(), build_tiny_tokenizer()
    model = load_model(hf_model, tokenizer=tokenizer)
    mlp, attn = flap_metrics(hf_model, tokenizer, "wifv")
    metric = np.concatenate([mlp.flatten(), attn.flatten()])
    weight = np.concatenate([np.full(mlp.size, 96.0), np.full(attn.size, 768.0)])
    order = np.argsort(-metric)
    kept = np.abs(weight[order].cumsum() - weight.sum() * (1 - ratio)).argmin()
    pruned = set(order[kept + 1 :].tolist())
    scores = sc.score_units(model, DATA, count_beginning=True)
    groups = sc.classify_units(scores, scores, scu=0, ucu=0, ru=ratio, normalize="flap", share_of="parameters")
    labels = torch.cat([groups.labels["mlp"].flatten(), groups.labels["attn"].flatten()])
    assert set((labels == 3).nonzero().flatten().tolist()) == pruned


def test_is_not_z_scores_of_heads() -> None:
    model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())
    scores = sc.score_units(model, DATA)
    zscore, flap = (normalised_scores(scores, how) for how in ("zscore", "flap"))
    torch.testing.assert_close(zscore["mlp"], flap["mlp"])
    assert not torch.allclose(zscore["attn"], flap["attn"], atol=0.1)


@pytest.mark.parametrize("method", ["snip", "taylor", "random"])
def test_needs_scores_of_channels(method: Any, tiny_bridge: Any) -> None:
    scores = sc.score_units(tiny_bridge, DATA, method=method)
    with pytest.raises(ValueError, match=f"{method} scores are of whole units, not of channels"):
        sc.classify_units(scores, scores, scu=0.1, ucu=0.1, ru=0.1, normalize="flap")


def test_wifn_is_wandas_order_and_wrms_is_another(tiny_bridge: Any) -> None:
    scores = sc.score_units(tiny_bridge, DATA, method="wifn")
    torch.testing.assert_close(scores.scores["mlp"] * 32, scores.rescore("wanda").scores["mlp"])
    assert scores.rescore("wrms").top(20) != scores.top(20)
