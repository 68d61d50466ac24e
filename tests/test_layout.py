"""Tests lie where what they test lies: a folder a room, and in it files of its modules, or that use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from public_face import ROOT, homes

TESTS = Path(__file__).parent
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
BESIDE = {"docs", "distributed", "stored"}
"""Folders of what is no room: pages and examples, processes of their own, files of earlier runs."""
FILES = sorted(path for path in TESTS.glob("*/test_*.py") if path.parent.name not in BESIDE)
TOP = {name: module.split(".")[1] for name, module in homes().items()}


def used(path: Path) -> set[str]:
    """The rooms that a file of tests uses: by import, as ``sc.room`` or by a name of the top."""
    text = path.read_text(encoding="utf-8")
    rooms = set(re.findall(r"\b(?:safecircuits|sc)\.(\w+)", text)) & ROOMS
    rooms |= {TOP[name] for name in re.findall(r"\bsc\.(\w+)", text) if name in TOP}
    return rooms | set(re.findall(r"^from safecircuits import (\w+)$", text, re.MULTILINE))


def test_every_room_has_a_folder_of_tests_and_every_folder_is_of_a_room() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert folders - BESIDE == ROOMS


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_of_tests_is_of_the_room_that_it_lies_in(path: Path) -> None:
    """It has the name of a module there, or uses the room; commands, which may run anything, may be tested anywhere."""
    room = path.parent.name
    modules = {module.stem for module in (ROOT / room).rglob("*.py")}
    by_command = re.search(r"^(from|import) (commands|test_cli)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert path.stem.removeprefix("test_") in modules or room in used(path) or by_command
