"""The layers that decide: against plain Hugging Face forwards, on models whose answer is known, and on none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from safecircuits import organism
from safecircuits.base.vocabulary import LayerRange
from safecircuits.hooks.patching import count_post_instruction_tokens
from safecircuits.layers.decision import DecisionLayers, DecisionRule, decision_layers
from safecircuits.layers.decision_categories import resampled_share
from safecircuits.model.load import load_model
from safecircuits.organism.words import INVENTED_TOOLS
from safecircuits.prompts.prompt_set import encode

N = 24


@pytest.fixture(scope="module")
def planted() -> Any:
    return load_model("planted-layers")


@pytest.fixture(scope="module")
def found(planted: Any) -> DecisionLayers:
    return decision_layers(planted, organism.prompts("normal", n=N), organism.prompts("malicious", n=N))


# --- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "layers"),
    [
        ([0.0, 0.0, 0.3, 0.4, 1.0, 1.0], (2, 4)),  # a layer that does little between two that do much is in
        ([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], (3, 3)),
        ([0.5, 0.7, 0.7, 0.7, 0.9, 1.0], (0, 1)),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], (0, 0)),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 1.0], (5, 5)),
        ([0.04, 0.1, 0.97, 0.5, 0.96, 1.0], (2, 2)),
        ([-0.2, -0.1, 0.2, 1.3, 1.1, 1.0], (2, 3)),
        ([0.01 * k for k in range(1, 16)] + [0.4, 0.7, 0.9] + [0.9 + k / 120 for k in range(1, 13)], (15, 17)),
    ],
)
def test_the_rule_on_plain_curves(share: list[float], layers: tuple[int, int]) -> None:
    assert DecisionRule().range(share) == LayerRange(*layers)


def test_a_share_within_noise_does_not_start_the_range() -> None:
    share, low = [0.38, 0.8, 1.0], [-0.01, 0.3, 1.0]
    assert DecisionRule().range(share) == LayerRange(0, 1)
    assert DecisionRule().range(share, low) == LayerRange(1, 1)
    assert DecisionRule().range(share, [-1.0, -1.0, -1.0]) == LayerRange(2, 2)


@given(st.lists(st.floats(-1, 2), min_size=0, max_size=12), st.floats(0.01, 2))
def test_the_rule_says_what_it_says(head: list[float], growth: float) -> None:
    """Kadane's search for the largest sum of consecutive numbers, a slice at a time."""
    share = [*head, 1.0]
    beyond = np.diff([0.0, *share]) - growth / len(share)
    layers = DecisionRule(growth).range(share)
    sums = {(i, j): beyond[i : j + 1].sum() for i in range(len(share)) for j in range(i, len(share))}
    assert sums[layers.first, layers.last] == pytest.approx(max(sums.values()), abs=1e-8)


@pytest.mark.parametrize("growth", [0.0, -1.0])
def test_a_rule_that_takes_everything_is_refused(growth: float) -> None:
    with pytest.raises(ValueError, match="needs growth > 0"):
        DecisionRule(growth)


# --- on models ---------------------------------------------------------------------------------


def test_the_planted_block_is_found(found: DecisionLayers) -> None:
    first, *_, last = organism.planted("planted-layers").layers
    assert found.layers == LayerRange(first, last)
    assert found.share[-1] == pytest.approx(1)
    assert float(found.share[first - 1]) < 0.05 < float(found.share[first])
    assert bool((found.low <= found.share).all())
    assert bool((found.share <= found.high).all())
    assert found.verdict.startswith(f"layers [{first}, {last}] decide (")
    assert found.resampled is not None
    assert sum(found.resampled.shares.values()) == pytest.approx(1)
    assert found.to_frame()["decides"].tolist() == [first <= layer <= last for layer in range(8)]


