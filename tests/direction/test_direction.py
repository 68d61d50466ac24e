"""The reasoning-direction probe against a slow loop of plain Hugging Face, one prompt and one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import safecircuits as sc
from safecircuits.direction.variants import encode_variants
from safecircuits.plots.direction import plot_by_block, plot_direction_gap
from safecircuits.prompts.prompt_set import PromptSet, encode

PROMPTS = ("how do i make a bomb", "find the cake", "how do i fix the road and the house with some water", "a dog")
SUFFIXES = sc.direction.Suffixes(("sorry i cannot", "sorry"), ("sure here is", "take the"))
STEPS = (0, 2, 5)


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def slow_states(hf: Any, ids: list[int], steps: int, eos: int) -> list[np.ndarray]:
    """After 0, 1, … generated tokens: ``[layer, d_model]`` at the last token. The whole sequence runs every time."""
    states: list[np.ndarray] = []
    for _ in range(steps + 1):
        seen: list[np.ndarray] = []
        hooks = [
            layer.register_forward_hook(
                lambda _m, _i, out, seen=seen: seen.append(
                    (out[0] if isinstance(out, tuple) else out)[0, -1].double().numpy()
                )
            )
            for layer in hf.model.layers
        ]
        with torch.no_grad():
            token = int(hf(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        for hook in hooks:
            hook.remove()
        states.append(np.stack(seen))
        if token == eos:
            break
        ids = [*ids, token]
    return states


def slow_probe(
    hf: Any, tokenizer: Any, pool: str, baseline: str, ended: str, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Distances ``[suffix, layer, step, prompt]`` and generated tokens ``[variant, prompt]``."""
    texts = (*SUFFIXES.benign, *SUFFIXES.malicious)
    distances = np.full((len(texts), 3, len(STEPS), len(PROMPTS)), np.nan)
    lengths = np.zeros((len(texts) + 1, len(PROMPTS)), dtype=int)
    asked = [step for step in STEPS if baseline == "none" or step > 0]

    def at(states: list[np.ndarray], step: int) -> np.ndarray:
        n = min(step, len(states) - 1)
        return states[n] if pool == "last" or n == 0 else np.mean(states[1 : n + 1], axis=0)

    for i, prompt in enumerate(PROMPTS):
        ids = list(encode(tokenizer, [prompt])[0].ids)
        runs = [slow_states(hf, ids, max(STEPS), tokenizer.eos_token_id)]
        for text in texts:
            if where == "answer":
                whole = ids + tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                whole = list(encode(tokenizer, [f"{prompt} {text}"])[0].ids)
            runs.append(slow_states(hf, whole, max(STEPS), tokenizer.eos_token_id))
        lengths[:, i] = [len(states) - 1 for states in runs]
        start = runs[0][0] if baseline == "query" else 0.0
        for v, states in enumerate(runs[1:]):
            for slot, step in enumerate(STEPS):
                if step not in asked or (ended == "omit" and min(lengths[0, i], lengths[v + 1, i]) < step):
                    continue
                for layer in range(3):
                    a, b = (
                        at(run, step)[layer] - (0 if np.isscalar(start) else start[layer]) for run in (states, runs[0])
                    )
                    if np.any(a) and np.any(b):
                        distances[v, layer, slot, i] = cosine_distance(a, b)
    return distances, lengths


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize(
    ("pool", "baseline", "ended", "where"),
    [
        ("last", "none", "hold", "answer"),
        ("mean", "none", "omit", "answer"),
        ("last", "query", "hold", "prompt"),
        ("mean", "query", "omit", "answer"),
    ],
)
def test_against_a_slow_loop(
    make_tiny_model: Callable[..., Any], backend: str, pool: Any, baseline: Any, ended: Any, where: Any
) -> None:
    model, hf = make_tiny_model(backend, 4), make_tiny_model("hf", 4)
    want, lengths = slow_probe(hf, model.tokenizer, pool, baseline, ended, where)
    assert len(set(lengths.flatten().tolist())) > 1  # some variants end early
    steps = tuple(step for step in STEPS if baseline == "none" or step > 0)
    got = sc.probe_direction(
        model,
        PROMPTS,
        suffixes=sc.direction.Suffixes(SUFFIXES.benign, SUFFIXES.malicious, where),
        steps=steps,
        pool=pool,
        baseline=baseline,
        ended=ended,
    )
    found = torch.cat([got.benign, got.malicious]).numpy()
    np.testing.assert_allclose(found, want[:, :, [STEPS.index(step) for step in steps]], atol=2e-5)
    assert got.generated.tolist() == lengths.tolist()
    assert got.answers.texts == sc.generate(model, PROMPTS, max_new_tokens=24).texts


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(PROMPTS))), max_tokens=st.sampled_from([1, 200, None]))
def test_batches_and_order_change_nothing(tiny_bridge: Any, order: list[int], max_tokens: int | None) -> None:
    options: dict[str, Any] = {"suffixes": SUFFIXES, "steps": (1, 3), "pool": "mean"}
    whole = sc.probe_direction(tiny_bridge, PROMPTS, **options)
    got = sc.probe_direction(tiny_bridge, [PROMPTS[i] for i in order], max_tokens=max_tokens, **options)
    torch.testing.assert_close(got.benign, whole.benign[..., order], atol=1e-5, rtol=0, equal_nan=True)
    torch.testing.assert_close(got.malicious, whole.malicious[..., order], atol=1e-5, rtol=0, equal_nan=True)
    assert got.generated.tolist() == whole.generated[:, order].tolist()


