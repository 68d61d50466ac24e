"""Gap curves against plain numpy over every pair; the onset rule on curves whose answer is plain."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safecircuits.base.notices import Notice
from safecircuits.base.vocabulary import LayerRange
from safecircuits.hooks.collect import Residuals
from safecircuits.layers.onset import OnsetRule, find_onset, search_start
from safecircuits.layers.pairs import paper_pairs
from safecircuits.layers.similarity import compare, gap_of_cosines, layer_gap
from safecircuits.prompts.prompt_set import PromptSet

_names = itertools.count()


def residuals(values: torch.Tensor) -> Residuals:
    """Of prompts that no other set shares."""
    n_layers, n = values.shape[:2]
    name = f"set {next(_names)}"
    return Residuals(values, tuple(range(n_layers)), PromptSet(name, tuple(f"{name} prompt {i}" for i in range(n))))


def by_hand(u: np.ndarray, v: np.ndarray | None) -> tuple[float, float, float]:
    """Mean and deviation of the cosine and mean angle over every pair, one pair at a time, in float64."""
    cosines = []
    for i in range(len(u)):
        others = [u[j] for j in range(i + 1, len(u))] if v is None else list(v)
        for w in others:
            cosines.append(float(u[i] @ w / np.sqrt(u[i] @ u[i]) / np.sqrt(w @ w)))
    c = np.array(cosines)
    return c.mean(), c.std(), np.degrees(np.arccos(np.clip(c, -1, 1))).mean()


@settings(max_examples=25)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(2, 9), st.integers(0, 10_000))
def test_closed_forms_equal_every_pair_by_hand(n: int, m: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(2, n, d, generator=generator) + 1
    malicious = torch.randn(2, m, d, generator=generator) - 0.5
    gap = compare(residuals(normal), residuals(malicious))
    for layer in range(2):
        a, b = normal[layer].double().numpy(), malicious[layer].double().numpy()
        for curve, want in ((gap.nn, by_hand(a, None)), (gap.mm, by_hand(b, None)), (gap.nm, by_hand(a, b))):
            got = (float(curve.mean[layer]), float(curve.std[layer]), float(curve.angle_deg[layer]))
            assert got == pytest.approx(want, abs=1e-6)
        assert float(gap.gap_deg[layer]) == pytest.approx(by_hand(a, b)[2] - by_hand(a, None)[2], abs=1e-6)


def test_code_formula_takes_the_angle_of_the_mean() -> None:
    n, m = torch.randn(1, 5, 4) + 1, torch.randn(1, 6, 4) - 1
    gap = compare(residuals(n), residuals(m), formula="code")
    nm, nn = by_hand(n[0].double().numpy(), m[0].double().numpy()), by_hand(n[0].double().numpy(), None)
    assert float(gap.gap_deg[0]) == pytest.approx(np.degrees(np.arccos(nm[0]) - np.arccos(nn[0])), abs=1e-6)


def test_paper_pairs_follow_the_authors_seeds() -> None:
    pool_n, pool_m = [f"n{i}" for i in range(100)], [f"m{i}" for i in range(100)]
    for kind, start in (("nn", 10), ("mm", 100), ("nm", 1000)):
        got = paper_pairs(kind, 100, 100)
        assert got.shape == (500, 2)
        for draw in (0, 1, 17, 499):  # the published procedure, on the module's own generator
            random.seed(start + draw)
            if kind == "nm":
                want = (random.sample(pool_n, 1)[0], random.sample(pool_m, 1)[0])
                mine = (pool_n[got[draw, 0]], pool_m[got[draw, 1]])
            else:
                pool = pool_n if kind == "nn" else pool_m
                want = tuple(random.sample(pool, 2))
                mine = (pool[got[draw, 0]], pool[got[draw, 1]])
            assert mine == want


def test_sampled_pairs_approach_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(3, 60, 16, generator=generator) + 1
    m = torch.randn(3, 60, 16, generator=generator) + 0.3
    exact, sampled = compare(residuals(n), residuals(m)), compare(residuals(n), residuals(m), pairs="paper")
    assert (exact.gap_deg - sampled.gap_deg).abs().max() < 2.5
    assert (exact.nn.mean - sampled.nn.mean).abs().max() < 0.05


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_from_a_model_both_backends_agree(backend: str, make_tiny_model: Any) -> None:
    normal, malicious = (
        ["find a lamp", "make the tea", "fix the road"],
        ["make a bomb", "how do i find the bomb"],
    )
    want = layer_gap(make_tiny_model("bridge"), normal, malicious)
    got = layer_gap(make_tiny_model(backend), normal, malicious)
    torch.testing.assert_close(got.gap_deg, want.gap_deg, atol=1e-3, rtol=0)
    frame = got.to_frame()
    assert list(frame["layer"]) == [0, 1, 2]
    assert frame["gap_deg"].tolist() == pytest.approx(got.gap_deg.tolist())


def test_bad_input(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match="'normal' has one prompt; pairs need at least two"):
        layer_gap(tiny_bridge, ["find a lamp"], ["make a bomb", "a dog"])
    with pytest.raises(ValueError, match="pairs is 'all' or 'paper', not 'some'"):
        layer_gap(tiny_bridge, ["a", "a dog"], ["make a bomb", "a dog"], pairs="some")
    zero = residuals(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="no direction"):
        compare(zero, residuals(torch.zeros(1, 2, 3)))
    with pytest.raises(ValueError, match="'malicious' is empty"):
        layer_gap(tiny_bridge, ["a", "a dog"], [])


def test_duplicate_prompts_are_told(tiny_bridge: Any, recwarn: pytest.WarningsRecorder) -> None:
    layer_gap(tiny_bridge, ["find a lamp", "make the tea"], ["make a bomb", "a dog"])
    assert not [w for w in recwarn if w.category is Notice]
    with pytest.warns(Notice, match="'normal' has 2 duplicate prompts among 4, for example 'find a lamp'"):
        layer_gap(tiny_bridge, ["find a lamp", "make the tea", "find a lamp", "find a lamp"], ["a bomb", "a dog"])
    with pytest.warns(Notice, match="1 prompt stands in both 'normal' and 'malicious', for example 'a dog'"):
        layer_gap(tiny_bridge, ["find a lamp", "a dog"], ["make a bomb", "a dog"])


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize(("template", "final_norm"), [("chat", False), ("chat", True), ("alpaca", True)])
def test_templates_and_final_norm_against_hugging_face(
    backend: str, template: str, final_norm: bool, make_tiny_model: Any, tiny_tokenizer: Any
) -> None:
    """One prompt at a time through the plain model; its last hidden state is after the final norm, as the paper's."""
    model, plain = make_tiny_model(backend), make_tiny_model("hf")
    sets = ["find a lamp", "make the tea", "fix the road with wood"], ["make a bomb", "how do i find the bomb"]
    states = []
    for prompts in sets:
        rows = []
        for prompt in prompts:
            if template == "chat":
                text = tiny_tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
            else:
                text = (
                    "Below is an instruction that describes a task. Write a response that appropriately completes the "
                    f"request.\n\n### Instruction:\n{prompt}\n\n### Response:\n"
                )
            ids = torch.tensor([tiny_tokenizer(text, add_special_tokens=template != "chat")["input_ids"]])
            with torch.no_grad():
                hidden = plain(ids, output_hidden_states=True).hidden_states[1:]
            rows.append(torch.stack([h[0, -1] for h in hidden]).double().numpy())
        states.append(np.stack(rows, axis=1))
    gap = layer_gap(model, *sets, template=template, final_norm=final_norm)
    layers = range(3 if final_norm else 2)
    for layer in layers:
        want = by_hand(states[0][layer], states[1][layer])[2] - by_hand(states[0][layer], None)[2]
        assert float(gap.gap_deg[layer]) == pytest.approx(want, abs=2e-3)
    assert gap.provenance["template"] == template
    assert gap.provenance["final_norm"] is final_norm
    if not final_norm:  # before the norm the last layer is another vector
        want = by_hand(states[0][2], states[1][2])[2] - by_hand(states[0][2], None)[2]
        assert float(gap.gap_deg[2]) != pytest.approx(want, abs=2e-3)


