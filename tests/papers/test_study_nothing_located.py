"""A Safety Layers study whose search located nothing: every part that uses the block says so."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.measured import Behavior
from safecircuits.layers.localization import Localization, Sweep
from safecircuits.layers.malicious_check import MaliciousCheck
from safecircuits.layers.sweep_point import SweepPoint
from safecircuits.layers.transplanting import Transplant, TransplantTable
from safecircuits.model.sites import ModelShape
from safecircuits.papers.page import StudyPage
from safecircuits.papers.safety_layers import localization, transplant
from safecircuits.papers.safety_layers.published import add_published, measured_numbers
from safecircuits.papers.safety_layers.settings import StudySettings
from safecircuits.papers.safety_layers.study import SafetyLayersStudy
from safecircuits.prompts.prompt_set import PromptSet

pytestmark = pytest.mark.slow

BLOCK = LayerRange(2, 3)

TEXTS = tuple(map(str, range(100)))
ANSWERS = Completions(PromptSet("own", TEXTS), TEXTS)


def behavior(refused: int) -> Behavior:
    return Behavior(torch.arange(100) < refused, None, None)


def study(count: int, *, planted: LayerRange | None = None) -> SafetyLayersStudy:
    """A model of which 20 of 100 prompts are refused unscaled, and ``count`` with the block scaled."""

    def point(layers: LayerRange | None, n: int) -> SweepPoint:
        return SweepPoint(layers, 1.2, torch.arange(100) < n, 0.0, ANSWERS)

    sweep = Sweep("upper", (point(LayerRange(2, 2), 21), point(BLOCK, count)), "up")
    found = Localization(BLOCK, 1.2, "up", point(None, 20), sweep, replace(sweep, bound="lower"), (), True, {})
    shape = ModelShape(architecture="a", n_layers=8, d_model=4, d_mlp=8, n_heads=2, n_kv_heads=2)
    made = SafetyLayersStudy(source="own", name="own", shape=shape, settings=StudySettings(), planted=planted)
    check = MaliciousCheck(point(None, 20), point(BLOCK, count), {})
    undecided: Any = SimpleNamespace(layers=None)
    moved = TransplantTable(behavior(100), behavior(0), (Transplant("located block", BLOCK, behavior(90)),))
    return made.having(
        **{f"localization_{i}": found for i in range(3)}, transplant=moved, malicious_check=check, decision=undecided
    )


def shows(entries: Any, part: str) -> str:
    return next(found for effect, _, found, _ in entries if part in effect)


@pytest.mark.parametrize(("count", "located"), [(60, True), (23, False)])
def test_only_what_was_located_is_called_so(count: int, located: bool) -> None:
    made = study(count, planted=BLOCK)
    entries = list(localization.claims(made))
    assert shows(entries, "exceed") == ("yes" if located else "no")
    assert shows(entries, "the same whichever") == ("yes" if located else "inconclusive")
    assert shows(entries, "planted") == ("yes" if located else "no")
    assert shows(transplant.claims(made), "carries refusal") == ("yes" if located else "inconclusive")
    assert (measured_numbers(made)["safety layers", "first"] == "2") == located
    page = StudyPage()
    add_published(made, page)
    row = page.sections[0].exhibits[0].tables[0].rows[-1]
    assert (str(BLOCK) in row) == located
    assert any("within noise" in cell for cell in row) != located


def test_a_model_that_refuses_no_more_than_its_base_carries_nothing() -> None:
    made = study(60)
    assert made.transplant is not None
    made = made.having(transplant=replace(made.transplant, source=behavior(0)))
    assert shows(transplant.claims(made), "carries refusal") == "inconclusive"
