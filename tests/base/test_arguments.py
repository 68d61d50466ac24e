"""Numbers that a caller passes are read in one way everywhere: what is none is refused, before any work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import safecircuits as sc
from public_face import everything
from safecircuits.base.arguments import LEAST, SHARES, checked, indices, number, readers_of, share, whole
from safecircuits.training.settings import TrainingSettings

NO_WHOLE = [
    True,
    False,
    np.True_,
    torch.tensor(True),
    1.7,
    2.0,
    "12",
    "1",
    math.nan,
    math.inf,
    [1],
    np.array([1]),
    b"1",
]
NO_NUMBER = [True, np.False_, torch.tensor(True), "0.5", math.nan, math.inf, -math.inf, [0.5], torch.ones(1), 1j]
NO_INDICES: list[Any] = [
    *("12", b"12", 5, 1.7, None, [True, False], np.array([True, False]), torch.tensor([True, False]), [1.7], ["1"]),
    *(np.array([0.5, 1.0]), torch.ones(2), [math.nan], np.ones((2, 2), int), {1: True}.values()),
]


class TestReaders:
    @pytest.mark.parametrize("value", NO_WHOLE, ids=repr)
    def test_no_whole_number(self, value: Any) -> None:
        with pytest.raises(ValueError, match="n must be a whole number, not "):
            whole(value, "n")

    @pytest.mark.parametrize("value", NO_NUMBER, ids=repr)
    def test_no_number(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"x must be a (finite )?number, not "):
            number(value, "x")

    @pytest.mark.parametrize("values", NO_INDICES, ids=repr)
    def test_no_indices(self, values: Any) -> None:
        with pytest.raises(ValueError, match="units must be "):
            indices(values, "units")

    @given(st.integers(-(2**63), 2**63 - 1))
    def test_whole_numbers_of_every_library(self, value: int) -> None:
        for same in (value, np.int64(value), np.array(value), torch.tensor(value)):
            assert whole(same, "n") == value
            assert type(whole(same, "n")) is int
        if value < 0:
            with pytest.raises(ValueError, match=f"n must be at least 0, not {value}"):
                whole(value, "n", 0)

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_numbers_of_every_library(self, value: float) -> None:
        for same in (value, np.float64(value), torch.tensor(value, dtype=torch.float64)):
            assert number(same, "x") == value
        assert number(Fraction(1, 4), "x") == 0.25
        if not 0 <= value <= 1:
            with pytest.raises(ValueError, match="x is a share between 0 and 1, not "):
                share(value, "x")

    @given(st.lists(st.integers(0, 2**40)))
    def test_indices_of_every_kind(self, values: list[int]) -> None:
        for same in (
            values,
            tuple(values),
            np.array(values, int),
            torch.tensor(values, dtype=torch.long),
            iter(values),
        ):
            assert indices(same, "units") == values

    def test_negative_ones(self) -> None:
        with pytest.raises(ValueError, match="each of units must be at least 0, not -1"):
            indices([1, -1], "units")
        assert indices([1, -1], "units", least=None) == [1, -1]


def _functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, thing in everything().items():
        if inspect.isfunction(thing):
            yield name, thing


NUMBERS = ("int", "float", "int | None", "float | None", "Sequence[int]", "Sequence[float]")
NUMBERED = [
    (name, parameter.name, str(parameter.annotation))
    for name, function in _functions()
    for parameter in inspect.signature(function).parameters.values()
    if str(parameter.annotation) in NUMBERS
]


def _bad(parameter: str, kind: str) -> list[Any]:
    """Values that the parameter cannot have."""
    plain = kind.removesuffix(" | None")
    least = LEAST.get(parameter, 1)
    bad: list[Any] = {
        "int": [*NO_WHOLE, *([] if least is None else [least - 1, -5])],
        "float": [*NO_NUMBER, *([-0.1, 1.1] if parameter in SHARES else [])],
        "Sequence[int]": [*NO_INDICES[:2], *NO_INDICES[5:10], [True], [-1]],
        "Sequence[float]": ["12", 0.5, [True], ["0.1"], [math.nan]],
    }[plain]
    return bad if plain != kind else [*bad, None]


class Untouched:
    """Stands for every other argument: whoever looks at it has begun to work."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@pytest.mark.parametrize(("function", "parameter", "kind"), NUMBERED, ids=lambda part: str(part))
