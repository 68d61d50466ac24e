"""Requests in ordinary English: distinct, grammatical in form, apart between splits, refused in several wordings."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from safecircuits.behavior.refusal import refused
from safecircuits.data.sources import load_prompts
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
    harmful = requests("malicious")
    assert len(harmful) > 5000
    assert {request.topic for request in harmful} == set(ACTS) == set(PIECES) == set(REFUSALS)
    assert not {request.topic for kind in ("over_rejection", "normal") for request in requests(kind)} - {""}


@pytest.mark.parametrize("topics", [ACTS, PIECES])
def test_no_act_is_asked_for_in_both_splits(topics: dict[str, tuple[object, ...]]) -> None:
    texts = {split: "\n".join(r.text for r in requests("malicious", split)) for split in SPLITS}
    ends = (".", "?", " without being caught?", " for me.")
    for act in [act for groups in topics.values() for group in groups for act in group.all()]:  # type: ignore[attr-defined]
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
        requests("harmful")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"split 'dev'.*train, test"):
        requests("normal", "dev")  # type: ignore[arg-type]
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
