"""The examples in docstrings run and print what they say, and every public function and class has one.

They go on from the example in the package's own docstring, which gives ``sc``, ``model`` and sets of prompts; those of
inner functions have their module's names, too.
"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

import safecircuits as sc
from public_face import ROOT, everything

pytestmark = pytest.mark.slow

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py" and ">>>" in path.read_text(encoding="utf-8")
)


def run(test: doctest.DocTest) -> dict[str, Any]:
    """What the example's names are afterwards."""
    doctest.DebugRunner(optionflags=FLAGS).run(test, clear_globs=False)
    return test.globs


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    assert sc.__doc__ is not None
    return run(doctest.DocTestParser().get_doctest(sc.__doc__, {}, "safecircuits", None, None))


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(
    module: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [test for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples]
    assert found
    for number, test in enumerate(found):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        test.globs |= names
        try:
            run(test)
        except doctest.DocTestFailure as failure:
            pytest.fail(f"{test.name}: {failure.example.source}gives\n{failure.got}and not\n{failure.example.want}")
        except doctest.UnexpectedException as failure:
            raise AssertionError(f"{test.name}: {failure.example.source}") from failure.exc_info[1]


def test_every_public_function_and_class_has_an_example() -> None:
    public = {path: thing for path, thing in everything().items() if callable(thing)}
    assert {path for path, thing in public.items() if ">>>" not in (thing.__doc__ or "")} == set()


def test_examples_stand_where_the_documentation_shows_them_as_code() -> None:
    """Under ``Examples:``; under another heading mkdocstrings would make text of them."""
    docs = {path: thing.__doc__ or "" for path, thing in everything().items() if callable(thing)}
    assert {path for path, doc in docs.items() if ">>>" in doc and "Examples:\n" not in doc} == set()
