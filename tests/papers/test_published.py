"""The papers' numbers: found by any of a model's names, and consistent with what the papers conclude from them."""

from __future__ import annotations

import pytest

from safecircuits.papers.published import PAPERS, published_numbers


@pytest.mark.parametrize(
    "name", ["Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct", "some/folder/llama-3-8b-instruct/"]
)
def test_a_model_is_found_by_any_of_its_names(name: str) -> None:
    rows = published_numbers("safety_layers", table="Table 1", model=name)
    layers = rows[rows["setting"] == "safety layers"].set_index("metric")["value"]
    assert (layers["first"], layers["last"]) == (6, 12)


def test_an_unknown_model_has_no_rows() -> None:
    assert published_numbers("ssah", model="gpt2").empty


def test_safety_layers_are_where_the_published_lower_sweep_is_extreme() -> None:
    """The paper's own rule applied to its own counts gives its own ranges: a check of the retyped table."""
    table = published_numbers("safety_layers", table="Table 1")
    for _, rows in table.groupby("model"):
        value = rows.set_index(["setting", "metric"])["value"]
        lower = rows[rows["setting"].str.startswith("lower")].set_index("setting")["value"]
        best = lower.idxmax() if value["alpha", "alpha"] > 1 else lower.idxmin()
        bounds = (int(value["safety layers", "first"]), int(value["safety layers", "last"]))
        assert best == f"lower [{bounds[0]}, {bounds[1]}]"


@pytest.mark.parametrize("paper", PAPERS)
def test_no_number_is_given_twice(paper: str) -> None:
    rows = published_numbers(paper)
    assert not rows.duplicated(["table", "model", "setting", "metric"]).any()
    assert rows.notna().all(axis=None)


def test_flows_of_alignment_add_up_to_the_printed_shares() -> None:
    rows = published_numbers("ssah", table="Figure 6").set_index("setting")["value"]
    assert rows["flow UCU->UCU"] + rows["flow UCU->CU"] + rows["flow UCU->SCU"] + rows["flow UCU->RU"] == pytest.approx(
        rows["before UCU"], abs=0.02
    )


def test_unknown_paper_and_table_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="safety_layers"):
        published_numbers("larf")
    with pytest.raises(ValueError, match="Table 1"):
        published_numbers("ssah", table="Table 99")
