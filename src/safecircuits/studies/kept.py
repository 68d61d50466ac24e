"""What finished parts of a study are called on disk: a name for the reader, and a key of all that decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def short(identity: Mapping[str, Any]) -> str:
    """Twelve hex digits that stand for what decides a part; functions count by their names."""
    text = json.dumps(identity, sort_keys=True, default=lambda value: getattr(value, "__qualname__", repr(value)))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def slug(name: str) -> str:
    """A name with nothing in it that a file's name cannot have."""
    return "".join(c if c.isalnum() or c in "._" else "_" for c in name)
