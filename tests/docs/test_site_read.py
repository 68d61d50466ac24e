"""The built site as a reader has it: search finds what people look for, pages fit a phone, and no table is empty."""

from __future__ import annotations

import re
import runpy
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from browser import opened

pytestmark = pytest.mark.slow

SOUGHT = {
    "install": "install/",
    "tutorial": "tutorials/",
    "glossary": "glossary/",
    "wandb": "how-to/watch-training/",
    "torchrun": "how-to/many-gpus/",
}
ROOT = Path(__file__).parents[2]
HEAVIEST = 1_500_000
"""Bytes of a page with its pictures."""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_search_finds_what_people_look_for(address: str) -> None:
    with opened(address) as shown:
        for word, page in SOUGHT.items():
            shown.page.goto(address)
            shown.page.locator("[data-md-component=search-query]").first.fill(word, force=True)
            shown.page.locator(".md-search-result__item").first.wait_for(timeout=30_000)
            links = shown.page.locator(".md-search-result__item > a").all()[:5]
            found = [str(link.get_attribute("href")).removeprefix(address) for link in links]
            assert any(one.startswith(page) for one in found), f"{word!r} leads to {found}"


@pytest.mark.parametrize(
    "page", ["", "quickstart/", "reproduction/", "reference/commands/", "tutorials/1_safety_layers/", "leaderboard/"]
)
def test_pages_fit_a_phone_and_complain_of_nothing(address: str, page: str) -> None:
    with opened(address + page, width=390) as shown:
        assert shown.overflow <= 0
        assert shown.complaints == []


def test_solutions_are_folded_code(address: str) -> None:
    with opened(address + "tutorials/2_composing_hooks/") as shown:
        solution = shown.page.locator("details", has_text="Solution").first
        code = solution.locator("pre code")
        assert not code.is_visible()
        solution.locator("summary").click()
        assert code.is_visible()


def test_long_tables_are_filtered(address: str) -> None:
    with opened(address + "reproduction/") as shown:
        field = shown.page.get_by_role("searchbox", name="Show only table rows with these words")
        rows = shown.page.locator("article table tbody tr:visible")
        before = rows.count()
        field.fill("llama over")
        assert 0 < rows.count() < before
        assert all("llama" in row.inner_text().lower() for row in rows.all())


def test_no_table_is_empty(site: Path) -> None:
    for page in site.rglob("*.html"):
        for table in re.findall(r"<table.*?</table>", page.read_text(encoding="utf-8"), re.DOTALL):
            cells = [re.sub(r"<.*?>", "", one).strip() for one in re.findall(r"<td.*?</td>", table, re.DOTALL)]
            assert any(cell not in ("", "–", "nan", "None") for cell in cells), (
                f"{page.relative_to(site)}: {table[:300]}"
            )


def test_no_page_is_heavy(site: Path) -> None:
    found = runpy.run_path(str(ROOT / "docs" / "page_weights.py"))["weights"](site)
    assert next(iter(found.values())) < HEAVIEST
