"""What ``import safecircuits as sc`` gives: names that are there, and rooms without an import of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import safecircuits as sc


def test_every_room_is_there_without_an_import_of_its_own() -> None:
    rooms = {p.parent.name for p in Path(sc.__file__).parent.glob("*/__init__.py")} - {"base", "cli", "demo"}
    asked = "; ".join(f"assert sc.{room}.__name__ == 'safecircuits.{room}'" for room in sorted(rooms))
    subprocess.run([sys.executable, "-c", f"import safecircuits as sc; {asked}"], check=True)
