"""Pages in a real browser without a window, driven by playwright: what a reader sees and does with them.

The browser is the Chromium (or Chrome) of this machine, or the one that CHROME names; where there is none, or no
playwright, a test that needs it is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (360, 390, 768, 1440)
HERE = "http://127.0.0.1:"
PAPER = 718
"""Pixels of a sheet of A4 between margins of a centimetre."""


@dataclass
class Opened:
    """A page in the browser, and what it complains about: console messages of errors, uncaught errors, requests."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.js("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    @property
    def lightness(self) -> float:
        """Of the background, 0 black to 1 white."""
        color = self.js("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) / (3 * 255)

    def focus(self) -> str:
        """The label or text of what has the focus; empty where nothing has it."""
        return str(
            self.js(
                "((e) => e && e !== document.body ? (e.getAttribute('aria-label') || e.textContent).trim() : '')"
                "(document.activeElement)"
            )
        )


def browser() -> str:
    """Path of a browser; the test is skipped where there is none."""
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium here; CHROME names one")
    return found


@contextmanager
def opened(
    source: str | Path, *, width: int = 1440, height: int = 900, dark: bool = False, touch: bool = False
) -> Iterator[Opened]:
    """A page, given as HTML, by its file or by its address on this machine, in a window of a size.

    Nothing that it asks of a network is answered.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here")
    with playwright.sync_playwright() as driver:
        chrome = driver.chromium.launch(executable_path=browser(), args=["--no-sandbox", "--disable-gpu"])
        here = isinstance(source, str) and source.startswith(HERE)
        scheme: Any = "dark" if dark else "light"
        context = chrome.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch, offline=not here
        )
        shown = Opened(context.new_page())
        shown.page.on("console", lambda said: said.type in ("error", "warning") and shown.complaints.append(said.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("request", lambda asked: _unless_own(shown, asked.url))
        if isinstance(source, Path):
            shown.page.goto(source.resolve().as_uri())
        elif here:
            shown.page.goto(source)
        else:
            shown.page.set_content(source)
        yield shown
        chrome.close()


def _unless_own(shown: Opened, url: str) -> None:
    if not url.startswith(("file:", "data:", "about:", "blob:", HERE)):
        shown.complaints.append(f"asked for {url}")


OPEN = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"

_CUT = """
[...document.querySelectorAll('.scroll, figure, details, section')]
  .filter((one) => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.getAttribute('aria-label') || one.className || one.tagName)
"""


def require_good(pages: Mapping[str, str], folder: Path) -> None:
    """Fail unless every page fits every width with all opened, is clean, dark where wanted, and prints whole."""
    for name, page in pages.items():
        with opened(page) as shown:
            shown.js(OPEN)
            wide = {}
            for width in WIDTHS:
                shown.page.set_viewport_size({"width": width, "height": 900})
                if shown.overflow > 0:
                    wide[width] = shown.overflow
            assert wide == {}, f"{name} is wider than the window"
            bright, ink = shown.lightness, shown.js("getComputedStyle(document.body).color")
            shown.page.emulate_media(color_scheme="dark")
            assert shown.lightness < 0.25 < 0.75 < bright, name
            assert shown.js("getComputedStyle(document.body).color") != ink, name
            shown.page.emulate_media(color_scheme="light", media="print")
            shown.page.set_viewport_size({"width": PAPER, "height": 1000})
            assert shown.js(_CUT) == [], f"{name} is cut in print"
            assert shown.overflow <= 0, f"{name} is wider than the paper"
            printed = shown.page.pdf(format="A4", path=folder / "printed.pdf")
            assert printed.count(b"/Type /Page\n") >= 2, name
            assert shown.complaints == [], name
