"""What a run has written: its page, and its files as a command names them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

REPORT = "report.html"  # as ``results.run_record`` has it, whose import would cost --help a second
MANY = 6
"""Files of one folder that are still named one by one when a command says what it wrote."""


def write_page(folder: Path) -> None:
    """Write the page of a complete run, made from what it saved."""
    from safecircuits.base.files import write_text
    from safecircuits.report.run_pages import run_page
    from safecircuits.report.saved import SavedRun

    write_text(folder / REPORT, run_page(SavedRun.open(folder)))


def listed(paths: list[Path]) -> list[str]:
    """Paths, those of a folder with many together."""
    together = Counter(path.parent for path in paths)
    lines = [f"{p.parent} ({together[p.parent]} files)" if together[p.parent] > MANY else str(p) for p in paths]
    return list(dict.fromkeys(lines))
