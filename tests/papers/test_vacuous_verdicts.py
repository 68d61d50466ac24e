"""Verdicts on a model that has nothing to lose, and on ranges that are noise: said so first, and before the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner

import safecircuits as sc
from safecircuits.base.notices import Notice
from safecircuits.base.record import record_of
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.stakes import nothing_to_lose
from safecircuits.cli import app
from safecircuits.demo.overview import located_line
from safecircuits.demo.settings import DemoSettings
from safecircuits.demo.study import DemoStudy, DemoSubject
from safecircuits.demo.units import ABLATION, CURVE
from safecircuits.layers.localization import Localization, Sweep
from safecircuits.layers.malicious_check import MaliciousCheck
from safecircuits.layers.sweep_point import SweepPoint
from safecircuits.model.sites import ModelShape
from safecircuits.papers.conclusion import keeps_refusal
from safecircuits.papers.safety_layers.checks import locates
from safecircuits.papers.ssah.removals import CLAIMS, removal_verdict
from safecircuits.plots.layers import plot_sweeps
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.report import captions
from safecircuits.results.result import Result
from safecircuits.studies.comparison import Comparison
from safecircuits.units.ablation import Ablation, AblationTable
from safecircuits.units.groups import UnitGroups

N = 100

TEXTS = tuple(map(str, range(N)))
ANSWERS = Completions(PromptSet("own", TEXTS), TEXTS)


def behavior(refused: int, right: int) -> Behavior:
    place = torch.arange(N)
    return Behavior(place < refused, None, place < right)


@pytest.mark.parametrize(("group", "claim"), [(group, claim) for group, claims in CLAIMS.items() for claim in claims])
def test_every_claim_about_a_removal(group: str, claim: tuple[str, str, str]) -> None:
    """True, false and vacuous models of each: a claim is inconclusive exactly where there is nothing to lose."""
    rate, expected, _ = claim

    def verdict(before: int, after: int) -> tuple[str, str]:
        intact, without, control = (behavior(n, n) for n in (before, after, before))
        row = Ablation(group, 4, without, (control, behavior(max(before - 5, 0), max(before - 5, 0)), control))
        return removal_verdict(AblationTable(intact, (row,)), row, rate, expected)

    falls = expected == "falls"
    assert verdict(100, 0)[0] == ("yes" if falls else "no")
    assert verdict(100, 100)[0] == ("no" if falls else "yes")
    for before in (0, 4):
        shows, text = verdict(before, 0)
        assert shows == "inconclusive"
        assert text.startswith("There is nothing to lose: as the model is, it")


def comparison(before: float, reference: float, arm: float) -> Comparison:
    return Comparison("s", "arm", "full", "matched loss", 1.0, before, arm, reference, (arm - reference,) * 3,
                      arm - reference, arm - reference - 0.01, arm - reference + 0.01)  # fmt: skip


def test_freezing_where_nothing_is_there_or_nothing_was_lost() -> None:
    assert keeps_refusal([comparison(1.0, 0.3, 0.9)])[0] == "yes"
    assert keeps_refusal([comparison(1.0, 0.5, 0.3)])[0] == "no"
    shows, text = keeps_refusal([comparison(0.0, 0.0, 0.0)])
    assert shows == "inconclusive"
    assert text.startswith("There is nothing to lose")
    shows, text = keeps_refusal([comparison(1.0, 0.99, 1.0)])
    assert shows == "inconclusive"
    assert text.startswith("With full fine-tuning next to nothing was lost")
    assert "lost next to nothing" in str(comparison(0.0, 0.0, 0.0))


SHAPE = ModelShape(architecture="a", n_layers=8, d_model=4, d_mlp=12, n_heads=2, n_kv_heads=2)


def demo(**found: Result) -> DemoStudy:
    return DemoSubject(SHAPE, 1, DemoSettings().quick()).empty().having(**found)


def shows(part: Any, study: DemoStudy, start: str) -> tuple[str, str]:
    [(said, text)] = [(said, text) for effect, _, said, text in part.claims(study) if effect.startswith(start)]
    return said, text


@pytest.mark.parametrize(
    ("start", "true", "false"),
    [
        ("A few safety-critical", (0, N), (N, N)),
        ("Utility-critical", (N, 0), (N, N)),
        ("Redundant", (N, N), (50, 50)),
    ],
)
def test_the_demos_claims_about_groups(start: str, true: tuple[int, int], false: tuple[int, int]) -> None:
    sites: tuple[Any, ...] = ("mlp", "attn")
    labels: Any = {site: torch.zeros(8, SHAPE.n_units(site), dtype=torch.int8) for site in sites}
    groups = UnitGroups(labels, labels, labels, SHAPE, {})

    def verdict(before: int, after: tuple[int, int]) -> tuple[str, str]:
        intact = behavior(before, before)
        rows = tuple(Ablation(name, 40, behavior(*after), (intact,)) for name in ("SCU", "UCU", "RU"))
        return shows(ABLATION, demo(ablation=AblationTable(intact, rows), groups=groups), start)

    assert verdict(N, true)[0] == "yes"
    assert verdict(N, false)[0] == "no"
    said, text = verdict(0, (0, 0))
    assert said == "inconclusive"
    assert text.startswith("There is nothing to lose")


def test_safety_critical_units_that_carry_utility_too_are_unclear() -> None:
    assert demo_ablation((0, 20)) == "unclear"
    assert demo_ablation((0, 99)) == "yes"


def demo_ablation(after: tuple[int, int]) -> str:
    labels: Any = {"mlp": torch.zeros(8, 12, dtype=torch.int8)}
    rows = tuple(Ablation(name, 40, behavior(*after), (behavior(98, 99),)) for name in ("SCU", "UCU", "RU"))
    table, groups = AblationTable(behavior(99, 99), rows), UnitGroups(labels, labels, labels, SHAPE, {})
    return shows(ABLATION, demo(ablation=table, groups=groups), "A few safety-critical")[0]


def test_planted_units_of_a_model_that_refuses_nothing() -> None:
    order: Any = {"mlp": torch.rand(8, 384, generator=torch.Generator().manual_seed(0))}
    labels: Any = {"mlp": torch.zeros(8, 384, dtype=torch.int8)}
    shape = replace(SHAPE, d_mlp=384)
    gone = behavior(0, N)
    rows = (Ablation("top 5", 5, gone, (behavior(N, N),)), Ablation("planted", 192, gone, ()))
    for refused, said in ((N, "yes"), (0, "inconclusive")):
        found: dict[str, Result] = {"behavior_planted-units": behavior(refused, N)}
        found |= {"planted_units": AblationTable(behavior(refused, N), rows)}
        found |= {"planted_groups": UnitGroups(labels, order, order, shape, {})}
        study = replace(demo(**found), shape=shape)
        assert shows(CURVE, study, "The score finds")[0] == said


def point(layers: LayerRange | None, count: int) -> SweepPoint:
    return SweepPoint(layers, 1.2, torch.arange(N) < count, 0.0, ANSWERS)


def localization(baseline: int, counts: tuple[int, int, int]) -> Localization:
    upper = Sweep("upper", tuple(point(LayerRange(0, last), c) for last, c in enumerate(counts)), "up")
    lower = Sweep("lower", (point(upper.best.layers, max(counts)),), "up")
    assert lower.best.layers is not None
    return Localization(lower.best.layers, 1.2, "up", point(None, baseline), upper, lower, (), True, {})


def test_a_range_of_noise_is_not_located() -> None:
    noise, real = localization(20, (22, 24, 21)), localization(20, (22, 60, 21))
    backwards = localization(60, (10, 12, 11))
    assert [found.located for found in (noise, real, backwards)] == [False, True, False]
    assert "within noise of not scaling at all (p = " in noise.verdict
    assert "for the best of 3" in noise.verdict
    assert "no block that was scaled has more refusals" in backwards.verdict
    for found in (noise, real):
        ax = plot_sweeps(found, ax=Figure().subplots())
        assert any("located" in text.get_text() for text in ax.texts) == found.located
        assert ("nothing located" in located_line(found)) != found.located


def test_an_alpha_that_was_given_was_not_searched() -> None:
    given = localization(20, (22, 60, 21))
    assert "was given" in captions.sweeps(record_of(given))
    assert "settled" not in captions.sweeps(record_of(given))
    searched = replace(given, alpha_trials=(given.upper,))
    assert "The search settled on α = 1.2" in captions.sweeps(record_of(searched))
    assert "No α gave the spread" in captions.sweeps(record_of(replace(searched, alpha_found=False)))


@pytest.mark.parametrize(("refused", "said"), [(0, "100 of 100"), (96, "so few"), (100, "none is answered")])
def test_few_are_answered_only_where_few_are(refused: int, said: str) -> None:
    check = MaliciousCheck(point(None, refused), point(LayerRange(0, 1), refused), {})
    assert said in locates(check)


def test_what_there_is_to_lose() -> None:
    assert nothing_to_lose({"malicious_refused": 0.5, "utility": 0.9}) == ""
    text = nothing_to_lose({"malicious_refused": 0.0, "utility": 0.01, "over_rejected": 0.7})
    assert "refuses 0 % of the malicious prompts and it answers 1 % of the utility prompts right" in text
    assert nothing_to_lose({"malicious_refused": 0.0, "utility": 1.0}, "utility") == ""


def test_it_is_told_before_the_removal(tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notice comes when the intact model is known, not after an hour of removals."""
    from safecircuits.units import removals

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(removals.Removals, "without", stop)
    with (
        pytest.warns(Notice, match="nothing to lose: as the model is, it refuses 0 %"),
        pytest.raises(KeyboardInterrupt),
    ):
        sc.ablate_units(tiny_bridge, {"some": sc.FreezeMask.layers(0)}, malicious=["a dog", "a cake"], controls=0)


