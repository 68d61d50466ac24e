"""One head at a time, one prompt at a time, on Hugging Face's model with edited weights: what Ships and Sahara say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.forward import Decoder
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import encode

PROMPTS = ("how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "bake tea")
N_LAYERS, N_HEADS, D_HEAD = 3, 4, 8  # over 2 key/value heads


@contextmanager
def without(hf_model: Any, heads: Any, ablation: str) -> Iterator[None]:
    """The query rows, or the output columns, of these heads are zero."""
    kept = {name: value.clone() for name, value in hf_model.state_dict().items()}
    with torch.no_grad():
        for layer, head in heads:
            attn, part = hf_model.model.layers[layer].self_attn, slice(head * D_HEAD, (head + 1) * D_HEAD)
            if ablation == "zero":
                attn.o_proj.weight[:, part] = 0
            else:
                attn.q_proj.weight[part] = 0
    try:
        yield
    finally:
        hf_model.load_state_dict(kept)


def plainly(hf_model: Any, heads: Any, ablation: str) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the first answer token, and the last hidden states, one prompt at a time in float64."""
    logs, states = [], []
    with without(hf_model, heads, ablation), torch.no_grad():
        for example in encode(build_tiny_tokenizer(), PROMPTS, template="chat"):
            out = hf_model(torch.tensor([example.ids]), output_hidden_states=True)
            logs.append(out.logits[0, -1].double().log_softmax(-1).numpy())
            states.append(out.hidden_states[-1][0, -1].double().numpy())
    return np.stack(logs), np.stack(states)


def kl(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.exp(a) * (a - b)).sum(1).mean())


def angle(a: np.ndarray, b: np.ndarray) -> float:
    u, v = (np.linalg.svd(x, full_matrices=False)[0][:, :1] for x in (a, b))
    return float(np.degrees(np.arccos(np.clip(np.abs(u.T @ v), -1, 1)))[0, 0])


@pytest.fixture(params=["bridge", "hooked"])
def models(request: Any) -> tuple[Any, Any]:
    hf_model = build_tiny_llama()
    return hf_model, load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer(), backend=request.param)


@pytest.mark.parametrize("ablation", ["undifferentiated", "zero"])
def test_scores_are_those_of_one_head_at_a_time(ablation: Any, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_model, model = models
    monkeypatch.setattr("safecircuits.prompts.batching.CALL_TOKENS", 1)  # a prefix is shared however short it is
    passes = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, *a: passes.append(1) or step(self, *a))
    got = sc.units.head_scores(model, PROMPTS, ablation=ablation, template="chat").scores["attn"]
    assert len(passes) == N_LAYERS + 1  # and the intact model
    intact, _ = plainly(hf_model, [], ablation)
    for layer in range(N_LAYERS):
        for head in range(N_HEADS):
            want = kl(intact, plainly(hf_model, [(layer, head)], ablation)[0])
            assert float(got[layer, head]) == pytest.approx(want, rel=1e-3, abs=1e-6), (layer, head)


@pytest.mark.parametrize("by", ["angle", "kl"])
def test_greedy_groups_are_those_of_the_plain_search(by: Any, models: Any) -> None:
    hf_model, model = models
    got = sc.units.head_group(model, PROMPTS, 3, by=by, template="chat")
    intact = plainly(hf_model, [], "undifferentiated")
    taken: list[tuple[int, int]] = []
    for step in range(3):
        found = {}
        for layer in range(N_LAYERS):
            for head in range(N_HEADS):
                if (layer, head) not in taken:
                    now = plainly(hf_model, [*taken, (layer, head)], "undifferentiated")
                    found[layer, head] = angle(intact[1], now[1]) if by == "angle" else kl(intact[0], now[0])
        best = max(found, key=found.__getitem__)
        assert got.heads[step] == best
        assert got.shifts[step] == pytest.approx(found[best], rel=2e-3)
        taken.append(best)
    assert got.units.members("attn") == {
        layer: tuple(sorted(h for at, h in taken if at == layer)) for layer in sorted({at for at, _ in taken})
    }


