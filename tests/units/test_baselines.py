"""The baselines of Wei et al., Wanda, SparseGPT and LLM-Pruner, against numpy, scikit-learn and inverses by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from test_weights import SAFETY, UTILITY, inputs, linears, output_of

import safecircuits as sc
from safecircuits.hooks.ablate import ablated
from safecircuits.model.load import load_model
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.prompt_set import encode
from safecircuits.units.coupled import CoupledScores, coupled_scores
from safecircuits.units.groups import classify_units
from safecircuits.weights.choice import choose_weights, random_weights
from safecircuits.weights.matrix_overlap import MatrixOverlap, space_overlap, weight_overlap
from safecircuits.weights.probing import HeadProbe, head_outputs, head_probe, logistic_regression
from safecircuits.weights.scores import WeightMask, score_weights, without_weights
from safecircuits.weights.sparsegpt import SparseWeights, prune_matrix, sparse_gpt, with_sparse_weights
from safecircuits.weights.subspaces import output_spaces, without_directions

both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def weight_of(hf_model: Any, key: str) -> np.ndarray:
    found: np.ndarray = linears(hf_model)[key].weight.detach().double().numpy()
    return found


class TestWeightDifference:
    def test_is_the_score_of_the_change(self, make_tiny_model: Any) -> None:
        model, base = make_tiny_model("bridge"), make_tiny_model("bridge", 1)
        hf, hf_base = make_tiny_model("hf"), make_tiny_model("hf", 1)
        x = inputs(hf, model.tokenizer, SAFETY)
        change = score_weights(model, SAFETY, method="magnitude", base=base)
        wanda = score_weights(model, SAFETY, method="wanda", base=base)
        for key in change.scores:
            want = np.abs(weight_of(hf, key) - weight_of(hf_base, key))
            np.testing.assert_allclose(change.scores[key].numpy(), want, rtol=1e-4, atol=1e-6)
            want = want * np.sqrt((x[key] ** 2).mean(0))
            np.testing.assert_allclose(wanda.scores[key].numpy(), want, rtol=2e-3, atol=1e-5)

    def test_does_not_mix_with_scores_of_weights(self, tiny_bridge: Any, make_tiny_model: Any) -> None:
        relative = score_weights(tiny_bridge, SAFETY, method="wanda", base=make_tiny_model("bridge", 1))
        with pytest.raises(ValueError, match="their change from a base model"):
            relative.merge(score_weights(tiny_bridge, SAFETY, method="wanda"))
        with pytest.raises(ValueError, match="the base model belongs to another model"):
            score_weights(tiny_bridge, SAFETY, base=make_tiny_model("bridge", intermediate_size=32))


class TestChoice:
    @pytest.mark.parametrize("lowest", [True, False])
    def test_rows_matrices_and_n_of_m(self, lowest: bool, tiny_bridge: Any) -> None:
        scores = score_weights(tiny_bridge, SAFETY, method="wanda")
        row = choose_weights(scores, 0.25, lowest=lowest)
        whole = choose_weights(scores, 0.25, within="matrix", lowest=lowest)
        some = choose_weights(scores, n_of_m=(1, 4), lowest=lowest)
        for key, score in scores.scores.items():
            s = score.numpy() if lowest else -score.numpy()
            n = round(0.25 * s.shape[1])
            want = np.zeros(s.shape, dtype=bool)
            np.put_along_axis(want, np.argsort(s, axis=1, kind="stable")[:, :n], True, axis=1)
            assert np.array_equal(row.masks[key].numpy(), want)
            inside, outside = s[whole.masks[key].numpy()], s[~whole.masks[key].numpy()]
            assert len(inside) == round(0.25 * s.size)
            assert inside.max() <= outside.min()
            for i, j in np.argwhere(some.masks[key].numpy()):
                group = s[i, j - j % 4 : j - j % 4 + 4]
                assert s[i, j] == group.min()
            assert some.masks[key].sum() == s.size / 4

    def test_random_control_has_the_size_of_each_matrix(self, tiny_bridge: Any) -> None:
        scores = score_weights(tiny_bridge, SAFETY, method="magnitude")
        like = choose_weights(scores, 0.1, within="matrix")
        drawn, again, other = (random_weights(like, seed) for seed in (0, 0, 1))
        assert drawn.equals(again)
        assert not drawn.equals(other)
        assert all(int(drawn.masks[key].sum()) == int(mask.sum()) for key, mask in like.masks.items())

    def test_bad_input(self, tiny_bridge: Any) -> None:
        scores = score_weights(tiny_bridge, SAFETY, method="magnitude")
        for arguments, message in (
            ({}, "give either a share"),
            ({"share": 0.1, "n_of_m": (2, 4)}, "give either a share"),
            ({"share": 1.5}, "between 0 and 1, not 1.5"),
            ({"n_of_m": (4, 4)}, "0 < n < m"),
            ({"n_of_m": (1, 5)}, "groups of 5 do not divide"),
            ({"share": 0.1, "within": "layer"}, "within is 'row' or 'matrix'"),
        ):
            with pytest.raises(ValueError, match=message):
                choose_weights(scores, **arguments)


def slow_sparse_gpt(
    weight: np.ndarray, hessian: np.ndarray, n_of_m: tuple[int, int] | None, share: float | None, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """One column after the other, with the inverse of what is left of the Hessian taken anew for each."""
    w, gone = weight.copy(), np.zeros(weight.shape, dtype=bool)
    width = w.shape[1]
    left = [np.linalg.inv(hessian[i:, i:]) for i in range(width)]
    for i in range(width):
        step = block if n_of_m is None else n_of_m[1]
        if i % step == 0:
            part = range(i, min(i + step, width))
            cost = np.stack([w[:, j] ** 2 / left[j][0, 0] for j in part], axis=1)
            if n_of_m is not None:
                for row in range(len(w)):
                    for j in np.argsort(cost[row], kind="stable")[: n_of_m[0]]:
                        gone[row, i + j] = True
            else:
                assert share is not None
                for flat in np.argsort(cost.ravel(), kind="stable")[: round(share * cost.size)]:
                    gone[flat // len(part), i + flat % len(part)] = True
        for row in range(len(w)):
            if gone[row, i]:
                w[row, i:] -= w[row, i] / left[i][0, 0] * left[i][0]
                w[row, i] = 0.0
    return w, gone


class TestSparseGPT:
    @settings(max_examples=15)
    @given(seed=st.integers(0, 10**6), which=st.sampled_from(["share", "n_of_m"]), block=st.sampled_from([3, 5, 64]))
    def test_equals_inverses_column_by_column(self, seed: int, which: str, block: int) -> None:
        random = np.random.default_rng(seed)
        weight, x = random.normal(size=(5, 12)), random.normal(size=(40, 12)) @ random.normal(size=(12, 12))
        hessian = x.T @ x
        damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(12)
        n_of_m, share = ((2, 4), None) if which == "n_of_m" else (None, 0.4)
        want, gone = slow_sparse_gpt(weight, damped, n_of_m, share, block)
        got, mask = prune_matrix(torch.tensor(weight), torch.tensor(hessian), n_of_m=n_of_m, share=share, block=block)
        assert np.array_equal(mask.numpy(), gone)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-9)

    def test_one_weight_is_made_up_for_by_least_squares(self) -> None:
        """Taking out the first weight of a row leaves the best fit of the others: what numpy's solver finds."""
        random = np.random.default_rng(0)
        w, x = random.normal(size=6), random.normal(size=(50, 6))
        mask = torch.zeros(1, 6, dtype=torch.bool)
        mask[0, 0] = True
        got, _ = prune_matrix(torch.tensor(w)[None], torch.tensor(x.T @ x), mask=mask, damping=1e-9)
        want, *_ = np.linalg.lstsq(x[:, 1:], x @ w, rcond=None)
        np.testing.assert_allclose(got[0, 1:].numpy(), want, rtol=1e-5)

    @both
    def test_of_a_model(self, backend: Any, make_tiny_model: Any, tmp_path: Any) -> None:
        model, hf = make_tiny_model(backend), make_tiny_model("hf")
        x = inputs(hf, model.tokenizer, SAFETY)
        sparse = sparse_gpt(model, SAFETY, n_of_m=(2, 4), tokens="response", max_tokens=1)
        assert sparse.removed.share == 0.5
        for key in ("0.q", "1.out", "2.v"):
            want, gone = prune_matrix(torch.tensor(weight_of(hf, key)), torch.tensor(x[key].T @ x[key]), n_of_m=(2, 4))
            assert (sparse.removed.masks[key] == gone).double().mean() > 0.99  # but for near ties in float32
            if torch.equal(sparse.removed.masks[key], gone):
                torch.testing.assert_close(sparse.weights[key].double(), want, rtol=1e-2, atol=1e-2)
        assert SparseWeights.load(sparse.save(tmp_path / "s")).equals(sparse)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        before = output_of(model)
        with without_weights(model, sparse.removed):
            bare = output_of(model)
        with with_sparse_weights(model, sparse):
            assert torch.equal(model.blocks[0].mlp.W_out.T.contiguous(), sparse.weights["0.out"])
            inside = output_of(model)
        assert not torch.equal(inside, before)
        assert not torch.equal(inside, bare)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def test_of_weights_chosen_otherwise(self, tiny_bridge: Any) -> None:
        scores = score_weights(tiny_bridge, SAFETY, method="wanda", components=("out",))
        mask = choose_weights(scores, 0.2, lowest=False)
        sparse = sparse_gpt(tiny_bridge, SAFETY, mask=mask)
        assert set(sparse.weights) == {"0.out", "1.out", "2.out"}
        assert isinstance(sparse.removed, WeightMask)
        for key, chosen in mask.masks.items():
            assert torch.equal(sparse.removed.masks[key], chosen)
            assert not sparse.weights[key][chosen].any()

    def test_bad_input(self, tiny_bridge: Any) -> None:
        for arguments, message in (
            ({}, "give one of share, n_of_m and mask"),
            ({"share": 1.0}, "below 1, not 1.0"),
            ({"share": 0.5, "damping": 0.0}, "damping is above 0"),
            ({"n_of_m": (1, 7)}, "groups of 7 do not divide"),
        ):
            with pytest.raises(ValueError, match=message):
                sparse_gpt(tiny_bridge, SAFETY, **arguments)