@pytest.mark.parametrize("formula", ["paper", "code"])
def test_curves_of_given_cosines(formula: Any) -> None:
    rng = np.random.default_rng(0)
    nn, mm, nm = (rng.uniform(low, 1, (7, 4)) for low in (0.9, 0.8, 0.2))
    gap = gap_of_cosines(*map(torch.tensor, (nn, mm, nm)), formula=formula)
    for curve, cosines in ((gap.nn, nn), (gap.mm, mm), (gap.nm, nm)):
        np.testing.assert_allclose(curve.mean.numpy(), cosines.mean(0))
        np.testing.assert_allclose(curve.std.numpy(), cosines.std(0))
        np.testing.assert_allclose(curve.angle_deg.numpy(), np.degrees(np.arccos(cosines)).mean(0))
    angles = [np.degrees(np.arccos(c).mean(0) if formula == "paper" else np.arccos(c.mean(0))) for c in (nm, nn)]
    np.testing.assert_allclose(gap.gap_deg.numpy(), angles[0] - angles[1])
    with pytest.raises(ValueError, match="nm holds values that are no cosines"):
        gap_of_cosines(torch.tensor(nn), torch.tensor(mm), torch.tensor(nm) * 7)
    with pytest.raises(ValueError, match=r"differ in their number of layers: \{'nn': 4, 'mm': 4, 'nm': 3\}"):
        gap_of_cosines(torch.tensor(nn), torch.tensor(mm), torch.tensor(nm[:, :3]))
    with pytest.raises(ValueError, match="mm must be a table of pairs by layers"):
        gap_of_cosines(torch.tensor(nn), torch.tensor(mm[0]), torch.tensor(nm))


