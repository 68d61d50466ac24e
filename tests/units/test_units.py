"""Unit scores against a slow float64 computation on stored activations; groups and ablations on constructed cases."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.prompt_set import encode
from safecircuits.units.groups import GROUPS, normalised
from safecircuits.units.moments import Moments
from safecircuits.units.scores import UnitScores

DATA = sc.PromptSet(
    "d",
    (
        "how do i make the cake",
        "find a lamp",
        "how do i fix the road and the house with some water",
        "bake the tea",
    ),
    (
        "sure take some water",
        "here it is .",
        "you take the wood and then the salt",
        "sorry i cannot help with that",
    ),
)
SHAPE = ModelShape("LlamaForCausalLM", 3, 32, 48, 4, 2)
BEGINNING = 1  # every prompt begins with "<user>"

both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def stored_inputs(hf_model: Any, tokenizer: Any, tokens: str, first: int) -> dict[str, np.ndarray]:
    """What enters each down and output projection, one example at a time, by plain hooks: [token, channel], float64."""
    seen: dict[str, list[np.ndarray]] = {}
    for example in encode(tokenizer, DATA, with_responses=True):
        handles: list[Any] = []
        now: dict[str, np.ndarray] = {}
        for i, layer in enumerate(hf_model.model.layers):
            for key, module in ((f"mlp.{i}", layer.mlp.down_proj), (f"attn.{i}", layer.self_attn.o_proj)):
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _, args, now=now, key=key: now.update({key: args[0][0].double().numpy()})
                    )
                )
        with torch.no_grad():
            hf_model(torch.tensor([example.ids]))
        for handle in handles:
            handle.remove()
        start, stop = {
            "response": (example.response_start, None),
            "prompt": (first, example.response_start),
            "all": (first, None),
        }[tokens]
        for key, value in now.items():
            seen.setdefault(key, []).append(value[start:stop])
    return {key: np.concatenate(values) for key, values in seen.items()}


def slow_scores(hf_model: Any, tokenizer: Any, tokens: str, method: str, first: int) -> dict[str, np.ndarray]:
    inputs = stored_inputs(hf_model, tokenizer, tokens, first)
    scores: dict[str, list[np.ndarray]] = {"mlp": [], "attn": []}
    for i, layer in enumerate(hf_model.model.layers):
        for site, module in (("mlp", layer.mlp.down_proj), ("attn", layer.self_attn.o_proj)):
            x = inputs[f"{site}.{i}"]
            norms = (module.weight.detach().double().numpy() ** 2).sum(0)
            channel = {
                "wifv": x.var(0, ddof=1) * norms,
                "ifv": x.var(0, ddof=1),
                "wifn": np.sqrt((x**2).mean(0)) * np.abs(module.weight.detach().double().numpy()).mean(0),
                "wrms": np.sqrt((x**2).mean(0)) * np.sqrt(norms),
                "wanda": np.sqrt((x**2).mean(0)) * np.abs(module.weight.detach().double().numpy()).sum(0),
                "magnitude": norms,
            }[method]
            scores[site].append(channel if site == "mlp" else channel.reshape(4, 8).sum(1))
    return {site: np.stack(rows) for site, rows in scores.items()}


class TestScores:
    @both
    @pytest.mark.parametrize("tokens", ["response", "prompt", "all"])
    @pytest.mark.parametrize("method", ["wifv", "ifv", "wifn", "wanda", "wrms", "magnitude"])
    def test_equal_the_formula(
        self, backend: str, tokens: Any, method: Any, tiny_llama_hf: Any, tiny_tokenizer: Any
    ) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        for counted in (False, True):
            got = sc.score_units(model, DATA, method=method, tokens=tokens, count_beginning=counted)
            want = slow_scores(tiny_llama_hf, tiny_tokenizer, tokens, method, 0 if counted else BEGINNING)
            for site in ("mlp", "attn"):
                np.testing.assert_allclose(got.scores[site].numpy(), want[site], rtol=1e-4, atol=1e-8)

    def test_batching_and_order_do_not_matter(self, tiny_bridge: Any) -> None:
        want = sc.score_units(tiny_bridge, DATA)
        one_by_one = sc.score_units(tiny_bridge, DATA, max_tokens=1)
        assert DATA.responses is not None
        backwards = sc.score_units(tiny_bridge, sc.PromptSet("r", DATA.prompts[::-1], DATA.responses[::-1]))
        for other in (one_by_one, backwards):
            assert other.n_tokens == want.n_tokens
            for site in ("mlp", "attn"):
                torch.testing.assert_close(other.scores[site], want.scores[site], rtol=1e-5, atol=1e-9)

    def test_merging_two_halves_equals_the_whole(self, tiny_bridge: Any) -> None:
        assert DATA.responses is not None
        a = sc.score_units(tiny_bridge, sc.PromptSet("a", DATA.prompts[:1], DATA.responses[:1]))
        b = sc.score_units(tiny_bridge, sc.PromptSet("b", DATA.prompts[1:], DATA.responses[1:]))
        want = sc.score_units(tiny_bridge, DATA)
        for merged in (a.merge(b), b.merge(a)):
            assert merged.n_tokens == want.n_tokens
            for site in ("mlp", "attn"):
                torch.testing.assert_close(merged.scores[site], want.scores[site], rtol=1e-5, atol=1e-9)

    def test_repeating_the_data_changes_the_score_only_by_the_degrees_of_freedom(self, tiny_bridge: Any) -> None:
        assert DATA.responses is not None
        once = sc.score_units(tiny_bridge, DATA)
        thrice = sc.score_units(tiny_bridge, sc.PromptSet("3", DATA.prompts * 3, DATA.responses * 3))
        n = once.n_tokens
        factor = (3 * n) / (3 * n - 1) * (n - 1) / n
        torch.testing.assert_close(thrice.scores["mlp"], once.scores["mlp"] * factor, rtol=1e-5, atol=1e-9)

    def test_rescoring_needs_no_second_pass(self, tiny_bridge: Any) -> None:
        got = sc.score_units(tiny_bridge, DATA).rescore("wifn")
        torch.testing.assert_close(got.scores["attn"], sc.score_units(tiny_bridge, DATA, method="wifn").scores["attn"])

    def test_one_site_only(self, tiny_bridge: Any) -> None:
        assert set(sc.score_units(tiny_bridge, DATA, sites=("mlp",)).scores) == {"mlp"}

    def test_bad_input(self, tiny_bridge: Any, tiny_hooked: Any) -> None:
        with pytest.raises(ValueError, match="has no responses"):
            sc.score_units(tiny_bridge, sc.PromptSet("p", ("find a lamp",)))
        with pytest.raises(ValueError, match="no unit score 'snp'"):
            sc.score_units(tiny_bridge, DATA, method="snp")
        with pytest.raises(ValueError, match="tokens is 'response', 'prompt' or 'all', not 'last'"):
            sc.score_units(tiny_bridge, DATA, tokens="last")
        for sites in ("mlp", (), ("heads",)):
            with pytest.raises(ValueError, match=r"sites are some of 'mlp', 'attn', such as"):
                sc.score_units(tiny_bridge, DATA, sites=sites)
        a, b = sc.score_units(tiny_bridge, DATA), sc.score_units(tiny_hooked, DATA, tokens="prompt")
        with pytest.raises(ValueError, match="cannot merge wifv over all tokens with wifv over prompt"):
            a.merge(b)
        with torch.no_grad():
            tiny_bridge.blocks[1].mlp.W_in[0, 0] = float("inf")
        with pytest.raises(FloatingPointError, match=r"blocks\.1\.mlp\.hook_post are not finite"):
            sc.score_units(tiny_bridge, DATA)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 1000), st.sampled_from([0.0, 1e4]))
def test_moments_merge_in_any_split(sizes: list[int], seed: int, offset: float) -> None:
    x = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed)).double() + offset
    parts = [Moments.of(part) for part in torch.split(x, sizes)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.count == len(x)
    torch.testing.assert_close(merged.mean, x.mean(0))
    torch.testing.assert_close(merged.m2, (x - x.mean(0)).square().sum(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged.mean_square, x.square().mean(0))


def made_scores(mlp: list[list[float]], attn: list[list[float]]) -> UnitScores:
    values = {"mlp": torch.tensor(mlp).double(), "attn": torch.tensor(attn).double()}
    moments = {site: Moments(10, v, v) for site, v in values.items()}
    shape = ModelShape("LlamaForCausalLM", len(mlp), 8, len(mlp[0]), len(attn[0]), len(attn[0]))
    ones = {site: torch.ones_like(v) for site, v in values.items()}
    return UnitScores(values, moments, ones, "wifv", "response", shape, {})


class TestGroups:
    def test_the_rule_on_units_whose_group_is_plain(self) -> None:
        # 10 units: one safe, two useful, three idle, the rest both.
        safety = made_scores([[9, 1, 0, 5], [1, 0, 5, 5]], [[0.1], [5]])
        utility = made_scores([[1, 9, 0, 5], [8, 0.1, 5, 5]], [[0], [5]])
        groups = sc.classify_units(safety, utility, scu=0.1, ucu=0.2, ru=0.3)
        wanted: dict[str, Any] = {
            "SCU": {"mlp": {0: (0,)}},
            "UCU": {"mlp": {0: (1,), 1: (0,)}},
            "RU": {"mlp": {0: (2,), 1: (1,)}, "attn": {0: (0,)}},
            "CU": {"mlp": {0: (3,), 1: (2, 3)}, "attn": {1: (0,)}},
        }
        for group, units in wanted.items():
            assert groups[group] == FreezeMask.of_units(units, groups.shape)
        assert (groups.n_units, groups.sites) == (10, ("mlp", "attn"))
        assert groups.shares() == pytest.approx({"SCU": 0.1, "UCU": 0.2, "CU": 0.4, "RU": 0.3})
        assert groups.top(1) == groups["SCU"]
        assert groups.to_frame()[list(GROUPS)].sum().tolist() == [1, 2, 4, 3]

    def test_scu_by_another_score(self) -> None:
        # The causal score names a unit that the task needs as much: S − U would never find it.
        safety = made_scores([[9, 1, 0, 5], [1, 0, 5, 5]], [[0.1], [5]])
        utility = made_scores([[1, 9, 0, 5], [8, 0.1, 5, 5]], [[0], [5]])
        causal = made_scores([[0, -3, 0, 0], [0, 0, 7, 0]], [[0], [1]])
        groups = sc.classify_units(safety, utility, scu=0.1, ucu=0.2, ru=0.3, scu_by=replace(causal, method="taylor"))
        assert groups["SCU"].members("mlp") == {1: (2,)}
        assert groups["UCU"].members("mlp") == {0: (1,), 1: (0,)}
        assert (groups["RU"].members("mlp"), groups["RU"].members("attn")) == ({0: (2,), 1: (1,)}, {0: (0,)})
        assert groups.provenance["scu_by"]["method"] == "taylor"
        only_mlp = replace(causal, moments={"mlp": causal.moments["mlp"]})
        with pytest.raises(ValueError, match="the scores that SCU are cut by are of the sites"):
            sc.classify_units(safety, utility, scu=0.1, ucu=0.2, ru=0.3, scu_by=only_mlp)

    def test_attribution_cuts_no_utility_groups(self) -> None:
        signed = replace(made_scores([[9.0, -5.0]], [[0.1]]), method="attribution")
        with pytest.raises(ValueError, match="UCU and RU cannot be cut by attribution scores"):
            sc.classify_units(signed, signed, scu=0.3, ucu=0.3, ru=0)
        assert sc.classify_units(signed, signed, scu=0.3, ucu=0, ru=0).shares()["SCU"] == pytest.approx(1 / 3)

    @settings(max_examples=40)
    @given(
        st.integers(0, 1000),
        st.floats(0, 0.4),
        st.floats(0, 0.3),
        st.floats(0, 0.3),
        st.sampled_from(["none", "zscore", "rank", "layer-mean", "log"]),
    )
    def test_every_unit_has_one_group_and_shares_are_kept(
        self, seed: int, scu: float, ucu: float, ru: float, how: Any
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> UnitScores:
            mlp, attn = (torch.rand(3, n, generator=generator).tolist() for n in (20, 4))
            return made_scores(mlp, attn)

        groups = sc.classify_units(draw(), draw(), scu=scu, ucu=ucu, ru=ru, normalize=how, share_of="pooled")
        n = 72
        sizes = {g: groups[g].n_units() for g in GROUPS}
        assert sum(sizes.values()) == n
        assert (sizes["SCU"], sizes["UCU"]) == (round(scu * n), round(ucu * n))
        assert sizes["RU"] == min(round(ru * n), n - sizes["SCU"] - sizes["UCU"])
        lowest = {"SCU": 1e9, "other": -1e9}
        for site, labels in groups.labels.items():
            for label, value in zip(labels.flatten().tolist(), groups.difference[site].flatten().tolist(), strict=True):
                key = "SCU" if label == 0 else "other"
                lowest[key] = (min if key == "SCU" else max)(lowest[key], value)
        assert lowest["SCU"] >= lowest["other"] or sizes["SCU"] in (0, n)

    def test_normalisations(self) -> None:
        scores = torch.tensor([[1.0, 2.0, 9.0], [10.0, 20.0, 90.0], [3.0, 3.0, 3.0]]).double()
        for how in ("zscore", "rank", "layer-mean"):
            got = normalised(scores, how)
            torch.testing.assert_close(got[0], got[1])
            assert torch.isfinite(got).all()
        assert torch.equal(normalised(scores, "none"), scores)
        torch.testing.assert_close(normalised(scores, "log").exp(), scores)

    @pytest.mark.parametrize(
        ("shares", "message"),
        [
            ({"scu": -0.1, "ucu": 0, "ru": 0}, "scu is a share between 0 and 1, not -0.1"),
            ({"scu": 0.5, "ucu": 0.4, "ru": 0.2}, "add up to 1.1"),
        ],
    )
    def test_bad_shares(self, shares: dict[str, float], message: str) -> None:
        scores = made_scores([[1, 2]], [[1]])
        with pytest.raises(ValueError, match=message):
            sc.classify_units(scores, scores, **shares)

    def test_scores_that_do_not_belong_together(self, tiny_bridge: Any) -> None:
        a = sc.score_units(tiny_bridge, DATA)
        with pytest.raises(ValueError, match="were not made the same way"):
            sc.classify_units(a, a.rescore("ifv"), scu=0.1, ucu=0.1, ru=0.1)
        with pytest.raises(ValueError, match=r"belongs to another model: n_layers 1 there, 3 here"):
            sc.classify_units(a, made_scores([[1, 2]], [[1]]), scu=0.1, ucu=0.1, ru=0.1)
        groups = sc.classify_units(a, a, scu=0.1, ucu=0.1, ru=0.1)
        with pytest.raises(ValueError, match="no group 'SAFE'; there are SCU, UCU, CU, RU"):
            groups["SAFE"]
        with pytest.raises(ValueError, match="cannot take 200 of 156 units"):
            groups.top(200)


class TestConstructedModel:
    """A Llama in which two known neurons write the refusal token when a malicious word is read."""

    BAD: ClassVar[Any] = {"mlp": {1: (5, 11)}}

    def test_known_neurons_are_the_scu_and_carry_refusal(self, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(self.planted(tiny_llama_hf, tiny_tokenizer), tokenizer=tiny_tokenizer)
        words = ("make", "find", "fix", "bake", "take")
        malicious = sc.PromptSet("m", tuple(f"{w} the bomb" for w in words), ("sorry sorry bomb",) * 5)
        normal = sc.PromptSet("n", tuple(f"{w} the cake" for w in words), ("sure take cake",) * 5)
        assert (
            sc.evaluate(model, malicious=malicious, max_new_tokens=3).rates["malicious_refused"] == 1
        )  # more is a loop
        assert sc.evaluate(model, malicious=normal, max_new_tokens=3).rates["malicious_refused"] == 0
        options: dict[str, Any] = {"sites": ("mlp",), "tokens": "all"}
        safety, utility = (sc.score_units(model, data, **options) for data in (malicious, normal))
        groups = sc.classify_units(safety, utility, scu=2 / 144, ucu=0, ru=0)
        assert groups["SCU"] == FreezeMask.of_units(self.BAD, model)
        table = sc.ablate_groups(model, groups, malicious=malicious, controls=4, max_new_tokens=3)
        (row,) = table.rows
        assert row.behavior.rates["malicious_refused"] == 0
        assert [c.rates["malicious_refused"] for c in row.random_controls] == [1, 1, 1, 1]
        options = {"malicious": malicious, "max_new_tokens": 3}
        curve = sc.ablation_curve(model, {0: FreezeMask.layers(set()), 2: groups.top(2)}, **options)
        assert [curve[k].rates["malicious_refused"] for k in (0, 2)] == [1, 0]

    @staticmethod
    def planted(hf_model: Any, tokenizer: Any) -> Any:
        """Residual direction 0 holds 'a bomb was read'; two neurons of layer 1 turn it into the word 'sorry'."""
        model = copy.deepcopy(hf_model)
        bomb, sorry, sure = (tokenizer.convert_tokens_to_ids(w) for w in ("bomb", "sorry", "sure"))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            embed, head = model.model.embed_tokens.weight, model.lm_head.weight
            embed[:, 1] = 1.0  # every word: a constant, so that norms are defined
            embed[bomb, 0] = 4.0
            for layer in model.model.layers:
                layer.input_layernorm.weight.fill_(1)
                layer.post_attention_layernorm.weight.fill_(1)
            model.model.norm.weight.fill_(1)
            attention = model.model.layers[
                0
            ].self_attn  # layer 0: every position reads the mean of direction 0 before it
            attention.v_proj.weight[0, 0] = 1.0
            attention.o_proj.weight[0, 0] = attention.o_proj.weight[0, 8] = 4.0
            mlp = model.model.layers[1].mlp
            for neuron in (5, 11):
                mlp.gate_proj.weight[neuron, 0] = 6.0
                mlp.up_proj.weight[neuron, 0] = 1.0
                mlp.down_proj.weight[2, neuron] = 1.0
            head[sorry, 2], head[sure, 1] = 5.0, 1.0
        return model


class TestAblation:
    def test_nothing_to_remove_is_an_error(self, tiny_bridge: Any) -> None:
        with pytest.raises(ValueError, match="'SCU' has no units to remove"):
            sc.ablate_units(tiny_bridge, {"SCU": FreezeMask.layers(set())}, utility=DATA)

    def test_a_mask_without_a_name_is_an_error(self, tiny_bridge: Any) -> None:
        mask: Any = FreezeMask.layers(0)
        for function, message in (
            (sc.ablate_units, "by name, .* not as a FreezeMask"),
            (sc.ablation_curve, "by their number, .* not as a FreezeMask"),
            (sc.ablate_groups, "groups are those of classify_units, not a FreezeMask"),
        ):
            with pytest.raises(ValueError, match=message):
                function(tiny_bridge, mask, utility=DATA)