class TestHeadProbe:
    @both
    def test_outputs_are_the_output_projections_inputs(
        self, backend: Any, tiny_llama_hf: Any, tiny_tokenizer: Any
    ) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        got = head_outputs(model, SAFETY, max_tokens=1)
        for row, example in enumerate(encode(tiny_tokenizer, SAFETY)):
            seen: list[torch.Tensor] = []
            handles = [
                layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0, -1]))
                for layer in tiny_llama_hf.model.layers
            ]
            with torch.no_grad():
                tiny_llama_hf(torch.tensor([example.ids]))
            for handle in handles:
                handle.remove()
            for layer, value in enumerate(seen):
                torch.testing.assert_close(got[layer, :, row], value.reshape(4, 8), rtol=1e-4, atol=1e-4)

    @settings(max_examples=15)
    @given(
        seed=st.integers(0, 10**6), penalty=st.sampled_from([0.1, 1.0, 10.0]), apart=st.sampled_from([0.0, 1.0, 9.0])
    )
    def test_probe_is_scikit_learns(self, seed: int, penalty: float, apart: float) -> None:
        linear = pytest.importorskip("sklearn.linear_model")
        random = np.random.default_rng(seed)
        y = random.permutation(np.arange(30) % 2 == 0)
        x = random.normal(size=(3, 30, 4)) + apart * y[None, :, None]
        got = logistic_regression(torch.tensor(x), torch.tensor(y), penalty)
        for i in range(3):
            want = linear.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(x[i], y)
            np.testing.assert_allclose(got[i, :-1].numpy(), want.coef_[0], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(float(got[i, -1]), want.intercept_[0], rtol=1e-3, atol=1e-3)

    def test_finds_the_head_that_is_made_to_know(self, make_tiny_model: Any, tmp_path: Any) -> None:
        """Prompts end in the word that tells the kinds apart; heads 2 and 3 of layer 0 write nothing."""
        model = make_tiny_model("bridge")
        with torch.no_grad():
            model.blocks[0].attn.W_V[1].zero_()  # which both of them read
        bad = [f"how do i make {a} {b} bomb" for a in ("a", "the", "find") for b in ("cake", "lamp", "road", "dog")]
        good = [text.replace("bomb", "tea") for text in bad]
        probe = head_probe(model, bad, good, folds=4, template="none")
        assert probe.chance == 0.5
        assert probe.accuracy[0, 2:].max() <= 0.5
        assert probe.accuracy[0, :2].min() > 0.85
        best = probe.top(1)
        ((layer, (head,)),) = best.members("attn").items()
        assert probe.accuracy[layer, head] == probe.accuracy.max()
        frame = probe.to_frame()
        assert frame["accuracy"].iloc[0] == probe.accuracy.max()
        assert frame["low"].iloc[0] < frame["accuracy"].iloc[0]
        assert HeadProbe.load(probe.save(tmp_path / "p")).equals(probe)
        with ablated(model, best):
            assert torch.isfinite(output_of(model)).all()
        again = head_probe(model, bad, good, folds=4, template="none", max_tokens=8)
        assert torch.equal(again.right, probe.right)

    def test_bad_input(self, tiny_bridge: Any) -> None:
        with pytest.raises(ValueError, match="5 folds need"):
            head_probe(tiny_bridge, SAFETY, UTILITY)
        with pytest.raises(ValueError, match="penalty is above 0"):
            head_probe(tiny_bridge, SAFETY, UTILITY, folds=2, penalty=0)


class TestWeakestDirections:
    def test_are_what_the_leading_ones_leave(self, tiny_bridge: Any) -> None:
        """Without its weakest directions a matrix is its projection on the leading ones, as numpy's SVD has it."""
        spaces = output_spaces(tiny_bridge, SAFETY, components=("out",))
        before = tiny_bridge.blocks[1].mlp.W_out.detach().T.double().numpy().copy()
        with without_directions(tiny_bridge, spaces, rank=20, bottom=True):
            inside = tiny_bridge.blocks[1].mlp.W_out.detach().T.double().numpy().copy()
        u = spaces.bases["1.out"][:, :12].double().numpy()
        np.testing.assert_allclose(inside, u @ u.T @ before, atol=1e-4)
        assert np.linalg.matrix_rank(inside, tol=1e-3) == 12
        with (
            pytest.raises(ValueError, match="make them with rank=None"),
            without_directions(tiny_bridge, output_spaces(tiny_bridge, SAFETY, rank=2), rank=1, bottom=True),
        ):
            pass


class TestOverlap:
    def test_of_weights_by_sets(self, tiny_bridge: Any, tmp_path: Any) -> None:
        s, u = (score_weights(tiny_bridge, data, method="wanda") for data in (SAFETY, UTILITY))
        found = weight_overlap(s, u, 0.1)
        for key in s.scores:
            a, b = (x.scores[key].numpy().ravel() for x in (s, u))
            n = round(0.1 * a.size)
            one, other = set(np.argsort(-a, kind="stable")[:n]), set(np.argsort(-b, kind="stable")[:n])
            assert found.values[key] == pytest.approx(len(one & other) / len(one | other))
        frame = found.to_frame()
        assert list(frame.columns) == ["q", "k", "v", "o", "gate", "in", "out"]
        assert frame.loc[2, "in"] == found.values["2.in"]
        assert set(weight_overlap(s, s, 0.1).values.values()) == {1.0}
        assert MatrixOverlap.load(found.save(tmp_path / "o")).equals(found)
        assert len(found.plot(Figure().subplots()).get_lines()) == 8

    def test_chance_is_that_of_random_choices(self, tiny_bridge: Any) -> None:
        scores = score_weights(tiny_bridge, SAFETY, method="magnitude", components=("in",))
        like = choose_weights(scores, 0.3, within="matrix", lowest=False)
        drawn = [random_weights(like, seed) for seed in range(20)]
        mean = np.mean([a.jaccard(b)["1.in"] for a, b in zip(drawn[::2], drawn[1::2], strict=True)])
        assert weight_overlap(scores, scores, 0.3).chance["1.in"] == pytest.approx(mean, rel=0.05)

    def test_of_spaces(self, tiny_bridge: Any) -> None:
        s, u = (output_spaces(tiny_bridge, data) for data in (SAFETY, UTILITY))
        found = space_overlap(s, u, 3)
        a, b = (x.bases["1.o"][:, :3].double().numpy() for x in (s, u))
        assert found.values["1.o"] == pytest.approx(np.trace(a @ a.T @ b @ b.T) / 3, rel=1e-4)
        assert found.chance["1.o"] == 3 / 32
        assert found.plot(Figure().subplots()).get_ylabel()
        with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
            space_overlap(s, u, 0)
        scores = score_weights(tiny_bridge, SAFETY, method="wanda")
        with pytest.raises(ValueError, match="no weight at all"):
            weight_overlap(scores, scores, 0.0)


def slow_coupled(hf_model: Any, tokenizer: Any, data: sc.PromptSet, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """[layer, neuron] and [layer, head] from one backward pass a prompt and slices written out."""
    grads: list[dict[str, np.ndarray]] = []
    for example in encode(tokenizer, data, with_responses=True):
        hf_model.zero_grad()
        out, start = hf_model(torch.tensor([example.ids])).logits[0], example.response_start
        torch.nn.functional.cross_entropy(out[start - 1 : -1].double(), torch.tensor(example.ids[start:])).backward()
        grads.append({key: module.weight.grad.double().numpy() for key, module in linears(hf_model).items()})
    terms: dict[str, np.ndarray] = {}
    for key in grads[0]:
        w = weight_of(hf_model, key)
        mean, square = np.mean([g[key] for g in grads], 0), np.mean([g[key] ** 2 for g in grads], 0)
        terms[key] = {
            "vectorize": w * mean,
            "first": np.abs(w * mean),
            "second": w**2 * square,
            "mix": np.abs(w * mean - w**2 * square / 2),
            "l1": np.abs(w),
            "l2": w**2,
        }[kind]
    mlp, attn = np.zeros((3, 48)), np.zeros((3, 4))
    for layer in range(3):
        for j in range(48):
            mlp[layer, j] = (
                terms[f"{layer}.gate"][j].sum() + terms[f"{layer}.in"][j].sum() + terms[f"{layer}.out"][:, j].sum()
            )
        for h in range(4):
            own, shared = slice(8 * h, 8 * h + 8), slice(8 * (h // 2), 8 * (h // 2) + 8)
            attn[layer, h] = terms[f"{layer}.q"][own].sum() + terms[f"{layer}.o"][:, own].sum()
            attn[layer, h] += (terms[f"{layer}.k"][shared].sum() + terms[f"{layer}.v"][shared].sum()) / 2
    return np.abs(mlp), np.abs(attn)


class TestCoupled:
    @pytest.mark.parametrize("kind", ["vectorize", "first", "second", "mix", "l1", "l2"])
    def test_against_slices_written_out(self, kind: Any, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, tokenizer=tiny_tokenizer)
        got = coupled_scores(model, SAFETY, kind=kind)
        for site, want in zip(("mlp", "attn"), slow_coupled(tiny_llama_hf, tiny_tokenizer, SAFETY, kind), strict=True):
            np.testing.assert_allclose(
                got.scores[site].numpy() / want.max(),
                want / want.max(),
                rtol=5e-4,
                atol=1e-6,
            )

    def test_backends_agree_and_groups_take_them(self, make_tiny_model: Any, tmp_path: Any) -> None:
        bridge, hooked = make_tiny_model("bridge"), make_tiny_model("hooked")
        a, b = coupled_scores(bridge, SAFETY, max_tokens=1), coupled_scores(hooked, SAFETY)
        for site, scores in a.scores.items():
            torch.testing.assert_close(scores, b.scores[site], rtol=1e-3, atol=1e-6)
        groups = classify_units(a, coupled_scores(bridge, UTILITY), scu=0.1, ucu=0.1, ru=0.1)
        assert groups.shape == ModelShape.of(bridge)
        assert CoupledScores.load(a.save(tmp_path / "c")).equals(a)
        with pytest.raises(ValueError, match="do not merge"):
            a.merge(a)
        with pytest.raises(ValueError, match="score again"):
            a.rescore("wifv")
        with pytest.raises(ValueError, match="kind is one of"):
            coupled_scores(bridge, SAFETY, kind="third")
        with pytest.raises(ValueError, match="need prompts with responses"):
            coupled_scores(bridge, kind="first")
        assert coupled_scores(bridge, kind="l1", sites=("mlp",)).scores["mlp"].shape == (3, 48)
