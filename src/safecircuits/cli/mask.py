"""``safecircuits mask``: look at freeze masks, combine them, hand them to other trainers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.base.vocabulary import MIXTURE_SITES
from safecircuits.cli.frame import plain_command
from safecircuits.cli.options import (
    BackendOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    torch_device,
    torch_dtype,
)

if TYPE_CHECKING:
    from safecircuits.masks.freeze_mask import FreezeMask

app = typer.Typer(help="Freeze masks: show, combine, convert.")

FileArgument = Annotated[Path, typer.Argument(help="A freeze mask (safetensors).")]
ForModel = Annotated[str | None, typer.Option("--model", help="A hub id, a folder, or organism:NAME.")]


class Operation(StrEnum):
    """What becomes of two or more masks, taken from left to right."""

    union = "union"
    intersection = "intersection"
    difference = "difference"
    complement = "complement"


@plain_command(app)
def show(
    file: FileArgument,
    model: ForModel = None,
    json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """What a mask freezes; with a model, whether it fits and the share of its parameters.

    Example: safecircuits mask show runs/localize/freeze.safetensors --model organism:aligned
    """
    from safecircuits.masks.freeze_mask import FreezeMask

    mask = FreezeMask.load(file)
    loaded = None if model is None else _load(model, "bridge", device, dtype)
    if json:
        from json import dumps

        typer.echo(dumps(_rows(mask if loaded is None else mask.on(loaded)), indent=1))
    else:
        typer.echo(mask.summary(loaded))


@plain_command(app)
def combine(
    files: Annotated[list[Path], typer.Argument(help="Freeze masks (safetensors).")],
    out: Annotated[Path, typer.Option("--out", help="The mask to write.")],
    op: Annotated[Operation, typer.Option("--op", help="Of the masks, from left to right.")] = Operation.union,
    model: ForModel = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Union, intersection or difference of masks, or the complement of one.

    Example: safecircuits mask combine layers.safetensors units.safetensors --op union --out freeze.safetensors
    """
    from functools import reduce

    from safecircuits.base.outputs import require_replaceable
    from safecircuits.masks.freeze_mask import FreezeMask

    require_replaceable(out, "mask")
    masks = [FreezeMask.load(file) for file in files]
    if model is not None:
        loaded = _load(model, "bridge", device, dtype)
        masks = [mask.on(loaded) for mask in masks]
    if op is Operation.complement:
        if len(masks) != 1:
            raise ValueError(f"the complement is of one mask, not of {len(masks)}; combine them first")
        if masks[0].shape is None:
            raise ValueError(
                f"the complement of {str(files[0])!r}, a mask of layers alone, needs the model: add --model"
            )
        combined = ~masks[0]
    else:
        if len(masks) < 2:
            raise ValueError(f"the {op.value} takes at least two masks, not {len(masks)}")
        rules: dict[str, Any] = {
            "union": lambda a, b: a | b,
            "intersection": lambda a, b: a & b,
            "difference": lambda a, b: a - b,
        }
        combined = reduce(rules[op.value], masks)
    combined.save(out)
    typer.echo(combined.summary())
    typer.echo(f"wrote {out}", err=True)


@plain_command(app)
def convert(
    file: FileArgument,
    model: Annotated[str, typer.Option("--model", help="A hub id, a folder, or organism:NAME.")],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")],
    backend: BackendOption,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """A mask as plain boolean tensors by parameter name, True where frozen, for any trainer.

    Names are the checkpoint's (Hugging Face's), or with --backend hooked a HookedTransformer's own. Parameters with no
    frozen entry are left out.

    Example: safecircuits mask convert freeze.safetensors --model organism:aligned --out parameters.safetensors
    """
    from safetensors.torch import save_file

    from safecircuits.base.files import replacing
    from safecircuits.base.outputs import PARAMETER_MASKS, require_replaceable
    from safecircuits.masks.freeze_mask import FreezeMask

    require_replaceable(out, "mask")
    loaded = _load(model, backend, device, dtype)
    mask = FreezeMask.load(file, loaded)
    masks = {name: tensor.contiguous() for name, tensor in mask.parameter_masks(loaded).items()}
    note = {"format": PARAMETER_MASKS, "meaning": "True entries are frozen", "model": model}
    with replacing(out) as partial:
        save_file(masks, partial, note)
    frozen = sum(int(tensor.sum()) for tensor in masks.values())
    typer.echo(
        f"{len(masks)} parameters with {frozen} frozen entries, {mask.share_of_parameters(loaded):.2%} of the model"
    )
    typer.echo(f"wrote {out}", err=True)


def _load(source: str, backend: Any, device: str | None, dtype: Dtype | None) -> Any:
    from safecircuits.base.progress import without_bars
    from safecircuits.model.load import load_model

    with without_bars():
        return load_model(source, backend=backend, device=torch_device(device), dtype=torch_dtype(dtype))


_COLUMNS = {"expert": "experts' neurons", "shared": "shared neurons", "router": "router rows"}


def _rows(mask: FreezeMask) -> list[dict[str, Any]]:
    """One row a layer: whether it is frozen whole, and how many of its neurons and heads are."""
    return [
        {
            "layer": layer,
            "whole": layer in mask.whole_layers,
            "neurons": int(mask.mlp[layer].sum()) if mask.shape else None,
            "heads": int(mask.attn[layer].sum()) if mask.shape else None,
            **{_COLUMNS[site]: int(mask.at(site)[layer].sum()) for site in MIXTURE_SITES if mask.at(site).any()},
        }
        for layer in range(len(mask.mlp))
    ]
