"""Pages in a real browser without a window: do they fit their width, follow the colour scheme, and run clean?

Chromium alone is driven by its command line: pages lie in frames of the widths to test (a frame's width is what its
media queries see), a script of the frame around them measures, and the browser prints the document that results.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (360, 768, 1280)
DARK = "--blink-settings=preferredColorScheme=0"

_MEASURE = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const inside = frame.contentDocument;
    inside.querySelectorAll("details").forEach((element) => { element.open = true; });
    return {
      page: frame.title, width: frame.clientWidth, scroll: inside.documentElement.scrollWidth,
      background: frame.contentWindow.getComputedStyle(inside.body).backgroundColor,
      color: frame.contentWindow.getComputedStyle(inside.body).color,
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@dataclass(frozen=True)
class Shown:
    """A page at a width: how wide its contents are, and its colours as ``rgb(…)``."""

    page: str
    width: int
    scroll: int
    background: str
    color: str

    @property
    def lightness(self) -> float:
        """Of the background, 0 black to 1 white."""
        return sum(map(int, re.findall(r"\d+", self.background)[:3])) / (3 * 255)


def browser() -> str:
    """Path of a browser; the test is skipped where there is none."""
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium here; CHROME names one")
    return found


def run(folder: Path, *arguments: str) -> tuple[str, list[str]]:
    """What the browser prints, and what it complains about in the console."""
    command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0"]
    got = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240, check=True)
    return got.stdout, [line for line in got.stderr.splitlines() if ":CONSOLE" in line]


def show(
    pages: Mapping[str, str], folder: Path, *arguments: str, widths: Sequence[int] = WIDTHS
) -> tuple[list[Shown], list[str]]:
    """Every page, given as HTML by name, at every width with all its details open; and the console's messages."""
    frames = [
        f'<iframe title="{html.escape(name)}" style="border:0;width:{width}px;height:700px" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in widths
    ]
    around = folder / "around.html"
    body = f'{_MEASURE}<pre id="found"></pre>{"".join(frames)}'
    around.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{body}', encoding="utf-8")
    dom, console = run(folder, *arguments, "--virtual-time-budget=20000", "--dump-dom", around.as_uri())
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[:500]
    return [Shown(**row) for row in json.loads(html.unescape(found[1]))], console


def require_good(pages: Mapping[str, str], folder: Path) -> None:
    """Fail unless every page fits every width, is clean in the console, dark where dark is wanted, and prints."""
    light, console = show(pages, folder)
    assert console == []
    assert len(light) == len(pages) * len(WIDTHS)
    assert [(one.page, one.width, one.scroll) for one in light if one.scroll > one.width] == []
    dark, console = show(pages, folder, DARK, widths=(768,))
    assert console == []
    bright = {one.page: one.lightness for one in light}
    assert all(one.lightness < 0.25 < 0.75 < bright[one.page] for one in dark)
    assert {one.color for one in dark}.isdisjoint(one.color for one in light)
    for number, page in enumerate(pages.values()):
        source, printed = folder / f"{number}.html", folder / f"{number}.pdf"
        source.write_text(page, encoding="utf-8")
        run(folder, f"--print-to-pdf={printed}", source.as_uri())
        assert printed.read_bytes().count(b"/Type /Page\n") >= 2
