"""Cells of an attack study in several processes of this machine: each has its own copy of the model."""

from __future__ import annotations

import logging
import pickle
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Literal

import torch

from safecircuits.base.notices import Notice, notify
from safecircuits.base.progress import track
from safecircuits.studies.arms import Arm
from safecircuits.studies.attack.attackers import Attacker, DataAttack
from safecircuits.studies.attack.cells import Probes, Range
from safecircuits.studies.subject import Subject
from safecircuits.training.settings import TrainingSettings

Work = Literal["before", "cell"]
"""The method of ``Range`` that a worker calls."""

_place: Range | None = None
"""Where this process measures, if it is a worker."""


class Workers:
    """Processes that measure what a ``Range`` would, into its folder.

    Args:
        n: how many; with 1 there are none, and nothing is done ahead.

    Raises:
        ValueError: if each would need a model, a judge or an arm that cannot be handed over.
    """

    def __init__(self, n: int, place: Range) -> None:
        self.n, self.place = n, place
        subject = place.subject
        if n > 1 and not subject.from_disk:
            raise ValueError(
                f"workers={n} needs a model by its name or folder, which each of them loads, not a {subject.name}"
            )
        self._threads = max(1, torch.get_num_threads() // n)
        loading = {"backend": subject.backend, **subject.loading}
        given = (subject.source, loading, place.out, place.probes, place.stops, place.settings)
        if n > 1:
            _require_travels(given, f"workers={n} needs a judge and prompts")
        self._begin = partial(_begin, *given, threads=self._threads, quiet=logging.root.manager.disable)

    @contextmanager
    def as_one_of_them(self) -> Iterator[None]:
        """Inside, this process has the threads of a worker, so that it takes as long as one."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def measure_before(self, arms: Sequence[Arm], seeds: Sequence[int], progress: bool) -> None:
        """Align anew where an arm does, and measure the defended models, each once."""
        todo = {self.place.before_path(arm, seed): (arm, seed) for seed in seeds for arm in arms}
        self._do("before", todo, "the defended models", progress)

    def measure(self, cells: Iterable[tuple[Arm, Attacker, int]], progress: bool) -> None:
        """Finish all cells that are not finished; those of several arms that are one are measured once."""
        todo = {self.place.path(arm, one, seed): (arm, _drawn(one, seed), seed) for arm, one, seed in cells}
        self._do("cell", todo, "attack study", progress)

    def _do(self, work: Work, files: Mapping[Path, tuple[Any, ...]], what: str, progress: bool) -> None:
        """Have the workers make the files that are not there, each from its arguments."""
        todo = [given for path, given in files.items() if not path.exists()]
        if self.n == 1 or len(todo) < 2:
            return
        _require_travels(todo, f"workers={self.n} needs arms and attackers")
        # Spawned: a forked process would have the locks of PyTorch's threads, and not the threads.
        context = get_context("spawn")
        others = set(active_children())
        pool = ProcessPoolExecutor(min(self.n, len(todo)), context, self._begin)
        try:
            futures: list[Future[list[str]]] = [pool.submit(_measure, work, given) for given in todo]
            for done in track(as_completed(futures), what, total=len(futures), enabled=progress):
                for message in done.result():
                    notify(message)
        except BaseException as error:
            # What they are at is lost, what they have finished is kept.
            for worker in set(active_children()) - others:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ValueError(
                    f"one of {self.n} workers was ended: for want of memory (take fewer), or since the script that "
                    "calls this has no `if __name__ == '__main__':` around what it runs; what is finished is kept"
                ) from error
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _drawn(attacker: Attacker, seed: int) -> Attacker:
    """An attacker with its rows in the place of the function that draws them, which may not travel."""
    return replace(attacker, rows=attacker.data(seed)) if isinstance(attacker, DataAttack) else attacker


def _require_travels(value: object, who: str) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:
        raise ValueError(f"{who} that can be handed to another process, and one cannot: {error}") from error


def _begin(
    source: str | Path,
    loading: Mapping[str, Any],
    out: Path,
    probes: Probes,
    stops: Sequence[int],
    settings: TrainingSettings,
    threads: int,
    quiet: int,
) -> None:
    """Make this process a worker: as quiet as the one that asked, which is also the one that interruptions are for."""
    global _place
    logging.disable(quiet)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _place = Range(Subject(source, **loading), out, probes, stops, settings)


def _measure(work: Work, given: tuple[Any, ...]) -> list[str]:
    """Measure a cell, or what is before its attack; the notices meanwhile, for the process that asked to pass on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=Notice)
        getattr(_place, work)(*given)
    return list(dict.fromkeys(str(one.message) for one in caught))
