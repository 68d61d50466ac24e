"""How a command behaves to whoever types it: bad input in one line, an exit code, and no noise of other libraries."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import typer

from safecircuits.base.notices import Notice
from safecircuits.base.processes import is_main, size

TRACEBACK = "SAFECIRCUITS_TRACEBACK"
"""Environment variable: if set, bad input shows where it was found, too."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input ends in one line and exit code 2, an interruption in 130; a defect still shows its traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        _fail(error, str(error))
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command goes on with what is kept in --out", err=True)
        raise typer.Exit(130) from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without importing torch
            raise
        _fail(error, f"out of memory on the device: {error}")


def _fail(error: Exception, text: str) -> None:
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    typer.echo(f"error: {' '.join(text.split()) or type(error).__name__}", err=True)
    raise typer.Exit(2) from error


GRACE = 5.0
"""Seconds in which the launcher ends the processes of a command that fails in all of them."""


@contextmanager
def only_one_speaks() -> Iterator[None]:
    """Of several processes (``torchrun``) only the first one prints; another that fails by itself says so, later."""
    if is_main():
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            yield
    except BaseException as error:
        time.sleep(GRACE)  # where process 0 has failed alike, it has said it, and the launcher ends this one
        last = said.getvalue().strip().splitlines()[-1:] or [f"{type(error).__name__}: {error}"]
        print(f"process {os.environ['RANK']} failed alone: {last[0]}", file=sys.stderr)
        raise


def require_one_process(command: str) -> None:
    """Raise a ValueError if several processes were launched for a command that trains."""
    if size() > 1:
        raise ValueError(
            f"'safecircuits {command}' trains, which it does in one process; under torchrun or accelerate launch call "
            "safecircuits.finetune in a script, and run the analyses by their own commands"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, other libraries' notices are not shown: they are about those libraries, not about the run. Ours are."""
    for name, value in {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
            os.environ.setdefault(name, "1")
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, Notice) and str(message) not in shown:
            shown.add(str(message))
            typer.echo(f"warning: {message}", err=True)

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=Notice)
            warnings.showwarning = show
            yield
    finally:
        logging.disable(disabled)
