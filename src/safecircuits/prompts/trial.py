"""A chat template that is not known yet is tried in a process of its own, with little time and memory.

A template is a program that somebody sent with a model. Jinja's sandbox keeps it from the machine, not from looping for
ever or from building text that fills the memory; nothing in this process could stop it once it runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from safecircuits.base.notices import notify

_CHILD = Path(__file__).with_name("trial_child.py")

SECONDS = 30.0
"""Until the trial is ended where the system sets no limit of its own, or the machine is busy with other things."""

TOO_MUCH, NOT_TRIED = 3, 4  # exit codes of the child


class UnboundedTemplate(ValueError):
    """A chat template that takes more time or memory than any template needs."""


@lru_cache(maxsize=64)
def try_template(template: str, special: tuple[tuple[str, str], ...] = ()) -> None:
    """Render a template on a few short and long exchanges where it can do no harm; once for each template.

    What else is wrong with it is left to Transformers to say. A template that waits for certain words before it loops
    passes.

    Args:
        template: the chat template.
        special: the special tokens that it may write, by name.

    Raises:
        UnboundedTemplate: if it needs more than two seconds of computing or 512 MB.
    """
    try:
        code = _run(json.dumps([template, dict(special)]))
    except (OSError, ValueError) as error:
        notify(f"the tokenizer's chat template was not tried for loops without end, as no process can start: {error}")
        return
    if code == NOT_TRIED:
        notify("the tokenizer's chat template was not tried for loops without end: no Jinja in a process of its own")
    elif code is None or code == TOO_MUCH or code < 0:  # below zero: ended by the system
        raise UnboundedTemplate(
            "the tokenizer's chat template loops without end, or builds far more text than it is given "
            f"({len(template)} characters, beginning {template[:60]!r}): set tokenizer.chat_template to one that you "
            "trust, or pass template= with {instruction}"
        )


def _run(given: str) -> int | None:
    """The child's exit code; None where it was still running."""
    import jinja2
    import markupsafe

    homes = [str(Path(str(module.__file__)).parent.parent) for module in (jinja2, markupsafe)]
    command = [sys.executable, "-I", "-B", str(_CHILD), *homes]
    try:
        done = subprocess.run(
            command,
            input=given.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode if done.returncode in (0, TOO_MUCH, NOT_TRIED) or done.returncode < 0 else NOT_TRIED
