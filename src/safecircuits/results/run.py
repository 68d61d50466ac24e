"""Run directories: one layout for every command, complete or plainly not, resumed by running the same again.

    DIR/run.json              command, arguments, fingerprints of the inputs, provenance, times; there once all is done
    DIR/run.partial.json      the same while the run goes on, or after it was interrupted
    DIR/results/NAME/         what ``Result.save`` writes, for ``Result.load``
    DIR/tables/NAME.csv       the same numbers as tables
    DIR/figures/NAME.svg      with NAME.pdf and NAME.png, of every figure
    DIR/work                  what an interrupted run goes on from, such as a sweep's ``resume=`` file; gone at the end

A study in Python and a command use it alike::

    with RunDirectory.open("runs/gap", "my study", {"seed": 0}, inputs={"normal": normal.fingerprint}) as run:
        found = sc.localize(model, prompts, start, resume=run.work("sweep.jsonl"))
        run.result("localization", found)
        run.table("sweeps", found.to_frame(), main=True)
        run.figure("sweeps", found.plot())

Everything in it is written to a temporary name and renamed. ``run.json`` comes last, so a folder without one is not
complete, whatever else it holds. Opening a folder again

- with the same command, arguments and inputs goes on after an interruption, or raises ``AlreadyComplete``;
- with others is a ValueError that names what differs; ``replace=True`` removes the earlier run first;
- that holds something else than a run is a ValueError; nothing is ever removed from it;
- in which another run is still being written is a ValueError.

Of several processes (``torchrun``) one writes it; the others write copies in temporary folders that nobody keeps.

A name that leads out of the run (``run.table("../x", …)``) is a ValueError, and so is one that its record holds.

An error before anything was written removes the folder again, so that a misspelt model leaves nothing in the way.

``load_run(DIR)`` reads a complete run.
"""

from __future__ import annotations

import datetime
import json
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from safecircuits.base.files import lock, remove_partials, write_text
from safecircuits.base.processes import gather, size
from safecircuits.base.reading import inside
from safecircuits.results.by_category import ByCategory, with_categories
from safecircuits.results.earlier import cannot_write, clear_away_work, differences, is_begun_record, remove_run
from safecircuits.results.run_record import COMPLETE, FORMAT, PARTIAL, PARTS, VERSION, read_record
from safecircuits.results.several import opened_together

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from safecircuits.results.result import Result

R = TypeVar("R", bound="Result")


