"""Change scores against numpy in float64 over Hugging Face's own forward passes, one prompt at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import encode

PROMPTS = sc.PromptSet(
    "p", ("how do i make the cake", "find a lamp", "how do i fix the road with some water", "bake tea")
)
N_LAYERS, N_HEADS, D_HEAD, NEW = 3, 4, 8, 5


def own_answers(hf_model: Any, ids: list[int]) -> list[int]:
    tokens: list[int] = []
    for _ in range(NEW):
        with torch.no_grad():
            token = int(hf_model(torch.tensor([[*ids, *tokens]])).logits[0, -1].argmax())
        if token == build_tiny_tokenizer().eos_token_id:
            break
        tokens.append(token)
    return tokens


def inputs(hf_model: Any, ids: list[int]) -> dict[tuple[str, int], np.ndarray]:
    """``[token, channel]`` of what enters each output projection."""
    seen: dict[tuple[str, int], np.ndarray] = {}
    handles = []
    for i, layer in enumerate(hf_model.model.layers):
        for site, module in (("mlp", layer.mlp.down_proj), ("attn", layer.self_attn.o_proj)):

            def keep(_: Any, args: Any, key: tuple[str, int] = (site, i)) -> None:
                seen[key] = args[0][0].double().numpy()

            handles.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        hf_model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


def expected(base: Any, aligned: Any, method: str, tokens: str, template: str) -> dict[str, np.ndarray]:
    squares: dict[tuple[str, int], list[np.ndarray]] = {}
    for example in encode(build_tiny_tokenizer(), PROMPTS, template=template):
        ids = list(example.ids)
        whole = ids + own_answers(aligned, ids)
        rows = {"response": range(len(ids), len(whole)), "prompt": range(len(ids)), "all": range(len(whole))}[tokens]
        old, new = inputs(base, whole), inputs(aligned, whole)
        for (site, i), value in new.items():
            a, b = value[list(rows)], old[site, i][list(rows)]
            width = 1 if site == "mlp" else D_HEAD
            a, b = (x.reshape(len(x), -1, width) for x in (a, b))
            if method == "wchange":
                weights = []
                for model in (aligned, base):
                    layer = model.model.layers[i]
                    module = layer.mlp.down_proj if site == "mlp" else layer.self_attn.o_proj
                    weights.append(module.weight.detach().double().numpy().T.reshape(a.shape[1], width, -1))
                moved = np.einsum("tuc,ucm->tum", a, weights[0]) - np.einsum("tuc,ucm->tum", b, weights[1])
            else:
                moved = a - b
            squares.setdefault((site, i), []).append((moved**2).sum(2))
    return {
        site: np.sqrt(np.stack([np.concatenate(squares[site, i]).mean(0) for i in range(N_LAYERS)]))
        for site in ("mlp", "attn")
    }


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize("method", ["change", "wchange"])
@pytest.mark.parametrize("tokens", ["response", "prompt", "all"])
def test_scores_are_the_formula(tokens: Any, method: Any, backend: Any) -> None:
    base, aligned = build_tiny_llama(), build_tiny_llama(3)
    models = [load_model(m, tokenizer=build_tiny_tokenizer(), backend=backend) for m in (base, aligned)]
    options: Any = {"template": "chat", "max_new_tokens": NEW, "count_beginning": True}
    got = sc.units.change_scores(*models, PROMPTS, method=method, tokens=tokens, max_tokens=40, **options)
    want = expected(base, aligned, method, tokens, "chat")
    for site in ("mlp", "attn"):
        np.testing.assert_allclose(got.scores[site].numpy(), want[site], rtol=1e-4)


def test_the_beginning_does_not_count_unless_asked() -> None:
    models = [load_model(build_tiny_llama(s), tokenizer=build_tiny_tokenizer()) for s in (0, 3)]
    less, more = (
        sc.units.change_scores(*models, PROMPTS, tokens="all", template="chat", count_beginning=c)
        for c in (False, True)
    )
    assert more.n_tokens - less.n_tokens == len(PROMPTS) * less.provenance["beginning"]["tokens"]


def test_units_that_differ_alone_are_found_and_a_unit_of_other_outgoing_weights_by_what_it_writes() -> None:
    base, aligned = build_tiny_llama(), build_tiny_llama()
    with torch.no_grad():
        aligned.model.layers[2].mlp.gate_proj.weight[5] += 1.0
        aligned.model.layers[2].mlp.down_proj.weight[:, 9] *= 2
    models = [load_model(m, tokenizer=build_tiny_tokenizer()) for m in (base, aligned)]
    change, written = (sc.units.change_scores(*models, PROMPTS, method=m) for m in ("change", "wchange"))
    assert change.scores["mlp"].nonzero().tolist() == [[2, 5]]
    assert written.scores["mlp"].nonzero().tolist() == [[2, 5], [2, 9]]
    assert not change.scores["attn"].any()
    assert change.top(1).members("mlp") == {2: (5,)}


def test_scores_of_pairs_are_saved_and_refuse_what_they_are_not(tmp_path: Any) -> None:
    models = [load_model(build_tiny_llama(s), tokenizer=build_tiny_tokenizer()) for s in (0, 3)]
    scores = sc.units.change_scores(*models, PROMPTS)
    assert type(scores).load(scores.save(tmp_path / "s")).equals(scores)
    with pytest.raises(ValueError, match="wifv scores cannot be made from the statistics of change scores"):
        scores.rescore("wifv")
    with pytest.raises(ValueError, match="no unit score 'change'"):
        sc.score_units(models[0], PROMPTS, method="change")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": PROMPTS.take(1)}, "one prompt"),
        ({"method": "wifv"}, "method is 'change' or 'wchange', not 'wifv'"),
        ({"tokens": "answer"}, "not 'answer'"),
        ({"sites": "mlp"}, "sites are some of"),
    ],
)
def test_bad_input(change: Any, message: str) -> None:
    models = [load_model(build_tiny_llama(s), tokenizer=build_tiny_tokenizer()) for s in (0, 3)]
    with pytest.raises(ValueError, match=message):
        sc.units.change_scores(*models, **{"prompts": PROMPTS, **change})


def test_two_equal_checkpoints_are_refused() -> None:
    models = [load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer()) for _ in range(2)]
    with pytest.raises(ValueError, match="compute the same"):
        sc.units.change_scores(*models, PROMPTS)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_with_the_same_stream_every_layer_is_given_what_the_aligned_models_is(backend: Any) -> None:
    """By hand: each layer of the base on the aligned model's own input to that layer."""
    base, aligned = build_tiny_llama(), build_tiny_llama(3)
    models = [load_model(m, tokenizer=build_tiny_tokenizer(), backend=backend) for m in (base, aligned)]
    options: Any = {"template": "chat", "max_new_tokens": NEW, "count_beginning": True, "tokens": "all"}
    got = sc.units.change_scores(*models, PROMPTS, same_stream=True, **options)
    squares: dict[Any, list[np.ndarray]] = {}
    streams: list[Any] = []
    for example in encode(build_tiny_tokenizer(), PROMPTS, template="chat"):
        whole = [*example.ids, *own_answers(aligned, list(example.ids))]
        streams.clear()
        kept = [
            layer.register_forward_pre_hook(lambda _, args: streams.append(args[0])) for layer in aligned.model.layers
        ]
        new = inputs(aligned, whole)
        put = [
            layer.register_forward_pre_hook(lambda _, args, i=i: (streams[i], *args[1:]))
            for i, layer in enumerate(base.model.layers)
        ]
        old = inputs(base, whole)
        for handle in (*kept, *put):
            handle.remove()
        for key, value in new.items():
            width = 1 if key[0] == "mlp" else D_HEAD
            moved = (value - old[key]).reshape(len(value), -1, width)
            squares.setdefault(key, []).append((moved**2).sum(2))
    for site in ("mlp", "attn"):
        want = np.sqrt(np.stack([np.concatenate(squares[site, i]).mean(0) for i in range(N_LAYERS)]))
        np.testing.assert_allclose(got.scores[site].numpy(), want, rtol=1e-4)


def test_with_the_same_stream_units_behind_a_change_do_not_score() -> None:
    base, aligned = build_tiny_llama(), build_tiny_llama()
    with torch.no_grad():
        aligned.model.layers[0].mlp.gate_proj.weight[5] += 1.0
    models = [load_model(m, tokenizer=build_tiny_tokenizer()) for m in (base, aligned)]
    passed_on, own = (sc.units.change_scores(*models, PROMPTS, same_stream=same) for same in (False, True))
    assert len(passed_on.scores["mlp"].nonzero()) > 90
    assert own.scores["mlp"].nonzero().tolist() == [[0, 5]]
