"""Writing files so that they are complete or absent: to a temporary name first, then renamed."""

from __future__ import annotations

import functools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a normal exit it takes the place of ``path``, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield partial
        _let_others_read(partial)
        partial.replace(path)
    except OSError as error:
        if error.filename != str(partial):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # by the name that was asked for
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path, entry: str, former: Callable[[Path], Iterable[str]]) -> Iterator[Path]:
    """The same for a folder: yield a name for it that does not exist yet; on a normal exit it appears as ``path``.

    A folder that is there already may be a mount point, a link, or hold what is not ours: it stays, its files are put
    into their new places one by one, and only those that an earlier writing left are taken away. If that fails the
    earlier ones are put back.

    Args:
        entry: the file without which nobody reads the folder. It goes first and comes last, so that a process that is
            killed in between leaves a folder that does not load, and never one of mixed files.
        former: given an existing folder, the names in it that an earlier writing may have left.

    Raises:
        ValueError: if ``path`` is a file.
    """
    asked, path = path, Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise ValueError(f"{str(asked)!r} is a file: give a folder")
    there = path.is_dir()
    if not there:
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = (path if there else path.parent) / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        yield partial
        for file in partial.rglob("*"):
            _let_others_read(file)
        if there:
            _swap_in(partial, path, entry, former(path))
        else:
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap_in(new: Path, folder: Path, entry: str, former: Iterable[str]) -> None:
    """Put the files of ``new`` into ``folder`` in the place of its own of these names, all of them or none."""
    names = sorted(
        (file.relative_to(new) for file in new.rglob("*") if not file.is_dir()), key=lambda n: str(n) == entry
    )
    leaving = {name for name in (*names, *map(Path, former)) if _is_file(folder / name)}
    aside = folder / f"{new.name}{_ASIDE}"
    moved: list[tuple[Path, Path]] = []  # from, to

    def move(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        moved.append((source, target))

    try:
        for name in sorted(leaving, key=lambda n: (str(n) != entry, str(n))):
            move(folder / name, aside / name)
        for name in names:
            move(new / name, folder / name)
    except BaseException:
        for source, target in reversed(moved):
            target.rename(source)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


_ASIDE = ".old"
"""Ending of the folder that holds earlier files while new ones take their places; part of ``_PARTIAL``, too."""


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _let_others_read(path: Path) -> None:
    """Permissions as the user's umask has them: safetensors writes files that their owner alone can read."""
    if path.is_file():
        umask = os.umask(0o022)
        os.umask(umask)
        path.chmod(0o666 & ~umask)


def is_partial(name: str) -> bool:
    """Whether a file or folder of this name is what a killed process left of a writing."""
    return _PARTIAL.fullmatch(name) is not None


def remove_partials(folder: str | Path) -> None:
    """Remove what ``replacing`` leaves behind in a process that is killed, in ``folder`` and all that are in it.

    Nobody else may be writing there.
    """
    for within, folders, names in os.walk(folder):
        for name in filter(is_partial, [*folders, *names]):
            path = Path(within, name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")


def lock(folder: str | Path) -> Callable[[], None]:
    """Keep every other caller of this out of ``folder``, in this process and others; call the result to let go.

    A process that is killed lets go by itself. Where the system or its disk has no such locks, nothing is kept out.

    Raises:
        BlockingIOError: if another caller holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return lambda: None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return lambda: None
    return functools.partial(os.close, handle)


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's own, for ``json.dumps(..., default=plain)``.

    Raises:
        TypeError: for anything else that JSON does not know.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no place in JSON")


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8, complete or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)
