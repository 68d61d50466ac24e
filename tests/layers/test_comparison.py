"""Several models on the same prompts: each as it would be alone, differences paired, one model in memory at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import safecircuits as sc
from safecircuits.base.resamples import multiplicities
from safecircuits.hooks.collect import collect_residuals
from safecircuits.plots.grid import plot_grid
from safecircuits.plots.layers import model_colors, plot_gap, plot_pair_curves
from safecircuits.plots.pairs import models_side_by_side, pair_panels, plot_gap_difference

NORMAL = ["find a lamp", "make the tea", "fix the road", "bake a cake"]
MALICIOUS = ["make a bomb", "how do i find the bomb", "bake the dog"]


@pytest.fixture(scope="module")
def embedded() -> sc.layers.GapComparison:
    sets = (sc.load_prompts(f"organism:{kind}", n=24) for kind in ("normal", "malicious"))
    return sc.compare_gaps({"aligned": "aligned", "base": "base"}, *sets, draws=200)


def test_base_and_aligned(embedded: sc.layers.GapComparison) -> None:
    """The paper's finding on models where it is known to hold: the gap comes with alignment."""
    assert embedded.reference == "aligned"
    assert embedded.onsets["base"] is None
    assert embedded.onsets["aligned"] is not None
    difference = embedded.differences["base"]
    assert {5, 6, 7} <= set(difference.layers_apart)
    assert torch.all((difference.low <= difference.mean) & (difference.mean <= difference.high))
    assert "base: largest gap" in str(embedded)
    assert "no onset" in str(embedded)


def test_each_model_is_as_it_is_alone(embedded: sc.layers.GapComparison) -> None:
    sets = [sc.load_prompts(f"organism:{kind}", n=24) for kind in ("normal", "malicious")]
    for name in ("aligned", "base"):
        alone = sc.layer_gap(sc.load_model(name), *sets)
        torch.testing.assert_close(embedded.gaps[name].gap_deg, alone.gap_deg)
        torch.testing.assert_close(embedded.gaps[name].nm.std, alone.nm.std)


def test_differences_are_paired_by_hand(make_tiny_model: Callable[..., Any]) -> None:
    models = {"a": make_tiny_model("bridge", 0), "b": make_tiny_model("bridge", 1)}
    draws, seed = 6, 5
    got = sc.compare_gaps(models, NORMAL, MALICIOUS, draws=draws, seed=seed, template="chat")
    generator = torch.Generator().manual_seed(seed)
    n_weights = multiplicities(len(NORMAL), draws, generator).long().numpy()
    m_weights = multiplicities(len(MALICIOUS), draws, generator).long().numpy()

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.degrees(np.arccos(np.clip(x @ y / np.linalg.norm(x) / np.linalg.norm(y), -1, 1))))

    drawn = {}
    for name, model in models.items():
        # Resamples number prompts in their own order, not in that in which they are given.
        sets = (sorted(NORMAL), sorted(MALICIOUS))
        n, m = (collect_residuals(model, p, template="chat").values.double().numpy() for p in sets)
        gaps = np.zeros((draws, 3))
        for draw in range(draws):
            i = np.repeat(np.arange(len(NORMAL)), n_weights[draw])
            j = np.repeat(np.arange(len(MALICIOUS)), m_weights[draw])
            for layer in range(3):
                nn = [angle(n[layer, p], n[layer, q]) for p in i for q in i if p != q]
                nm = [angle(n[layer, p], m[layer, q]) for p in i for q in j]
                gaps[draw, layer] = np.mean(nm) - np.mean(nn)
        drawn[name] = gaps
    difference = drawn["a"] - drawn["b"]
    error = difference.std(axis=0, ddof=1)
    most = np.quantile(np.abs((difference - difference.mean(axis=0)) / error).max(axis=1), 0.95)
    mean = got.differences["b"].mean.numpy()
    np.testing.assert_allclose(got.differences["b"].low.numpy(), mean - most * error, atol=1e-6)
    np.testing.assert_allclose(got.differences["b"].high.numpy(), mean + most * error, atol=1e-6)


