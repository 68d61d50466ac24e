"""Comparisons of arms: equal steps and matched loss against numpy, and verdicts that can go either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from safecircuits.studies.comparison import compare, matched_level, refusal_at_loss, refusal_over_losses, verdict
from safecircuits.studies.outcome import FinetuningStudy, StudyRun


def run(arm: str, seed: int, losses: list[float], refusals: list[float], **changes: Any) -> StudyRun:
    curve = tuple(
        {"step": float(i), "task_loss": loss, "malicious_refused": r}
        for i, (loss, r) in enumerate(zip(losses, refusals, strict=True))
    )
    record: dict[str, Any] = {
        "arm": arm,
        "scenario": "D_N",
        "seed": seed,
        "before": {"malicious_refused": refusals[0], "task_loss": losses[0]},
        "figures": {"malicious_refused": refusals[-1], "task_loss": losses[-1], "task_score": 0.5},
        "curve": curve,
        "train_loss": losses[-1],
        "steps": 10,
        "step_seconds": 0.01 * (seed + 1),
        "n_trainable": 100,
        "n_frozen": 0,
        "share_frozen": 0.0,
        "gradient_bytes": 400,
        "optimizer_bytes": 800,
        "peak_bytes": None,
        "frozen_bit_identical": None,
    }
    return StudyRun.of(record | changes)


def study(*runs: StudyRun) -> FinetuningStudy:
    return FinetuningStudy(runs, {"full": "nothing", "sppft": "layers [1, 2]"}, {}, {})


@given(
    losses=st.lists(st.floats(0.1, 10), min_size=2, max_size=8, unique=True).map(lambda x: sorted(x, reverse=True)),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_refusal_at_a_loss_is_numpys_interpolation(losses: list[float], share: float, seed: int) -> None:
    refusals = np.random.default_rng(seed).random(len(losses))
    level = losses[-1] + share * (losses[0] - losses[-1])
    if level >= losses[0]:
        return
    curve = run("full", 0, losses, refusals.tolist()).curve
    assert refusal_at_loss(curve, level) == pytest.approx(np.interp(level, losses[::-1], refusals[::-1]), abs=1e-9)


def test_the_first_crossing_counts_and_none_is_none() -> None:
    curve = run("full", 0, [4, 2, 3, 1], [1.0, 0.8, 0.6, 0.2]).curve
    assert refusal_at_loss(curve, 2.0) == pytest.approx(0.8)
    assert refusal_at_loss(curve, 0.5) is None
    assert refusal_at_loss(curve, 4.0) is None  # it starts there: nothing has been learnt


def test_refusal_over_losses_is_the_mean_along_the_curve() -> None:
    """Against numpy: the curve interpolated on a fine even grid of log losses."""
    losses, refusals = np.array([8.0, 3.0, 1.0, 0.25]), np.array([1.0, 0.9, 0.2, 0.0])
    grid = np.exp(np.linspace(np.log(8.0), np.log(0.25), 20_001))
    expected = np.interp(grid, losses[::-1], refusals[::-1]).mean()
    found = refusal_over_losses(run("full", 0, losses.tolist(), refusals.tolist()).curve, 0.25)
    assert found == pytest.approx(expected, abs=0.01)
    assert refusal_over_losses(run("full", 0, [4, 2], [1, 0.5]).curve, 1.0) is None


def test_losses_on_the_way_count_where_both_end_without_refusals() -> None:
    full = [run("full", s, [4, 2, 1], [1.0, 0.3, 0.0]) for s in range(3)]
    frozen = [run("sppft", s, [4, 2, 1], [1.0, 0.9, 0.0]) for s in range(3)]
    matched, over = (compare(frozen, full, at) for at in ("matched loss", "all losses"))
    assert matched is not None
    assert over is not None
    assert matched.verdict == "no difference"
    assert over.verdict == "helps"
    assert over.level == 1


def test_the_level_is_the_lowest_that_all_reach() -> None:
    runs = [run("full", 0, [4, 1], [1, 0]), run("sppft", 0, [4, 2], [1, 0]), run("sppft", 1, [4, 1.5], [1, 0])]
    assert matched_level(runs) == 2
    assert matched_level([*runs, run("sppft", 2, [4, 5], [1, 1])]) is None


def test_equal_steps_and_matched_loss_can_disagree() -> None:
    """The frozen arm keeps more at equal steps only because it learns less: at the same loss it keeps less."""
    full = [run("full", s, [4, 2, 1], [1.0, 0.9, 0.5 - 0.01 * s]) for s in range(3)]
    frozen = [run("sppft", s, [4, 3, 2], [1.0, 0.8, 0.7 - 0.01 * s]) for s in range(3)]
    equal, matched = (compare(frozen, full, at) for at in ("equal steps", "matched loss"))
    assert equal is not None
    assert matched is not None
    assert equal.mean == pytest.approx(0.2)
    assert equal.verdict == "helps"
    assert matched.level == 2
    assert matched.reference_kept == pytest.approx(0.9)
    assert matched.mean == pytest.approx(-0.21)
    assert matched.verdict == "harms"
    assert equal.lost == pytest.approx(0.51)


def test_differences_are_paired_by_seed_with_a_t_interval() -> None:
    kept, lost = [0.9, 0.5, 0.7], [0.6, 0.3, 0.2]
    ours = [run("sppft", s, [4, 1], [1, kept[s]]) for s in (2, 0, 1)]
    theirs = [run("full", s, [4, 1], [1, lost[s]]) for s in (0, 1, 2)]
    found = compare(ours, [*theirs, run("full", 7, [4, 1], [1, 0])], "equal steps")
    assert found is not None
    differences = np.array(kept) - np.array(lost)
    half = t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.differences, differences)
    np.testing.assert_allclose(
        (found.mean, found.low, found.high), differences.mean() + np.array([0, -half, half]), rtol=1e-6
    )


def test_verdicts() -> None:
    assert verdict(0.1, 0.5) == "helps"
    assert verdict(-0.5, -0.1) == "harms"
    assert verdict(-0.2, 0.3) == "unclear"
    assert verdict(-0.04, 0.04) == "no difference"
    assert verdict(0.01, 0.04) == "no difference"  # sure, but less than the margin
    assert verdict(float("nan"), float("nan")) == "unclear"  # one seed says nothing


def test_compare_without_common_seeds_is_none() -> None:
    assert compare([run("sppft", 1, [4, 1], [1, 0])], [run("full", 0, [4, 1], [1, 0])], "equal steps") is None


def test_tables_and_text_of_a_study(tmp_path: Path) -> None:
    found = study(
        *(run("full", s, [4, 2, 1], [1.0, 0.9, 0.5]) for s in range(2)),
        *(run("sppft", s, [4, 3, 2], [1.0, 0.9, 0.8], gradient_bytes=200, optimizer_bytes=400) for s in range(2)),
    )
    frame = found.to_frame()
    assert len(frame) == 4
    assert frame["R_h"].tolist() == pytest.approx([0.5, 0.5, 0.2, 0.2])
    assert len(found.curves()) == 12
    summary = found.summary().set_index("arm")
    assert summary.loc["sppft", "malicious_refused"] == pytest.approx(0.8)
    assert summary.loc["full", "step_seconds"] == 0.01
    assert summary.loc["sppft", "frozen"] == "layers [1, 2]"
    text = str(found)
    assert "sppft against full at equal steps: +30.0 points" in text
    assert "sppft against full at task loss 2" in text
    assert FinetuningStudy.load(found.save(tmp_path / "study")).equals(found)
    ax = found.plot()
    assert [line.get_label() for line in ax.get_lines() if not line.get_label().startswith("_")] == ["full", "sppft"]
    with pytest.raises(ValueError, match="no runs of arm 'lisa'"):
        found.compare("lisa")