class TestOnset:
    def test_a_clear_rise(self) -> None:
        found = find_onset([0.0, 0.1, 0.2, 6.0, 33.0, 36.0, 36.5, 36.0], OnsetRule())
        assert found is not None
        assert found.layers == LayerRange(3, 4)
        assert str(found) == "[3, 4]"

    @pytest.mark.parametrize("n_layers", range(1, 14))
    def test_without_one_a_search_starts_in_the_middle_half(self, n_layers: int) -> None:
        first, last = search_start(None, n_layers)
        assert 0 <= first <= last < n_layers
        assert abs((last - first + 1) - n_layers / 2) <= 1
        found = find_onset([0.0, 0.1, 0.2, 6.0, 33.0, 36.0, 36.5, 36.0], OnsetRule())
        assert found is not None
        assert search_start(found, 8) == found.layers

    def test_a_flat_curve_has_none(self) -> None:
        assert find_onset([0.3, 0.5, 0.1, 1.9], OnsetRule()) is None
        assert find_onset([0.3, 0.5, 0.1, 1.9], OnsetRule(min_gap_deg=1)) is not None

    def test_a_single_layer(self) -> None:
        found = find_onset([10.0], OnsetRule())
        assert found is not None
        assert found.layers == LayerRange(0, 0)

    def test_negative_early_gaps_are_not_the_appearance(self) -> None:
        found = find_onset([-3.0, -3.8, -1.0, 1.8, 5.8, 9.7, 11.3, 11.6], OnsetRule())
        assert found is not None
        assert found.layers == LayerRange(3, 6)

    def test_growth_out_of_a_negative_gap_is_no_onset(self) -> None:
        """As on a real model that does not refuse: steepest where the gap comes back from far below zero."""
        found = find_onset([2.5, 2.2, 0.3, -6.0, -15.0, -12.0, -3.0, -2.5], OnsetRule())
        assert found is not None
        assert found.layers == LayerRange(0, 0)

    def test_the_last_layers_leap_is_not_the_onset(self) -> None:
        """As on a real model with refusal planted in layers 12 to 16 of 30, whose last layer leaps beyond the rise."""
        gap = [-0.3] * 12 + [
            -0.9,
            -1.2,
            -0.2,
            4.7,
            10.6,
            10.6,
            8.4,
            9.2,
            7.8,
            7.3,
            6.6,
            2.6,
            2.6,
            1.7,
            1.5,
            1.9,
            1.4,
            12.7,
        ]
        found = find_onset(gap, OnsetRule())
        assert found is not None
        assert found.layers == LayerRange(15, 16)

    def test_a_gap_within_noise_counts_as_none(self) -> None:
        gap, low = [0.1, 5.0, 5.5, 9.0, 9.5], [-0.2, -0.1, -0.5, 7.0, 7.5]
        [plain, sure] = find_onset(gap, OnsetRule()), find_onset(gap, OnsetRule(), low)
        assert plain is not None
        assert sure is not None
        assert (plain.layers, sure.layers) == (LayerRange(1, 1), LayerRange(3, 3))
        assert find_onset(gap, OnsetRule(), [-1.0] * 5) is None

    @given(st.lists(st.floats(-20, 90), min_size=1, max_size=40))
    def test_always_inside_the_model_or_none(self, gap: list[float]) -> None:
        found = find_onset(gap, OnsetRule())
        assert (found is None) == (max(gap) < 2)
        if found:
            assert 0 <= found.layers.first <= found.layers.last < len(gap)

    def test_rules_that_make_no_sense(self) -> None:
        with pytest.raises(ValueError, match="shares between 0 and 1"):
            OnsetRule(appear=1.5)