def test_batches_change_nothing_and_results_are_saved(tiny_bridge: Any, tmp_path: Any) -> None:
    one, other = (sc.units.head_scores(tiny_bridge, PROMPTS, max_tokens=n) for n in (None, 60))
    torch.testing.assert_close(one.scores["attn"], other.scores["attn"], rtol=1e-3, atol=1e-6)
    assert type(one).load(one.save(tmp_path / "s")).equals(one)
    group = sc.units.head_group(tiny_bridge, PROMPTS, 1)
    assert type(group).load(group.save(tmp_path / "g")).equals(group)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: sc.units.head_scores(m, PROMPTS[:1]), "one prompt"),
        (lambda m: sc.units.head_scores(m, PROMPTS, ablation="mean"), "'undifferentiated' or 'zero', not 'mean'"),
        (lambda m: sc.units.head_group(m, PROMPTS, 13), "cannot take 13 of 12 heads"),
        (lambda m: sc.units.head_group(m, PROMPTS, 1, by="cosine"), "by is 'angle' or 'kl', not 'cosine'"),
        (lambda m: sc.units.head_group(m, PROMPTS, 1, rank=5), "4 prompts span no 5 directions"),
        (lambda m: sc.units.contrast_scores(m, PROMPTS, PROMPTS[:1]), "harmless set 'harmless' has one prompt"),
        (lambda m: sc.units.contrast_scores(m, PROMPTS, PROMPTS), "are the same 4 prompts"),
        (lambda m: sc.units.contrast_scores(m, PROMPTS, PROMPTS[:2], universal=2), "universal is a share"),
    ],
)
def test_bad_input(call: Any, message: str, tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call(tiny_bridge)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_contrasts_are_effect_sizes_and_universal_units_are_out(backend: Any) -> None:
    hf_model = build_tiny_llama()
    model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer(), backend=backend)
    sets = [sc.PromptSet("a", PROMPTS), sc.PromptSet("b", ("a dog", "the house is here on it", "take the tea"))]
    rows: list[dict[Any, np.ndarray]] = []
    for data in sets:
        seen: dict[Any, list[np.ndarray]] = {}
        handles = []
        for i, layer in enumerate(hf_model.model.layers):
            for site, module in (("mlp", layer.mlp.down_proj), ("attn", layer.self_attn.o_proj)):

                def keep(_: Any, args: Any, key: Any = (site, i), seen: Any = seen) -> None:
                    seen.setdefault(key, []).append(args[0][0].double().numpy())

                handles.append(module.register_forward_pre_hook(keep))
        with torch.no_grad():
            for example in encode(build_tiny_tokenizer(), data, template="chat"):
                hf_model(torch.tensor([example.ids]))
        for handle in handles:
            handle.remove()
        rows.append({key: np.concatenate(parts) for key, parts in seen.items()})
    options: Any = {"template": "chat", "count_beginning": True}
    every = sc.units.contrast_scores(model, *sets, universal=0, **options)
    for site, width in (("mlp", 1), ("attn", D_HEAD)):
        for i in range(N_LAYERS):
            a, b = (r[site, i].reshape(len(r[site, i]), -1, width) for r in rows)
            distance = np.sqrt(((a.mean(0) - b.mean(0)) ** 2).sum(1))
            spread = np.sqrt((a.var(0, ddof=1).sum(1) + b.var(0, ddof=1).sum(1)) / 2)
            np.testing.assert_allclose(every.scores[site][i].numpy(), distance / spread, rtol=1e-3)
    some = sc.units.contrast_scores(model, *sets, universal=0.2, **options)
    out = ~torch.isfinite(some.scores["mlp"])
    assert 0 < int(out.sum()) == some.provenance["dropped"]["mlp"] <= round(0.2 * out.numel())
    assert not (some.top(60).mlp & out).any()
    strength = np.stack([np.sqrt((rows[0]["mlp", i] ** 2).mean(0)) for i in range(N_LAYERS)])
    strong = torch.tensor(strength / np.median(strength, 1, keepdims=True))
    assert float(strong[out].min()) > float(strong.median())
