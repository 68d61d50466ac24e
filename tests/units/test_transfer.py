"""Attribute transfer and the enrichment of layers, against counting by hand and exact enumeration."""

from __future__ import annotations

import itertools
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from torch import Tensor

import safecircuits as sc
from safecircuits.model.sites import ModelShape
from safecircuits.units.groups import GROUPS
from safecircuits.units.scores import parameters_per_unit

SHAPE = ModelShape("Tiny", n_layers=4, d_model=8, d_mlp=12, n_heads=4, n_kv_heads=2)
PARAMETERS: Any = {"mlp": 24.0, "attn": 48.0}


def grouped(mlp: Tensor, attn: Tensor, order: Tensor | None = None) -> sc.UnitGroups:
    noise = torch.Generator().manual_seed(1)
    difference: Any = {
        "mlp": torch.rand(4, 12, generator=noise, dtype=torch.float64) if order is None else order,
        "attn": torch.rand(4, 4, generator=noise, dtype=torch.float64),
    }
    labels: Any = {"mlp": mlp.to(torch.int8), "attn": attn.to(torch.int8)}
    return sc.UnitGroups(labels, difference, difference, SHAPE, {})


def random_groups(seed: int) -> sc.UnitGroups:
    generator = torch.Generator().manual_seed(seed)
    return grouped(*(torch.randint(4, (4, n), generator=generator) for n in (12, 4)))


class TestTransfer:
    @settings(max_examples=30)
    @given(a=st.integers(0, 10_000), b=st.integers(0, 10_000), threshold=st.floats(0, 0.1))
    def test_against_counting_by_hand(self, a: int, b: int, threshold: float) -> None:
        before, after = random_groups(a), random_groups(b)
        got = sc.units.transfer_of(before, after)
        assert got.n_units == 4 * 16
        for i, j in itertools.product(range(4), repeat=2):
            want = sum(
                x == i and y == j
                for site in ("mlp", "attn")
                for x, y in zip(before.labels[site].flatten(), after.labels[site].flatten(), strict=True)
            )
            assert int(got.counts[i, j]) == want
        present = got.counts.sum(1) > 0
        torch.testing.assert_close(got.matrix.sum(1)[present], torch.ones(int(present.sum()), dtype=torch.float64))
        assert got.matrix[~present].isnan().all()
        assert float(got.shares.sum()) == pytest.approx(1)
        assert float(got.chance.sum()) == pytest.approx(1)
        kept, dropped = got.flows(threshold)
        assert sum(flow.units for flow in kept + dropped) == 64
        assert all(flow.share >= threshold for flow in kept)
        assert all(flow.share < threshold for flow in dropped)
        back = sc.units.transfer_of(after, before)
        assert torch.equal(back.counts, got.counts.T)
        assert got.totals["after"] == pytest.approx(after.shares())

    def test_nothing_moves_without_training(self, tmp_path: Path) -> None:
        groups = random_groups(3)
        got = sc.units.transfer_of(groups, groups)
        assert torch.equal(got.matrix, torch.eye(4, dtype=torch.float64))
        assert sc.units.AttributeTransfer.load(got.save(tmp_path / "t")).equals(got)

    def test_base_to_aligned(self) -> None:
        """The same data and shares: sizes stay, members move, and the figure draws what is over the threshold."""
        sets = [sc.organism.prompts(kind, "train", n=24) for kind in ("malicious", "utility")]
        shares: Any = {"scu": 0.05, "ucu": 0.2, "ru": 0.2, "normalize": "zscore"}
        models = [sc.load_model(stage) for stage in ("unaligned", "aligned")]
        got = sc.units.attribute_transfer(*models, *sets, **shares)
        assert got.totals["before"] == pytest.approx(got.totals["after"], abs=1e-3)
        scores = [[sc.score_units(model, data) for data in sets] for model in models]
        want = sc.units.transfer_of(*(sc.classify_units(*pair, **shares) for pair in scores))
        assert torch.equal(got.counts, want.counts)
        threshold = 0.01
        ax = got.plot(Figure().subplots(), threshold=threshold)
        kept, dropped = got.flows(threshold)
        assert sum(isinstance(patch, PathPatch) for patch in ax.patches) == len(kept)
        assert dropped
        assert f"below 1 %, {sum(f.units for f in dropped)} units in all" in ax.get_title()
        frame = got.to_frame(threshold)
        assert frame["drawn"].sum() == len(kept)
        assert frame["units"].sum() == got.n_units
        assert (frame["units_mlp"] + frame["units_attn"]).tolist() == frame["units"].tolist()

    def test_other_models_and_sites(self) -> None:
        groups = random_groups(0)
        other = sc.UnitGroups(groups.labels, groups.difference, groups.total, ModelShape("Tiny", 5, 8, 12, 4, 2), {})
        with pytest.raises(ValueError, match="n_layers"):
            sc.units.transfer_of(groups, other)
        half = sc.UnitGroups({"mlp": groups.labels["mlp"]}, groups.difference, groups.total, SHAPE, {})
        with pytest.raises(ValueError, match="score the same"):
            sc.units.transfer_of(groups, half)


