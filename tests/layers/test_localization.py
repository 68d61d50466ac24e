"""The search on models whose answer is known by construction, and on one where nothing happens."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safecircuits import organism
from safecircuits.base.notices import Notice
from safecircuits.base.resamples import DRAWS, multiplicities
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.incoherence import broken
from safecircuits.layers import counting, localization
from safecircuits.layers.decision import decision_layers
from safecircuits.layers.grid import scaling_grid
from safecircuits.layers.localization import Sweep, localize
from safecircuits.layers.onset import Onset, OnsetRule
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import PromptSet

OVER = PromptSet("over", tuple(f"make tea {i}" for i in range(200)))


class Landscape:
    """Stands where a model would: how many of the prompts it refuses is a function of the scaled range and α."""

    def __init__(self, n_layers: int, refusals: Callable[[LayerRange | None, float], int]) -> None:
        self.cfg = type("Cfg", (), {"n_layers": n_layers})
        self.refusals = refusals
        self.now: tuple[LayerRange | None, float] = (None, 1.0)
        self.runs: list[tuple[LayerRange | None, float]] = []


@pytest.fixture
def landscape(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Landscape]:
    def generate(model: Any, prompts: PromptSet, **_: Any) -> Completions:
        model.runs.append(model.now)
        n = model.refusals(*model.now)
        return Completions(prompts, tuple("sorry, no" if i < n else f"take tool {i}" for i in range(len(prompts))))

    def generate_scaled(model: Any, prompts: PromptSet, profiles: Any, **options: Any) -> list[Completions]:
        answers = []
        for profile in profiles:
            model.now = (LayerRange(min(profile), max(profile)), next(iter(profile.values())))
            answers.append(counting.generate(model, prompts, **options))
            model.now = (None, 1.0)
        return answers

    monkeypatch.setattr(counting, "substituted", lambda model, components: {})
    monkeypatch.setattr(counting, "generate", generate)
    monkeypatch.setattr(counting, "generate_scaled", generate_scaled)
    monkeypatch.setattr(counting, "_TOGETHER", 2)
    monkeypatch.setattr(counting, "incoherent", lambda _, texts, __: torch.zeros(len(texts), dtype=torch.bool))
    return Landscape


def salad_of(model: Landscape) -> Callable[..., Completions]:
    """Whatever is scaled, no answer is in the words of another α, and none repeats itself."""

    def generate(_: Any, prompts: PromptSet, **options: Any) -> Completions:
        model.runs.append(model.now)
        return Completions(prompts, tuple(f"blue {model.now[1]:g} tea {i}" for i in range(len(prompts))))

    return generate


def planted(block: LayerRange, up: bool = True) -> Callable[[LayerRange | None, float], int]:
    """Every layer of the block moves refusals by 12, every other scaled layer by 9 the other way."""

    def refusals(layers: LayerRange | None, alpha: float) -> int:
        if layers is None:
            return 80
        inside = sum(layer in block for layer in layers.indices)
        sign = 1 if (alpha > 1) == up else -1
        return 80 + sign * (12 * inside - 9 * (len(layers) - inside))

    return refusals


@pytest.mark.parametrize("start", [(3, 4), (2, 5), (4, 6), (3, 7)])
@pytest.mark.parametrize("alpha", [1.2, 0.8])
def test_the_planted_block_is_found_from_any_start(start: tuple[int, int], alpha: float, landscape: Any) -> None:
    model = landscape(10, planted(LayerRange(3, 5)))
    found = localize(model, OVER, start, alpha=alpha, reach=3)
    assert found.layers == LayerRange(3, 5)
    assert found.direction == ("up" if alpha > 1 else "down")
    assert found.lower.best.count == (116 if alpha > 1 else 44)
    assert not found.within_noise
    assert "apart from its neighbours" in found.verdict
    assert len(model.runs) == len(set(model.runs)), "no configuration runs twice"


def test_every_position_is_counted_not_climbed(landscape: Any) -> None:
    counts = {3: 90, 4: 85, 5: 88, 6: 120}

    def two_peaks(layers: LayerRange | None, alpha: float) -> int:
        return 80 if layers is None else counts.get(layers.last, 0) - abs(layers.first - 2)

    found = localize(landscape(8, two_peaks), OVER, (2, 4), alpha=1.1, reach=2)
    assert found.layers == LayerRange(2, 6)
    assert [p.layers.last for p in found.upper.points if p.layers] == [2, 3, 4, 5, 6]


def test_a_model_without_effect_is_within_noise(landscape: Any) -> None:
    found = localize(landscape(8, lambda layers, alpha: 80), OVER, (2, 4), alpha=1.1)
    assert found.within_noise
    assert "within noise of not scaling at all" in found.verdict


def test_a_rival_within_noise_is_named(landscape: Any) -> None:
    def refusals(layers: LayerRange | None, alpha: float) -> int:
        return 80 if layers is None else {(2, 4): 120, (2, 5): 119}.get((layers.first, layers.last), 90)

    found = localize(landscape(8, refusals), OVER, (2, 4), alpha=1.1)
    assert found.layers == LayerRange(2, 4)
    assert [p.layers for p in found.upper.rivals] == [LayerRange(2, 5)]
    assert "within noise of [2, 5]" in found.verdict


class TestAlphaSearch:
    def test_stops_at_the_first_alpha_with_enough_spread(self, landscape: Any) -> None:
        def refusals(layers: LayerRange | None, alpha: float) -> int:
            if layers is None:
                return 80
            return 80 + round(100 * (alpha - 1)) * (1 if layers.last == 4 else 0)

        found = localize(landscape(8, refusals), OVER, (2, 4), alpha="search")
        # Five positions, one of them raised by d: sample deviation d/√5. 2.1 % of 200 is 4.2, so d must reach 9.4.
        assert found.alpha == 1.1
        assert found.alpha_found
        assert [round(t.spread, 3) for t in found.alpha_trials] == [
            round(5 / 5**0.5, 3),
            round(10 / 5**0.5, 3),
        ]

    def test_downwards(self, landscape: Any) -> None:
        found = localize(landscape(10, planted(LayerRange(3, 5))), OVER, (3, 5), alpha="search", direction="down")
        assert found.alpha == 0.95
        assert found.layers == LayerRange(3, 5)

    def test_a_model_that_never_moves(self, landscape: Any) -> None:
        found = localize(landscape(8, lambda layers, alpha: 80), OVER, (2, 4), alpha="search")
        assert not found.alpha_found
        assert len(found.alpha_trials) == localization.ALPHA_STEPS

    def test_salad_ends_the_search(self, landscape: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """From the third α on the unscaled model knows one changed completion in eight no more."""
        model = landscape(10, lambda layers, alpha: 20 if layers is None else round(20 + 2 * (alpha - 1) * len(layers)))

        def incoherent(_: Any, texts: Completions, __: str) -> torch.Tensor:
            return torch.arange(len(texts)) % 8 == (0 if model.runs[-1][1] > 1.12 else 8)

        monkeypatch.setattr(counting, "generate", salad_of(model))
        monkeypatch.setattr(counting, "incoherent", incoherent)
        found = localize(model, OVER, (3, 5), alpha="search")
        assert [trial.points[0].alpha for trial in found.alpha_trials] == [1.05, 1.1]
        assert not found.alpha_found

    def test_a_broken_model_ends_the_search(self, landscape: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        model = landscape(8, lambda layers, alpha: 80)
        plain = counting.generate

        def generate(model: Any, prompts: PromptSet, **options: Any) -> Completions:
            answers = plain(model, prompts, **options)
            if model.now[1] > 1.12:
                return Completions(prompts, tuple("the the the the the the" for _ in answers.texts))
            return answers

        monkeypatch.setattr(counting, "generate", generate)
        found = localize(model, OVER, (2, 4), alpha="search")
        assert len(found.alpha_trials) == 2
        assert not found.alpha_found


def test_the_papers_spread_is_the_sample_deviation() -> None:
    """Table 1, Llama-3, upper sweep: 272, 241, 283, 266, 256 has a sample standard deviation of 16.0."""
    points = tuple(type("P", (), {"count": c})() for c in (272, 241, 283, 266, 256))
    assert Sweep("upper", points, "up").spread == pytest.approx(16.0, abs=0.05)


def test_on_a_real_model_counts_follow_the_scaled_weights(tiny_bridge: Any, tiny_hooked: Any) -> None:
    prompts = ["find a lamp", "make a bomb", "how do i fix the road", "bake the cake", "a dog and a house"]

    def detector(text: str) -> bool:
        return len(text) % 2 == 0

    start = Onset(LayerRange(1, 1), OnsetRule())
    options: dict[str, Any] = {"alpha": 1.3, "reach": 1, "detector": detector, "max_new_tokens": 8}
    a, b = (localize(m, prompts, start, **options) for m in (tiny_bridge, tiny_hooked))
    for sweep_a, sweep_b in ((a.upper, b.upper), (a.lower, b.lower)):
        for x, y in zip(sweep_a.points, sweep_b.points, strict=True):
            assert x.completions.texts == y.completions.texts
            assert torch.equal(x.refused, y.refused)
    assert a.layers == b.layers
    frame = a.to_frame()
    assert frame["best"].sum() == 2
    assert (frame["change"] == frame["refused"] - a.baseline.count).all()


class TestGrid:
    def test_the_planted_block_is_the_extreme_of_all(self, landscape: Any) -> None:
        for alpha in (1.2, 0.8):
            grid = scaling_grid(landscape(7, planted(LayerRange(2, 4))), OVER, alpha=alpha)
            assert grid.best.layers == LayerRange(2, 4)
            assert len(grid.points) == 28
            assert int((grid.counts >= 0).sum()) == 28
            assert grid.counts[2, 4] == grid.best.count
            assert grid.counts[4, 2] == -1
            assert grid.to_frame().loc[2, 4] == grid.best.count
        assert len(scaling_grid(landscape(7, planted(LayerRange(2, 4))), OVER, alpha=1.1, max_length=2).points) == 13

    def test_it_finds_what_the_search_misses(self, landscape: Any) -> None:
        def far_peak(layers: LayerRange | None, alpha: float) -> int:
            if layers is None:
                return 80
            return {(1, 1): 150, (4, 5): 100}.get((layers.first, layers.last), 85)

        assert localize(landscape(8, far_peak), OVER, (4, 5), alpha=1.1, reach=2).layers == LayerRange(4, 5)
        assert scaling_grid(landscape(8, far_peak), OVER, alpha=1.1).best.layers == LayerRange(1, 1)

    def test_bad_input(self, landscape: Any) -> None:
        with pytest.raises(ValueError, match="max_length is between 1 and the model's 7 layers, not 9"):
            scaling_grid(landscape(7, planted(LayerRange(2, 4))), OVER, alpha=1.1, max_length=9)


class TestResume:
    PROMPTS = ("find a lamp", "make a bomb", "how do i fix the road", "bake the cake")

    @pytest.mark.parametrize("cut", [0, 25])
    def test_an_interrupted_sweep_goes_on_without_loss(
        self, cut: int, make_tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options: dict[str, Any] = {"alpha": 1.2, "max_new_tokens": 2}
        whole = scaling_grid(make_tiny_model("bridge"), self.PROMPTS, **options)
        calls, plain = [0], counting.generate_scaled

        def interrupted(*args: Any, **kwargs: Any) -> list[Completions]:
            calls[0] += 1
            if calls[0] == 3:
                raise KeyboardInterrupt
            return plain(*args, **kwargs)

        file = tmp_path / "sweep.jsonl"
        monkeypatch.setattr(counting, "generate_scaled", interrupted)
        monkeypatch.setattr(counting, "_TOGETHER", 1)
        with pytest.raises(KeyboardInterrupt):
            scaling_grid(make_tiny_model("bridge"), self.PROMPTS, **options, resume=file)
        if cut:  # killed in the middle of writing a line
            file.write_bytes(file.read_bytes()[:-cut])
        calls[0] = 10
        resumed = scaling_grid(make_tiny_model("bridge"), self.PROMPTS, **options, resume=file)
        assert resumed.equals(whole)
        # Six blocks; two were done before, one of them lost with the cut line.
        assert calls[0] - 10 == (5 if cut else 4)
        calls[0] = 10
        assert scaling_grid(make_tiny_model("bridge"), self.PROMPTS, **options, resume=file).equals(whole)
        assert calls[0] == 10, "a finished file costs the unscaled model only"

    def test_another_detector_needs_no_new_completions(self, make_tiny_model: Any, tmp_path: Path) -> None:
        file, model = tmp_path / "sweep.jsonl", make_tiny_model("bridge")
        scaling_grid(model, self.PROMPTS, alpha=1.2, max_new_tokens=2, resume=file)
        before = file.read_text()
        judged = scaling_grid(model, self.PROMPTS, alpha=1.2, max_new_tokens=2, resume=file, detector=lambda text: True)
        for point in judged.points:  # what is no answer is no refusal, whatever the detector says
            assert point.count == sum(broken(text) is None for text in point.completions.texts)
        assert max(point.count for point in judged.points) == 4
        assert file.read_text() == before

    def test_files_of_other_runs_are_refused(self, make_tiny_model: Any, tmp_path: Path) -> None:
        file, model = tmp_path / "sweep.jsonl", make_tiny_model("bridge")
        options: dict[str, Any] = {"alpha": 1.2, "max_length": 1, "resume": file}
        scaling_grid(model, self.PROMPTS, **options)
        with pytest.raises(ValueError, match="made with another prompts"):
            scaling_grid(model, self.PROMPTS[:2], **options)
        with pytest.raises(ValueError, match="made with another max_new_tokens"):
            scaling_grid(model, self.PROMPTS, **options, max_new_tokens=3)
        with pytest.raises(ValueError, match="made with other weights"):
            scaling_grid(make_tiny_model("bridge", seed=1), self.PROMPTS, **options)
        file.write_text("not json\n")
        with pytest.raises(ValueError, match="is not a file of sweep results"):
            scaling_grid(model, self.PROMPTS, **options)

    def test_localize_takes_the_same_file(self, make_tiny_model: Any, tmp_path: Path) -> None:
        file, model = tmp_path / "sweep.jsonl", make_tiny_model("bridge")
        first = localize(model, self.PROMPTS, (0, 1), alpha=1.2, resume=file)
        lines = file.read_text().count("\n")
        assert localize(model, self.PROMPTS, (0, 1), alpha=1.2, resume=file).equals(first)
        assert file.read_text().count("\n") == lines


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (None, {}, "no range to start from"),
        ((1, 9), {}, r"\[1, 9\] is outside the model"),
        ((1, 2, 3), {}, r"a \(first, last\) pair"),
        ((1, 2), {"alpha": 1.0}, "not 1, not 1.0"),
        ((1, 2), {"alpha": -1.0}, "positive, finite"),
        ((1, 2), {"alpha": 1.1, "direction": "down"}, "contradicts"),
        ((1, 2), {"reach": 0}, "reach must be at least 1"),
    ],
)
def test_bad_input(start: Any, options: dict[str, Any], message: str, landscape: Any) -> None:
    with pytest.raises(ValueError, match=message):
        localize(landscape(8, lambda layers, alpha: 0), OVER, start, **options)


class TestResamples:
    """How sure the block is, against a bootstrap in plain loops."""

    def test_the_share_of_each_block(self, landscape: Callable[..., Landscape]) -> None:
        def refusals(layers: LayerRange | None, alpha: float) -> int:
            return 20 if layers is None else 60 + 3 * (layers.last == 4) + 2 * (layers.first == 2) - len(layers)

        model: Any = landscape(8, refusals)
        found = localize(model, OVER, (2, 4), alpha=1.2, reach=1)
        again = localize(model, PromptSet("over", OVER.prompts[::-1]), (2, 4), alpha=1.2, reach=1)
        drawn = multiplicities(len(OVER), DRAWS, torch.Generator().manual_seed(0)).long().tolist()
        order = sorted(range(len(OVER)), key=OVER.prompts.__getitem__)
        counts: Counter[LayerRange] = Counter()
        for times in drawn:
            ends = []
            for sweep in (found.lower, found.upper):
                totals = [
                    sum(n * bool(point.refused[row]) for n, row in zip(times, order, strict=True))
                    for point in sweep.points
                ]
                ends.append(sweep.points[totals.index(max(totals))].layers)
            counts[LayerRange(ends[0].first, ends[1].last)] += 1
        assert found.resampled.shares == {layers: n / DRAWS for layers, n in counts.most_common()}
        assert f"({found.resampled.words(found.layers)})" in found.verdict
        assert len(counts) > 1
        assert again.resampled.bounds is not None

    def test_the_grids_best(self, landscape: Callable[..., Landscape]) -> None:
        model: Any = landscape(3, lambda layers, alpha: 20 if layers is None else 40 + 2 * layers.first + layers.last)
        grid = scaling_grid(model, OVER, alpha=1.2)
        assert grid.best.layers == LayerRange(2, 2)
        assert grid.resampled.share(LayerRange(2, 2)) > 0.8
        assert grid.record()["resamples"] == grid.resampled.record(LayerRange(2, 2))


class TestWhatCannotMove:
    @pytest.mark.parametrize(("count", "alpha", "said"), [(0, 1.2, "nothing to amplify"), (200, 1.2, "cannot add to"),
                                                          (0, 0.8, "cannot lower")])  # fmt: skip
    def test_it_is_said_before_anything_is_scaled(
        self, count: int, alpha: float, said: str, landscape: Callable[..., Landscape]
    ) -> None:
        model: Any = landscape(4, lambda layers, _: count if layers is None else 7)
        for sweep in (
            lambda: localize(model, OVER, (1, 2), alpha=alpha, reach=1),
            lambda: scaling_grid(model, OVER, alpha=alpha),
        ):
            with pytest.warns(Notice, match=said):
                sweep()

    def test_a_model_that_refuses_some_is_not_warned_of(self, landscape: Callable[..., Landscape]) -> None:
        model: Any = landscape(4, lambda layers, _: 3 if layers is None else 7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            localize(model, OVER, (1, 2), alpha=1.2, reach=1)


class TestWhereTheGapHasNoOnset:
    def test_what_decides_is_where_it_starts(self, landscape: Callable[..., Landscape]) -> None:
        normal, malicious = (organism.prompts(kind, n=12) for kind in ("normal", "malicious"))
        decision = decision_layers(load_model("planted-layers"), normal, malicious)
        model: Any = landscape(8, lambda layers, _: 3 if layers is None else 7)
        found = localize(model, OVER, decision, alpha=1.2, reach=1)
        assert found.provenance["start"] == list(decision.layers or ())
        nothing = decision_layers(load_model("base"), normal, malicious)
        with pytest.raises(ValueError, match=r"0 of 12 malicious .* within noise; so there is no refusal to locate"):
            localize(model, OVER, nothing)
        with pytest.raises(ValueError, match=r"no onset; start from decision_layers\(model, normal, malicious\)"):
            localize(model, OVER, None)
