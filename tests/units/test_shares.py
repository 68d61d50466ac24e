"""What a share of units is a share of: neurons and heads in proportion, in groups, in controls and in arms."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import safecircuits as sc
from safecircuits.behavior.openings import telling_openings
from safecircuits.model.sites import ModelShape
from safecircuits.studies.ssah import scu_top_cu
from safecircuits.units.answer_tokens import find_answer_tokens
from safecircuits.units.equal_budget import equal_budget_masks
from safecircuits.units.groups import GROUPS, UnitGroups, normalised, set_difference
from safecircuits.units.moments import Moments
from safecircuits.units.scores import UnitScores
from safecircuits.units.selection import in_proportion

SHAPE = ModelShape("LlamaForCausalLM", 5, 64, 200, 8, 4)
PARAMETERS = {"mlp": 3 * 64.0, "attn": 64 * 8 * 3.0}


def scores(seed: int, head_factor: float = 1.0) -> UnitScores:
    """Scores of 1,000 neurons and 40 heads; a head's are ``head_factor`` times as large."""
    generator = torch.Generator().manual_seed(seed)
    values: Any = {site: torch.rand(5, n, generator=generator).double() for site, n in (("mlp", 200), ("attn", 8))}
    values["attn"] *= head_factor
    moments = {site: Moments(2, x, torch.ones_like(x)) for site, x in values.items()}
    norms = {site: torch.ones_like(x) for site, x in values.items()}
    return UnitScores(values, moments, norms, "taylor", "all", SHAPE, {}, unit_parameters=PARAMETERS)


def by_site(groups: UnitGroups, *names: str) -> dict[str, int]:
    return {site: sum(groups[name].n_units(site) for name in names) for site in groups.sites}


class TestNeuronsAndHeads:
    @settings(max_examples=30)
    @given(st.integers(0, 99), st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.3), st.sampled_from([0.01, 1, 100]))
    def test_are_cut_in_proportion_whatever_their_scale(
        self, seed: int, scu: float, ucu: float, ru: float, factor: float
    ) -> None:
        safety, utility = scores(seed, factor), scores(seed + 100, factor)
        groups = sc.classify_units(safety, utility, scu=scu, ucu=ucu, ru=ru)
        for group, share in (("SCU", scu), ("UCU", ucu), ("RU", ru)):
            found = by_site(groups, group)
            assert sum(found.values()) == round(share * 1040)
            assert abs(found["attn"] - share * 40) < 1
        # Within a site the cut is the highest by S − U.
        for site in ("mlp", "attn"):
            label, difference = groups.labels[site].flatten(), groups.difference[site].flatten()
            inside, outside = difference[label == 0], difference[label != 0]
            assert not len(inside) or not len(outside) or inside.min() >= outside.max()

    def test_in_one_ranking_heads_of_larger_scale_take_it_all(self) -> None:
        """As it was published, and what one share of all units did."""
        safety, utility = scores(0, 100), scores(1, 100)
        pooled = sc.classify_units(safety, utility, scu=0.013, ucu=0, ru=0, share_of="pooled")
        assert by_site(pooled, "SCU") == {"mlp": 0, "attn": 14}
        assert by_site(sc.classify_units(safety, utility, scu=0.013, ucu=0, ru=0), "SCU") == {"mlp": 13, "attn": 1}
        with pytest.raises(ValueError, match="share_of is 'units', 'parameters' or 'pooled', not 'heads'"):
            sc.classify_units(safety, utility, scu=0.1, ucu=0, ru=0, share_of="heads")

    def test_in_set_differences(self) -> None:
        groups = set_difference(scores(0, 100), scores(1, 100), p=0.1, q=0.2)
        useful, safe = by_site(groups, "UCU", "CU"), by_site(groups, "SCU", "CU")
        assert (useful, safe) == ({"mlp": 100, "attn": 4}, {"mlp": 200, "attn": 8})
        assert by_site(set_difference(scores(0, 100), scores(1, 100), p=0.1, result=0.05), "SCU") == {
            "mlp": 50,
            "attn": 2,
        }

    def test_in_the_top_complex_units_that_are_frozen(self) -> None:
        groups = sc.classify_units(scores(0, 100), scores(1, 100), scu=0.013, ucu=0.1, ru=0.1)
        mask = scu_top_cu(groups, 0.05).mask
        assert mask is not None
        assert (mask.n_units("mlp"), mask.n_units("attn")) == (13 + 50, 1 + 2)

    @pytest.mark.parametrize("n", [0, 1, 7, 41, 1039, 1040])
    def test_a_number_is_dealt_to_the_last_unit(self, n: int) -> None:
        dealt = in_proportion(n, scores(0).scores)
        assert sum(dealt.values()) == n
        assert abs(dealt["attn"] - n * 40 / 1040) < 1


