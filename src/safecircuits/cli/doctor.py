"""``safecircuits doctor``: what is installed, what the machine has, and what can therefore run here."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata, util
from pathlib import Path
from typing import Any

import typer

from safecircuits.cli.frame import plain_command
from safecircuits.cli.options import JsonOption

PACKAGES = ("torch", "transformers", "transformer-lens", "safetensors", "datasets", "accelerate", "numpy", "matplotlib")
EXTRAS = {
    "peft": (("peft",), "LoRA and other adapters"),
    "trl": (("trl",), "reverse DPO and TRL's trainers"),
    "eval": (("lm-eval", "rouge-score"), "MMLU and other tasks, Rouge-L"),
    "docs": (("mkdocs-material", "mkdocstrings", "nbconvert"), "the documentation site"),
    "gguf": (("gguf",), "models in GGUF files"),
    "quantised": (("bitsandbytes",), "checkpoints in 4 or 8 bits, for reading"),
    "judges": (("judgezoo",), "published judges of refusals"),
    "bench": (("nnsight", "pyvene"), "benchmarks against other libraries"),
}
"""Optional extras: what they install, and what for."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    plain_command(app)(doctor)


def doctor(json: JsonOption = False) -> None:
    """Show versions, device, threads, memory, cache, extras, and what can run here. Changes nothing.

    Example: safecircuits doctor
    """
    rows = examine()
    if json:
        from json import dumps

        typer.echo(dumps(rows, indent=1))
        return
    part = ""
    for row in rows:
        if row["part"] != part:
            part = row["part"]
            typer.echo(part)
        mark = {True: "ok", False: "--", None: "  "}[row["ok"]]
        typer.echo(f"  {mark} {row['what']:<18} {row['found']}")


def examine() -> list[dict[str, Any]]:
    """Rows of ``part``, ``what``, ``found``, and ``ok``: True, False, or None for what is neither."""
    return [*_versions(), *_machine(), *_cache(), *_extras(), *_capabilities()]


def _row(part: str, what: str, found: str, ok: bool | None = None) -> dict[str, Any]:
    return {"part": part, "what": what, "found": found, "ok": ok}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> list[dict[str, Any]]:
    from safecircuits.base.version import __version__

    rows = [_row("versions", "safecircuits", __version__, True)]
    rows.append(_row("versions", "python", platform.python_version(), True))
    for package in PACKAGES:
        version = _version(package)
        rows.append(_row("versions", package, version or "not installed", version is not None))
    return rows


def _machine() -> list[dict[str, Any]]:
    import torch

    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [
        _row("machine", "system", f"{platform.system()} {platform.machine()}"),
        _row("machine", "cores", f"{cores}, PyTorch uses {threads} thread{'s' * (threads != 1)}"),
    ]
    if memory := _free_memory():
        rows.append(_row("machine", "memory", f"{memory / 2**30:.1f} GiB available"))
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        rows.append(_row("machine", f"cuda:{i}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", True))
    if not torch.cuda.device_count():
        rows.append(_row("machine", "gpu", "none that PyTorch can use; everything runs on the CPU"))
    return rows


def _free_memory() -> int | None:
    """Bytes that a process could take, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        [line] = [line for line in lines if line.startswith("MemAvailable:")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None


def _cache() -> list[dict[str, Any]]:
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    cache = Path(HF_HUB_CACHE)
    models = sorted(path.name for path in cache.glob("models--*")) if cache.is_dir() else []
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    rows = [_row("hub cache", "folder", f"{cache}, {len(models)} models, {free:.0f} GiB free on its disk")]
    if HF_HUB_OFFLINE:
        rows.append(_row("hub cache", "offline", "HF_HUB_OFFLINE is set: only what is in the cache can be loaded"))
    return rows


def _extras() -> list[dict[str, Any]]:
    rows = []
    for extra, (packages, purpose) in EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        found = purpose if not missing else f"{purpose}: pip install 'safecircuits[{extra}]'"
        rows.append(_row("extras", extra, found, not missing))
    return rows


def _capabilities() -> list[dict[str, Any]]:
    """What can run here, from what is here."""
    import torch

    from safecircuits.organism.catalog import stage_path
    from safecircuits.organism.recipe import STAGES
    from safecircuits.organism.smollm2.base import base_file

    part, rows = "can run here", []
    hooked = (
        util.find_spec("transformer_lens") is not None and int((_version("transformer-lens") or "0").split(".")[0]) < 4
    )
    rows.append(_row(part, "--backend bridge", "every analysis and training", True))
    rows.append(
        _row(part, "--backend hooked", "the same" if hooked else "transformer-lens 4 has no HookedTransformer", hooked)
    )
    try:
        for stage in STAGES:
            stage_path(stage)
        rows.append(_row(part, "demo", "the embedded models are here: safecircuits demo", True))
    except FileNotFoundError as error:
        rows.append(_row(part, "demo", str(error), False))
    try:
        base_file()
        rows.append(_row(part, "smollm2:NAME", "the small real model is here: --model smollm2:layers-12-16", True))
    except ValueError as error:
        rows.append(_row(part, "smollm2:NAME", str(error), False))
    # Weights, and about a quarter more for activations; training adds gradients and AdamW's two moments.
    for what, free, bytes_each, precision in (
        ("on the CPU", _free_memory(), 4, "float32"),
        ("on the GPU", torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None, 2, "bfloat16"),
    ):
        if free is not None:
            analysed, trained = free / 1.25 / bytes_each / 1e9, free / 1.25 / (4 * bytes_each) / 1e9
            found = f"models to about {analysed:.1f} B parameters in {precision}, training to about {trained:.1f} B"
            rows.append(_row(part, what, found))
    return rows
