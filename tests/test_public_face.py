"""What ``import safecircuits as sc`` gives: about fifty names, the rooms with the others, and nothing loaded early."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

import safecircuits as sc
from public_face import ROOMS, ROOT, everything, homes
from safecircuits.results.register import MODULES, class_named
from safecircuits.results.result import Result

FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"cli"}


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_room_is_there_without_an_import_of_its_own() -> None:
    asked = "; ".join(f"assert sc.{room}.__name__ == 'safecircuits.{room}'" for room in sorted(FOLDERS))
    python(f"import safecircuits as sc; {asked}")


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_loads_and_is_what_its_module_has(room: str) -> None:
    package = getattr(sc, room) if room else sc
    for name, module in homes(room).items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name), name
    assert set(package.__all__) == set(dir(package)) == set(homes(room)) | (set() if room else FOLDERS)


def test_the_top_has_about_fifty_names() -> None:
    assert 45 <= len(homes()) <= 60


@pytest.mark.parametrize("room", ROOMS)
def test_no_public_name_shadows_a_module(room: str) -> None:
    """``sc.units.x`` is one thing, whatever was imported before."""
    assert set(homes(room)) & {path.stem for path in (ROOT / room).iterdir()} == set()
    assert set(homes()) & FOLDERS == set()


def test_importing_the_package_and_its_rooms_loads_nothing_heavy() -> None:
    rooms = ", ".join(f"sc.{room}" for room in ROOMS)
    python(
        f"import sys, safecircuits as sc; {rooms}; sc.__version__; "
        "heavy = {'torch', 'transformers', 'transformer_lens', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )


def test_a_star_import_gives_the_face() -> None:
    python("from safecircuits.masks import *; assert FreezeMask.__name__ == 'FreezeMask'")


def test_the_library_imports_from_modules_so_that_the_import_contract_sees_it() -> None:
    """A name taken through a room's face is an import that no checker can follow to its module."""
    faces = {"safecircuits": homes()} | {f"safecircuits.{room}": homes(room) for room in ROOMS}
    through = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and faces.get(node.module or "", {}).keys() & {a.name for a in node.names}
    ]
    assert through == []


def test_every_result_that_is_returned_can_be_named_to_load_it() -> None:
    """The parts of a whole study aside, which its run directory loads."""
    public = {thing for thing in everything().values() if isinstance(thing, type)}
    saved = {kind for kind in map(class_named, MODULES) if issubclass(kind, Result)}
    assert {
        kind.__name__
        for kind in saved - public
        if not kind.__module__.startswith(("safecircuits.papers", "safecircuits.demo"))
    } == set()