def chance_of(k: int, everything: int, group: int, drawn: int) -> float:
    """P(at least k) of a hypergeometric count, by the definition."""
    return sum(comb(group, i) * comb(everything - group, drawn - i) for i in range(k, min(group, drawn) + 1)) / comb(
        everything, drawn
    )


class TestEnrichment:
    def concentrated(self) -> sc.UnitGroups:
        mlp, attn = torch.full((4, 12), 2), torch.full((4, 4), 2)
        mlp[1, :6], mlp[2, :3], mlp[0, 0], attn[1, 0] = 0, 0, 0, 0
        return grouped(mlp, attn)

    def test_against_enumeration(self) -> None:
        got = sc.units.enrichment(self.concentrated()["SCU"], (1, 2), draws=4000)
        assert got.total.tolist() == [1, 7, 3, 0]
        assert got.p.tolist() == pytest.approx([chance_of(k, 64, 11, 16) for k in (1, 7, 3, 0)])
        assert got.expected.tolist() == [11 / 4] * 4
        order = np.argsort(got.p.numpy())
        adjusted, least = np.empty(4), 1.0
        for rank in range(4, 0, -1):
            least = min(least, float(got.p[order[rank - 1]]) * 4 / rank)
            adjusted[order[rank - 1]] = least
        assert got.q.tolist() == pytest.approx(adjusted.tolist())
        block = got.block
        assert block is not None
        assert (block.count, block.rank, block.n_blocks) == (10, 1, 3)
        assert block.p == pytest.approx(chance_of(10, 64, 11, 32))
        assert block.fold == pytest.approx(10 / 5.5)
        assert block.low <= 5.5 <= block.high < 10

    def test_permutations_are_of_each_site_by_itself(self) -> None:
        """By shuffling one array a site, slowly."""
        groups = self.concentrated()
        got = sc.units.enrichment(groups["SCU"], draws=20_000)
        rng, counts = np.random.default_rng(5), []
        for _ in range(4000):
            total = np.zeros(4)
            for labels in groups.labels.values():
                total += (rng.permutation(labels.flatten().numpy()).reshape(labels.shape) == 0).sum(1)
            counts.append(total)
        low, high = np.quantile(counts, [0.025, 0.975], axis=0)
        np.testing.assert_allclose(got.low.numpy(), low, atol=1)
        np.testing.assert_allclose(got.high.numpy(), high, atol=1)

    @settings(max_examples=15)
    @given(seed=st.integers(0, 10_000))
    def test_random_groups_are_where_chance_puts_them(self, seed: int) -> None:
        groups = random_groups(seed)
        got = sc.units.enrichment(groups["CU"], (0, 3), draws=200)
        assert got.block is not None
        assert got.block.count == int(got.total.sum()) == sum((labels == 2).sum() for labels in groups.labels.values())
        assert got.block.p == pytest.approx(1)
        assert (got.block.low, got.block.high) == (got.block.count, got.block.count)

    def test_planted_layers(self, tmp_path: Path) -> None:
        """Neurons that differ from base by construction lie in the planted layers, and the figure says so."""
        planted = sc.organism.planted("planted-units")
        shape = sc.ModelShape.of(sc.load_model("planted-units"))
        units = sc.FreezeMask.of_units({"mlp": planted.mlp_units}, shape)
        block = (min(planted.mlp_units), max(planted.mlp_units))
        got = sc.units.enrichment(units, block, sites=("mlp",))
        assert got.block is not None
        assert got.block.count == sum(map(len, planted.mlp_units.values()))
        assert sc.units.Enrichment.load(got.save(tmp_path / "e")).equals(got)
        ax = got.plot(Figure().subplots())
        assert [bar.get_height() for bar in ax.patches[: shape.n_layers]] == got.total.tolist()
        assert f"safety layers [{block[0]}, {block[1]}]" in [text.get_text() for text in ax.texts]
        assert got.to_frame()["units"].tolist() == got.total.tolist()

    def test_bad_input(self) -> None:
        groups = self.concentrated()
        with pytest.raises(ValueError, match="there are no RU"):
            sc.units.enrichment(groups["RU"])
        with pytest.raises(ValueError, match="some of the SCU are not at the sites attn"):
            sc.units.enrichment(groups["SCU"], sites=("attn",))
        with pytest.raises(ValueError, match="a mask of layers lies in these layers alone"):
            sc.units.enrichment(sc.FreezeMask.layers(1))
        with pytest.raises(ValueError, match="draws must be"):
            sc.units.enrichment(groups["SCU"], draws=0)
        with pytest.raises(ValueError, match="outside the model"):
            sc.units.enrichment(groups["SCU"], (2, 4))


