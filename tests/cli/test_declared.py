"""Options that are parameters of the library have its values and defaults, read without importing it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import safecircuits.cli
from commands import run
from safecircuits.cli.declared import Of, read

SOURCES = Path(safecircuits.cli.__file__).parent.rglob("*.py")
PLACES = sorted({place for path in SOURCES for place in re.findall(r'Of\(\s*"([\w.]+:[\w.]+)"', path.read_text())})


def literal(annotation: Any) -> tuple[str, ...]:
    """The values of the Literal in an annotation, by Python's own reading of it."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for part in get_args(annotation) if (found := literal(part))), ())


@pytest.mark.parametrize("place", PLACES)
def test_values_and_defaults_are_those_of_the_library(place: str) -> None:
    module, _, name = place.partition(":")
    name, _, parameter = name.partition(".")
    thing: Any = getattr(importlib.import_module(f"safecircuits.{module}"), name)
    values, default = read(place)
    if not parameter:
        assert values == literal(thing)
        assert default is inspect.Parameter.empty
        return
    found = inspect.signature(thing).parameters[parameter]
    annotation = eval(found.annotation, vars(inspect.getmodule(inspect.unwrap(thing))))
    assert values == (literal(annotation) or annotation)
    assert default == found.default


def test_there_are_some() -> None:
    assert len(PLACES) > 10


@pytest.mark.parametrize(
    "place", ["model.load:load_modal.backend", "model.load:load_model.source", "units.scores:METHODS", "no.where:x"]
)
def test_a_place_without_values_is_a_mistake_of_ours(place: str) -> None:
    with pytest.raises((LookupError, FileNotFoundError)):
        Of(place, "").parameter("x")


def test_a_number_has_the_kind_and_the_default_of_the_library_and_the_least_that_is_said(tmp_path: Path) -> None:
    draws = Of("layers.comparison:compare_gaps.draws", "", least=1).parameter("draws")
    assert draws.default == 1000
    assert get_args(draws.annotation)[0] is int
    sets = ["--normal", "organism:normal", "--malicious", "organism:malicious", "--out", tmp_path / "out"]
    got = run("layers", "similarity", "--model", "organism:base", *sets, "--draws", "0")
    assert got.exit_code == 2
    assert "greater than or equal to 1" in " ".join(got.stderr.replace("│", " ").split())


def test_another_value_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    command = ["layers", "grid", "--model", "organism:base", "--over-rejection", "organism:over_rejection"]
    got = run(*command, "--components", "some", "--out", tmp_path / "out")
    assert got.exit_code == 2
    assert "'some' is not one of 'all', 'qkv+mlp', 'attn', 'mlp'" in " ".join(got.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
