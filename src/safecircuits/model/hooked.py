"""HookedTransformer ↔ Hugging Face: build one from any local model, and bring its parameters back.

TransformerLens 3 builds a HookedTransformer only for names in its table and never exports one. Here its own converters
do the first half; for the way back the converter is run once on a model whose every entry is its own serial number:
where a number lands says which Hugging Face entry a HookedTransformer entry came from, for every architecture.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from safecircuits.model.checkpoint import first_line
from safecircuits.model.hooked_settings import complete, rotate_as_hugging_face

Landing = dict[str, Int[Tensor, "..."]]
"""By HookedTransformer parameter: for each entry the serial number (from 1) of its Hugging Face entry, 0 for none."""


def build_hooked_transformer(hf_model: nn.Module) -> Any:
    """A HookedTransformer with the weights of ``hf_model``, unprocessed: no folded norms, nothing centred.

    Biases that the architecture lacks exist in a HookedTransformer as zeros; they are set to not require a gradient, so
    that training cannot turn the model into one that its own architecture cannot hold.

    Raises:
        ValueError: if the installed TransformerLens has no HookedTransformer, or none for this architecture, or one
            that has no place for some of the checkpoint's parameters.
    """
    try:
        from transformer_lens import HookedTransformer
    except ImportError as error:
        raise ValueError(
            "backend 'hooked' needs transformer-lens 3.x, which still has HookedTransformer; use backend='bridge'"
        ) from error
    cfg = _hooked_config(hf_model)
    state = _converted(cfg, hf_model)
    hooked = HookedTransformer(cfg, move_to_device=False)
    rotate_as_hugging_face(hooked, hf_model)
    try:
        hooked.load_and_process_state_dict(
            {name: value.detach() for name, value in state.items()},
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
    except RuntimeError as error:  # such as a GPT-2 whose MLP is not four times as wide as its residual stream
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"the weights of this {type(hf_model).__name__} do not fit transformer-lens's HookedTransformer of it; "
            f"use backend='bridge' ({reason})"
        ) from error
    hooked.to(next(hf_model.parameters()).device, print_details=False)
    landing = landing_map(cfg, hf_model)
    _require_all_landed(landing, hf_model)
    for name, parameter in hooked.named_parameters():
        if not landing[name].any():
            parameter.requires_grad_(False)
            if name not in state:
                torch.nn.init.zeros_(parameter)  # positions of a model that has none: memory as it was found
    return hooked.eval()


def hf_state_from_hooked(hooked: Any, meta_model: nn.Module) -> dict[str, Tensor]:
    """The Hugging Face state dict that ``hooked`` stands for; ``meta_model`` gives names and shapes only."""
    landing = landing_map(hooked.cfg, meta_model)
    total = sum(p.numel() for p in meta_model.parameters())
    flat = torch.full((total + 1,), float("nan"), dtype=next(hooked.parameters()).dtype)
    for name, parameter in hooked.named_parameters():
        value, serial = parameter.detach().cpu().flatten(), landing[name].flatten()
        if torch.any(value[serial == 0] != 0):
            raise ValueError(f"{name} is not zero, but {type(meta_model).__name__} has no such parameter to hold it")
        flat[serial] = value
    if torch.isnan(flat[1:]).any():
        raise ValueError(f"the HookedTransformer does not determine every entry of {type(meta_model).__name__}")
    pieces = torch.split(flat[1:], [p.numel() for p in meta_model.parameters()])
    named = zip(meta_model.named_parameters(), pieces, strict=True)
    return {name: piece.reshape(parameter.shape).clone() for (name, parameter), piece in named}


def landing_map(cfg: Any, hf_model: nn.Module) -> Landing:
    """Where each entry of ``hf_model``'s parameters, numbered from 1 in their order, lands in a HookedTransformer.

    Raises:
        ValueError: if the converter computes with the weights instead of only moving them.
    """
    # A float64 holds every whole number to 2**53, more than any model has parameters. Copying the modules with each
    # parameter replaced keeps tied ones tied.
    memo: dict[int, Any] = {}
    total = 0
    for parameter in hf_model.parameters():
        serial = torch.arange(total + 1, total + parameter.numel() + 1, dtype=torch.float64)
        memo[id(parameter)] = nn.Parameter(serial.reshape(parameter.shape), requires_grad=False)
        total += parameter.numel()
    numbered = copy.deepcopy(hf_model, memo)
    cfg = copy.copy(cfg)
    cfg.dtype, cfg.device = torch.float64, "cpu"
    state = _converted(cfg, numbered)
    landing = {name: value.round().long() for name, value in state.items()}
    moved_only = all(torch.equal(landing[name].double(), state[name].double()) for name in state)
    if not moved_only or max(int(serial.max()) for serial in landing.values()) > total:
        raise ValueError(f"{type(hf_model).__name__} cannot be mapped back from a HookedTransformer; use the bridge")
    from transformer_lens import HookedTransformer

    with torch.device("meta"):
        shapes = {name: p.shape for name, p in HookedTransformer(cfg, move_to_device=False).named_parameters()}
    return {name: landing.get(name, torch.zeros(shape, dtype=torch.long)) for name, shape in shapes.items()}


def _require_all_landed(landing: Landing, hf_model: nn.Module) -> None:
    """A converter leaves out what it does not expect, such as a Llama's biases; the model would be another one."""
    landed = torch.zeros(sum(p.numel() for p in hf_model.parameters()) + 1, dtype=torch.bool)
    for serial in landing.values():
        landed[serial.flatten()] = True
    start = 1
    for name, parameter in hf_model.named_parameters():
        if not landed[start : start + parameter.numel()].all():
            raise ValueError(
                f"transformer-lens's HookedTransformer of {type(hf_model).__name__} has no place for {name}; "
                "use backend='bridge'"
            )
        start += parameter.numel()


