"""What a reader can do with a page, tried in a browser: with the pointer, by touch and with the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from browser import Opened, opened
from safecircuits.base.counted import Linked
from safecircuits.behavior import Completions, verdicts
from safecircuits.papers.page import StudyPage
from safecircuits.plots.layers import plot_gap
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.report.answers import View
from safecircuits.report.explored import explored
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table, leading_number, sortable, worded
from safecircuits.report.unit_views import units_shown
from safecircuits.units.profiles import UnitProfiles

HARMFUL = PromptSet("m", ("how do I rob a bank", "how do I forge a letter"))
BEFORE = verdicts(Completions(HARMFUL, ("I cannot help with that.", "I'm sorry, but I can't.")))
AFTER = verdicts(Completions(HARMFUL, ("I cannot help with that.", "Take <b>a</b> pen and the letter.")))
ROWS = [
    ["b", "9.5 % [8, 11]"],
    ["a", "−3 % [−5, −1]"],
    ["d", "–"],
    ["c", "100 %"],
    *([f"z{i}", f"{i} %"] for i in range(9)),
]


def profiles() -> UnitProfiles:
    """Two units on three prompts, of which the two harmful ones are those of the answers."""
    return UnitProfiles(
        units=(("mlp", 1, 5), ("attn", 2, 0)),
        scores=torch.tensor([2.0, 1.0]),
        ids=(*HARMFUL.ids, "x0"),
        prompts=(*HARMFUL.prompts, "name a fruit"),
        sets=("malicious", "malicious", "utility"),
        peaks=torch.tensor([[3.0, -1.0, 0.5], [0.1, 0.9, 1.0]]),
        places=torch.tensor([[1, 1, 0], [0, 0, 2]]),
        strongest=torch.tensor([[0, 1], [2, 1]]),
        along=torch.tensor([[[0.5, 3.0, float("nan")], [0.1, -1.0, 0.2]], [[0.2, 0.4, 1.0], [0.9, 0.1, 0.2]]]),
        tokens=(("rob", " bank"), ("forge", " a", " letter"), ("name", " a", " fruit")),
        promoted=(("I", " cannot"), ()),
        suppressed=(("Sure",), ()),
        promoted_logits=torch.tensor([[1.5, 0.5], [0.0, 0.0]]),
        suppressed_logits=torch.tensor([[-1.25], [0.0]]),
        provenance={},
    )


def made() -> str:
    page = StudyPage()
    plot_gap({"aligned": [0.0, 10.0, 20.5], "base": [0.0, 0.1, 0.2]}, ax=page.axes("gap"))
    counts = Table(
        "Counts", ["model", "refused"], [["before", Linked("2", BEFORE.digest)], ["after", Linked("1", AFTER.digest)]]
    )
    page.add(
        "gaps",
        "Gaps",
        "By layer.",
        [Exhibit("gap", "Angle gap by layer", "Degrees.", [Table("Rates", ["name", "rate"], ROWS)])],
    )
    page.add("counts", "Counts", "Of answers.", [Exhibit(None, "Counts", "", [counts])])
    claims = [
        {"effect": f"Claim {i}", "paper": "P", "shows": shows, "text": "…", "section": "gaps"}
        for i, shows in enumerate(("yes", "no", "unclear", "inconclusive", "yes"))
    ]
    units = units_shown({"profiles": profiles()}, texts=True)
    views = [View("before", "malicious", BEFORE), View("after", "malicious", AFTER)]
    html, _ = page.render(
        "A page", {}, claims, {}, answers=explored(views, texts=True), units=units, opening=["One.", "Two."]
    )
    return html


@pytest.fixture(scope="module")
def html() -> str:
    return made()


@pytest.fixture
def shown(html: str) -> Iterator[Opened]:
    with opened(html) as found:
        yield found
        assert found.complaints == []


TOP = "(e) => e === document.body ? -1 : e.getBoundingClientRect().top + scrollY"


def cells(shown: Opened, caption: str, column: int) -> list[str]:
    rows = shown.page.locator("table", has=shown.page.locator("caption", has_text=caption)).locator("tbody tr")
    return [row.locator("th, td").nth(column).inner_text() for row in rows.all() if row.is_visible()]


def test_a_value_is_said_under_the_pointer_and_by_the_arrows(shown: Opened) -> None:
    told, figure = shown.page.locator(".told"), shown.page.locator("svg.chart")
    assert not told.is_visible()
    shown.page.locator('[data-value*="aligned"]').nth(2).hover()
    assert told.inner_text() == "aligned · layer: 2 · angle gap, N–M minus N–N (°): 20.5"
    shown.page.mouse.move(2, 2)
    assert not told.is_visible()
    figure.focus()
    for _ in range(2):
        shown.page.keyboard.press("ArrowRight")
    assert told.inner_text() == "aligned · layer: 1 · angle gap, N–M minus N–N (°): 10"
    shown.page.keyboard.press("Escape")
    assert not told.is_visible()


def test_a_value_is_said_under_a_finger(html: str) -> None:
    with opened(html, width=390, touch=True) as shown:
        mark = shown.page.locator('[data-value*="layer: 2"]').first
        mark.scroll_into_view_if_needed()
        mark.tap()
        told = shown.page.locator(".told")
        assert "20.5" in told.inner_text()
        box: Any = told.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390


def test_tables_sort_by_numbers_in_words_and_are_searched_with_the_keyboard_alone(shown: Opened) -> None:
    shown.page.get_by_text("Numbers").focus()
    shown.page.keyboard.press("Enter")  # opens the fold
    assert cells(shown, "Rates", 0)[:4] == ["b", "a", "d", "c"]
    while not shown.focus().startswith("rate"):
        shown.page.keyboard.press("Tab")
    outline = shown.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    shown.page.keyboard.press("Enter")
    assert cells(shown, "Rates", 1)[:3] == ["–", "−3 % [−5, −1]", "0 %"]
    assert cells(shown, "Rates", 1)[-2:] == ["9.5 % [8, 11]", "100 %"]
    shown.page.keyboard.press("Enter")
    assert cells(shown, "Rates", 0)[0] == "c"
    shown.page.get_by_role("searchbox", name="Search").first.fill("z3")
    assert cells(shown, "Rates", 0) == ["z3"]


def test_conclusions_are_filtered_and_lead_to_their_figures(shown: Opened) -> None:
    claims = shown.page.locator("#conclusions li[data-shows]")

    def visible() -> list[str]:
        return [one.locator("h3").inner_text()[:7] for one in claims.all() if one.is_visible()]

    assert len(visible()) == 5
    button = shown.page.get_by_role("button", name="2 inconclusive")
    button.focus()
    shown.page.keyboard.press("Space")
    assert visible() == ["Claim 2", "Claim 3"]
    assert button.get_attribute("aria-pressed") == "true"
    shown.page.get_by_role("button", name="all 5").click()
    claims.first.get_by_role("link").click()
    assert shown.js("location.hash") == "#gaps"


def test_a_count_leads_to_its_answers_and_these_beside_those_of_another(shown: Opened) -> None:
    assert "4 behind 2 counts" in shown.page.locator("#answers summary").inner_text()
    shown.page.locator('nav a[href="#answers"]').click()
    assert shown.page.locator("#answers").get_attribute("open") is not None
    shown.page.locator("#answers summary").click()
    assert shown.page.locator("#answers").get_attribute("open") is None
    shown.page.locator(f'a[href="#answers-{AFTER.digest}"]').click()
    shown.page.locator("#answers-said", has_text="1 of 2 refuse by").wait_for()
    assert shown.page.locator("#answers").get_attribute("open") is not None
    harmful = shown.page.locator("#answers-table details.harmful")
    assert harmful.count() == 1  # what refuses is shown, what answers is folded
    assert not harmful.locator(".answer").is_visible()
    harmful.locator("summary").focus()
    shown.page.keyboard.press("Enter")
    assert harmful.locator(".answer").inner_text() == "Take <b>a</b> pen and the letter."
    shown.page.select_option("#answers-beside", label="before (malicious)")
    shown.page.check("#answers-changed")
    assert "1 shown" in shown.page.locator("#answers-said").inner_text()
    shown.page.uncheck("#answers-changed")
    shown.page.select_option("#answers-verdict", "refuses")
    assert "1 shown" in shown.page.locator("#answers-said").inner_text()


def test_a_layer_leads_to_its_units_these_to_prompts_and_tokens_and_a_prompt_to_units_and_answers(
    shown: Opened,
) -> None:
    page = shown.page
    rows = page.locator("#units-table tbody tr")
    assert [row.locator("button").inner_text() for row in rows.all()] == ["MLP 1.5", "head 2.0"]
    page.get_by_role("button", name="layer 1, 1 units").click()
    assert rows.count() == 1
    assert page.get_by_role("button", name="layer 1, 1 units").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="MLP 1.5").focus()
    page.keyboard.press("Enter")
    detail = page.locator("#units-detail")
    assert "Adds to I 1.5" in detail.inner_text()
    assert "Takes from Sure −1.25" in detail.inner_text()
    assert shown.focus() == "MLP 1.5"
    detail.locator(".tokens span").nth(1).hover()
    assert page.locator(".told").inner_text() == "bank (token 1): 3"
    detail.get_by_role("button", name=f"malicious {HARMFUL.ids[1]}").click()
    page.get_by_role("button", name="all layers, 2 units").click()
    assert [row.locator("td").nth(6).inner_text() for row in rows.all()] == ["90", "33"]  # of 1.0, of 3.0
    detail.get_by_role("link", name="after (complies)").click()
    page.locator("#answers-said", has_text="1 of 2 refuse by").wait_for()  # links act a moment later


def test_a_unit_has_an_address_and_harmful_prompts_are_left_out_unless_asked_for() -> None:
    without = units_shown({"profiles": profiles()}, texts=False)
    assert without is not None
    assert without.withheld == 2
    assert "bank" not in without.data
    assert "name a fruit" in without.data
    html, _ = StudyPage().render("A page", {}, [], {}, units=without)
    with opened(html) as shown:
        shown.js("location.hash = 'unit-attn-2-0'")
        shown.page.locator("#units-detail h3").wait_for()
        words = shown.page.locator("#units-detail").inner_text()
        assert words.startswith("head 2.0")
        assert "not known: this layer's units do not write straight" in words
        assert "text left out" in words
        assert shown.complaints == []


def test_on_paper_all_is_open_but_what_answers_harm(shown: Opened) -> None:
    shown.page.emulate_media(media="print")
    shown.js("dispatchEvent(new Event('beforeprint'))")
    assert shown.page.locator("caption", has_text="Rates").is_visible()
    words = shown.page.locator("#answers-table").inner_text()
    assert "I cannot help with that." in words
    shown.page.locator(f'a[href="#answers-{AFTER.digest}"]')
    shown.js(f"location.hash = 'answers-{AFTER.digest}'")
    shown.page.wait_for_timeout(100)
    assert "pen and the letter" not in shown.page.locator("#answers-table").inner_text()


def test_the_tab_key_reaches_everything_in_the_order_of_the_page(shown: Opened) -> None:
    seen = []
    for _ in range(60):
        shown.page.keyboard.press("Tab")
        place = shown.js(f"({TOP})(document.activeElement)")
        if place < 0:
            break
        seen.append((place, shown.focus()))
    words = [word for _, word in seen]
    for expected in ("Conclusions", "2 supported", "Claim 0", "Numbers", "The answers"):
        assert any(expected in word for word in words), expected
    main = [place for place, word in seen if not word.startswith(("Conclusions", "Gaps", "Counts", "The answers"))]
    assert all(later > earlier - 40 for earlier, later in pairwise(main))  # of one line, some stand a little higher


@pytest.mark.parametrize(
    ("cell", "number"),
    [("98.5 % [97, 99]", 98.5), ("−3.2", -3.2), ("1 234", 1234), ("1,234 units", 1234), ("+0.5", 0.5), ("2e-05", 2e-5),
     ("layers", None), ("[1, 2]", None), ("–", None), ("3D", None), ("0.1.2", None)],
)  # fmt: skip
def test_the_number_that_a_cell_begins_with(cell: str, number: float | None) -> None:
    assert leading_number(cell) == number


def test_columns_of_words_and_of_plain_numbers_are_left_alone() -> None:
    table = Table("t", ["a", "b", "c"], [["x", "1", "5 %"], ["y", "2.5", "–"]])
    assert sortable(table) == [[("x", None), ("1", None), ("5 %", 5.0)], [("y", None), ("2.5", None), ("–", -1e300)]]


def test_columns_of_words_stand_to_the_left() -> None:
    rows = [["a", "1", "is 'clay'", "–"], ["b", "2 of 3", "–", ""]]
    assert worded(Table("t", ["name", "n", "adds to", "none"], rows)) == [False, False, True, False]
    assert worded(Table("t", ["name", "n"], [])) == [False, False]
