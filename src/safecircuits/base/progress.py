"""Progress: bars where a person is watching, on a terminal's stderr or in a notebook, and a line a minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from html import escape
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from safecircuits.base.log_lines import Work, lines
from safecircuits.base.processes import is_main

T = TypeVar("T")

console = Console(stderr=True)

NOTEBOOK_DELAY = 0.5
"""Seconds before a notebook shows a bar, and between its updates: short work leaves a cell's output clean."""


def track(items: Iterable[T], what: str, *, total: int | None = None, enabled: bool = True) -> Iterator[T]:
    """Iterate with a progress bar, on stderr or below a notebook's cell, or lines of a log; nothing if disabled."""
    if not enabled or not is_main():
        yield from items
        return
    total = len(items) if total is None and isinstance(items, Sized) else total
    if console.is_jupyter:
        yield from _in_notebook(items, what, total)
    elif console.is_terminal:
        with progress_bar() as bar:
            yield from bar.track(items, description=what, total=total)
    else:
        yield from _in_log(items, what, total)


def _in_log(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    with lines.work(what, total) as work:
        for done, item in enumerate(items):
            work.done = done
            lines.tell()
            yield item


def _in_notebook(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    """Iterate with a bar below the cell, which goes when it is done; rich's own needs widgets to show one there."""
    from IPython.display import display

    work = Work(what, total, time.monotonic())
    updated = work.began
    shown = None
    try:
        for done, item in enumerate(items):
            now, work.done = time.monotonic(), done
            if now - updated >= NOTEBOOK_DELAY:
                bar = _html_bar(work, now)
                if shown is None:
                    shown = display(bar, raw=True, display_id=True)
                else:
                    shown.update(bar, raw=True)
                updated = now
            yield item
    finally:
        if shown is not None:
            shown.update({}, raw=True)


def _html_bar(work: Work, now: float) -> dict[str, str]:
    """One state of a bar, as HTML and as plain text."""
    text = work.text(now)
    bar = f'<progress value="{work.done}" max="{work.total}"></progress> ' if work.total else ""
    return {"text/html": f"{bar}{escape(text)}", "text/plain": text}


def say(text: str) -> None:
    """Say on stderr what begins or is done now, if a person is watching; else the next line of the log says it."""
    lines.part = text
    if is_main() and (console.is_terminal or console.is_jupyter):
        console.print(text, highlight=False, markup=False)


def progress_bar() -> Progress:
    """Bars on stderr that go when they are done; nothing is drawn where stderr is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers inside: reading or writing a local checkpoint deserves none."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
