"""What an earlier run saved, as an input of this one."""

from __future__ import annotations

import hashlib
from pathlib import Path


def result_folder(path: Path, name: str) -> Path:
    """Where the result ``name`` is: in the run directory ``path``, or that folder itself."""
    inside = path / "results" / name
    return inside if inside.is_dir() else path


def digest(*folders: Path) -> str:
    """Of all files in the folders, by which a run knows that its input is the same."""
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.is_file()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
