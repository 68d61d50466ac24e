"""Where a result comes from: command, versions, seeds and the fingerprints of the data."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from safecircuits.prompts.prompt_set import PromptSet

PACKAGES = ("torch", "transformers", "transformer-lens", "numpy")


def provenance(
    *, command: str, seed: int | None = None, datasets: Mapping[str, PromptSet] | None = None, **more: Any
) -> dict[str, Any]:
    """A block to store beside a result; ``more`` is added as it is."""
    from safecircuits.base.version import __version__

    return {
        "command": command,
        "version": __version__,
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "seed": seed,
        "datasets": {name: {"n": len(data), "sha": data.fingerprint} for name, data in (datasets or {}).items()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **more,
    }