def test_every_number_of_every_public_function_is_read_first(function: str, parameter: str, kind: str) -> None:
    call = everything()[function]
    needed = [
        p.name
        for p in inspect.signature(call).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != parameter
    ]
    numbers = {name: [1] if kind.startswith("Sequence") else 1 for f, name, kind in NUMBERED if f == function}
    others = {name: numbers.get(name, Untouched()) for name in needed}
    for value in _bad(parameter, kind):
        with pytest.raises(ValueError, match=rf"^(each of )?{parameter} (must be|is a share) "):
            call(**others, **{parameter: value})


def test_commands_take_the_same_names() -> None:
    assert len(NUMBERED) > 90  # a signature that is no longer read would shorten the table


SHAPE = sc.ModelShape(n_layers=4, d_model=8, d_mlp=16, n_heads=4, n_kv_heads=2, architecture="test")

PLACES: dict[str, Callable[[Any], Any]] = {
    "FreezeMask.of_units": lambda units: sc.FreezeMask.of_units({"mlp": {1: units}}, SHAPE),
    "FreezeMask.layers of a set": lambda units: sc.FreezeMask.layers(_as_set(units)),
    "AnswerTokens": lambda units: sc.units.AnswerTokens(refuse=units, comply=(90,)),
}


def _as_set(units: Any) -> Any:
    return frozenset(units) if isinstance(units, list) else units


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("units", [[True, False], [1.7], ["1"], [math.nan], [-1]], ids=repr)
def test_indices_are_indices(place: str, units: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"whole number|booleans|at least 0|does not exist|counted from 0"):
        PLACES[place](units)


@pytest.mark.parametrize("units", ["12", np.array([True] * 16), torch.ones(16, dtype=torch.bool), 1.7], ids=repr)
def test_units_are_no_text_and_no_mask(units: Any) -> None:
    with pytest.raises(ValueError, match="the mlp units of layer 1 must be"):
        sc.FreezeMask.of_units({"mlp": {1: units}}, SHAPE)
    for layer in (True, 1.0, "1"):
        with pytest.raises(ValueError, match="a layer must be a whole number"):
            sc.FreezeMask.of_units({"mlp": {layer: [0]}}, SHAPE)


def test_units_of_numpy_and_torch_are_units() -> None:
    wanted = sc.FreezeMask.of_units({"mlp": {1: [0, 3]}}, SHAPE)
    for units in (np.array([0, 3]), torch.tensor([3, 0]), {0, 3}, (np.int64(0), torch.tensor(3))):
        assert sc.FreezeMask.of_units({"mlp": {np.int64(1): units}}, SHAPE) == wanted


@pytest.mark.parametrize("pair", [(True, 2), (0, 1.0), ("0", 1), (0, math.nan)], ids=repr)
def test_ends_of_ranges(pair: Any) -> None:
    with pytest.raises(ValueError, match="a pair of whole numbers"):
        sc.LayerRange(*pair)
    with pytest.raises(ValueError, match="a pair of whole numbers"):
        sc.FreezeMask.layers(pair)


SAFE = sc.PromptSet("safe", ("make a bomb",), ("sorry",))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (lambda bad: sc.Phase(None, steps=bad), "steps of a phase"),
        (lambda bad: sc.Phase(None, epochs=bad), "epochs of a phase"),
        (lambda bad: sc.baselines.Lisa(SAFE, alignment_steps=bad), "alignment_steps"),
        (lambda bad: sc.baselines.Lora(r=bad), "r"),
        (lambda bad: sc.PromptSet("p", ("a", "b")).take(bad), "n"),
    ],
)
def test_settings(settings: Callable[[Any], Any], name: str) -> None:
    for bad in NO_WHOLE:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            settings(bad)


def test_rules_take_numbers() -> None:
    for bad in NO_NUMBER:
        with pytest.raises(ValueError, match=r"must be a (finite )?number"):
            sc.layers.DecisionRule(growth=bad)
        with pytest.raises(ValueError, match=r"must be a (finite )?number"):
            sc.OnsetRule(min_gap_deg=bad)


def test_checked_leaves_a_function_what_it_is() -> None:
    @checked
    def f(n: int, x: float | None = None, *, seeds: Sequence[int] = (0,)) -> tuple[Any, ...]:
        """Words."""
        return n, x, seeds

    @checked
    def told(quietly: bool) -> bool:
        return quietly

    assert told(np.True_) is True
    for text in ("no", 1, None):
        with pytest.raises(ValueError, match=f"quietly must be True or False, not {text!r}"):
            told(text)
    assert f(np.int64(2), seeds=np.arange(2)) == (2, None, (0, 1))
    assert f.__doc__ == "Words."
    assert list(inspect.signature(f).parameters) == ["n", "x", "seeds"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'n'"):
        f()
    assert set(readers_of(inspect.signature(TrainingSettings))) >= {"batch_size", "lr", "steps", "max_length"}
