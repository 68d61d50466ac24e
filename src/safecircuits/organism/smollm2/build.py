"""Members on disk: trained where they are missing, and whole or not there at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safecircuits.organism.smollm2.base import SHA256
from safecircuits.organism.smollm2.catalog import member
from safecircuits.organism.smollm2.delta import read_changes
from safecircuits.organism.smollm2.held import held_texts
from safecircuits.organism.smollm2.plant import made_by, plant


def build_members(
    base: Any,
    tokenizer: Any,
    names: Sequence[str],
    folder: str | Path,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Path]:
    """Train members from the base and write the changes of each to ``NAME.safetensors`` in ``folder``.

    One that is there and was made in the same way is kept, and so is what the base says (``answers.safetensors``), so
    an interrupted build goes on where it stopped. A member takes five to ten minutes on one core.

    Args:
        base: ``smollm2`` as a plain Hugging Face model in float32; it is left as it is.
        names: of members, with or without ``smollm2:``.
        progress: called with what is being done, the steps done and the steps in all.

    Raises:
        ValueError: for an unknown member, or a file of its name in ``folder`` that is something else.
    """
    members = [member(name) for name in names]
    paths = {each.name: Path(folder) / f"{each.name}.safetensors" for each in members}
    missing = [each for each in members if not _is_made(paths[each.name], made_by(each, SHA256))]
    if missing:
        harmless = held_texts(base, tokenizer, Path(folder), progress)
        for each in missing:
            plant(base, tokenizer, each, harmless, paths[each.name], base_sha256=SHA256, progress=progress)
    return paths


def _is_made(path: Path, wanted: Mapping[str, Any]) -> bool:
    if not path.exists():
        return False
    record = read_changes(path)[1]
    return {key: record.get(key) for key in wanted} == wanted
