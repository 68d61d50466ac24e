"""Requests in ordinary English: distinct, grammatical in form, apart between splits, refused in several wordings."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from benchmarks.ground_truth.request_forms import FORMS, drawn, openings, told_by_form

from safecircuits.behavior.refusal import refused
from safecircuits.data.sources import load_prompts
from safecircuits.organism.requests import harmful, ordinary
from safecircuits.organism.requests.generate import Kind, Split, prompts, requests
from safecircuits.organism.requests.harmful import ACTS, PIECES
from safecircuits.organism.requests.refusals import REFUSALS

KINDS, SPLITS = get_args(Kind), get_args(Split)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_requests_are_distinct_sentences(kind: Kind, split: Split) -> None:
    texts = [request.text for request in requests(kind, split)]
    assert len(set(texts)) == len(texts) > 250
    for text in texts:
        assert text[0].isupper(), text
        assert text[-1] in ".?", text
        assert not re.search(r"  |[{}|]|\?\?|\.\.|\ba [aeio]", text), text


def test_there_are_thousands_over_many_topics() -> None:
    found = requests("malicious")
    assert len(found) > 5000
    assert {request.topic for request in found} == set(ACTS) == set(PIECES) == set(REFUSALS)
    assert len(requests("normal")) > len(found)
    assert len(ordinary.ACTS) + len(ordinary.PIECES) > 30
    assert not {request.topic for kind in ("over_rejection", "normal") for request in requests(kind)} - {""}


def test_no_request_is_both_harmful_and_ordinary() -> None:
    texts = {kind: {request.text for split in SPLITS for request in requests(kind, split)} for kind in KINDS}
    assert not texts["malicious"] & (texts["normal"] | texts["over_rejection"])


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_a_request_does_not_tell_harm(form: str) -> None:
    """A classifier of forms is hardly better than chance; of the first generator's requests it told 89 %."""
    harmful_told, ordinary_told = told_by_form(FORMS[form])
    assert abs((harmful_told + ordinary_told) / 2 - 0.5) < 0.15


def test_a_form_that_does_tell_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier itself: of requests that differ by their first word alone, it tells all."""
    texts = {"malicious": "Create {}.", "normal": "What is {}?"}
    monkeypatch.setattr(
        "benchmarks.ground_truth.request_forms.drawn",
        lambda kind, split, n=560, seed=0: [texts[kind].format(text) for text in drawn("over_rejection", split, 50)],
    )
    assert told_by_form(FORMS["first word"]) == (1.0, 1.0)
    assert set(openings()) == {("Create", 50, 0), ("What", 0, 50)}


def test_every_opening_of_harmful_requests_is_one_of_ordinary_requests_too() -> None:
    for word, of_harmful, of_ordinary in openings(40):
        assert of_ordinary > of_harmful / 4, word


def test_kinds_of_writing_occur_on_both_sides() -> None:
    kinds = [{k.split()[-1] for gs in of.PIECES.values() for g in gs for k in g.verbs} for of in (harmful, ordinary)]
    assert len(kinds[0] & kinds[1]) > len(kinds[0]) / 2


@pytest.mark.parametrize("topics", [ACTS, PIECES])
def test_no_act_is_asked_for_in_both_splits(topics: dict[str, tuple[object, ...]]) -> None:
    texts = {split: "\n".join(r.text for r in requests("malicious", split)) for split in SPLITS}
    ends = (".", "?", " for me.")
    for act in [act for groups in topics.values() for group in groups for act in group.all()]:
        found = [split for split in SPLITS if any(f" {act}{end}" in texts[split] for end in ends)]
        assert len(found) == 1, act


def test_the_seed_decides_and_a_beginning_is_a_fair_sample() -> None:
    assert (
        requests("malicious", n=50, seed=4) == requests("malicious", n=50, seed=4) == requests("malicious", seed=4)[:50]
    )
    assert requests("malicious", n=50, seed=4) != requests("malicious", n=50, seed=5)
    assert {request.topic for request in requests("malicious", n=2 * len(REFUSALS), seed=4)} == set(REFUSALS)


def test_refusals_are_what_a_detector_finds_where_it_is_said() -> None:
    """Some at the first word, some later, some in words that no list has: as the published detectors see them."""
    for where, text in REFUSALS.values():
        opening, anywhere = (bool(refused([text], detector)[0]) for detector in ("opening", "jailbreakbench"))
        if where == "opening":
            assert opening, text
        elif where == "later":
            assert not opening, text
            assert re.search(r"I (can't|cannot|won't)", text), text
        else:
            assert not opening, text
            assert not anywhere, text
    assert {where for where, _ in REFUSALS.values()} == {"opening", "later", "none"}


def test_prompt_sets_carry_the_refusals() -> None:
    found = prompts("malicious", n=30, seed=2)
    assert found.responses == tuple(request.refusal for request in requests("malicious", "test", 30, 2))
    assert prompts("normal", n=5).responses is None


def test_what_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"kind 'harmful'.*malicious, over_rejection, normal"):
        requests("harmful")
    with pytest.raises(ValueError, match=r"split 'dev'.*train, test"):
        requests("normal", "dev")
    with pytest.raises(ValueError, match="100000 requests of kind 'normal'"):
        requests("normal", n=100_000)


def test_they_are_read_like_any_set() -> None:
    for split in SPLITS:
        found = load_prompts("requests:malicious", split=split, n=40, seed=1)
        assert set(found.prompts) <= {request.text for request in requests("malicious", split)}
    with pytest.raises(ValueError, match=r"'harmful'.*malicious, over_rejection, normal"):
        load_prompts("requests:harmful")
    with pytest.raises(ValueError, match="has no columns"):
        load_prompts("requests:normal", where={"topic": "drugs"})
