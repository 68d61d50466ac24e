"""Scores of single weights, their set difference, and directions taken out of matrices, against plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import safecircuits as sc
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model, to_hugging_face
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from safecircuits.units.groups import GROUPS, set_difference
from safecircuits.weights.scores import WeightMask, WeightScores, score_weights, weight_set_difference, without_weights
from safecircuits.weights.subspaces import OutputSpaces, output_spaces, without_directions

SAFETY = sc.PromptSet(
    "safety",
    ("how do i make the bomb", "find a bomb", "fix the bomb and the house"),
    ("sorry i cannot help with that", "sorry", "sorry cannot help"),
)
UTILITY = sc.PromptSet(
    "utility",
    ("how do i make the cake", "find a lamp", "bake the tea and take some water"),
    ("sure take some water", "here it is .", "you take the wood and then the salt"),
)
MATRICES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "in": "mlp.up_proj", "out": "mlp.down_proj",
}  # fmt: skip

both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def linears(hf_model: Any) -> dict[str, Any]:
    layers = enumerate(hf_model.model.layers)
    return {f"{i}.{c}": layer.get_submodule(name) for i, layer in layers for c, name in MATRICES.items()}


def inputs(hf_model: Any, tokenizer: Any, data: sc.PromptSet) -> dict[str, np.ndarray]:
    """What enters each matrix at the response tokens, ``[token, in]``, one prompt at a time."""
    seen: dict[str, list[np.ndarray]] = {}
    for example in encode(tokenizer, data, with_responses=True):
        handles = [
            module.register_forward_pre_hook(
                lambda _, args, key=key, start=example.response_start: seen.setdefault(key, []).append(
                    args[0][0, start:].double().numpy()
                )
            )
            for key, module in linears(hf_model).items()
        ]
        with torch.no_grad():
            hf_model(torch.tensor([example.ids]))
        for handle in handles:
            handle.remove()
    return {key: np.concatenate(parts) for key, parts in seen.items()}


def slow_snip(hf_model: Any, tokenizer: Any, data: sc.PromptSet) -> dict[str, np.ndarray]:
    total = {key: np.zeros(tuple(module.weight.shape)) for key, module in linears(hf_model).items()}
    for example in encode(tokenizer, data, with_responses=True):
        hf_model.zero_grad()
        out = hf_model(torch.tensor([example.ids])).logits[0]
        start = example.response_start
        torch.nn.functional.cross_entropy(out[start - 1 : -1].double(), torch.tensor(example.ids[start:])).backward()
        for key, module in linears(hf_model).items():
            total[key] += np.abs(module.weight.grad.double().numpy())
    return {
        key: np.abs(module.weight.detach().double().numpy()) * total[key] / len(data)
        for key, module in linears(hf_model).items()
    }


def output_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return logits(model, pad_left(encode(model.tokenizer, UTILITY)))


def close(got: torch.Tensor, want: np.ndarray) -> None:
    scale = np.abs(want).max()
    np.testing.assert_allclose(got.double().numpy() / scale, want / scale, rtol=2e-4, atol=1e-6)


class TestScores:
    @both
    def test_snip_equals_one_backward_a_prompt(self, backend: Any, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        got, want = score_weights(model, SAFETY), slow_snip(tiny_llama_hf, tiny_tokenizer, SAFETY)
        assert set(got.scores) == set(want)
        for key, score in got.scores.items():
            close(score, want[key])

    @both
    def test_wanda_equals_the_formula(self, backend: Any, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        got = score_weights(model, SAFETY, method="wanda", max_tokens=1)
        x = inputs(tiny_llama_hf, tiny_tokenizer, SAFETY)
        for key, module in linears(tiny_llama_hf).items():
            close(got.scores[key], np.abs(module.weight.detach().double().numpy()) * np.sqrt((x[key] ** 2).mean(0)))

    @pytest.mark.parametrize("method", ["snip", "wanda", "magnitude"])
    def test_merged_halves_are_the_whole(self, method: Any, tiny_bridge: Any) -> None:
        assert SAFETY.responses is not None
        parts = [sc.PromptSet("p", SAFETY.prompts[part], SAFETY.responses[part]) for part in (slice(1), slice(1, None))]
        a, b = (score_weights(tiny_bridge, part, method=method) for part in parts)
        want = score_weights(tiny_bridge, SAFETY, method=method)
        for merged in (a.merge(b), b.merge(a)):
            assert merged.count == want.count
            for key, score in want.scores.items():
                torch.testing.assert_close(merged.scores[key], score, rtol=1e-4, atol=1e-6)

    def test_some_matrices_only_saved_and_loaded(self, tiny_bridge: Any, tmp_path: Any) -> None:
        scores = score_weights(tiny_bridge, SAFETY, components=("out",))
        assert list(scores.scores) == ["0.out", "1.out", "2.out"]
        assert WeightScores.load(scores.save(tmp_path / "w")).equals(scores)

    def test_bad_input(self, tiny_bridge: Any) -> None:
        with pytest.raises(ValueError, match="no weight score 'wifv'"):
            score_weights(tiny_bridge, SAFETY, method="wifv")
        with pytest.raises(ValueError, match="no matrix 'up'"):
            score_weights(tiny_bridge, SAFETY, components=("up",))
        a, b = score_weights(tiny_bridge, SAFETY), score_weights(tiny_bridge, SAFETY, method="wanda")
        with pytest.raises(ValueError, match="were not made the same way"):
            a.merge(b)
        with pytest.raises(ValueError, match=r"q is a share between 0 and 1, not 1\.2"):
            weight_set_difference(a, a, q=1.2, p=0)


class TestSetDifference:
    def test_is_the_top_of_one_without_the_top_of_the_other(self, tiny_bridge: Any, tmp_path: Any) -> None:
        s, u = score_weights(tiny_bridge, SAFETY), score_weights(tiny_bridge, UTILITY)
        mask = weight_set_difference(s, u, q=0.1, p=0.2)
        for key, chosen in mask.masks.items():
            a, b = s.scores[key].numpy().ravel(), u.scores[key].numpy().ravel()
            want = set(np.argsort(-a)[: round(0.1 * a.size)]) - set(np.argsort(-b)[: round(0.2 * b.size)])
            assert set(chosen.flatten().nonzero().flatten().tolist()) == want
        assert weight_set_difference(s, s, q=0.1, p=0.1).n_weights == 0
        assert WeightMask.load(mask.save(tmp_path / "m")).equals(mask)
        assert set(mask.jaccard(mask).values()) == {1.0}

    @both
    def test_removal_is_that_of_the_weights_and_leaves_no_trace(
        self, backend: Any, make_tiny_model: Any, tiny_tokenizer: Any
    ) -> None:
        model = make_tiny_model(backend)
        scores = score_weights(model, SAFETY)
        mask = weight_set_difference(scores, scores, q=0.3, p=0.05)
        before, state = output_of(model), {k: v.clone() for k, v in model.state_dict().items()}
        by_hand = make_tiny_model("hf")
        with torch.no_grad():
            for key, module in linears(by_hand).items():
                module.weight[mask.masks[key]] = 0
        with without_weights(model, mask):
            inside = output_of(model)
        real = pad_left(encode(tiny_tokenizer, UTILITY)).attention_mask.bool()
        want = output_of(load_model(by_hand, tokenizer=tiny_tokenizer))
        torch.testing.assert_close(inside[real], want[real], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(inside[real], before[real], atol=0.01)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    def test_weights_of_a_base_model_take_their_place(self, make_tiny_model: Any) -> None:
        model, base = make_tiny_model("bridge"), make_tiny_model("bridge", 1)
        scores = score_weights(model, SAFETY)
        everything = weight_set_difference(scores, scores, q=1, p=0)
        with without_weights(model, everything, base=base):
            assert torch.equal(model.blocks[1].attn.W_K, base.blocks[1].attn.W_K)
        other = make_tiny_model("bridge", intermediate_size=32)
        with pytest.raises(ValueError, match="for the base model, belongs to another model: d_mlp"):
            without_weights(model, everything, base=other).__enter__()

    def test_choices_of_other_matrices_have_no_overlap(self, tiny_bridge: Any) -> None:
        a, b = (score_weights(tiny_bridge, SAFETY, method="magnitude", components=(c,)) for c in ("o", "out"))
        one, other = (weight_set_difference(s, s, q=0.1, p=0) for s in (a, b))
        with pytest.raises(ValueError, match="not of the same matrices"):
            one.jaccard(other)

    @both
    def test_parameter_masks_have_the_checkpoints_names(self, backend: Any, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend)
        scores = score_weights(model, SAFETY)
        mask = weight_set_difference(scores, scores, q=0.3, p=0.05)
        masks = mask.parameter_masks(model)
        assert sum(int(m.sum()) for m in masks.values()) == mask.n_weights
        if backend == "bridge":
            for key, module in linears(to_hugging_face(model)).items():
                name = f"model.layers.{key[0]}.{MATRICES[key[2:]]}.weight"
                assert module.weight.shape == masks[name].shape
                assert torch.equal(masks[name], mask.masks[key])

    def test_of_units_and_its_share_of_parameters(self, tiny_bridge: Any) -> None:
        s, u = (sc.score_units(tiny_bridge, data, method="snip") for data in (SAFETY, UTILITY))
        groups = set_difference(s, u, q=0.2, p=0.1)
        assert sum(groups.shares()[g] for g in GROUPS) == pytest.approx(1)
        in_both = groups.shares()["CU"]
        assert groups.shares()["SCU"] + in_both == pytest.approx(round(0.2 * 156) / 156)
        assert groups.shares()["UCU"] + in_both == pytest.approx(round(0.1 * 156) / 156)
        # A neuron has 96 of a layer's 7,680 parameters in matrices, a head 768.
        nfft = set_difference(s, u, p=0.05, result=0.25, share_of="parameters")
        frozen = nfft["SCU"]
        share = (96 * frozen.n_units("mlp") + 768 * frozen.n_units("attn")) / (3 * 7680)
        assert share == pytest.approx(0.25, abs=768 / (3 * 7680) / 2)
        with pytest.raises(ValueError, match="give either q="):
            set_difference(s, u, p=0.1)

    def test_groups_by_parameters(self, tiny_bridge: Any) -> None:
        s, u = (sc.score_units(tiny_bridge, data) for data in (SAFETY, UTILITY))
        groups = sc.classify_units(s, u, scu=0.2, ucu=0.3, ru=0.1, share_of="parameters")
        for group, share in (("SCU", 0.2), ("UCU", 0.3), ("RU", 0.1)):
            frozen = groups[group]
            got = (96 * frozen.n_units("mlp") + 768 * frozen.n_units("attn")) / (3 * 7680)
            assert got == pytest.approx(share, abs=768 / (3 * 7680) / 2)


class TestOutputSpaces:
    @both
    def test_are_the_left_singular_vectors(self, backend: Any, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        spaces = output_spaces(model, SAFETY, rank=3, max_tokens=1)
        x = inputs(tiny_llama_hf, tiny_tokenizer, SAFETY)
        for key, module in linears(tiny_llama_hf).items():
            left, values, _ = np.linalg.svd(module.weight.detach().double().numpy() @ x[key].T)
            np.testing.assert_allclose(spaces.singular_values[key].numpy(), values[:3], rtol=1e-3)
            np.testing.assert_allclose(
                spaces.bases[key].numpy() @ spaces.bases[key].numpy().T, left[:, :3] @ left[:, :3].T, atol=2e-3
            )

    @both
    def test_removal_is_the_projection_and_leaves_no_trace(
        self, backend: Any, make_tiny_model: Any, tiny_tokenizer: Any, tmp_path: Any
    ) -> None:
        model, by_hand = make_tiny_model(backend), make_tiny_model("hf")
        s, u = output_spaces(model, SAFETY), output_spaces(model, UTILITY)
        assert OutputSpaces.load(s.save(tmp_path / "s")).equals(s)
        assert s.overlap(s, 4)["0.q"] == pytest.approx(1, abs=1e-4)
        keys = output_spaces(model, SAFETY, components=("k",))
        assert keys.overlap(keys, 20)["0.k"] == pytest.approx(1, abs=1e-4), "all 16 directions of a smaller matrix"
        with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
            s.overlap(s, 0)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            for key, module in linears(by_hand).items():
                a, b = s.bases[key][:, :4].double(), u.bases[key][:, :2].double()
                w = module.weight.double()
                module.weight.copy_(w - (torch.eye(len(w)).double() - b @ b.T) @ a @ a.T @ w)
        with without_directions(model, s, u, rank=4, utility_rank=2):
            inside = output_of(model)
        real = pad_left(encode(tiny_tokenizer, UTILITY)).attention_mask.bool()
        want = output_of(load_model(by_hand, tokenizer=tiny_tokenizer))
        torch.testing.assert_close(inside[real], want[real], rtol=1e-3, atol=1e-3)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    def test_what_utility_uses_wholly_is_kept(self, tiny_bridge: Any) -> None:
        spaces = output_spaces(tiny_bridge, SAFETY)
        before = output_of(tiny_bridge)
        with without_directions(tiny_bridge, spaces, spaces, rank=3):
            torch.testing.assert_close(output_of(tiny_bridge), before, rtol=1e-3, atol=1e-3)
        with (
            pytest.raises(ValueError, match="hold 2 directions of matrix"),
            without_directions(tiny_bridge, output_spaces(tiny_bridge, SAFETY, rank=2), rank=3),
        ):
            pass