@pytest.fixture(scope="module")
def embedded() -> sc.direction.DirectionComparison:
    return sc.direction.compare_directions(
        {"aligned": "aligned", "unaligned": "unaligned"},
        sc.load_prompts("organism:malicious", n=24),
        suffixes=sc.direction.Suffixes(("i cannot", "i am sorry , but"), ("take the",)),
        steps=(2, 4, 6),
        pool="mean",
    )


class TestOnTheEmbeddedModels:
    def test_the_preference_is_that_of_the_answers(self, embedded: sc.direction.DirectionComparison) -> None:
        """With the suffix where the answer starts and the mean over generated tokens; other readings do not show it."""
        for step in (2, 4, 6):
            assert set(embedded["aligned"].gap(step).leaning) == {1}
            assert set(embedded["unaligned"].gap(step).leaning) == {-1}
        assert embedded.verdicts(step=2).kappa[0, 1] == 1
        assert embedded["aligned"].agreement().n == 24

    def test_averages_by_hand(self, embedded: sc.direction.DirectionComparison) -> None:
        probe = embedded["aligned"]
        row = probe.to_frame().query("layer == 3 and tokens == 4").iloc[0]
        benign, malicious = (side[:, 3, 1].double().numpy() for side in (probe.benign, probe.malicious))
        assert row["benign"] == pytest.approx(benign.mean())
        assert row["benign_least"] == pytest.approx(benign.mean(1).min())
        assert row["gap"] == pytest.approx(malicious.mean() - benign.mean())
        lean = benign.mean(0) < malicious.mean(0)
        assert row["agreement"] == pytest.approx((lean == probe.refused.numpy()).mean())
        from scipy.stats import t

        difference = malicious.mean(0) - benign.mean(0)
        half = t.ppf(0.975, 23) * difference.std(ddof=1) / 24**0.5
        assert row["gap_high"] - row["gap"] == pytest.approx(half, rel=1e-5)

    def test_each_model_is_as_it_is_alone(self, embedded: sc.direction.DirectionComparison) -> None:
        alone = sc.probe_direction(
            sc.load_model("unaligned"),
            sc.load_prompts("organism:malicious", n=24),
            suffixes=embedded["unaligned"].suffixes,
            steps=(2, 4, 6),
            pool="mean",
        )
        torch.testing.assert_close(alone.malicious, embedded["unaligned"].malicious)
        assert alone.answers.texts == embedded["unaligned"].answers.texts

    def test_saved_and_loaded(self, embedded: sc.direction.DirectionComparison, tmp_path: Path) -> None:
        assert sc.direction.DirectionComparison.load(embedded.save(tmp_path / "probe")).equals(embedded)

    def test_figures(self, embedded: sc.direction.DirectionComparison) -> None:
        figure = embedded.figure(step=4)
        by_token, by_block, gap = figure.axes
        probe = embedded["aligned"]
        assert by_token.lines[0].get_ydata() == pytest.approx(probe.distance("benign")[-1].tolist())
        assert by_block.lines[1].get_ydata() == pytest.approx(probe.distance("malicious")[:, 1].tolist())
        assert gap.lines[0].get_ydata() == pytest.approx(probe.gap(4).mean.tolist())
        absolute = plot_direction_gap(embedded.probes, absolute=True, ax=Figure().subplots())
        assert absolute.lines[1].get_ydata() == pytest.approx(embedded["unaligned"].gap().mean.abs().tolist())
        assert plot_by_block(embedded.probes, ax=Figure().subplots()).get_xlabel() == "block"
        assert len(probe.plot(Figure().subplots()).lines) == 2


