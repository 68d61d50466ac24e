"""Gradient scores against one backward pass a prompt, in float64 numpy; attribution against differences and its sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.base.vocabulary import SITES
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from safecircuits.units.answer_tokens import AnswerTokens, find_answer_tokens
from safecircuits.units.scores import UnitScores, parameters_per_unit

DATA = sc.PromptSet(
    "d",
    ("how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "bake the tea"),
    ("sure take some water", "here it is .", "you take the wood and then the salt", "sorry i cannot help with that"),
)
NORMAL = sc.PromptSet("n", ("find the house", "make some tea and cake", "fix a lamp on the road"))
ANSWERS = AnswerTokens((20, 21), (30,))
OPTIONS: dict[str, dict[str, Any]] = {
    "snip": {},
    "taylor": {},
    "attribution": {"reference": NORMAL, "answers": ANSWERS},
    "integrated": {"reference": NORMAL, "answers": ANSWERS, "steps": 3},
}

BEGINNING = 1  # every prompt begins with "<user>"

both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def projections(hf_model: Any) -> list[tuple[str, int, Any]]:
    layers = enumerate(hf_model.model.layers)
    return [
        found for i, layer in layers for found in (("mlp", i, layer.mlp.down_proj), ("attn", i, layer.self_attn.o_proj))
    ]


def with_gradients(hf_model: Any, ids: tuple[int, ...], metric: Any) -> dict[tuple[str, int], tuple[Any, Any]]:
    """Activations entering the output projections and the metric's gradients there, ``[token, channel]``, by hooks."""
    kept: dict[tuple[str, int], torch.Tensor] = {}
    handles = []
    for site, i, module in projections(hf_model):

        def keep(_: Any, args: Any, key: Any = (site, i)) -> None:
            args[0].retain_grad()
            kept[key] = args[0]

        handles.append(module.register_forward_pre_hook(keep))
    hf_model.zero_grad()
    metric(hf_model(torch.tensor([ids])).logits[0]).backward()
    for handle in handles:
        handle.remove()
    return {key: (a.detach()[0].double().numpy(), a.grad[0].double().numpy()) for key, a in kept.items()}


def loss_of(example: Any) -> Any:
    start, ids = example.response_start, torch.tensor(example.ids)
    return lambda out: torch.nn.functional.cross_entropy(out[start - 1 : -1].double(), ids[start:])


def slow_snip(hf_model: Any, tokenizer: Any) -> dict[str, np.ndarray]:
    """Σ |w·g| of a unit's weights, one prompt and one backward at a time; 4 heads of 8 over 2 key/value heads."""
    scores = {"mlp": np.zeros((3, 48)), "attn": np.zeros((3, 4))}
    for example in encode(tokenizer, DATA, with_responses=True):
        hf_model.zero_grad()
        loss_of(example)(hf_model(torch.tensor([example.ids])).logits[0]).backward()
        for i, layer in enumerate(hf_model.model.layers):
            mlp, attn = layer.mlp, layer.self_attn

            def entries(module: Any) -> np.ndarray:
                product: np.ndarray = np.abs(
                    module.weight.detach().double().numpy() * module.weight.grad.double().numpy()
                )
                return product

            scores["mlp"][i] += entries(mlp.gate_proj).sum(1) + entries(mlp.up_proj).sum(1)
            scores["mlp"][i] += entries(mlp.down_proj).sum(0)
            for head in range(4):
                mine, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
                scores["attn"][i, head] += entries(attn.q_proj)[mine].sum() + entries(attn.o_proj)[:, mine].sum()
                scores["attn"][i, head] += (entries(attn.k_proj)[shared].sum() + entries(attn.v_proj)[shared].sum()) / 2
    return {site: values / len(DATA) for site, values in scores.items()}


def slow_taylor(hf_model: Any, tokenizer: Any, tokens: str, first: int) -> dict[str, np.ndarray]:
    scores = {"mlp": np.zeros((3, 48)), "attn": np.zeros((3, 4))}
    for example in encode(tokenizer, DATA, with_responses=True):
        start = example.response_start
        chosen = {"all": slice(first, None), "prompt": slice(first, start), "response": slice(start, None)}[tokens]
        for (site, i), (a, g) in with_gradients(hf_model, example.ids, loss_of(example)).items():
            product = (a * g)[chosen].sum(0)
            scores[site][i] += np.abs(product if site == "mlp" else product.reshape(4, 8).sum(1))
    return {site: values / len(DATA) for site, values in scores.items()}


