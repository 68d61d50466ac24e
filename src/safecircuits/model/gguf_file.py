"""Checkpoints in GGUF, as llama.cpp, Ollama and LM Studio keep a model: read, unpacked, or refused by name.

Transformers unpacks the weights. What it passes over without a word is looked for here: a file cut off, a part of a
split one, a setting or a tensor that changes what the model computes, and the tokens that end a turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = b"GGUF"
_SPLIT = "split.count"

# Of the tensors that are no weights: the factors by which Llama 3 stretches the wavelengths of its positions.
_ROPE = "rope_freqs.weight"

# What Llama 3.1 to 3.3 were trained with. A file holds the factors that follow from them, and not these.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192

_END_KEYS = ("eos", "eot", "eom")
"""End of sequence, of turn and of message: llama.cpp stops at each of them, transformers reads the first."""


def gguf_in(source: str | Path) -> Path | None:
    """The GGUF file that ``source`` names, or that is the only model in the folder ``source``; None if there is none.

    Raises:
        ValueError: for a folder with several, or for a name that ends in ``.gguf`` where there is no such file.

    Examples:
        >>> gguf_in("google/gemma-2b-it") is None
        True
    """
    path = Path(source)
    if path.is_dir():
        found = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ValueError(f"{str(path)!r} holds {len(found)} GGUF files ({names}); give the path of one of them")
        return found[0] if found else None
    if path.suffix.lower() != ".gguf":
        return None
    if not path.is_file():
        raise ValueError(f"cannot load {str(path)!r}: there is no such file; a file on a hub must be downloaded first")
    return path


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose header was read and found whole.

    Examples:
        >>> GgufFile.open(path).end_tokens  # doctest: +SKIP
        [2]
    """

    path: Path
    reader: Any

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header; a ValueError for what is damaged, in parts, or packed in a way that nobody unpacks."""
        return cls(path, _reader(path))

    @property
    def end_tokens(self) -> list[int]:
        """The ids at which the model ends a text or a turn, as the file lists them."""
        keys = (f"tokenizer.ggml.{key}_token_id" for key in _END_KEYS)
        return list(dict.fromkeys(int(self.setting(key)) for key in keys if key in self.reader.fields))

    def setting(self, key: str) -> Any:
        """The value of a key of the header."""
        return self.reader.fields[key].contents()

    def options(self) -> dict[str, Any]:
        """What ``AutoModelForCausalLM.from_pretrained(path.parent, ...)`` needs to unpack the file whole and rightly.

        Returns:
            ``gguf_file``, ``config`` and, where transformers could leave weights packed, ``quantization_config``.

        Raises:
            ValueError: for what would be read as another model: says what of the file is the reason.
        """
        import transformers
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.path.parent, gguf_file=self.path.name)
        except (ValueError, KeyError) as error:
            raise ValueError(f"transformers does not read the kind of model in {str(self.path)!r}: {error}") from error
        _stretch_positions(self, config)
        _require_read(self, config)
        options = {"gguf_file": self.path.name, "config": config}
        if unpacking := getattr(transformers, "GgufConfig", None):
            options["quantization_config"] = unpacking(gguf_file=self.path.name, dequantize=True)
        return options

    def tokenizer(self) -> Any:
        """The tokenizer that the file holds, with its chat template."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)


def _reader(path: Path) -> Any:
    """The file's header; its tensors are mapped, not read."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(f"reading {str(path)!r} needs the package gguf: pip install 'safecircuits[gguf]'") from None
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{str(path)!r} is no GGUF file: it does not begin with {_MAGIC.decode()}")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # whatever numpy says where the map ends
        raise ValueError(f"{str(path)!r} is damaged or cut off ({error}); copy or download it again") from error
    parts = int(reader.fields[_SPLIT].contents()) if _SPLIT in reader.fields else 1
    if parts > 1:
        raise ValueError(f"{str(path)!r} is one of {parts} parts; join them first with llama-gguf-split --merge")
    for tensor in {t.tensor_type: t for t in reader.tensors}.values():
        _require_type(tensor, path)
    return reader


def _require_type(tensor: Any, path: Path) -> None:
    from gguf import dequantize

    try:
        dequantize(np.array(tensor.data.reshape(-1, tensor.data.shape[-1])[:1]), tensor.tensor_type)
    except NotImplementedError:
        raise ValueError(
            f"{str(path)!r} holds weights as {tensor.tensor_type.name} ({tensor.name}), which the package gguf does "
            "not unpack; take another file of the same model, of type F16, Q8_0 or Q4_K_M for one"
        ) from None


def _stretch_positions(file: GgufFile, config: Any) -> None:
    """Give ``config`` the Llama 3 positions that the file has as a tensor of factors."""
    tensor = next((t for t in file.reader.tensors if t.name == _ROPE), None)
    if tensor is None:
        return
    factors = np.asarray(tensor.data, dtype=np.float64).ravel()
    theta, factor = float(config.rope_parameters["rope_theta"]), float(factors.max())
    want = _llama3_factors(len(factors), theta, factor)
    if config.head_dim != 2 * len(factors) or not np.allclose(factors, want, rtol=1e-3):
        raise ValueError(
            f"{str(file.path)!r} scales its positions by a tensor ({_ROPE}) that is not the rule of Llama 3.1 to 3.3, "
            "and transformers would leave it out; load the model's checkpoint in safetensors"
        )
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }


def _llama3_factors(n: int, theta: float, factor: float) -> Sequence[float]:
    """By how much each of ``n`` wavelengths is stretched: short ones not, long ones by ``factor``, between in part."""
    factors = []
    for i in range(n):
        turns = _ORIGINAL / (2 * math.pi * theta ** (i / n))
        kept = min(1.0, max(0.0, (turns - _LOW) / (_HIGH - _LOW)))
        factors.append(1 / ((1 - kept) / factor + kept))
    return factors


def _require_read(file: GgufFile, config: Any) -> None:
    """A ValueError if the file holds settings or tensors that change the model and that transformers leaves out."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    architecture = file.setting("general.architecture")
    factors = [t.name for t in file.reader.tensors if t.name.startswith("rope_factors")]
    read = GGUF_CONFIG_MAPPING.get(architecture)
    left_out = [f"tensor {name}" for name in factors]
    if read is not None:  # others have a reader of their own, which takes all there is
        for key, field in file.reader.fields.items():
            prefix, _, name = key.partition(".")
            if prefix == architecture and read.get(name) is None and not _is_so_anyway(name, field.contents(), config):
                left_out.append(f"{key} = {field.contents()}")
    if left_out:
        raise ValueError(
            f"{str(file.path)!r} has what transformers does not read from a GGUF file and what would make "
            f"it another model: {'; '.join(left_out)}. Load the model's checkpoint in safetensors"
        )


def _is_so_anyway(name: str, value: Any, config: Any) -> bool:
    """Whether a setting that transformers passes over is what its configuration says by itself."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    window = getattr(config, "sliding_window", None) or math.inf
    length = int(config.max_position_embeddings)
    settled: dict[str, Any] = {
        "rope.dimension_count": rotated,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "attention.causal": True,
        "rope.scaling.type": "none",
        "rope.freq_base": rope.get("rope_theta"),
        "vocab_size": config.vocab_size,
        "use_parallel_residual": getattr(config, "use_parallel_residual", None),
    }
    if name == "attention.sliding_window":
        return min(int(value), length) == min(window, length)
    if name in ("rope.scaling.original_context_length", "rope.scaling.finetuned"):
        return True  # nothing by itself: what it belongs to is rope.scaling.type
    return name in settled and settled[name] == value