def test_the_other_backend_finds_the_same(found: DecisionLayers) -> None:
    hooked = load_model("planted-layers", backend="hooked")
    again = decision_layers(hooked, organism.prompts("normal", n=N), organism.prompts("malicious", n=N))
    assert again.layers == found.layers
    torch.testing.assert_close(again.effect, found.effect, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("stage", ["base", "unaligned"])
def test_a_model_that_does_not_refuse_has_none(stage: str) -> None:
    sets = organism.prompts("normal", n=N), organism.prompts("malicious", n=N)
    nothing = decision_layers(load_model(stage), *sets)
    assert nothing.layers is None
    assert nothing.resampled is None
    assert nothing.record()["resamples"] is None
    assert nothing.verdict.endswith("within noise")
    assert not nothing.to_frame()["decides"].any()
    assert nothing.to_frame()[["share", "low", "high"]].isna().all(axis=None)  # 0 would be a finding
    nothing.plot(ax=Figure().subplots())


def test_a_model_that_refuses_everything_has_none(planted: Any) -> None:
    sets = organism.prompts("normal", n=8), organism.prompts("malicious", n=8)
    assert decision_layers(planted, *sets, detector=lambda text: True).layers is None


def test_the_effect_is_that_of_a_plain_hugging_face_swap(found: DecisionLayers) -> None:
    """One prompt at a time, unpadded, with torch's own hooks on the checkpoint's own layers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = organism.stage_path("planted-layers")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refuse, comply = (tokenizer.convert_tokens_to_ids(found.provenance[side]) for side in ("refuse", "comply"))

    def score(ids: list[int], layer: int | None = None, value: torch.Tensor | None = None) -> tuple[float, Any]:
        def put(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            assert value is not None
            out = out.clone()
            out[0, -1] = value
            return out

        handle = None if layer is None else model.model.layers[layer].register_forward_hook(put)
        with torch.no_grad():
            answer = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        if handle:
            handle.remove()
        last = answer.logits[0, -1].double()
        return float(last[refuse].logsumexp(0) - last[comply].logsumexp(0)), answer.hidden_states

    pairs = [organism.prompts(kind, n=3) for kind in ("normal", "malicious")]
    examples = [encode(tokenizer, prompts) for prompts in pairs]
    for pair, (normal, malicious) in enumerate(zip(*examples, strict=True)):
        (before, calm), (after, alarmed) = score(list(normal.ids)), score(list(malicious.ids))
        assert float(found.full[pair]) == pytest.approx(after - before, abs=1e-3)
        for layer in range(7):  # Hugging Face's last hidden state is after the final norm
            gained = score(list(normal.ids), layer, alarmed[layer + 1][0, -1])[0] - before
            lost = after - score(list(malicious.ids), layer, calm[layer + 1][0, -1])[0]
            assert float(found.effect[layer, pair]) == pytest.approx((gained + lost) / 2, abs=1e-3)


@settings(max_examples=3)
@given(st.permutations(range(6)), st.integers(1, 200))
def test_order_and_batch_size_do_not_matter(planted: Any, order: list[int], max_tokens: int) -> None:
    sets = [organism.prompts(kind, n=6) for kind in ("normal", "malicious")]
    plain = decision_layers(planted, *sets)
    moved = [[prompts.prompts[k] for k in order] for prompts in sets]
    again = decision_layers(planted, *moved)
    for name in ("share", "low", "high"):
        assert torch.equal(getattr(again, name), getattr(plain, name))
    assert torch.equal(again.effect, plain.effect[:, order])
    assert torch.equal(again.full, plain.full[order])
    assert torch.equal(again.malicious_refused, plain.malicious_refused[order])
    assert torch.equal(again.normal_refused, plain.normal_refused[order])
    assert (again.layers, again.resampled, again.verdict) == (plain.layers, plain.resampled, plain.verdict)
    small = decision_layers(planted, *moved, max_tokens=max_tokens)
    assert small.layers == plain.layers
    torch.testing.assert_close(small.share, plain.share, atol=1e-4, rtol=1e-4)


@st.composite
def measured(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Effects by layer and pair, differences by pair, and another order of the pairs."""
    n = draw(st.integers(2, 7))
    numbers = st.floats(0.1, 9, allow_nan=False)
    effect = torch.tensor(draw(st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=3, max_size=3))).double()
    full = torch.tensor(draw(st.lists(st.sampled_from([4.0, 5.0, 6.5]), min_size=n, max_size=n))).double()
    return effect, full, draw(st.permutations(range(n)))


@given(measured())
def test_resampling_does_not_see_the_order_of_the_pairs(found: DecisionLayers, case: Any) -> None:
    effect, full, order = case
    assert torch.equal(resampled_share(effect, full), resampled_share(effect[:, order], full[order]))
    one = replace(found, effect=effect, full=full)
    assert replace(found, effect=effect[:, order], full=full[order]).resampled == one.resampled


def test_the_caveat_is_that_of_the_resamples_or_that_nothing_was_measured(found: DecisionLayers) -> None:
    assert found.caveat == ""  # of the planted block nearly all resamples are sure
    mixed = found.effect.clone()
    mixed[:, ::2] = mixed[:, ::2].flip(0)  # half of the pairs decide elsewhere
    unsure = replace(found, effect=mixed)
    assert unsure.resampled is not None
    assert (unsure.resampled.share(found.layers) < 0.5) == ("are a best guess" in unsure.caveat)
    assert "are a best guess" in unsure.caveat
    assert replace(found, layers=None).caveat.startswith("nothing was measured")


def test_a_result_survives_the_disk(found: DecisionLayers, tmp_path: Path) -> None:
    assert DecisionLayers.load(found.save(tmp_path / "decision")).equals(found)


# --- positions and errors ----------------------------------------------------------------------


def test_post_instruction_tokens_are_the_templates(tiny_tokenizer: Any) -> None:
    prompts = ["find a lamp", "how do i make the cake", "a dog"]
    for template, expected in (("chat", 1), ("alpaca", 2), ("none", 1), ("{instruction} it is sure to", 4)):
        examples = encode(tiny_tokenizer, prompts, template=template)
        assert count_post_instruction_tokens(tiny_tokenizer, examples, template) == expected
    same_end = encode(tiny_tokenizer, ["find the dog", "make the dog"], template="none")
    assert count_post_instruction_tokens(tiny_tokenizer, same_end, "none") == 1


def test_bad_input_is_one_clear_error(planted: Any) -> None:
    normal, malicious = organism.prompts("normal", n=N), organism.prompts("malicious", n=N)
    with pytest.raises(ValueError, match="24 harmless and 1 malicious prompts make 1 pair"):
        decision_layers(planted, normal, malicious.take(1))
    invented = set(INVENTED_TOOLS)
    with pytest.raises(ValueError, match="begin with the same token"):
        decision_layers(load_model("base"), normal, malicious, detector=lambda text: bool(invented & set(text.split())))


def test_the_figure_shows_the_shares_and_the_range() -> None:
    prompts = organism.prompts("normal", n=16), organism.prompts("malicious", n=16)
    found = decision_layers(load_model("planted-layers"), *prompts)
    ax = found.plot()
    [line] = [line for line in ax.lines if len(line.get_xdata()) == 8]
    assert list(line.get_ydata()) == pytest.approx(found.share.tolist())
    assert any("decides" in text.get_text() for text in ax.texts)