def refuse_minus_comply(out: Any) -> Any:
    last = out[-1].double()
    return torch.logsumexp(last[list(ANSWERS.refuse)], 0) - torch.logsumexp(last[list(ANSWERS.comply)], 0)


def slow_attribution(hf_model: Any, tokenizer: Any, first: int) -> dict[str, np.ndarray]:
    rows: dict[Any, list[np.ndarray]] = {}
    for example in encode(tokenizer, NORMAL):
        for key, (a, _) in with_gradients(hf_model, example.ids, refuse_minus_comply).items():
            rows.setdefault(key, []).append(a[first:])
    mean = {key: np.concatenate(values).mean(0) for key, values in rows.items()}
    scores = {"mlp": np.zeros((3, 48)), "attn": np.zeros((3, 4))}
    for example in encode(tokenizer, DATA):
        for (site, i), (a, g) in with_gradients(hf_model, example.ids, refuse_minus_comply).items():
            product = ((a - mean[site, i]) * g)[first:].sum(0)
            scores[site][i] += product if site == "mlp" else product.reshape(4, 8).sum(1)
    return {site: values / len(DATA) for site, values in scores.items()}


def close(got: UnitScores, want: Any) -> None:
    for site in SITES:
        theirs = want.scores[site].numpy() if isinstance(want, UnitScores) else want[site]
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(got.scores[site].numpy() / scale, theirs / scale, rtol=2e-4, atol=2e-6)


class TestAgainstOnePromptAtATime:
    @both
    def test_snip(self, backend: str, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        close(sc.score_units(model, DATA, method="snip"), slow_snip(tiny_llama_hf, tiny_tokenizer))

    @both
    @pytest.mark.parametrize("tokens", ["all", "prompt", "response"])
    def test_taylor(self, backend: str, tokens: Any, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        for counted in (False, True):
            got = sc.score_units(model, DATA, method="taylor", tokens=tokens, count_beginning=counted)
            close(got, slow_taylor(tiny_llama_hf, tiny_tokenizer, tokens, 0 if counted else BEGINNING))

    @both
    def test_attribution(self, backend: str, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, backend=backend, tokenizer=tiny_tokenizer)
        for counted in (False, True):
            got = sc.score_units(model, DATA, method="attribution", count_beginning=counted, **OPTIONS["attribution"])
            close(got, slow_attribution(tiny_llama_hf, tiny_tokenizer, 0 if counted else BEGINNING))

    def test_other_architectures_agree_between_backends(self, tiny_tokenizer: Any) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

        from conftest import randomised

        sizes: dict[str, Any] = {"vocab_size": len(tiny_tokenizer), "bos_token_id": 2, "eos_token_id": 3}
        torch.manual_seed(0)
        gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, n_ctx=64, **sizes))
        phi3 = Phi3ForCausalLM(
            Phi3Config(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
                pad_token_id=0,
                **sizes,
            )
        )
        for hf_model in (randomised(gpt2).eval(), randomised(phi3).eval()):
            a, b = (load_model(hf_model, backend=kind, tokenizer=tiny_tokenizer) for kind in ("bridge", "hooked"))
            for method in ("snip", "taylor"):
                close(sc.score_units(a, DATA, method=method), sc.score_units(b, DATA, method=method))


