"""The file a FreezeMask lives in: safetensors, with a JSON header that says what it is and which model it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.files import plain, replacing
from safecircuits.base.outputs import require_replaceable
from safecircuits.base.reading import parse_json
from safecircuits.base.vocabulary import MIXTURE_SITES, Site
from safecircuits.masks.describing import whole_layers
from safecircuits.model.mixtures import MixtureShape
from safecircuits.model.sites import ModelShape

FORMAT, VERSION = "safecircuits.FreezeMask", 1


class StoredMask(NamedTuple):
    """The parts of a mask: True where frozen, the shape it is for if it has one, and where it comes from."""

    mlp: Bool[Tensor, "layer neuron"]
    attn: Bool[Tensor, "layer head"]
    shape: ModelShape | None
    provenance: Mapping[str, Any]
    mixture: Mapping[Site, Bool[Tensor, "layer unit"]] = {}  # never changed
    """The same of a mixture's sites, where they are not those of a model without one, or what the MLP is."""

    @property
    def whole_layers(self) -> list[int]:
        """The layers of which every unit is frozen."""
        return list(whole_layers({"mlp": self.mlp, "attn": self.attn, **self.mixture}, self.shape))


def save(mask: StoredMask, path: str | Path) -> Path:
    """Write ``mask``: tensors ``mlp [layer neuron]`` and ``attn [layer head]``, True where frozen, and the header.

    Of a mixture of experts also ``expert``, ``shared`` and ``router``.
    """
    from safetensors.torch import save_file

    header = {
        "format": FORMAT,
        "version": VERSION,
        "shape": None if mask.shape is None else _plain_shape(mask.shape),
        "layers": mask.whole_layers,
        "provenance": dict(mask.provenance),
    }
    try:
        metadata = {"safecircuits": json.dumps(header, default=plain)}
    except TypeError as error:
        raise ValueError(f"the provenance of a freeze mask must be JSON: {error}") from error
    with replacing(require_replaceable(path, "mask")) as partial:
        rows: dict[str, Tensor] = {"mlp": mask.mlp, "attn": mask.attn, **dict(mask.mixture.items())}
        save_file({name: tensor.clone() for name, tensor in rows.items()}, partial, metadata)
    return Path(path)


def load(path: str | Path) -> StoredMask:
    """Read a mask.

    Raises:
        ValueError: if the file is truncated, is no freeze mask, is of a later version, or contradicts itself.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        within = sorted(path.glob("freeze*.safetensors"))  # of a run directory
        hint = f"; that is a folder, its masks are {', '.join(map(str, within))}" if within else ""
        raise ValueError(f"there is no freeze mask at {path}{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from error
    try:
        header = parse_json(metadata["safecircuits"])
        if header["format"] != FORMAT:
            raise KeyError(header["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a safetensors file but not a freeze mask") from error
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {header.get('version')}, but this version of safecircuits reads {VERSION}"
        )
    return _assembled(path, header, tensors)


def _assembled(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> StoredMask:
    try:
        shape = None if header["shape"] is None else _shape_of(header["shape"])
        mlp, attn = tensors["mlp"], tensors["attn"]
        mixture = {site: tensors[site] for site in MIXTURE_SITES if site in tensors or (shape and shape.n_units(site))}
        rows = len(mlp) if shape is None else shape.n_layers
        expected = [(rows, 1 if shape is None else shape.n_units(site)) for site in ("mlp", "attn", *mixture)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a complete freeze mask: {error}") from error
    every = (mlp, attn, *mixture.values())
    found = [tuple(tensor.shape) for tensor in every]
    if found != expected or {tensor.dtype for tensor in every} != {torch.bool}:
        raise ValueError(f"{path} contradicts itself: its header asks for {expected}, its tensors are {found}")
    if any(tensor.view(torch.uint8).gt(1).any() for tensor in every):
        raise ValueError(f"{path} is damaged: some of its entries are neither true nor false; write it again")
    mask = StoredMask(mlp, attn, shape, header.get("provenance") or {}, mixture)
    if header.get("layers") != mask.whole_layers:
        raise ValueError(
            f"{path} contradicts itself: its header names the whole layers {header.get('layers')}, its tensors freeze "
            f"{mask.whole_layers}; write it again"
        )
    return mask


def _plain_shape(shape: ModelShape) -> dict[str, Any]:
    """A dense model's without the word that only mixtures need, as earlier versions write and read it."""
    return {key: value for key, value in asdict(shape).items() if value is not None}


def _shape_of(plain_shape: dict[str, Any]) -> ModelShape:
    mixture = plain_shape.get("mixture")
    return ModelShape(**plain_shape | ({} if mixture is None else {"mixture": MixtureShape(**mixture)}))
