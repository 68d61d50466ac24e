"""What a notebook shows: prompt sets, fine-tuning runs, and progress below a cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import safecircuits as sc
from safecircuits.base import progress


def a_run(**changes: Any) -> sc.FinetuneRun:
    facts: dict[str, Any] = {
        "losses": (2.0, 1.0),
        "steps": 2,
        "seconds": 0.25,
        "stopped_early": False,
        "frozen_bit_identical": True,
        "frozen_digest": "ab" * 32,
        "n_trainable": 1000,
        "n_frozen": 24,
    }
    return sc.FinetuneRun(**facts | changes)


def test_a_prompt_set_is_shown_by_its_first_and_last_rows() -> None:
    prompts = sc.PromptSet("mine", tuple(f"<b>{i}</b>" for i in range(50)), tuple("yes" for _ in range(50)))
    assert repr(prompts) == f"PromptSet('mine', 50 prompts with responses, {prompts.fingerprint})"
    shown = prompts._repr_html_()
    assert "&lt;b&gt;49&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert "&lt;b&gt;25" not in shown
    assert prompts.to_frame()["response"].tolist() == list(prompts.responses or ())
    assert list(prompts.take(2).to_frame()) == ["prompt", "response"]
    assert list(sc.PromptSet("bare", ("a",)).to_frame()) == ["prompt"]


def test_a_run_is_shown_in_a_line_and_as_a_table() -> None:
    run = a_run(losses=tuple(float(i) for i in range(1000, 0, -1)), evaluations=({"step": 2, "refused": 0.5},))
    assert len(repr(run)) < 400
    assert "bit-identical (SHA-256 abababababab…)" in repr(run)
    shown = run._repr_html_()
    assert "<th>training loss</th><td>1e+03 at first, 10.5 over the last 20 steps</td>" in shown
    assert "<td>step 2, refused 0.5</td>" in shown
    assert "frozen" not in repr(a_run(frozen_bit_identical=None, frozen_digest=None))
    assert "stopped early" in repr(a_run(stopped_early=True))


def test_the_figure_of_a_run_has_its_losses() -> None:
    ax = a_run().plot(Figure().add_subplot())
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == [2.0, 1.0]
    assert ax.get_ylim()[0] == 0


class Screen:
    """A notebook's cell: what is displayed, and what it was updated to."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], **_: Any) -> Screen:
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], **_: Any) -> None:
        self.shown.append(bundle)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    display = pytest.importorskip("IPython.display")
    cell, clock = Screen(), iter(range(1000))
    monkeypatch.setattr(display, "display", cell.display)
    monkeypatch.setattr(progress.console, "is_jupyter", True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    return cell


def test_a_notebook_shows_a_bar_that_goes_when_it_is_done(screen: Screen) -> None:
    assert list(progress.track("abc", "<letters>")) == ["a", "b", "c"]
    *bars, last = screen.shown
    assert [bar["text/plain"].split(",")[0] for bar in bars] == [
        "<letters> 0 of 3",
        "<letters> 1 of 3",
        "<letters> 2 of 3",
    ]
    assert '<progress value="1" max="3">' in bars[1]["text/html"]
    assert "<letters>" not in bars[1]["text/html"]
    assert last == {}


def test_a_bar_goes_when_the_work_fails_and_short_work_has_none(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(progress.track(failing(), "work"))
    assert screen.shown[0] == {"text/html": "work 0, 1 s", "text/plain": "work 0, 1 s"}
    assert screen.shown[-1] == {}
    screen.shown.clear()
    monkeypatch.setattr(progress, "NOTEBOOK_DELAY", 1e9)
    assert list(progress.track(range(3), "work")) == [0, 1, 2]
    assert list(progress.track(range(3), "work", enabled=False)) == [0, 1, 2]
    assert screen.shown == []