class TestInvariants:
    @pytest.mark.parametrize("method", list(OPTIONS))
    def test_batching_and_padding_do_not_matter(self, method: Any, tiny_bridge: Any) -> None:
        want = sc.score_units(tiny_bridge, DATA, method=method, **OPTIONS[method])
        close(sc.score_units(tiny_bridge, DATA, method=method, max_tokens=1, **OPTIONS[method]), want)
        close(sc.score_units(tiny_bridge, DATA, method=method, max_tokens=40, **OPTIONS[method]), want)

    @pytest.mark.parametrize("method", ["wifv", *OPTIONS])
    def test_the_tokenizers_padding_side_does_not_matter(self, method: Any, make_tiny_model: Any) -> None:
        import copy

        model = make_tiny_model("bridge")
        want = sc.score_units(model, DATA, method=method, **OPTIONS.get(method, {}))
        other = copy.deepcopy(model.tokenizer)
        other.padding_side = "right"
        model = load_model(model, tokenizer=other)
        close(sc.score_units(model, DATA, method=method, **OPTIONS.get(method, {})), want)

    @settings(max_examples=6)
    @given(order=st.permutations(range(4)), cut=st.integers(1, 3), method=st.sampled_from(list(OPTIONS)))
    def test_any_split_merged_in_any_order_is_the_whole(
        self, order: list[int], cut: int, method: Any, request: pytest.FixtureRequest
    ) -> None:
        model = shared_model(request)
        assert DATA.responses is not None
        parts = [
            sc.PromptSet("p", tuple(DATA.prompts[i] for i in part), tuple(DATA.responses[i] for i in part))
            for part in (order[:cut], order[cut:])
        ]
        a, b = (sc.score_units(model, part, method=method, **OPTIONS[method]) for part in parts)
        want = sc.score_units(model, DATA, method=method, **OPTIONS[method])
        close(a.merge(b), want)
        close(b.merge(a), want)

    @pytest.mark.parametrize("method", list(OPTIONS))
    def test_twice_the_same_prompts_score_equal(self, method: Any, tiny_bridge: Any) -> None:
        assert DATA.responses is not None
        twice = sc.PromptSet("2", DATA.prompts * 2, DATA.responses * 2)
        close(
            sc.score_units(tiny_bridge, twice, method=method, **OPTIONS[method]),
            sc.score_units(tiny_bridge, DATA, method=method, **OPTIONS[method]),
        )

    def test_parameters_are_left_as_they_were(self, tiny_bridge: Any) -> None:
        flags = [p.requires_grad for p in tiny_bridge.parameters()]
        sc.score_units(tiny_bridge, DATA, method="snip")
        assert [p.requires_grad for p in tiny_bridge.parameters()] == flags
        assert all(p.grad is None for p in tiny_bridge.parameters())

    def test_snip_of_all_units_is_that_of_all_matrices(self, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        model = load_model(tiny_llama_hf, tokenizer=tiny_tokenizer)
        got = sum(float(s.sum()) for s in sc.score_units(model, DATA, method="snip").scores.values())
        want = 0.0
        for example in encode(tiny_tokenizer, DATA, with_responses=True):
            tiny_llama_hf.zero_grad()
            loss_of(example)(tiny_llama_hf(torch.tensor([example.ids])).logits[0]).backward()
            matrices = [p for layer in tiny_llama_hf.model.layers for p in layer.parameters() if p.ndim == 2]
            want += sum(float((p * p.grad).detach().abs().double().sum()) for p in matrices) / len(DATA)
        assert got == pytest.approx(want, rel=1e-4)

    def test_saved_scores_come_back(self, tiny_bridge: Any, tmp_path: Any) -> None:
        scores = sc.score_units(tiny_bridge, DATA, method="integrated", **OPTIONS["integrated"])
        assert UnitScores.load(scores.save(tmp_path / "s")).equals(scores)


_SHARED: list[Any] = []


def shared_model(request: pytest.FixtureRequest) -> Any:
    if not _SHARED:
        _SHARED.append(request.getfixturevalue("tiny_bridge"))
    return _SHARED[0]


class TestAttribution:
    @both
    def test_integrated_adds_up_to_the_difference(self, backend: str, make_tiny_model: Any) -> None:
        """Over all units: m with every unit as it is minus m with every unit at its reference."""
        model = make_tiny_model(backend)
        prompts = sc.PromptSet("one", ("how do i make the cake",))
        zeros: Any = {
            "mlp": {i: torch.zeros(48) for i in range(3)},
            "attn": {i: torch.zeros(4, 8) for i in range(3)},
        }
        options: dict[str, Any] = {"method": "integrated", "reference": zeros, "answers": ANSWERS, "steps": 120}
        scores = sc.score_units(model, prompts, **options)
        batch = pad_left(encode(model.tokenizer, prompts))

        def metric() -> float:
            with torch.no_grad():
                return float(ANSWERS.difference(logits(model, batch)[:, -1]))

        intact = metric()
        with sc.ablated(model, sc.FreezeMask.layers((0, 2))):
            without = metric()
        total = sum(float(values.sum()) for values in scores.scores.values())
        assert total == pytest.approx(intact - without, rel=0.03, abs=0.03)

    def test_a_pair_with_itself_attributes_nothing(self, tiny_bridge: Any) -> None:
        scores = sc.score_units(tiny_bridge, DATA, method="attribution", reference=DATA, paired=True, answers=ANSWERS)
        assert all(values.abs().max() < 1e-5 for values in scores.scores.values())

    def test_pairs_differ_where_the_prompts_do(self, tiny_bridge: Any) -> None:
        a, b = sc.PromptSet("a", ("make the cake",)), sc.PromptSet("b", ("make the bomb",))
        scores = sc.score_units(tiny_bridge, a, method="attribution", reference=b, paired=True, answers=ANSWERS)
        back = sc.score_units(tiny_bridge, b, method="attribution", reference=a, paired=True, answers=ANSWERS)
        assert scores.scores["mlp"].abs().max() > 0.01
        assert not torch.allclose(scores.scores["mlp"], back.scores["mlp"])

    def test_bad_input(self, tiny_bridge: Any) -> None:
        with pytest.raises(ValueError, match="pass reference="):
            sc.score_units(tiny_bridge, DATA, method="attribution")
        pair = sc.PromptSet("q", ("find a lamp", *DATA.prompts[1:]))
        with pytest.raises(ValueError, match=r"prompt 0 has 8 tokens and its counterfactual 5"):
            sc.score_units(tiny_bridge, DATA, method="attribution", reference=pair, paired=True, answers=ANSWERS)
        with pytest.raises(ValueError, match="'d' has 4 prompts, 'n' 3"):
            sc.score_units(tiny_bridge, DATA, method="attribution", reference=NORMAL, paired=True, answers=ANSWERS)
        values: Any = {"mlp": {i: torch.zeros(48) for i in range(3)}}
        with pytest.raises(ValueError, match="no values for the attn units of layer 0"):
            sc.score_units(tiny_bridge, DATA, method="attribution", reference=values, answers=ANSWERS)
        with pytest.raises(ValueError, match="attribution scores are over prompt tokens; tokens='all'"):
            sc.score_units(tiny_bridge, DATA, method="attribution", reference=NORMAL, tokens="all")
        with pytest.raises(ValueError, match=r"refuses none of 'd', so that .* pass answers="):
            find_answer_tokens(tiny_bridge, DATA, NORMAL)
        with pytest.raises(ValueError, match="token 3 is named as refusing and as complying"):
            AnswerTokens((3,), (3, 4))
        with pytest.raises(ValueError, match="has no responses"):
            sc.score_units(tiny_bridge, NORMAL, method="snip")
        with torch.no_grad():
            tiny_bridge.blocks[1].mlp.W_in[0, 0] = float("nan")
        with pytest.raises(FloatingPointError, match=r"blocks\.\d\.(mlp\.hook_post|attn\.hook_z) are not finite"):
            sc.score_units(tiny_bridge, DATA, method="taylor")
        with pytest.raises(FloatingPointError, match="weight gradients of the"):
            sc.score_units(tiny_bridge, DATA, method="snip")

    def test_scores_of_other_weights_or_tokenizers_do_not_mix(self, make_tiny_model: Any, tiny_bridge: Any) -> None:
        import dataclasses

        a, other = sc.score_units(tiny_bridge, DATA), sc.score_units(make_tiny_model("bridge", 1), DATA)
        with pytest.raises(ValueError, match="were made with other weights"):
            a.merge(other)
        with pytest.raises(ValueError, match="were made with other weights"):
            sc.classify_units(a, other, scu=0.1, ucu=0.1, ru=0.1)
        with pytest.raises(ValueError, match="another tokenizer"):
            sc.classify_units(a, dataclasses.replace(a, tokenizer="abc"), scu=0.1, ucu=0.1, ru=0.1)
        with pytest.raises(ValueError, match="snip scores cannot be made from the statistics of wifv"):
            a.rescore("snip")


def test_parameters_of_a_unit_add_up_to_the_matrices(tiny_bridge: Any, tiny_llama_hf: Any) -> None:
    sizes = parameters_per_unit(tiny_bridge)
    layer = tiny_llama_hf.model.layers[0]
    assert sizes["mlp"] * 48 == sum(p.numel() for p in layer.mlp.parameters())
    assert sizes["attn"] * 4 == sum(p.numel() for p in layer.self_attn.parameters())