def test_a_model_against_itself_differs_in_nothing(tiny_bridge: Any, tiny_hooked: Any) -> None:
    got = sc.compare_gaps({"bridge": tiny_bridge, "hooked": tiny_hooked}, NORMAL, MALICIOUS, draws=20)
    difference = got.differences["hooked"]
    assert float(difference.mean.abs().max()) < 1e-3
    assert float((difference.high - difference.low).max()) < 1e-2  # pairing cancels the prompts


def test_only_one_model_is_alive_at_a_time(make_tiny_model: Callable[..., Any]) -> None:
    alive: list[weakref.ref[Any]] = []
    seen = []

    def loader(seed: int) -> Callable[[], Any]:
        def load() -> Any:
            gc.collect()
            seen.append(sum(ref() is not None for ref in alive))
            model = make_tiny_model("bridge", seed)
            alive.append(weakref.ref(model))
            return model

        return load

    sc.compare_gaps({str(i): loader(i) for i in range(3)}, NORMAL, MALICIOUS, draws=5)
    assert seen == [0, 0, 0]


def test_templates(make_tiny_model: Callable[..., Any]) -> None:
    model, base = make_tiny_model("bridge"), make_tiny_model("bridge", 1)
    both = sc.compare_gaps(
        {"native": model, "alpaca": model}, NORMAL, MALICIOUS, template={"native": "chat", "alpaca": "alpaca"}, draws=5
    )
    assert both.provenance["template"] == {"native": "chat", "alpaca": "alpaca"}
    for name, template in (("native", "chat"), ("alpaca", "alpaca")):
        alone = sc.layer_gap(model, NORMAL, MALICIOUS, template=template)
        torch.testing.assert_close(both.gaps[name].gap_deg, alone.gap_deg)
    base.tokenizer = type(base.tokenizer)(tokenizer_object=base.tokenizer.backend_tokenizer, eos_token="<eos>")
    with pytest.raises(ValueError, match="'auto' is not the same for all models"):
        sc.compare_gaps({"aligned": model, "base": base}, NORMAL, MALICIOUS, draws=5)
    assert sc.compare_gaps({"aligned": model, "base": base}, NORMAL, MALICIOUS, template="alpaca", draws=5).differences


def test_models_of_different_depth_have_no_difference(make_tiny_model: Callable[..., Any]) -> None:
    deep, flat = make_tiny_model("bridge"), make_tiny_model("bridge", num_hidden_layers=2)
    got = sc.compare_gaps({"deep": deep, "flat": flat}, NORMAL, MALICIOUS, draws=5)
    assert got.differences == {}
    frame = got.to_frame()
    assert frame.groupby("model")["layer"].count().to_dict() == {"deep": 3, "flat": 2}
    assert frame["difference"].isna().all()
    assert got.figure().get_axes()
    with pytest.raises(ValueError, match="no other model is as deep as 'deep'"):
        plot_gap_difference(got, ax=Figure().subplots())


def test_it_survives_the_disk(embedded: sc.layers.GapComparison, tmp_path: Path) -> None:
    assert sc.layers.GapComparison.load(embedded.save(tmp_path / "c")).equals(embedded)


def test_table(embedded: sc.layers.GapComparison) -> None:
    frame = embedded.to_frame()
    base = frame[frame["model"] == "base"]
    assert base["difference"].tolist() == pytest.approx(embedded.differences["base"].mean.tolist())
    assert base["gap_low"].tolist() == pytest.approx(embedded.intervals["base"].low.tolist())
    assert (base["gap_low"] <= base["gap_deg"]).all()