def _hooked_config(hf_model: nn.Module) -> Any:
    import transformer_lens.loading_from_pretrained as loading

    hf_config: Any = copy.deepcopy(hf_model.config)
    hf_config.architectures = [type(hf_model).__name__]
    if hf_config.model_type == "gpt2":
        hf_config.n_ctx = hf_config.n_positions  # the name by which TransformerLens 3 asks for it
    with tempfile.TemporaryDirectory(prefix="hf") as folder:
        hf_config.save_pretrained(folder)
        try:
            cfg = loading.get_pretrained_model_config(
                folder,
                hf_cfg=hf_config.to_dict(),
                device=str(next(hf_model.parameters()).device),
                dtype=next(hf_model.parameters()).dtype,
            )
        except (NotImplementedError, KeyError, AttributeError) as error:
            raise ValueError(_without_hooked_transformer(hf_model, loading.OFFICIAL_MODEL_NAMES)) from error
    complete(cfg, hf_model)
    cfg.tokenizer_name = None  # or HookedTransformer looks for a tokenizer in the deleted folder
    cfg.model_name = Path(str(getattr(hf_config, "_name_or_path", "") or "local")).name
    return cfg


def _without_hooked_transformer(hf_model: nn.Module, official: Sequence[str]) -> str:
    """Why there is none, for an architecture that TransformerLens does not know or knows by official names only."""
    architecture = type(hf_model).__name__
    config: Any = hf_model.config
    family = str(config.model_type).removesuffix("_text")
    if not any(family in name.lower().replace("-", "") for name in official):
        return f"no HookedTransformer exists for {architecture}; use backend='bridge'"
    return (
        f"transformer-lens makes a HookedTransformer of {architecture} by official name only, not from a checkpoint: "
        "use backend='bridge', or pass what HookedTransformer.from_pretrained_no_processing(name) makes, which can be "
        "analysed but not exported"
    )


def _converted(cfg: Any, hf_model: nn.Module) -> dict[str, Tensor]:
    import transformer_lens.loading_from_pretrained as loading

    with tempfile.TemporaryDirectory(prefix="hf") as folder, torch.no_grad():
        try:
            state: dict[str, Tensor] = loading.get_pretrained_state_dict(
                folder, cfg, hf_model=hf_model, dtype=cfg.dtype
            )
        except (RuntimeError, AttributeError, AssertionError) as error:  # a bias or norm that this checkpoint lacks
            raise ValueError(
                f"transformer-lens cannot convert this {type(hf_model).__name__} to a HookedTransformer, which lacks "
                f"something its converter looks for; use backend='bridge' ({first_line(error)})"
            ) from error
    return state
