"""Which build of a member a figure is of: by the SHA-256 of the file of its changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safecircuits.organism.smollm2.base import sha256_of
from safecircuits.organism.smollm2.catalog import FOLDER, SMOLLM2
from safecircuits.organism.smollm2.members import MEMBERS


def changes_of(name: str) -> str:
    """The SHA-256 of a shipped member's file; empty for the base and where there is none."""
    path = FOLDER / f"{name}.safetensors"
    return sha256_of(path) if name in MEMBERS and path.is_file() else ""


def earlier(members: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of the members that results are of, those that have been built anew since."""
    return [name for name, one in members.items() if name in MEMBERS and one.get("changes") != changes_of(name)]


def earlier_said(results: Mapping[str, Any]) -> str:
    """A sentence for the top of a page where some of its figures are of members that have been built anew since."""
    members = {name: one for name, one in results["members"].items() if name != SMOLLM2}
    of = earlier(members)
    if not of:
        return ""
    which = "all of its members" if len(of) == len(members) else ", ".join(f"`{name}`" for name in of)
    return (
        f"**Measured on {results['provenance']['date']}, before the members were planted again**: the figures here of "
        f"{which} are of an earlier build than\nthe one that ships.\n\n"
    )
