"""FLAP's scores as its code has them, and a head's removal with its covariances, against plain numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import encode

DATA = sc.PromptSet(
    "d",
    ("how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "bake the tea"),
    ("sure take some water", "here it is .", "you take the wood and then the salt", "sorry i cannot help with that"),
)
N_LAYERS, N_HEADS, D_HEAD, D_MODEL = 3, 4, 8, 32
Rows = dict[tuple[str, int], list[np.ndarray]]


def inputs(hf_model: Any) -> Rows:
    """What enters each output projection, ``[token, channel]`` of each prompt in turn."""
    seen: Rows = {}
    handles = []
    for i, layer in enumerate(hf_model.model.layers):
        for site, module in (("mlp", layer.mlp.down_proj), ("attn", layer.self_attn.o_proj)):

            def keep(_: Any, args: Any, key: tuple[str, int] = (site, i)) -> None:
                seen.setdefault(key, []).append(args[0][0].double().numpy())

            handles.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        for example in encode(build_tiny_tokenizer(), DATA, with_responses=True):
            hf_model(torch.tensor([example.ids]))
    for handle in handles:
        handle.remove()
    return seen


def weight(hf_model: Any, site: str, i: int) -> np.ndarray:
    layer = hf_model.model.layers[i]
    module = layer.mlp.down_proj if site == "mlp" else layer.self_attn.o_proj
    out: np.ndarray = module.weight.detach().double().numpy()
    return out


def as_flaps_code(hf_model: Any, metric: str) -> dict[str, np.ndarray]:
    """Its add_batch, one prompt a batch, its metrics, and AL-AM's standardisation, statement by statement."""
    stacks: dict[str, list[np.ndarray]] = {"mlp": [], "attn": []}
    for (site, i), prompts in sorted(inputs(hf_model).items(), key=lambda item: item[0][1]):
        baseline, scaler, fluctuation = (np.zeros(prompts[0].shape[1]) for _ in range(3))
        for seen, x in enumerate(prompts):
            old = baseline  # the same array, changed in place below
            baseline *= seen / (seen + 1)
            baseline += x.mean(0) / (seen + 1)
            scaler *= seen / (seen + 1)
            scaler += (np.sqrt((x**2).sum(0))) ** 2 / (seen + 1)
            if seen:
                fluctuation *= (seen - 1) / (seen + 1 - 1)
                fluctuation += ((x - baseline) * (x - old)).sum(0) / (seen + 1)
        w = weight(hf_model, site, i)
        found = {
            "flap_ifv": fluctuation,
            "flap_wifv": fluctuation * (w**2).sum(0),
            "flap_wifn": (np.abs(w) * np.sqrt(scaler)[None]).mean(0),
        }[metric]
        stacks[site].append(found**2 if site == "attn" else found)

    def standardised(rows: np.ndarray) -> np.ndarray:
        out: np.ndarray = (rows - rows.mean(1, keepdims=True)) / rows.std(1, ddof=1, keepdims=True)
        return out

    attn = standardised(np.stack(stacks["attn"])).reshape(N_LAYERS, -1, D_HEAD).mean(2)
    return {"mlp": standardised(np.stack(stacks["mlp"])), "attn": attn}


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize("metric", ["flap_ifv", "flap_wifv", "flap_wifn"])
def test_flaps_own_scores_are_its_codes(metric: Any, backend: Any) -> None:
    hf_model = build_tiny_llama()
    model = load_model(hf_model, tokenizer=build_tiny_tokenizer(), backend=backend)
    want = as_flaps_code(hf_model, metric)
    for max_tokens in (8, 64):  # prompts in their order, whatever fits into a batch
        got = sc.score_units(model, DATA, method=metric, count_beginning=True, max_tokens=max_tokens)
        for site in ("mlp", "attn"):
            np.testing.assert_allclose(got.scores[site].numpy(), want[site], rtol=1e-3, atol=1e-5)


def test_flaps_order_of_prompts_matters_and_its_fluctuation_is_no_variance() -> None:
    model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())
    turned = DATA.subset([3, 2, 1, 0])
    one, other = (sc.score_units(model, data, method="flap_ifv") for data in (DATA, turned))
    assert not torch.allclose(one.scores["mlp"], other.scores["mlp"], rtol=1e-2)
    with pytest.raises(ValueError, match="two passes are not one"):
        one.merge(other)
    with pytest.raises(ValueError, match="at least two prompts with all tokens"):
        sc.score_units(model, DATA.take(1), method="flap_wifv")
    with pytest.raises(ValueError, match="flap_ifv scores hold no mean activations"):
        _ = one.mean


def removed(hf_model: Any) -> tuple[np.ndarray, np.ndarray]:
    """By layer and head: the variance, summed over d_model, of what the head writes; and of each neuron."""
    heads, neurons = np.zeros((N_LAYERS, N_HEADS)), np.zeros((N_LAYERS, 48))
    for (site, i), prompts in inputs(hf_model).items():
        x, w = np.concatenate(prompts), weight(hf_model, site, i)
        if site == "mlp":
            neurons[i] = x.var(0, ddof=1) * (w**2).sum(0)
            continue
        for h in range(N_HEADS):
            part = slice(h * D_HEAD, (h + 1) * D_HEAD)
            heads[i, h] = (x[:, part] @ w[:, part].T).var(0, ddof=1).sum()
    return heads, neurons


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_removal_is_the_variance_that_a_head_writes(backend: Any, tmp_path: Any) -> None:
    hf_model = build_tiny_llama()
    model = load_model(hf_model, tokenizer=build_tiny_tokenizer(), backend=backend)
    scores = sc.score_units(model, DATA, method="removal", count_beginning=True, max_tokens=20)
    heads, neurons = removed(hf_model)
    np.testing.assert_allclose(scores.scores["attn"].numpy(), heads, rtol=1e-4)
    np.testing.assert_allclose(scores.scores["mlp"].numpy(), neurons, rtol=1e-4)
    wifv = scores.rescore("wifv")
    torch.testing.assert_close(wifv.scores["mlp"], scores.scores["mlp"])
    share = wifv.scores["attn"] / scores.scores["attn"]
    assert float((share - 1).abs().min()) > 1e-3  # the sum over channels is none of them
    parts = [sc.score_units(model, d, method="removal", count_beginning=True) for d in (DATA[:1], DATA[1:])]
    torch.testing.assert_close(parts[0].merge(parts[1]).scores["attn"], scores.scores["attn"], rtol=1e-4, atol=0)
    assert type(scores).load(scores.save(tmp_path / "r")).equals(scores)
    with pytest.raises(ValueError, match="removal scores cannot be made from the statistics of wifv"):
        sc.score_units(model, DATA).rescore("removal")
    with pytest.raises(ValueError, match="removal scores are of whole heads"):
        sc.classify_units(scores, scores, scu=0.1, ucu=0.1, ru=0.1, normalize="flap")
    groups = sc.classify_units(scores, scores, scu=0.1, ucu=0.1, ru=0.1)
    assert groups["SCU"].n_units() == round(0.1 * 156)