class TestControls:
    def test_of_equal_budgets_have_as_many_of_each_site(self) -> None:
        groups = sc.classify_units(scores(0, 100), scores(1, 100), scu=0.1, ucu=0, ru=0)
        masks = equal_budget_masks(groups, (1, 2), PARAMETERS)
        units, random = masks["units"], masks["random"]
        for site in ("mlp", "attn"):
            assert random.n_units(site) == units.n_units(site)
        assert random != units


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12))
def test_equal_scores_share_their_mean_rank(values: list[int]) -> None:
    got = normalised(torch.tensor([values, values[::-1]]).double(), "rank")
    want = (rankdata(values) - 1) / (len(values) - 1)
    np.testing.assert_allclose(got.numpy(), [want, want[::-1]])


def test_which_of_equal_units_is_taken_does_not_depend_on_anything_else() -> None:
    """Dead neurons score 0 on both sets; the first of them are taken."""
    flat = scores(0)
    flat.scores["mlp"][:] = 0
    groups = sc.classify_units(flat, flat, scu=0.01, ucu=0.01, ru=0.01)
    taken = {name: groups[name].members("mlp") for name in GROUPS[:2]}
    assert taken == {"SCU": {0: tuple(range(10))}, "UCU": {0: tuple(range(10, 20))}}


class TestOpenings:
    def test_a_token_that_opens_both_goes_where_it_is_the_more_frequent(self) -> None:
        refusals, answers = [7] * 100 + [8], [7] + [9] * 60 + [11] * 40
        assert telling_openings(refusals, answers) == ([7, 8], [9, 11])
        assert telling_openings([7, 8], [7, 8]) == ([], [])
        assert telling_openings([7, 7, 8, 8], [7, 9, 9, 9]) == ([8, 7], [9])

    @given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
    def test_no_token_is_on_both_sides_or_on_the_rarer(self, refusals: list[int], answers: list[int]) -> None:
        refuse, comply = telling_openings(refusals, answers)
        a, b = Counter(refusals), Counter(answers)
        for token in range(6):
            surplus = a[token] * len(answers) - b[token] * len(refusals)
            assert (token in refuse, token in comply) == (surplus > 0, surplus < 0)

    def test_attribution_finds_them(self, monkeypatch: pytest.MonkeyPatch, tiny_bridge: Any) -> None:
        """An English chat model: "I" opens nearly every refusal and now and then an answer."""
        from safecircuits.units import answer_tokens

        first = {"m": [7] * 100 + [8], "n": [7] + [9] * 100}
        monkeypatch.setattr(answer_tokens, "generate", lambda _, prompts, **__: list(prompts))
        monkeypatch.setattr(answer_tokens, "refused", lambda texts, _: torch.tensor(["bomb" in t for t in texts]))
        monkeypatch.setattr(answer_tokens, "_first_tokens", lambda _, prompts, *__: first[prompts.name])
        malicious = sc.PromptSet("m", ("make the bomb",) * 101)
        normal = sc.PromptSet("n", ("make the tea",) * 101)
        found = find_answer_tokens(tiny_bridge, malicious, normal)
        assert (found.refuse, found.comply) == ((7, 8), (9,))
        first["n"] = first["m"]
        with pytest.raises(ValueError, match="open equally often with the same tokens"):
            find_answer_tokens(tiny_bridge, malicious, normal)
