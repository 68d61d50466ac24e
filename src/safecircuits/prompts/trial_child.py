"""The process in which a chat template is tried; run as a script, by itself, with Jinja's folders as its arguments.

It reads ``[template, special tokens]`` as JSON and ends with 0 if the template ends, 3 if it takes too much, 4 if it
could not be tried. Where the system has no limits to set, whoever started it ends it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

CPU_SECONDS, BYTES, CHARACTERS = 2, 512 * 2**20, 10_000_000
SHORT, LONG = "first words", "word, " * 200
TURNS = ("user", "assistant", "user")


def limit() -> None:
    """Set the system's limits for this process, where it has any."""
    try:
        import resource
    except ImportError:
        return
    for which, most in (("RLIMIT_CPU", CPU_SECONDS), ("RLIMIT_AS", BYTES), ("RLIMIT_CORE", 0)):
        try:
            kind = getattr(resource, which)
            resource.setrlimit(kind, (most, most))
        except (AttributeError, OSError, ValueError):
            continue  # the one that starts this process has a limit of time


def exchanges() -> list[list[dict[str, str]]]:
    """Conversations as the library asks for: one to three turns, with and without a system prompt, short and long."""
    made = []
    for said in (SHORT, LONG):
        turns = [{"role": role, "content": said} for role in TURNS]
        for first in ([], [{"role": "system", "content": said}]):
            made += [first + turns[:n] for n in (1, 2, 3)]
    return made


def environment() -> Any:
    """Jinja as Transformers sets it up for chat templates, as far as it matters to whether a template ends."""
    import datetime

    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def stop(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **({"ensure_ascii": False} | options))

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": stop, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    return made


def main() -> int:
    sys.path[:0] = sys.argv[1:]
    given = sys.stdin.buffer.read()
    limit()
    try:
        template, special = json.loads(given)
        made = environment()
    except Exception:
        return 4
    try:
        compiled = made.from_string(template)
        for messages in exchanges():
            for asks in (True, False):
                written = 0
                try:
                    for piece in compiled.generate(messages=messages, add_generation_prompt=asks, **special):
                        written += len(piece)
                        if written > CHARACTERS:
                            return 3
                except (MemoryError, OverflowError):
                    return 3
                except Exception:
                    continue  # this template does not take these turns, which Transformers says when it is asked for it
    except (MemoryError, RecursionError, OverflowError):
        return 3
    except Exception:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
