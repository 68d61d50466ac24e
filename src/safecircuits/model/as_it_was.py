"""A model's weights at one time, on disk: to come back to after a run, or for a moment while they train."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch

from safecircuits.model.fused import fuse_again
from safecircuits.model.in_use import used_alone
from safecircuits.model.parameters import live_parameters
from safecircuits.model.sites import HookedModel

_Part: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class AsItWas:
    """Keeps what a model's weights are now, so that it can say later what it would have said then.

    ``evaluate(model, unchanged=AsItWas(model))`` tells word salad from language while ``model`` trains, moves along a
    direction or has its matrices edited. The weights are kept on disk, and changed places with one by one: there is no
    second model in memory. Those that have not changed are not touched.

    Args:
        folder: where to keep them, removed with this object; the system's place for such files unless given.

    Examples:
        >>> import torch
        >>> before = sc.model.AsItWas(model)
        >>> with torch.no_grad():
        ...     _ = model.blocks[3].mlp.W_out.mul_(4)
        >>> sc.evaluate(model, malicious=malicious, unchanged=before).tallies["malicious"].n
        8
        >>> with torch.no_grad():
        ...     _ = model.blocks[3].mlp.W_out.div_(4)
    """

    def __init__(self, model: HookedModel, folder: str | Path | None = None) -> None:
        self.model = model
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._kept = tempfile.TemporaryDirectory(prefix="safecircuits-", dir=folder)
        # The objects, and not their names: adapters that are put around a matrix rename it.
        self._live = list(live_parameters(model).values())
        write_weights(model, self._then)

    @property
    def _then(self) -> Path:
        return Path(self._kept.name)

    @property
    def is_there(self) -> bool:
        """Whether the model still computes with these weights: not where they were split among processes."""
        return self._now() is not None

    def _now(self) -> list[tuple[torch.Tensor, _Part]] | None:
        """For each tensor that was kept what the model computes with, and what of the kept values that is.

        A tensor of which a part is frozen is held in two pieces while the others train; the frozen one has not moved.
        """
        own = {id(p) for p in self.model.parameters()}
        pieces: dict[Any, Any] = {
            module.stands_for: module for module in self.model.modules() if hasattr(module, "stands_for")
        }
        found: list[tuple[torch.Tensor, _Part]] = []
        for parameter in self._live:
            piece = pieces.get(id(parameter))
            if piece is not None and not hasattr(piece.part, "full_tensor"):
                found.append((piece.part, piece.trainable))
            elif id(parameter) in own:
                found.append((parameter, _whole))
            else:
                return None
        return found

    @contextmanager
    def back(self) -> Iterator[HookedModel]:
        """Inside the block the model has the weights that it had; afterwards to the bit those that it has now."""
        now = self._now()
        assert now is not None, "asked of a model whose weights are split among processes"
        with (
            used_alone(self.model),
            torch.no_grad(),
            tempfile.TemporaryDirectory(prefix="now-", dir=self._then) as folder,
        ):
            moved: list[int] = []
            try:
                for i, (parameter, part) in enumerate(now):
                    value = part(_read(self._then, i))
                    if not torch.equal(value, parameter.detach().cpu()):
                        _write(parameter, Path(folder), i)
                        moved.append(i)
                        parameter.copy_(value)
                fuse_again(self.model)
                yield self.model
            finally:
                for i in moved:
                    now[i][0].copy_(_read(Path(folder), i))
                fuse_again(self.model)


def _whole(kept: torch.Tensor) -> torch.Tensor:
    return kept


def write_weights(model: HookedModel, folder: Path) -> None:
    """One file a tensor, so that writing needs no second copy of the model either."""
    for i, parameter in enumerate(live_parameters(model).values()):
        _write(parameter, folder, i)


@torch.no_grad()
def restore_weights(model: HookedModel, folder: Path) -> None:
    """Put back what ``write_weights`` wrote, of this model or of another one of its shape and backend."""
    for i, parameter in enumerate(live_parameters(model).values()):
        parameter.copy_(_read(folder, i))


def _write(parameter: torch.Tensor, folder: Path, i: int) -> None:
    from safetensors.torch import save_file

    save_file({"weight": parameter.detach().cpu().contiguous()}, folder / f"{i}.safetensors")


def _read(folder: Path, i: int) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(folder / f"{i}.safetensors")["weight"]