class TestMasks:
    def test_overlap(self) -> None:
        a = sc.FreezeMask.layers((1, 2), SHAPE)
        b = sc.FreezeMask.of_units({"mlp": {1: range(4), 3: range(4)}}, SHAPE)
        got = sc.units.mask_overlap(a, b)
        assert (got.a, got.b, got.both) == (32, 8, 4)
        assert (got.a_in_b, got.b_in_a) == (4 / 32, 4 / 8)
        assert got.jaccard == 4 / 36
        assert got.chance == pytest.approx(4 / 36)  # half of the units lie in the layers, and half of the mask
        back = sc.units.mask_overlap(b, sc.FreezeMask.layers((1, 2)))
        assert (back.a_in_b, back.b_in_a) == (got.b_in_a, got.a_in_b)
        empty = sc.units.mask_overlap(a - a, a)
        assert np.isnan(empty.a_in_b)
        with pytest.raises(ValueError, match=r"mask\.on"):
            sc.units.mask_overlap(sc.FreezeMask.layers((1, 2)), sc.FreezeMask.layers((1, 2)))

    @settings(max_examples=25)
    @given(seed=st.integers(0, 10_000), budget=st.floats(0.03, 0.5))
    def test_equal_budgets(self, seed: int, budget: float) -> None:
        groups = random_groups(seed)
        masks = sc.units.equal_budget_masks(groups, (1, 2), PARAMETERS, budget=budget, seed=seed)
        everything = 4 * (12 * 24 + 4 * 48)

        def parameters(mask: sc.FreezeMask) -> int:
            return int(24 * mask.mlp.sum() + 48 * mask.attn.sum())

        assert set(masks) == {"units", "layers", "both", "intersection", "random"}
        for mask in masks.values():
            assert abs(parameters(mask) - budget * everything) <= 48
        inside = sc.FreezeMask.layers((1, 2), SHAPE)
        for name in ("layers", "intersection"):
            assert not masks[name] - inside
        order = torch.cat([groups.difference[site].flatten() for site in ("mlp", "attn")])
        chosen = torch.cat([masks["units"].mlp.flatten(), masks["units"].attn.flatten()])
        assert order[chosen].min() > order[~chosen].max() if chosen.any() else True

    def test_on_a_model(self, tiny_bridge: Any) -> None:
        """Equal by the count of a real model's parameters, too, but for key/value heads that are shared."""
        shape = ModelShape.of(tiny_bridge)
        noise = torch.Generator().manual_seed(0)
        order: Any = {site: torch.rand(3, shape.n_units(site), generator=noise) for site in ("mlp", "attn")}
        labels: Any = {site: torch.zeros(rows.shape, dtype=torch.int8) for site, rows in order.items()}
        groups = sc.UnitGroups(labels, order, order, shape, {})
        masks = sc.units.equal_budget_masks(groups, (0, 1), parameters_per_unit(tiny_bridge), budget=0.3)
        shares = [mask.share_of_parameters(tiny_bridge) for mask in masks.values()]
        assert max(shares) < 1.3 * min(shares)

    def test_budgets_that_do_not_fit(self) -> None:
        for budget in (0.0, 0.6):
            with pytest.raises(ValueError, match=r"at most 0\.5, that of layers"):
                sc.units.equal_budget_masks(random_groups(0), (1, 2), PARAMETERS, budget=budget)


def test_groups_are_in_the_order_of_the_matrix() -> None:
    assert GROUPS == ("SCU", "UCU", "CU", "RU")