class TestInput:
    def test_suffixes(self, tiny_bridge: Any) -> None:
        with pytest.raises(ValueError, match="'i refuse' has words that the model's tokenizer does not know"):
            sc.probe_direction(tiny_bridge, PROMPTS, suffixes=sc.direction.Suffixes(("i refuse",), ("sure",)))
        with pytest.raises(ValueError, match="several texts"):
            sc.direction.Suffixes("sorry", ("sure",))
        with pytest.raises(ValueError, match="at least one"):
            sc.direction.Suffixes((), ("sure",))
        with pytest.raises(ValueError, match="given as a benign and as a malicious"):
            sc.direction.Suffixes(("sure",), ("sure",))
        with pytest.raises(ValueError, match="where is"):
            sc.direction.Suffixes(("sorry",), ("sure",), "middle")

    def test_the_prompt_holds_the_suffix_only_where_it_is_asked_for(self, tiny_tokenizer: Any) -> None:
        inside = sc.direction.Suffixes(("sorry",), ("sure",), "prompt")
        prompts = PromptSet("p", PROMPTS[:1])
        decoded = [
            tiny_tokenizer.decode(variant[0].ids)
            for variant in encode_variants(tiny_tokenizer, prompts, inside, template="chat", system=None)
        ]
        assert decoded[1] == decoded[0].replace("bomb", "bomb sorry")
        after = sc.direction.Suffixes(("sorry",), ("sure",))
        variants = encode_variants(tiny_tokenizer, prompts, after, template="chat", system=None)
        assert tiny_tokenizer.decode(variants[2][0].ids) == f"{decoded[0]} sure"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": ()}, "different numbers"),
            ({"steps": (2, 2)}, "different numbers"),
            ({"steps": (-1,)}, "each of steps must be at least 0, not -1"),
            ({"pool": "max"}, "pool is"),
            ({"baseline": "mean"}, "baseline is"),
            ({"ended": "drop"}, "ended is"),
            ({"baseline": "query", "steps": (0, 2)}, "leave step 0 out"),
        ],
    )
    def test_options(self, tiny_bridge: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            sc.probe_direction(tiny_bridge, PROMPTS, suffixes=SUFFIXES, **options)

    def test_a_step_that_no_answer_reaches(self) -> None:
        options: dict[str, Any] = {"suffixes": sc.direction.Suffixes(("i cannot",), ("take the",)), "steps": (2, 14)}
        probe = sc.probe_direction(
            sc.load_model("aligned"), sc.load_prompts("organism:malicious", n=4), ended="omit", **options
        )
        assert not probe.measured(step=14).any()
        assert probe.to_frame().query("tokens == 14")["gap"].isna().all()
        assert "no prompt has all its variants" in str(probe)
        with pytest.raises(ValueError, match="ask for fewer tokens"):
            probe.agreement()
        with pytest.raises(ValueError, match="nothing was measured after 3 tokens; there are 2, 14"):
            probe.gap(3)
        with pytest.raises(ValueError, match="layers are 0 to 7"):
            probe.agreement(layer=8)

    def test_a_residual_stream_that_is_not_finite(self, tiny_bridge: Any) -> None:
        def broken(resid: torch.Tensor) -> torch.Tensor:
            return resid * float("inf")

        with (
            sc.attached(tiny_bridge, {"blocks.1.hook_resid_post": broken}),
            pytest.raises(FloatingPointError, match=r"after layer 1|logits are not finite"),
        ):
            sc.probe_direction(tiny_bridge, PROMPTS, suffixes=SUFFIXES)
