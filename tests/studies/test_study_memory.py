"""Studies never hold more models than they say: each is let go before the next one is loaded."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from safecircuits.model.sites import HookedModel
from safecircuits.studies import running, subject
from safecircuits.studies.running import Running
from safecircuits.studies.subject import Subject

pytestmark = pytest.mark.slow


class Model:
    """As a bridge does, it refers to itself."""

    def __init__(self) -> None:
        self.itself = self


class Loader:
    """Stands in for ``load_model``: notes how many of its earlier models are alive when it makes another."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Model]] = []
        self.alive: list[int] = []

    def __call__(self, source: Any, **options: Any) -> Any:
        self.alive.append(sum(ref() is not None for ref in self.made))
        model = Model()
        self.made.append(weakref.ref(model))
        return model


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    found = Loader()
    for module in (running, subject):
        monkeypatch.setattr(module, "load_model", found)
    return found


def test_a_model_measured_alone_is_gone_afterwards(loader: Loader) -> None:
    def measure(model: HookedModel) -> int:
        return len(loader.made)

    assert [Running().on(name, measure) for name in ("a", "b")] == [1, 2]
    assert loader.alive == [0, 0]
    assert loader.made[-1]() is None


def test_a_run_s_model_is_gone_before_the_next_run_s(loader: Loader) -> None:
    shared = Subject("a")

    def run() -> None:
        with shared.fresh() as model:
            assert model.itself is model
        # The name outlives the block, as it does in a study's run.
        assert model is not None

    for _ in range(3):
        run()
    assert loader.alive == [0, 0, 0]
