"""What a model is, so that a run can say which weights it was about.

There are two fingerprints, which never equal each other:

* ``fingerprint_checkpoint`` is of a checkpoint's files, every byte, tokenizer and configuration included: what a
  command was given, before anything is loaded.
* ``weights_fingerprint`` is of a model in memory, in the precision it has there: what a study or a training began
  with, which may have no files. Every entry counts; it costs about as much as reading the weights once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

STAGE_PREFIX = "organism:"
_AT_ONCE = 2**22
"""Entries that ``weights_fingerprint`` looks at together."""


def fingerprint_checkpoint(source: str | Path) -> str | None:
    """Sixteen hex digits of the SHA-256 over weights and configuration of a local checkpoint, by file name.

    Tokenizer files count too; other files in the folder do not.

    Args:
        source: an embedded model's name, with or without ``organism:``, a name of the real family (``smollm2:…``), a
            folder, or a GGUF file.

    Returns:
        None for anything that is not on this disk, such as a hub id.
    """
    from safecircuits.organism.catalog import stage_path
    from safecircuits.organism.recipe import STAGES
    from safecircuits.organism.smollm2.catalog import real_model

    if (real := real_model(source)) is not None:
        return _digest([path for path in (real.base, real.changes) if path is not None])
    name = str(source).removeprefix(STAGE_PREFIX)
    folder = stage_path(name) if name in STAGES else Path(source)
    if not folder.is_dir() and folder.suffix != ".gguf":
        return None
    return _digest(sorted(folder.iterdir()) if folder.is_dir() else [folder])


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja", ".gguf"):
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def weights_fingerprint(model: Any) -> str:
    """Sixteen hex digits of the SHA-256 over sums of every parameter's bits, of a model in memory.

    The bits of each entry count once as they are and once times its place, on the device where they lie, so that one
    entry that differs, or two that are exchanged, make another fingerprint.
    """
    from safecircuits.model.offload import present
    from safecircuits.model.packed import named_tensors, packing_of, parts_of
    from safecircuits.model.parameters import live_parameters

    sha = hashlib.sha256()
    with present(model):
        if packing_of(model) is not None:
            held = named_tensors(getattr(model, "original_model", model))
            computed_with = {f"{name} {i}": part for name, tensor in held for i, part in enumerate(parts_of(tensor))}
        else:
            try:
                computed_with = dict(live_parameters(model))
            except ValueError:  # a bridge that cannot be trained
                computed_with = dict(model.named_parameters())
        for name, parameter in sorted(computed_with.items()):
            sums = _sums_of_bits(parameter.detach())
            sha.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {sums}\n".encode())
    return sha.hexdigest()[:16]


def _sums_of_bits(values: Tensor) -> tuple[int, int]:
    import torch

    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    flat = values.contiguous().flatten().view(whole)
    once, times_place = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for start in range(0, len(flat), _AT_ONCE):  # int64 wraps around, the same everywhere
        bits = flat[start : start + _AT_ONCE].long()
        once = once + bits.sum()
        times_place = times_place + (bits * torch.arange(start + 1, start + 1 + len(bits), device=flat.device)).sum()
    return int(once), int(times_place)