def test_it_is_told_before_a_sweep_that_nothing_can_move(tiny_bridge: Any) -> None:
    with pytest.warns(Notice, match="refuses 3 of the 3 over-rejection prompts, so that scaling cannot add to that"):
        found = sc.localize(
            tiny_bridge, ["a dog", "a cake", "tea"], (0, 1), alpha=1.5, detector=lambda text: True, max_new_tokens=3
        )
    assert not found.located
    with pytest.warns(Notice, match="every malicious query is refused as it is"):
        sc.layers.answered_malicious(tiny_bridge, ["a dog"], (0, 1), 1.5, detector=lambda text: True, max_new_tokens=3)


def test_the_command_writes_no_mask_of_noise(tmp_path: Path) -> None:
    """The base model refuses nothing, whatever is scaled a little."""
    for name, more in (("plain", []), ("anyway", ["--mask-anyway"])):
        out = tmp_path / name
        arguments = ["--model", "organism:base", "--over-rejection", "organism:over_rejection", "--start", "2,3"]
        arguments += ["--alpha", "1.05", "--reach", "1", "--n", "8", "--out", str(out), *more]
        got = CliRunner().invoke(app, ["layers", "localize", *arguments])
        assert got.exit_code == 0, got.output
        assert "within noise of not scaling at all" in got.output
        assert (out / "freeze.safetensors").exists() == bool(more)
        assert ("no freeze mask is written" in got.output) != bool(more)


def test_residuals_by_layer_and_by_prompt(tiny_bridge: Any) -> None:
    found = sc.collect_residuals(tiny_bridge, ["a dog", "a cake", "tea", "find a lamp"], layers=[2, 0])
    assert torch.equal(found.at(0), found.values[1])
    assert torch.equal(found.at(2), found.values[0])
    assert torch.equal(found.prompt(3), found.values[:, 3])
    with pytest.raises(ValueError, match="layer 1 was not collected; there are 2, 0"):
        found.at(1)
    with pytest.raises(ValueError, match="prompt 4 is not there: the 4 prompts are counted from 0"):
        found.prompt(4)
