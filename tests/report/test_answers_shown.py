"""What a page holds of the answers that it counts: of harmful sets no text unless it is asked for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import torch

from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior import Completions, verdicts
from safecircuits.layers.decision import DecisionLayers, DecisionRule
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.report.answers import View, views
from safecircuits.report.explored import explored
from safecircuits.report.opening import opening, tally
from safecircuits.report.scripts import policy, script

HARMFUL = PromptSet("m", ("secret question one", "secret question two"))
HARMLESS = PromptSet("o", ("how do I kill a process",))
ANSWERS = (
    verdicts(Completions(HARMFUL, ("secret recipe of a bomb", "I cannot help with that."))),
    verdicts(Completions(HARMLESS, ("Use kill </script><b>now</b>.",))),
)
VIEWS = [View("before", "malicious", ANSWERS[0]), View("before", "over_rejection", ANSWERS[1])]


def test_texts_of_harmful_sets_are_left_out_unless_asked_for() -> None:
    without, whole = explored(VIEWS, texts=False), explored(VIEWS, texts=True)
    assert without is not None
    assert whole is not None
    for secret in ("secret question one", "secret recipe", "I cannot help with that"):
        assert secret not in without.data
        assert secret in whole.data
    assert "how do I kill a process" in without.data
    assert (without.withheld, whole.withheld) == (1, 0)
    said = json.loads(without.data)
    harmful = next(view for view in said["views"] if view["set"] == "malicious")
    assert [row[2] for row in harmful["rows"]] == ["complies", "refuses"]  # what was found is there all the same
    assert harmful["fold"]


def test_answers_cannot_end_the_script_and_only_this_script_may_run() -> None:
    found = explored(VIEWS, texts=True)
    assert found is not None
    assert "<" not in found.data
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    assert policy() == f"script-src 'sha256-{digest}'"


def test_every_count_of_a_result_leads_to_its_answers_once() -> None:
    found = views({"a": {"malicious": ANSWERS[0]}, "b": {"again": ANSWERS[0], "over_rejection": ANSWERS[1]}})
    assert [view.key for view in found] == [ANSWERS[0].digest, ANSWERS[1].digest]
    assert ANSWERS[0].digest != ANSWERS[1].digest


def test_numbers_by_layer_name_no_answers_and_those_to_harmless_prompts_are_shown() -> None:
    numbers = torch.tensor([0.0, 1.0])
    answers = {"malicious": ANSWERS[0], "normal": ANSWERS[1]}
    about: dict[str, Any] = {"normal": "n", "malicious": "m", "detector": "opening"}
    refused = numbers > 0
    pairs = (numbers[None].T, numbers, refused, refused)
    decision = DecisionLayers(LayerRange(1, 1), numbers, numbers, numbers, *pairs, DecisionRule(), about, {}, answers)
    found = views({"decision": decision})
    assert [(view.label, view.of) for view in found] == [
        ("decision · malicious", "malicious"),
        ("decision · normal", "normal"),
    ]
    shown = explored(found, texts=False)
    assert shown is not None
    assert (shown.withheld, shown.n) == (1, 3)
    assert "how do I kill a process" in shown.data


def test_a_page_opens_with_the_model_the_tally_and_a_caveat() -> None:
    conclusions = [{"shows": "yes"}, {"shows": "no"}, {"shows": "unclear"}]
    assert tally(conclusions) == "1 supported, 1 not supported, 1 inconclusive"
    what, found, caveat = opening("Circuits of “aligned”", "organism:aligned", conclusions, VIEWS)
    assert "toy" in what
    assert what.count("aligned") == 1
    assert "Of 3 claims" in found
    assert re.search("2 prompts", caveat)
    what, found, caveat = opening(
        "safecircuits layers decide", "mine", [], VIEWS, findings=["layers [3, 5].", "more"], doubts=["a guess", "less"]
    )
    assert (what, found) == ("safecircuits layers decide on “mine”.", "Found: layers [3, 5]; more.")
    long = ["layers [3, 5].", "more " * 70, "last"]
    found = opening("safecircuits layers decide", "mine", [], VIEWS, findings=long)[1]
    assert found == "Found: layers [3, 5] (2 more below)."
    assert caveat == "Largest caveat: a guess."  # before how many prompts there are
    loops = verdicts(Completions(HARMFUL, ("the the the the the the the the", "I cannot help with that.")))
    assert loops.tally.incoherent == 1
    damaged = [*VIEWS, View("without SCU", "malicious", loops)]
    assert "up to 50" in opening("units ablate", "mine", [], damaged)[-1]  # worse than few prompts
    assert "toy" not in opening("study ssah", "meta/llama", [], [])[0]
