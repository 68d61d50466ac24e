"""The page of any run: figures say what they are of, and a result that nobody drew is drawn by the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from commands import refuse, succeed
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.measured import Behavior
from safecircuits.layers.localization import Localization, Sweep
from safecircuits.layers.pairs import PairCurve
from safecircuits.layers.similarity import LayerGap
from safecircuits.layers.sweep_point import SweepPoint
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.report.answers import views
from safecircuits.report.run_pages import doubts
from safecircuits.report.saved import SavedRun
from safecircuits.results.load_record import load_run
from safecircuits.results.result import Result
from safecircuits.results.run import RunDirectory
from safecircuits.units.ablation import Ablation, AblationTable

CURVE = PairCurve(*(torch.tensor([0.9, 0.8, 0.7]) for _ in range(3)))
GAP = LayerGap(CURVE, CURVE, CURVE, torch.tensor([0.0, 5.0, 9.0]), "all", "paper", {})
BEHAVIOR = Behavior(torch.arange(10) < 7, None, torch.arange(10) < 9)
TABLE = AblationTable(BEHAVIOR, (Ablation("SCU", 4, BEHAVIOR, (BEHAVIOR,)),))


def localization() -> Localization:
    def point(count: int, layers: LayerRange | None = None) -> SweepPoint:
        texts = tuple(map(str, range(10)))
        return SweepPoint(layers, 1.2, torch.arange(10) < count, 0.0, Completions(PromptSet("p", texts), texts))

    sweep = Sweep("upper", (point(5, LayerRange(1, 1)), point(8, LayerRange(1, 2))), "up")
    lower = Sweep("lower", sweep.points, "up")
    return Localization(LayerRange(1, 2), 1.2, "up", point(2), sweep, lower, (), True, {})


RESULTS: dict[str, Result] = {"gap": GAP, "rates": BEHAVIOR, "removed": TABLE, "located": localization()}


def page_of(run: Path) -> str:
    succeed("report", run)
    return (run / "report.html").read_text(encoding="utf-8")


def labels(page: str) -> list[str]:
    return re.findall(r'<svg[^>]* aria-label="([^"]*)"', page)


def test_results_alone_are_drawn_with_their_numbers(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", "study of mine", {}) as run:
        for name, result in RESULTS.items():
            run.result(name, result)
    page = page_of(tmp_path / "run")
    assert len(labels(page)) == len(RESULTS)
    assert GAP.verdict in page
    assert localization().verdict in page
    for number in ("9", "0.7", "8"):
        assert f"<td>{number}</td>" in page


def test_a_page_opens_with_what_was_found_and_what_its_results_hold_against_it(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", "study of mine", {}) as run:
        for name, result in RESULTS.items():
            run.result(name, result)
        run.say(f"caveat: as asked for\n{TABLE.verdict}")
    saved = SavedRun.open(tmp_path / "run")
    results = {name: saved.result(name) for name in saved.kinds()}
    own = [localization().caveat, TABLE.caveat]
    assert own[0] == "layers [1, 2] are one of several blocks that did as well, within noise"
    assert doubts(results, []) == own
    assert doubts(results, ["found", "caveat: told"]) == ["told", *own]  # what the run itself told comes first
    lines = re.findall(r"<li>(.+)</li>", page_of(tmp_path / "run").partition("</header>")[0])
    found = "; ".join(TABLE.verdict.splitlines())
    assert lines == ["safecircuits study of mine.", f"Found: {found}.", "Largest caveat: as asked for."]


def test_answers_are_named_by_what_they_were_given_under_and_not_by_what_was_found() -> None:
    assert [view.label for view in views({"located": localization()})] == [
        "located · baseline · alpha 1.2",
        "located · upper · layers [1, 1] · alpha 1.2",
        "located · upper · layers [1, 2] · alpha 1.2",
    ]


def test_a_figure_says_what_it_is_of_and_is_not_drawn_twice(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", "study of mine", {}) as run:
        for name, result in RESULTS.items():
            run.result(name, result)
        run.figure("curve", GAP.plot(), of=GAP)
        run.figure("both", BEHAVIOR.plot(), of=[BEHAVIOR, TABLE], shows="What is left")
    noted = load_run(tmp_path / "run")["figures"]
    assert noted["curve"] == {"of": ["gap"], "shows": "The angle-gap curve with the onset range shaded"}
    assert noted["both"] == {"of": ["rates", "removed"], "shows": "What is left"}
    page = page_of(tmp_path / "run")
    assert len(labels(page)) == 3
    assert any(label.startswith("What is left") for label in labels(page))
    with RunDirectory.open(tmp_path / "other", "study of mine", {}) as run, pytest.raises(KeyError):
        run.figure("curve", GAP.plot(), of=GAP)  # which is no result of this run


@pytest.mark.parametrize("noted", [[], {"gap": "x"}, {"gap": {"of": "x", "shows": ""}}, {"gap": {"of": []}}])
def test_a_record_that_says_something_else_of_its_figures_is_refused(tmp_path: Path, noted: object) -> None:
    with RunDirectory.open(tmp_path / "run", "study of mine", {}) as run:
        run.result("gap", GAP)
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"figures": noted}))
    assert "'figures' is a table of what figures show" in refuse("report", tmp_path / "run")