def test_bad_input(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match="no models to compare"):
        sc.compare_gaps({}, NORMAL, MALICIOUS)
    with pytest.raises(ValueError, match="'malicious' has one prompt"):
        sc.compare_gaps({"a": "does not matter"}, NORMAL, MALICIOUS[:1])
    with pytest.raises(ValueError, match="names no template for 'b'"):
        sc.compare_gaps({"a": tiny_bridge, "b": tiny_bridge}, NORMAL, MALICIOUS, template={"a": "chat"})
    with pytest.raises(ValueError, match="cannot load a model from a int"):
        sc.compare_gaps({"a": 3}, NORMAL, MALICIOUS)


class TestFigures:
    def test_three_panels_show_mean_and_deviation(self, embedded: sc.layers.GapComparison) -> None:
        gap = embedded.gaps["aligned"]
        axes = pair_panels(gap).axes
        assert [ax.get_title("left") for ax in axes] == ["N–N pairs", "M–M pairs", "N–M pairs"]
        for ax, curve in zip(axes, (gap.nn, gap.mm, gap.nm), strict=True):
            np.testing.assert_allclose(ax.lines[0].get_ydata(), curve.mean.numpy())
            band = ax.collections[0].get_paths()[0].vertices[:, 1]
            assert band.max() == pytest.approx(float((curve.mean + curve.std).max()))
            assert band.min() == pytest.approx(float((curve.mean - curve.std).min()))
        assert len({ax.get_ylim() for ax in axes}) == 1

    def test_models_side_by_side(self, embedded: sc.layers.GapComparison) -> None:
        names = ("aligned", "base", "c", "d", "e")
        gaps = {name: embedded.gaps["base" if name == "base" else "aligned"] for name in names}
        figure = models_side_by_side(gaps)
        assert [ax.get_title("left") for ax in figure.axes] == list(names)
        np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), gaps["base"].nm.mean.numpy())
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["N–N", "N–M"]
        assert len(models_side_by_side(dict(list(gaps.items())[:1])).axes) == 1
        for bad, message in (({}, "no similarity curves"), (gaps, "columns must be at least 1")):
            with pytest.raises(ValueError, match=message):
                models_side_by_side(bad, columns=0)

    def test_gap_curves_of_several_models(self, embedded: sc.layers.GapComparison) -> None:
        ax = embedded.plot(Figure().subplots())
        bands = [c for c in ax.collections if c.get_paths()]
        assert len(bands) >= 2
        onset = embedded.onsets["aligned"]
        assert f"onset {onset}" in [text.get_text() for text in ax.texts]

    def test_models_get_different_colours(self) -> None:
        names = ["aligned", "base", "one", "two", "three", "four"]
        assert len(set(model_colors(names).values())) == len(names)

    def test_difference(self, embedded: sc.layers.GapComparison) -> None:
        ax = plot_gap_difference(embedded, ax=Figure().subplots())
        np.testing.assert_allclose(ax.lines[0].get_ydata(), embedded.differences["base"].mean.numpy())
        assert tuple(ax.lines[1].get_xdata()) == embedded.differences["base"].layers_apart
        assert len(embedded.figure().get_axes()) == 4

    def test_bands_of_unknown_kinds_of_pairs(self, embedded: sc.layers.GapComparison) -> None:
        with pytest.raises(ValueError, match="nn, mm, nm, not 'mn'"):
            plot_pair_curves(embedded.gaps["base"], kinds=["mn"], ax=Figure().subplots())
        with pytest.raises(ValueError, match="no gap curve"):
            plot_gap({}, ax=Figure().subplots())

    def test_grid(self, tiny_bridge: Any) -> None:
        grid = sc.scaling_grid(tiny_bridge, NORMAL, alpha=1.5, max_new_tokens=2, detector=lambda text: "a" in text)
        ax = plot_grid(grid, ax=Figure().subplots())
        shown = ax.images[0].get_array()
        assert int(shown.mask.sum() if np.ma.isMaskedArray(shown) else np.isnan(shown).sum()) == 3
        for point in grid.points:
            assert point.layers is not None
            assert shown[point.layers.first, point.layers.last] == point.count - grid.baseline.count