DEMO = Path(os.environ.get("SAFECIRCUITS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
DEMO = DEMO / "safety_layers" / "demo_cosines.json"
KINDS = ("NN", "MM", "NM")


@pytest.mark.skipif(not DEMO.is_file(), reason="the published demo cosines are not here; set SAFECIRCUITS_TEST_DATA")
class TestPublishedDemo:
    """The authors' demo file (ten draws, 32 layers, model unnamed) against values read off it beforehand."""

    @pytest.fixture
    def cosines(self) -> dict[str, torch.Tensor]:
        return {kind: torch.tensor(rows) for kind, rows in json.loads(DEMO.read_text()).items() if kind in KINDS}

    def test_mean_curves(self, cosines: dict[str, torch.Tensor]) -> None:
        gap = gap_of_cosines(*(cosines[kind] for kind in KINDS))
        published = {
            "nn": {0: 1.00, 14: 0.93, 19: 0.79, 23: 0.70, 30: 0.71, 31: 0.37},
            "mm": {0: 1.00, 14: 0.97, 19: 0.92, 30: 0.87},
            "nm": {0: 1.00, 14: 0.91, 15: 0.85, 19: 0.66, 23: 0.54, 30: 0.52, 31: 0.24},
        }
        for kind, points in published.items():
            for layer, value in points.items():
                assert float(getattr(gap, kind).mean[layer]) == pytest.approx(value, abs=0.0051), (kind, layer)

    def test_angle_gap(self, cosines: dict[str, torch.Tensor]) -> None:
        code, paper = (gap_of_cosines(*(cosines[kind] for kind in KINDS), formula=f) for f in ("code", "paper"))
        points = {6: -3.8, 13: 1.8, 14: 2.9, 15: 5.8, 16: 9.7, 17: 11.3, 18: 11.6}
        for layer, degrees in points.items():
            assert float(code.gap_deg[layer]) == pytest.approx(degrees, abs=0.051), layer
        assert torch.all(code.gap_deg[:2].abs() < 0.1)  # no gap yet, then a negative one up to layer 12
        assert torch.all(code.gap_deg[2:13] < 0)
        # A plateau; the last layer is another vector, after the final norm.
        assert torch.all((code.gap_deg[17:31] > 10.5) & (code.gap_deg[17:31] < 15.6))
        assert float((code.gap_deg - paper.gap_deg).abs().max()) == pytest.approx(0.7, abs=0.05)

    def test_onset(self, cosines: dict[str, torch.Tensor]) -> None:
        """Negative to layer 12, then a rise to a plateau from about layer 17."""
        found = gap_of_cosines(*(cosines[kind] for kind in KINDS)).onset()
        assert found is not None
        assert 12 <= found.layers.first <= 15
        assert 16 <= found.layers.last <= 18
