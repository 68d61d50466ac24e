"""The log of a run: a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safecircuits.base.files import plain, write_text
from safecircuits.base.outputs import require_replaceable


class Log:
    """Appends records to ``path``; on a resume, lines from after the checkpoint are dropped. Without a path, nothing.

    Args:
        keep: steps that the run has behind it.
    """

    def __init__(self, path: str | Path | None, keep: int) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            require_replaceable(self.path, "log")
            old = self.path.read_text(encoding="utf-8").splitlines() if keep and self.path.exists() else []
            kept = [line for line in old if line.endswith("}") and json.loads(line)["step"] <= keep]
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, record: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, default=plain) + "\n")
