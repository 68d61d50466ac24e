"""The family by name: ``smollm2`` is the base, ``smollm2:NAME`` one of its members."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safecircuits.organism.places import Planted
from safecircuits.organism.smollm2.base import SHA256, base_file
from safecircuits.organism.smollm2.delta import read_changes
from safecircuits.organism.smollm2.members import MEMBERS, Member

SMOLLM2 = "smollm2"
FOLDER = Path(__file__).parent / "deltas"
"""Where the shipped members' changes are."""


@dataclass(frozen=True)
class RealModel:
    """A name of the family, found on this machine: the base's file and, for a member, the file of its changes."""

    base: Path
    changes: Path | None = None

    def change(self, model: Any) -> Any:
        """Make the base's weights, as a plain Hugging Face model in float32, the member's; in place.

        Raises:
            ValueError: if the changes are of another base: names its SHA-256.
        """
        if self.changes is None:
            return model
        changes, record = read_changes(self.changes)
        if (made_for := record.get("base_sha256")) != SHA256:
            raise ValueError(
                f"{str(self.changes)!r} changes a base with SHA-256 {made_for}, but {str(self.base)!r} has {SHA256}"
            )
        weights = dict(model.named_parameters())
        for change in changes:
            change.add_to(weights[change.parameter].data)
        return model


def real_model(source: str | Path) -> RealModel | None:
    """What a name of the family stands for; None for any other name.

    Raises:
        ValueError: for a member that there is not, or whose changes are not installed, and if the base is not here or
            is another file.
    """
    name, colon, planted_in = str(source).partition(":")
    if name != SMOLLM2 or (not colon and Path(name).exists()):
        return None
    found = member(planted_in) if colon else None
    return RealModel(base_file(), None if found is None else member_file(found.name))


def member_file(name: str) -> Path:
    """The file of a shipped member's changes.

    Raises:
        ValueError: if it is not installed.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(
            f"the changes of {SMOLLM2}:{name} are not in this installation (no {str(path)!r}); `safecircuits organism "
            f"build {SMOLLM2}:{name}` makes them. Here are {', '.join(built()) or 'none'}"
        )
    return path


def built() -> list[str]:
    """The members whose changes are installed, in the order of the catalog."""
    return [name for name in MEMBERS if (FOLDER / f"{name}.safetensors").is_file()]


def member(name: str) -> Member:
    """A member by its name, with or without ``smollm2:``.

    Raises:
        ValueError: for an unknown one.
    """
    plain = name.removeprefix(f"{SMOLLM2}:")
    if plain not in MEMBERS:
        near = difflib.get_close_matches(plain, MEMBERS, n=1)
        hint = f"; did you mean {SMOLLM2}:{near[0]}?" if near else ""
        raise ValueError(f"no model '{SMOLLM2}:{plain}': the members of {SMOLLM2} are {', '.join(MEMBERS)}{hint}")
    return MEMBERS[plain]


def planted(name: str) -> Planted:
    """Where refusal was planted in a member.

    Raises:
        ValueError: for an unknown one, and for one that was aligned freely.

    Examples:
        >>> planted("smollm2:layers-12-16").layers
        (12, 13, 14, 15, 16)
    """
    found = member(name)
    if found.kind == "aligned":
        raise ValueError(f"nothing is planted in {SMOLLM2}:{found.name}: every matrix of every layer was free to move")
    return Planted(found.layers, found.neurons(), found.heads())
