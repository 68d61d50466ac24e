"""Share sweep, stability and the comparison of scores, on a constructed model in which two known neurons refuse."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

import safecircuits as sc
from safecircuits.model.load import load_model
from safecircuits.units.ablation import ablate_units, measure_in
from safecircuits.units.candidates import Candidate, default_candidates
from safecircuits.units.comparison import ScoreComparison, score_comparison
from safecircuits.units.groups import GROUPS
from safecircuits.units.removals import Removals
from safecircuits.units.resampling import Stability, calibration_subsets, compare_groups, stability
from safecircuits.units.score_methods import FLAP_METHODS, METHODS
from safecircuits.units.sweep import ShareSweep, sweep_shares

WORDS = ("make", "find", "fix", "bake", "take", "help")
MALICIOUS = sc.PromptSet("m", tuple(f"{w} the bomb" for w in WORDS), ("sorry sorry bomb",) * 6)
NORMAL = sc.PromptSet("n", tuple(f"{w} the cake" for w in WORDS), ("sure take cake",) * 6)
SHAPE = sc.ModelShape("LlamaForCausalLM", n_layers=3, d_model=32, d_mlp=48, n_heads=4, n_kv_heads=2)
BAD = sc.FreezeMask.of_units({"mlp": {1: (5, 11)}}, SHAPE)


def constructed() -> Any:
    """As ``planted`` of test_units, whose 'sure' ends the answer: an answer that goes on is not right."""
    from test_units import TestConstructedModel

    from conftest import build_tiny_llama, build_tiny_tokenizer

    tokenizer = build_tiny_tokenizer()
    hf_model = TestConstructedModel.planted(build_tiny_llama(), tokenizer)
    with torch.no_grad():
        hf_model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("sure"), 3] = 1.0
        hf_model.lm_head.weight[tokenizer.eos_token_id, 3] = 5.0
    return load_model(hf_model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def planted() -> Any:
    return constructed()


@pytest.fixture(scope="module")
def sets(planted: Any) -> dict[str, Any]:
    answers = sc.generate(planted, NORMAL, max_new_tokens=3).texts
    return {"malicious": MALICIOUS, "utility": sc.PromptSet("u", NORMAL.prompts, answers), "max_new_tokens": 3}


@pytest.fixture(scope="module")
def scores(planted: Any) -> Any:
    return [sc.score_units(planted, data, tokens="all", sites=("mlp",)) for data in (MALICIOUS, NORMAL)]


class TestEveryScoreFindsTheKnownNeurons:
    @pytest.mark.parametrize("method", ["wifv", "wifn", "wanda", "snip", "taylor", "attribution", "integrated"])
    def test_exactly_those(self, method: Any, planted: Any) -> None:
        options: dict[str, Any] = {"sites": ("mlp",), "method": method}
        if method in ("wifv", "wifn", "wanda"):
            options["tokens"] = "all"
        if method in ("attribution", "integrated"):
            options |= {
                "reference": NORMAL,
                "answers": sc.units.find_answer_tokens(planted, MALICIOUS, NORMAL, max_new_tokens=3),
            }
        safety, utility = (sc.score_units(planted, data, **options) for data in (MALICIOUS, NORMAL))
        groups = sc.classify_units(safety, utility, scu=2 / 144, ucu=0, ru=0)
        assert groups["SCU"] == BAD

    def test_and_the_search_for_answer_tokens_their_words(self, planted: Any) -> None:
        found = sc.units.find_answer_tokens(planted, MALICIOUS, NORMAL, max_new_tokens=3)
        words = planted.tokenizer.convert_tokens_to_ids(["sorry", "sure"])
        assert (found.refuse, found.comply) == ((words[0],), (words[1],))


class TestRemovals:
    def test_are_measured_once_and_resumed(self, planted: Any, sets: Any, tmp_path: Any, monkeypatch: Any) -> None:
        file = tmp_path / "r.jsonl"
        first = Removals(planted, resume=file, **sets)
        want = first.without(BAD)
        assert want.rates == {"malicious_refused": 0, "utility": 1}
        with file.open("a") as out:
            out.write('{"units": "half a li')
        again = Removals(planted, resume=file, **sets)
        monkeypatch.setattr("safecircuits.units.removals.evaluate", lambda *_, **__: pytest.fail("measured again"))
        assert again.without(sc.FreezeMask.of_units({"mlp": {1: [11, 5]}}, planted)).equals(want)
        assert again.without(BAD - BAD).equals(again.intact)

    def test_a_file_of_another_run_is_refused(self, planted: Any, sets: Any, tmp_path: Any) -> None:
        file = tmp_path / "r.jsonl"
        Removals(planted, resume=file, **sets)
        with pytest.raises(ValueError, match="made with other prompts or settings"):
            Removals(planted, resume=file, **{**sets, "max_new_tokens": 2})
        other = constructed()
        with torch.no_grad():
            other.blocks[2].mlp.W_out[3, 3] = 0.1
        with pytest.raises(ValueError, match="made with other weights"):
            Removals(other, resume=file, **sets)
        with pytest.raises(ValueError, match="made with another replacement"):
            Removals(planted, resume=file, to={"mlp": {1: torch.zeros(48)}}, **sets)
        file.write_text("no such thing\n")
        with pytest.raises(ValueError, match="is not a file of measured removals"):
            Removals(planted, resume=file, **sets)

    def test_controls_have_an_interval(self, planted: Any, sets: Any, tmp_path: Any) -> None:
        table = ablate_units(planted, {"bad": BAD}, controls=4, resume=tmp_path / "r", **sets)
        # Four draws of six prompts, all refused: what an exact interval still allows (Clopper and Pearson).
        assert table.rows[0].control_interval("malicious_refused") == pytest.approx((1, 0.025 ** (1 / 24), 1))
        bare = ablate_units(planted, {"bad": BAD}, controls=0, **sets)
        with pytest.raises(ValueError, match="without random controls"):
            bare.rows[0].control_interval("utility")

    def test_contexts_are_measured_side_by_side(self, planted: Any, sets: Any) -> None:
        found = measure_in(planted, {"none": contextlib.nullcontext(), "bad": sc.ablated(planted, BAD)}, **sets)
        assert [b.rates["malicious_refused"] for b in found.values()] == [1, 0]


class TestSweep:
    def test_finds_the_share_and_the_neurons(self, planted: Any, scores: Any, sets: Any, tmp_path: Any) -> None:
        tried = [1 / 144, 2 / 144, 4 / 144, 0.3]
        up = sweep_shares(planted, *scores, shares=tried, scan="up", resume=tmp_path / "r", **sets)
        assert up.groups["SCU"]
        assert not up.groups["SCU"] - BAD
        assert up.shares["RU"] == pytest.approx(1 / 144)
        down = sweep_shares(planted, *scores, shares=tried, resume=tmp_path / "r", **sets)
        assert down.shares["SCU"] >= up.shares["SCU"]
        assert not BAD - down.groups["SCU"]
        assert down.shares["UCU"] == 0  # no neuron of this model carries utility
        assert down.shares["RU"] == pytest.approx(0.3)
        assert ShareSweep.load(down.save(tmp_path / "s")).equals(down)
        frame = down.to_frame()
        assert frame[frame.accepted].group.tolist() == ["SCU", "RU"]

    def test_bad_input(self, planted: Any, scores: Any, sets: Any) -> None:
        with pytest.raises(ValueError, match="give malicious= and utility="):
            sweep_shares(planted, *scores, malicious=MALICIOUS)
        with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
            sweep_shares(planted, *scores, shares=[0.1, 1.5], **sets)
        with pytest.raises(ValueError, match="scan is 'down' or 'up', not 'Down'"):
            sweep_shares(planted, *scores, scan="Down", **sets)
        with pytest.raises(ValueError, match="fall is a share between 0 and 1, not 50"):
            sweep_shares(planted, *scores, fall=50, **sets)
        with pytest.raises(ValueError, match="the intact model refuses nothing"):
            sweep_shares(planted, *scores, **{**sets, "malicious": sets["utility"]})


class TestStability:
    def test_of_equal_and_of_disjoint_groups(self, planted: Any, scores: Any, tmp_path: Any) -> None:
        safety, utility = scores
        a = sc.classify_units(safety, utility, scu=2 / 144, ucu=0.1, ru=0.1)
        b = sc.classify_units(utility, safety, scu=2 / 144, ucu=0.1, ru=0.1)
        same = compare_groups({"a": a, "again": a})
        assert all(bool((values == 1).all()) for values in same.jaccard.values())
        torch.testing.assert_close(same.rank_correlation, torch.ones(2, 2).double())
        other = compare_groups({"a": a, "b": b})
        assert other.jaccard["SCU"][0, 1] == 0
        assert other.rank_correlation[0, 1] < 0
        assert same.chance["UCU"] == pytest.approx((14 / 144) / (2 - 14 / 144))
        assert Stability.load(other.save(tmp_path / "s")).equals(other)
        assert len(other.to_frame()) == len(GROUPS) + 1

    def test_over_subsets(self, planted: Any) -> None:
        sets = calibration_subsets(MALICIOUS, NORMAL, n=4, draws=3)
        found = stability(planted, sets, scu=2 / 144, ucu=0, ru=0, tokens="all", sites=("mlp",))
        assert found.names == ("seed 0", "seed 1", "seed 2")
        assert bool((found.jaccard["SCU"] == 1).all())

    def test_rank_correlation_is_spearmans(self) -> None:
        from scipy.stats import spearmanr

        from safecircuits.units.selection import mean_ranks

        a, b = torch.randint(0, 9, (2, 50), generator=torch.Generator().manual_seed(0)).double()
        got = torch.corrcoef(torch.stack([mean_ranks(a), mean_ranks(b)]))[0, 1]
        assert float(got) == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic)

    def test_bad_input(self, planted: Any) -> None:
        with pytest.raises(ValueError, match="draw at least 2"):
            calibration_subsets(MALICIOUS, NORMAL, n=2, draws=1)
        with pytest.raises(ValueError, match="give at least 2"):
            stability(planted, {"a": (MALICIOUS, NORMAL)}, scu=0.1, ucu=0, ru=0)

    def test_classifications_that_cannot_be_compared(self, planted: Any, scores: Any) -> None:
        whole = sc.classify_units(*scores, scu=0.1, ucu=0, ru=0)
        part = [sc.score_units(planted, data, tokens="all", sites=("attn",)) for data in (MALICIOUS, NORMAL)]
        with pytest.raises(ValueError, match="give at least 2, not 1"):
            compare_groups({"a": whole})
        with pytest.raises(ValueError, match=r"'b' is of the sites \['attn'\], 'a' of \['"):
            compare_groups({"a": whole, "b": sc.classify_units(*part, scu=0.1, ucu=0, ru=0)})


class TestComparison:
    def test_the_known_neurons_are_the_smallest_set(self, planted: Any, sets: Any, tmp_path: Any) -> None:
        candidates = (
            Candidate("attribution", "prompt", "none", "safety"),
            Candidate("wifv", "all", "none", "set-difference"),
            Candidate("random", "response"),
        )
        options: dict[str, Any] = {"candidates": candidates, "counts": (1, 2, 4), "sites": ("mlp",), "planted": BAD}
        found = score_comparison(planted, MALICIOUS, NORMAL, NORMAL, resume=tmp_path / "r", **options, **sets)
        assert found.n_planted == 2
        assert found.planted_removed is not None
        assert (found.planted_removed.refusal, found.planted_removed.utility) == (0, 1)
        best = found.best()
        assert best.candidate.method == "attribution"
        assert best.smallest in (1, 2)
        assert [p.planted for p in best.points] == [1, 2, 2]
        row = found.to_frame().iloc[0]
        assert (row["at"], row["precision"], row["recall"]) == (2, 1, 1)
        assert found.best("random").smallest is None
        told = {"malicious": sets["malicious"], "harmless": sets["utility"]}
        references = {of: sc.behavior.KLReference.of(planted, prompts, n_tokens=1) for of, prompts in told.items()}
        with sc.ablated(planted, BAD):
            kl = {of: float(one.divergence(planted).first.mean()) for of, one in references.items()}
        assert found.planted_removed.kl == pytest.approx(kl)
        assert row["harmless_first_token_kl"] == best.kl_at_smallest
        bound = kl["harmless"] / 2
        bounded = score_comparison(planted, MALICIOUS, NORMAL, NORMAL, max_kl=bound, **options, **sets)
        assert all(curve.smallest is None or curve.kl_at_smallest <= bound for curve in bounded.curves)
        again = score_comparison(planted, MALICIOUS, NORMAL, NORMAL, resume=tmp_path / "r", **options, **sets)
        assert again.equals(found)
        assert ScoreComparison.load(found.save(tmp_path / "c")).equals(found)

    def test_area_by_hand(self, planted: Any, sets: Any) -> None:
        options: dict[str, Any] = {"counts": (1, 2, 8), "sites": ("mlp",)}
        candidate = Candidate("attribution", "prompt", "none", "safety")
        (curve,) = score_comparison(
            planted, MALICIOUS, NORMAL, NORMAL, candidates=(candidate,), **options, **sets
        ).curves
        a, b, c = (1 - p.refusal - (1 - p.utility) for p in curve.points)
        assert curve.area == pytest.approx(((a + b) / 2 * 1 + (b + c) / 2 * 2) / 3)

    def test_every_method_is_a_candidate(self) -> None:
        for quick in (False, True):
            # FLAP's WIFN divides Wanda's score by the width: in the same order, it would only be measured twice.
            assert {c.method for c in default_candidates(quick=quick)} == set(METHODS) - {
                "wifn",
                "removal",
                *FLAP_METHODS,
            }
        assert len(set(default_candidates())) == len(default_candidates())

    def test_bad_input(self, planted: Any, sets: Any) -> None:
        with pytest.raises(ValueError, match="needs malicious= and utility="):
            score_comparison(planted, MALICIOUS, NORMAL, NORMAL, malicious=MALICIOUS)
        with pytest.raises(ValueError, match="counts must ascend"):
            score_comparison(planted, MALICIOUS, NORMAL, NORMAL, counts=(2, 1), **sets)
        with pytest.raises(ValueError, match="cannot remove 999 of 156 units"):
            score_comparison(planted, MALICIOUS, NORMAL, NORMAL, counts=(999,), **sets)
        with pytest.raises(ValueError, match="refuses nothing"):
            score_comparison(planted, MALICIOUS, NORMAL, NORMAL, **{**sets, "malicious": NORMAL})