class AlreadyComplete(Exception):
    """The folder holds a complete run of the same command, arguments and inputs; ``run`` is its record.

    Examples:
        >>> with sc.RunDirectory.open("run", "nothing", {}):
        ...     pass
        >>> try:
        ...     sc.RunDirectory.open("run", "nothing", {})
        ... except sc.results.AlreadyComplete as done:
        ...     print(done.run["command"])
        nothing
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        super().__init__(f"{str(folder)!r} holds this very run, complete since {run['finished']}")
        self.folder, self.run = folder, run

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.run)


@dataclass
class RunDirectory:
    """A folder that holds one run: settings, results, tables, figures. ``open`` makes or resumes it.

    As a context manager it is completed at the end of the ``with`` block.

    Examples:
        >>> with sc.RunDirectory.open("run", "gap of the embedded model", {"n": 8}) as run:
        ...     gap = run.kept("gap", sc.LayerGap, lambda: sc.layer_gap(model, normal, malicious))
        ...     path = run.table("gap", gap.to_frame())
        >>> path.name
        'gap.csv'
        >>> sc.load_run("run")["command"]
        'gap of the embedded model'
    """

    folder: Path
    record: dict[str, Any]
    resumed: bool = False
    """Whether an interrupted run of the same arguments was found."""
    written: list[Path] = field(default_factory=list)
    """Every path written in this run, in order."""
    _names: dict[int, str] = field(default_factory=dict, repr=False)
    _results: list[Result] = field(default_factory=list, repr=False)
    _started: float = field(default_factory=time.monotonic)
    _unlock: Callable[[], Any] = field(default=lambda: None, repr=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        command: str,
        arguments: Mapping[str, Any],
        *,
        inputs: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> RunDirectory:
        """Begin a run in ``folder``, or go on with the one there.

        Args:
            command: its name, such as ``"layers localize"``.
            arguments: everything the outcome depends on, as JSON.
            inputs: fingerprints of data and models, by name, as JSON.
            replace: remove an earlier run there first, whatever its arguments. Other files are never removed.

        Raises:
            ValueError: if the folder holds other files, a run that differs (says in what), or one that is going on.
            AlreadyComplete: if it holds this run and nothing is left to do.
        """
        folder = Path(folder)

        def here() -> RunDirectory:
            return cls._open_here(folder, command, arguments, inputs or {}, replace)

        def copied(copy: Path, record: dict[str, Any], resumed: bool, remove: Callable[[], Any]) -> RunDirectory:
            return cls(copy, record, resumed, _unlock=remove)

        return here() if size() == 1 else opened_together(folder, here, copied)

    @classmethod
    def _open_here(
        cls, folder: Path, command: str, arguments: Mapping[str, Any], inputs: Mapping[str, Any], replace: bool
    ) -> RunDirectory:
        """The run as this process opens it."""
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"cannot write to {str(folder)!r}: a file of this name is in the way")
        wanted = json.loads(json.dumps({"command": command, "arguments": arguments, "inputs": dict(inputs)}))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unlock = lock(folder)
        except BlockingIOError as error:
            raise ValueError(
                f"another command is writing to {str(folder)!r} just now: wait for it, or give --out another folder"
            ) from error
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            run = cls._opened(folder, wanted, replace=replace)
        except PermissionError as error:
            unlock()
            raise cannot_write(folder, error) from error
        except BaseException:
            unlock()
            raise
        run._unlock = weakref.finalize(run, unlock)
        return run

    @classmethod
    def _opened(cls, folder: Path, wanted: dict[str, Any], *, replace: bool) -> RunDirectory:
        """The run, in a folder that nobody else writes to."""
        earlier = read_record(folder)
        if earlier is None:
            for begun in filter(is_begun_record, folder.iterdir()):
                begun.unlink()  # of a process that was killed at its very first writing
        if earlier is None and any(folder.iterdir()):
            raise ValueError(f"{str(folder)!r} holds files that are no run of safecircuits; give --out a new folder")
        if earlier is not None and (replace or ("failed" in earlier and differences(earlier, wanted))):
            remove_partials(folder)
            remove_run(folder, earlier)
            earlier = None
        if earlier is not None:
            differs = differences(earlier, wanted)
            if differs:
                what = "a run" if "finished" in earlier else "an unfinished run"
                raise ValueError(
                    f"{str(folder)!r} holds {what} with other settings: {'; '.join(differs)}. "
                    "Give this one another --out, or replace the earlier one with --force"
                )
            if "finished" in earlier:
                with suppress(OSError):  # a folder that is to be read only
                    clear_away_work(folder)
                raise AlreadyComplete(folder, earlier)
            remove_partials(folder)
        record = {"format": FORMAT, "version": VERSION, **wanted}
        record["started"] = [*(earlier["started"] if earlier else []), _now()]
        write_text(folder / PARTIAL, _as_json(record))
        return cls(folder, record, resumed=earlier is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon(error)

    def result(self, name: str, result: Result) -> Path:
        """Save a result under ``results/name``."""
        self._results.append(result)  # so that nothing else takes its id
        self._names[id(result)] = name
        return self._note(result.save(self._path("results", name)))

    def kept(self, name: str, kind: type[R], make: Callable[[], R]) -> R:
        """The result ``name`` as the interrupted part of this run left it, or else made and saved now."""
        folder = self._path("results", name)
        if folder.is_dir():
            self._note(folder)
            return kind.load(folder)
        result = make()
        self.result(name, result)
        return result

    def table(self, name: str, frame: pd.DataFrame, *, main: bool = False) -> Path:
        """Write ``tables/name.csv``, without the frame's index; ``main`` marks the table that the run is about."""
        path = self._path("tables", f"{name}.csv")
        if main:
            self.record["main_table"] = f"tables/{name}.csv"
        return self._note(write_text(path, frame.to_csv(index=False)))

    def tables(self, name: str, found: ByCategory, *, main: bool = False) -> None:
        """Write ``found.to_frame()`` as ``name``, and as ``name_by_category`` the same by category, where it has any.

        Examples:
            >>> kinds = sc.PromptSet("kinds", malicious.prompts[:2], categories=("theft", "fraud"))
            >>> with sc.RunDirectory.open("by category", "rates", {}) as run:
            ...     run.tables("rates", sc.evaluate(model, malicious=kinds), main=True)
            >>> sorted(path.name for path in run.written)
            ['rates.csv', 'rates_by_category.csv']
        """
        for one, frame in with_categories({name: found}).items():
            self.table(one, frame, main=main and one == name)

    def figure(
        self, name: str, drawn: Figure | Axes, *, of: Result | Iterable[Result] = (), shows: str = ""
    ) -> list[Path]:
        """Write ``figures/name.svg``, ``.pdf`` and ``.png`` (300 dpi) of a figure, or of the figure of an axis.

        Args:
            of: results of this run that it draws.
            shows: what it shows, for those who do not see it; what ``plot()`` of the first of these says unless given.
        """
        from matplotlib.figure import Figure

        from safecircuits.plots.files import write_figure

        results: list[Any] = list(of) if isinstance(of, Iterable) else [of]
        if results and not shows:
            shows = str(type(results[0]).plot.__doc__).split(".\n")[0].split(";")[0].rstrip(".").replace("``", "")
        if results or shows:
            names = [self._names[id(result)] for result in results]
            self.record.setdefault("figures", {})[name] = {"of": names, "shows": " ".join(shows.split())}
        figure: Any = drawn if isinstance(drawn, Figure) else drawn.figure
        written = write_figure(figure, lambda kind: self._path("figures", f"{name}.{kind}"))
        return [self._note(path) for path in written]

    def file(self, name: str) -> Path:
        """The path of any other file of the run, such as ``freeze.safetensors``; the caller writes it."""
        if name in (COMPLETE, PARTIAL):
            raise ValueError(f"{name!r} is the run's own record; give the file another name")
        return self._note(self._path("", name))

    def files_in(self, name: str) -> None:
        """Count what stands in the folder ``name`` of the run, such as a checkpoint, to its files."""
        for path in sorted(self._path("", name).iterdir()):
            self.file(f"{name}/{path.name}")

    def work(self, name: str) -> Path:
        """A path for what an interrupted run goes on from; removed when the run is complete."""
        (self.folder / "work").mkdir(parents=True, exist_ok=True)
        return self._path("work", name)

    def say(self, text: str) -> None:
        """Add what was found, in words, line by line, to ``run.json``."""
        self.record.setdefault("findings", []).extend(text.splitlines())

    def finish(self) -> Path:
        """Write ``run.json``: the run is complete."""
        from safecircuits.results.provenance import provenance

        self.record["finished"] = _now()
        self.record["seconds"] = round(time.monotonic() - self._started, 1)
        self.record["files"] = sorted({path.relative_to(self.folder).as_posix() for path in self.written})
        about = provenance(command=self.record["command"], seed=self.record["arguments"].get("seed"))
        self.record["provenance"] = {key: about[key] for key in ("version", "versions", "python", "seed", "date")}
        path = write_text(self.folder / COMPLETE, _as_json(self.record))
        clear_away_work(self.folder)
        self._unlock()
        gather(None)  # whoever goes on finds it complete
        return path

    def abandon(self, error: BaseException | None = None) -> None:
        """After an error: leave no trace of a run that has nothing yet to go on from, and keep any other.

        Bad input, or numbers that are not finite, are noted in the record: other settings may then take the folder, as
        these lead nowhere.
        """
        try:
            self._tidy(error)
        finally:
            self._unlock()

    def _tidy(self, error: BaseException | None) -> None:
        from safecircuits.base.errors import JudgingError  # not bad input: a judge may answer later

        parts = [self.folder / name for name in ("work", *PARTS)]
        if self.resumed or self.written or any(path.is_file() for part in parts for path in part.rglob("*")):
            if isinstance(error, ValueError | FloatingPointError) and not isinstance(error, JudgingError):
                write_text(self.folder / PARTIAL, _as_json(self.record | {"failed": str(error)}))
            return
        (self.folder / PARTIAL).unlink(missing_ok=True)
        for path in (self.folder / "work", self.folder):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _path(self, part: str, name: str) -> Path:
        """Of a file or folder of the run; a ValueError for a name that leads out of the part it belongs to."""
        return inside(self.folder / part, name)

    def _note(self, path: Path) -> Path:
        if path not in self.written:
            self.written.append(path)
        return path


def _as_json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
