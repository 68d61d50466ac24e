"""A complete run as it is read again: its record, the command that made it, and how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safecircuits.results.run_record import COMPLETE, read_record


def load_run(folder: str | Path) -> dict[str, Any]:
    """The record of a complete run; results in it load with ``Result.load(folder / "results" / name)``.

    Raises:
        ValueError: if there is no run, or one that was interrupted (says how to go on).

    Examples:
        >>> with sc.RunDirectory.open("run", "gap", {"n": 8}) as run:
        ...     run.result("gap", sc.layer_gap(model, normal, malicious))
        PosixPath('run/results/gap')
        >>> record = sc.load_run("run")
        >>> record["command"], record["arguments"]
        ('gap', {'n': 8})
    """
    folder = Path(folder)
    record = read_record(folder)
    if record is None:
        raise ValueError(f"{str(folder)!r} holds no run of safecircuits: there is no {COMPLETE} in it")
    if "finished" not in record:
        raise ValueError(
            f"the run in {str(folder)!r} is not complete: run the same command again with the same --out to go on"
        )
    return record


def run_provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """How a complete run was made, to be shown below its report: the command to type, inputs, versions and times."""
    return {
        "command": command_line(record),
        **record["provenance"],
        "finished": record["finished"],
        "seconds": record["seconds"],
        "inputs": {name: _one_line(value) for name, value in record["inputs"].items()},
        "arguments": {name: value for name, value in record["arguments"].items() if value is not None},
    }


def command_line(record: Mapping[str, Any]) -> str:
    """The command as it could have been typed, with all options that have a value."""
    words = ["safecircuits", *record["command"].split()]
    for name, value in record["arguments"].items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(option)
            elif one is not None and one is not False:
                words += [option, str(one)]
    return shlex.join(words)


def _one_line(value: Any) -> Any:
    return ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
