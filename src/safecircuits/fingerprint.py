"""What a model is, so that a run can say which weights it was about.

There are two fingerprints, which never equal each other:

* ``fingerprint_checkpoint`` is of a checkpoint's files, every byte, tokenizer and configuration included: what a
  command was given, before anything is loaded.
* ``weights_fingerprint`` is of a model in memory, in the precision it has there: what a study was about, which may
  have no files. It is of a sample of the weights, so that it costs nothing beside a forward pass.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safecircuits.sites import HookedModel

STAGE_PREFIX = "organism:"
SAMPLED = 4096
"""Entries of each parameter that ``weights_fingerprint`` looks at, at the least."""


def fingerprint_checkpoint(source: str | Path) -> str | None:
    """Sixteen hex digits of the SHA-256 over weights and configuration of a local checkpoint, by file name.

    Tokenizer files count too; other files in the folder do not.

    Args:
        source: an embedded model's name, with or without ``organism:``, a folder, or a GGUF file.

    Returns:
        None for anything that is not on this disk, such as a hub id.
    """
    from safecircuits.organism import STAGES, stage_path

    name = str(source).removeprefix(STAGE_PREFIX)
    folder = stage_path(name) if name in STAGES else Path(source)
    if not folder.is_dir() and folder.suffix != ".gguf":
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if path.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja", ".gguf"):
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def weights_fingerprint(model: HookedModel) -> str:
    """Sixteen hex digits of the SHA-256 over evenly spread entries of every parameter of a model in memory.

    Training changes all of them, so checkpoints are told apart; the removal of a few units may escape it.
    """
    import torch

    from safecircuits.parameters import live_parameters

    sha = hashlib.sha256()
    for name, parameter in sorted(live_parameters(model).items()):
        flat = parameter.detach().flatten()
        taken = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        sha.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        sha.update(taken.view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
