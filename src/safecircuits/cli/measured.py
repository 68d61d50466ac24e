"""The options by which a command is given the sets on which safety and utility are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safecircuits.cli.frame import Run
from safecircuits.cli.options import (
    MaybeMalicious,
    MaybeOverRejection,
    MaybeUtility,
)


@dataclass(frozen=True)
class Measured:
    """The sets on which safety and utility are measured."""

    malicious: MaybeMalicious = None
    over_rejection: MaybeOverRejection = None
    utility: MaybeUtility = None

    def read(self, run: Run) -> dict[str, Any]:
        """Those that were given, by name as ``evaluate`` takes them; of the last one the answers, too."""
        return {
            name: run.prompts(name, source, responses=name == "utility")
            for name, source in vars(self).items()
            if source is not None
        }

    def require(self, run: Run) -> dict[str, Any]:
        """The same; a ValueError if there is none."""
        if sets := self.read(run):
            return sets
        raise ValueError("nothing to measure: give --malicious, --over-rejection or --utility")
