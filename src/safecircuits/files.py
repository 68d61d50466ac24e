"""Writing files so that they are complete or absent: to a temporary name first, then renamed."""

from __future__ import annotations

import functools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
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
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder: yield a name for it that does not exist yet; on a normal exit it replaces ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        for file in partial.rglob("*"):
            _let_others_read(file)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _let_others_read(path: Path) -> None:
    """Permissions as the user's umask has them: safetensors writes files that their owner alone can read."""
    if path.is_file():
        umask = os.umask(0o022)
        os.umask(umask)
        path.chmod(0o666 & ~umask)


def remove_partials(folder: str | Path) -> None:
    """Remove what ``replacing`` leaves behind in a process that is killed, in ``folder`` and all that are in it.

    Nobody else may be writing there.
    """
    for within, folders, names in os.walk(folder):
        for name in filter(_PARTIAL.fullmatch, [*folders, *names]):
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
