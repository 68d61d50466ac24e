"""Loading with quantised weights: what a checkpoint or a caller asks for, its size, and which library it takes."""

from __future__ import annotations

from typing import Any, Literal

import torch

Quantization = Literal["4bit", "8bit"]

_INSTALL = {
    "bitsandbytes": "pip install 'safecircuits[quantised]'",
    "gptq": "pip install gptqmodel",
    "awq": "pip install gptqmodel",
    "hqq": "pip install hqq",
    "torchao": "pip install torchao",
    "quanto": "pip install optimum-quanto",
    "compressed-tensors": "pip install compressed-tensors",
}
"""What brings a method's packed matrices to transformers."""

_BITS = ("bits", "nbits", "w_bit")


def wanted_quantization(quantization: Any) -> Any:
    """Transformers' settings for ``"4bit"`` (NF4) or ``"8bit"`` (LLM.int8), or the settings that were given.

    Raises:
        ValueError: for anything else.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils.quantization_config import QuantizationConfigMixin

    packed_by: Any = BitsAndBytesConfig
    if quantization is None or isinstance(quantization, QuantizationConfigMixin):
        return quantization
    if quantization == "4bit":
        return packed_by(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    if quantization == "8bit":
        return packed_by(load_in_8bit=True)
    raise ValueError(
        f"quantization is '4bit', '8bit' (both by bitsandbytes) or a quantization config of transformers, "
        f"not {quantization!r}"
    )


def method_of(settings: Any) -> str | None:
    """The name of the method in a checkpoint's or transformers' settings; None where there are none."""
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    if method is None and isinstance(settings, dict) and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"  # as checkpoints of 2023 say it
    return str(getattr(method, "value", method) or "unknown method")


def least_bits(settings: Any) -> int:
    """Bits that a packed entry takes, as far as the settings say; 4 where they do not, so that nothing is refused."""
    said: dict[str, Any] = settings if isinstance(settings, dict) else vars(settings)
    if said.get("load_in_8bit") or said.get("_load_in_8bit"):
        return 8
    return next((int(said[name]) for name in _BITS if isinstance(said.get(name), int) and said[name] > 0), 4)


def packed_bytes(meta_model: Any, bits: int, itemsize: int) -> int:
    """What a model takes with its linear maps in ``bits`` a weight, and all else (embeddings, norms) as it is."""
    kept = {id(m) for m in (meta_model.get_input_embeddings(), meta_model.get_output_embeddings())}
    total: int = sum(p.numel() for p in meta_model.parameters())
    packed: int = sum(
        module.weight.numel()
        for module in meta_model.modules()
        if isinstance(module, torch.nn.Linear) and id(module) not in kept
    )
    return packed * bits // 8 + (total - packed) * itemsize


def explained(name: str, method: str, error: BaseException) -> str:
    """Why a quantised checkpoint did not load, where a library or a device is lacking."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, ImportError):
        install = _INSTALL.get(method, "install the library that its model card names")
        return f"{name!r} is quantised ({method}), and what reads that is not installed here: {install}. ({reason})"
    return (
        f"{name!r} is quantised ({method}), which does not load on this device ({reason}); use one that the method "
        "supports, or the unquantised checkpoint with dtype=torch.bfloat16"
    )
