"""``""`` for a column means none of it, of what has no columns as of a file."""

from __future__ import annotations

import pytest

import safecircuits as sc

OWN = sc.PromptSet("own", ("find a lamp", "find a dog"), ("here", "there"), categories=("x", "y"))


@pytest.mark.parametrize("source", ["organism:utility", "organism:normal", OWN])
def test_no_responses_where_none_are_wanted(source: str | sc.PromptSet) -> None:
    whole = sc.load_prompts(source, n=2)
    bare = sc.load_prompts(source, n=2, responses="")
    assert whole.responses is not None
    assert bare.responses is None
    assert (bare.prompts, bare.name, bare.categories) == (whole.prompts, whole.name, whole.categories)


def test_no_categories_where_none_are_wanted() -> None:
    assert sc.load_prompts(OWN).categories == ("x", "y")
    assert sc.load_prompts(OWN, categories="").categories is None
    assert OWN.categories == ("x", "y")
