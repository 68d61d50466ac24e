"""The model of a study, in its original weights before every run, with never more than one copy in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safecircuits.model.as_it_was import restore_weights, write_weights
from safecircuits.model.each_model import release
from safecircuits.model.load import Backend, load_model
from safecircuits.model.sites import HookedModel


class Subject:
    """A model by source (name, folder or hub id), loaded again for each run, or a hooked model, which is put back.

    A model object's weights are written to disk once; restoring reads them back tensor by tensor.
    """

    def __init__(self, source: Any, *, backend: Backend = "bridge", **loading: Any) -> None:
        self.source, self.backend, self.loading = source, backend, loading
        self.from_disk = isinstance(source, str | Path)
        self.name = str(source) if self.from_disk else type(source).__name__
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if not self.from_disk:
            self._model: HookedModel | None = load_model(source, backend=backend, **loading)
            self._folder = tempfile.TemporaryDirectory(prefix="safecircuits-")
            write_weights(self._model, Path(self._folder.name))
        else:
            self._model = None

    @contextmanager
    def fresh(self) -> Iterator[HookedModel]:
        """The model in its original weights; whatever the block does to them is undone or forgotten."""
        if self.from_disk:
            try:
                yield self._ready()
            finally:
                self._model = None
                release()
            return
        assert self._folder is not None
        assert self._model is not None
        try:
            yield self._model
        finally:
            restore_weights(self._model, Path(self._folder.name))

    @contextmanager
    def untouched(self) -> Iterator[HookedModel]:
        """The model, to be looked at and not changed: the next run uses it as it is."""
        yield self._ready()

    def _ready(self) -> HookedModel:
        if self._model is None:
            release()  # whoever had the last model may have held it until now
            self._model = load_model(self.source, backend=self.backend, **self.loading)
        return self._model

    def close(self) -> None:
        """Remove what was written to disk."""
        if self._folder is not None:
            self._folder.cleanup()


def plain_name(source: str, beside: Collection[str] = ()) -> str:
    """``organism:aligned``, a hub id or a path as a name for tables; none of those that models beside it go by."""
    name = source.rpartition(":")[2].rstrip("/").rpartition("/")[2] or source
    return f"{name} (studied)" if name in beside else name
