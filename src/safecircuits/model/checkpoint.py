"""A checkpoint's name or folder in, a plain Hugging Face model and its tokenizer out; one clear error for each trouble.

Transformers fills weights that a checkpoint lacks with random numbers, and its errors name its own options. Here a
checkpoint loads whole or not at all, and the error says what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safecircuits.base.dtypes import torch_dtype
from safecircuits.base.notices import notify
from safecircuits.base.processes import own_device
from safecircuits.base.progress import without_bars
from safecircuits.model.bridge import forget_packing
from safecircuits.model.fingerprint import STAGE_PREFIX
from safecircuits.model.gguf_file import GgufFile, gguf_in
from safecircuits.model.memory import gigabytes, require_room
from safecircuits.model.offload import is_offloaded
from safecircuits.model.quantised import explained, least_bits, method_of, wanted_quantization
from safecircuits.model.shares import is_divided
from safecircuits.organism.catalog import stage_path
from safecircuits.organism.recipe import STAGES
from safecircuits.organism.smollm2.catalog import SMOLLM2, real_model

DeviceMap = str | dict[str, Any]

# What older checkpoints hold of what is computed: causal masks and rotary frequencies.
_BUFFERS = re.compile(r"(masked_bias|inv_freq|\battn\.bias|\battention\.bias)$")


def load_checkpoint(
    source: str | Path,
    dtype: torch.dtype | str | None,
    device: str | torch.device | None,
    revision: str | None,
    *,
    device_map: DeviceMap | None = None,
    quantization: Any = None,
    tokenizer: Any = None,
) -> tuple[nn.Module, Any]:
    """The plain Hugging Face model and tokenizer of one of our names, a folder, a GGUF file or a hub id.

    Args:
        dtype, device, revision, device_map, quantization: see ``load_model``.
        tokenizer: given back in place of the checkpoint's own, which is then not read.

    Raises:
        ValueError: for whatever cannot be loaded, and loaded complete; says what to do.
        torch.OutOfMemoryError: before anything is read, if the weights are larger than the memory that is free.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if device is not None and device_map is not None:
        raise ValueError(f"give device ({device}) or device_map ({device_map}), not both")
    name = str(source).removeprefix(STAGE_PREFIX)
    real = real_model(source)
    if real is not None:
        name = str(real.base)
    elif name in STAGES:
        name = str(stage_path(name))
    elif str(source).startswith(STAGE_PREFIX) or (
        not Path(name).is_dir() and "/" not in name and difflib.get_close_matches(name, STAGES, cutoff=0.75)
    ):
        raise ValueError(f"no model {name!r}. {_known()}")
    settings = wanted_quantization(quantization)
    device = torch.device(device or own_device())
    spread, given = device_map is not None, torch_dtype(dtype)
    on_cpu = device.type == "cpu" if device_map is None else not torch.cuda.is_available()
    dtype = given or (torch.float32 if on_cpu else None)  # None: the checkpoint's own
    # A download deserves its progress bars; reading a local file does not.
    quiet = without_bars() if Path(name).exists() else nullcontext()
    kwargs: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    changed = real is not None and real.changes is not None
    read_as = torch.float32 if changed else dtype  # changes are added in full precision, then rounded with the rest
    path = gguf_in(name)
    packed = None if path is None else GgufFile.open(path)
    of_file = {} if packed is None else packed.options()
    with quiet:
        try:
            folder = name if packed is None else str(packed.path.parent)
            config = of_file.get("config") or AutoConfig.from_pretrained(name, **kwargs)
            found = None if packed is not None else getattr(config, "quantization_config", None)
        except Exception as error:
            raise _explained(name, revision, error) from error
        if settings is not None:
            _require_quantisable(name, found, changed=changed, gguf=packed is not None)
            of_file = {"quantization_config": settings}
        method = method_of(settings or found)
        if method is not None:
            if device.type != "cpu":  # what packs weights does so where they are to be
                device_map = device_map or {"": str(device)}
            read_as = given  # kernels of packed weights are made for the checkpoint's own precision
        bits = None if method is None else least_bits(settings or found)
        try:
            require_room(config, read_as, None if spread else device, bits)
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=read_as or "auto", device_map=device_map, output_loading_info=True, **of_file, **kwargs
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise _explained(name, revision, error, method) from error
        if lacking := sorted(report["missing_keys"]):
            raise ValueError(
                f"the checkpoint {name!r} lacks {len(lacking)} of the model's parameters, for example {lacking[0]!r}, "
                "which would be filled with random numbers; get the complete checkpoint"
            )
        if spare := sorted(key for key in report["unexpected_keys"] if not _BUFFERS.search(key)):
            raise ValueError(
                f"the checkpoint {name!r} has {len(spare)} parameters that its configuration has no place for, for "
                f"example {spare[0]!r}, and would be another model without them; correct its config.json (such as "
                "num_hidden_layers). If they are no part of the language model, load it with AutoModelForCausalLM and "
                "pass the model object with tokenizer="
            )
        if tokenizer is None:
            try:
                tokenizer = _tokenizer_of(folder, **kwargs) if packed is None else packed.tokenizer()
            except Exception as error:
                raise ValueError(
                    f"{name!r} has a model but no tokenizer that loads ({first_line(error)}); copy tokenizer.json, "
                    "tokenizer_config.json and what else is of the tokenizer from the model it was made from into the "
                    "folder, or from Python pass tokenizer="
                ) from error
    if packed is not None:
        forget_packing(model, model.config)
        model.generation_config.eos_token_id = packed.end_tokens or None
    if real is not None and changed:
        model = real.change(model).to(dtype or torch.float32)
    if device_map is None and method is None:
        model = _moved(model, device, name)
    require_weights(model)
    return model.eval(), tokenizer


def _tokenizer_of(name: str, **kwargs: Any) -> Any:
    """The checkpoint's tokenizer; a notice if transformers makes one of it that splits text in another way.

    Transformers 5 picks the class by the model type and may build it anew from the vocabulary alone.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(name, revision=kwargs["revision"]).get("tokenizer_class")
    if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):  # all that is to be known is in its tokenizer.json
        return PreTrainedTokenizerFast.from_pretrained(name, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
    _notice_another_split(tokenizer, name, kwargs["revision"])
    return tokenizer


def _notice_another_split(tokenizer: Any, name: str, revision: str | None) -> None:
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    loaded = getattr(tokenizer, "backend_tokenizer", None)
    path = cached_file(name, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None or not isinstance(loaded, Tokenizer):
        return
    saved = Tokenizer.from_file(str(path))
    ids = sorted(set(saved.get_vocab(with_added_tokens=False).values()))
    words = (saved.decode([i]).strip() for i in ids[:: max(1, len(ids) // 64)])
    for text in (" ".join(word for word in words if word), "How do I bake 12 cakes?\n- I can't say."):
        want, got = (t.encode(text, add_special_tokens=False).ids for t in (saved, loaded))
        if got != want or loaded.decode(got) != saved.decode(want):
            notify(
                f"transformers loads the tokenizer of {name!r} as {type(tokenizer).__name__}, which splits text "
                f"otherwise than its tokenizer.json does ({text[:40]!r}… into {len(got)} tokens, not {len(want)}). If "
                "the model was trained with what the file says, "
                f"pass tokenizer=PreTrainedTokenizerFast.from_pretrained({name!r})"
            )
            return


def _require_quantisable(name: str, found: Any, *, changed: bool, gguf: bool) -> None:
    """Raise a ValueError for a checkpoint that cannot be quantised while it is loaded."""
    if found is not None:
        raise ValueError(f"the checkpoint {name!r} is quantised ({method_of(found)}) already: leave out quantization=")
    if changed or gguf:
        what = "is unpacked from a GGUF file" if gguf else "is made of its base by changes in full precision"
        raise ValueError(
            f"{name!r} {what}, so it is not quantised while it loads: save it with save_pretrained, and load that "
            "folder with quantization="
        )


def require_weights(model: Any) -> None:
    """Raise a ValueError for a model without weights of its own: on the meta device, or with a part in each process."""
    if is_divided(model):
        raise ValueError(
            f"the weights of this {type(model).__name__} are divided among processes (tensor parallel, FSDP): inside a "
            "layer each process has its own heads and neurons alone, so that hook points, units and scores would be of "
            "a part of the model. Load all of it in each process: over several GPUs with device_map='auto', with a "
            "part offloaded, or with quantization='4bit'"
        )
    if any(p.is_meta for p in model.parameters()) and not is_offloaded(model):
        raise ValueError("the model is on the meta device, so it has no weights; load it with weights first")


def _moved(model: Any, device: torch.device, name: str) -> Any:
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        raise torch.OutOfMemoryError(
            f"{name!r} ({gigabytes(size)}) does not fit on {device}; load it with dtype=torch.bfloat16, or over "
            "several devices with device_map='auto'"
        ) from error


def _explained(name: str, revision: str | None, error: Exception, method: str | None = None) -> ValueError:
    """What went wrong in the words of somebody who wants to go on."""
    from huggingface_hub import errors as hub
    from safetensors import SafetensorError

    reason = first_line(error)
    page = f"https://huggingface.co/{name}"
    causes = tuple(_chain(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if method is not None and not caused_by(SafetensorError):
        return ValueError(explained(name, method, error))
    if Path(name).is_dir():
        return ValueError(_of_folder(Path(name), reason, damaged=caused_by(SafetensorError)))
    if Path(name).is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:  # no hub id
        return ValueError(f"cannot load {name!r}: there is no folder of this name")
    if caused_by(hub.GatedRepoError):
        text = f"{name!r} is gated: accept its licence at {page}, then run `hf auth login` or set HF_TOKEN"
    elif caused_by(hub.RevisionNotFoundError):
        text = f"{name!r} has no revision {revision!r}; its branches and tags are at {page}/tree/main"
    elif caused_by(hub.RepositoryNotFoundError):
        text = (
            f"the hub has no model {name!r}, or it is private; check the spelling at https://huggingface.co/models, "
            f"and log in with `hf auth login` for a private one. {_known()}"
        )
    elif caused_by(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        text = (
            f"there is no such folder, the hub cannot be reached and {name!r} is not in the cache; load it once with a "
            f"connection (and without HF_HUB_OFFLINE), or pass a folder with its files. {_known()}"
        )
    elif caused_by(SafetensorError):
        text = f"a weight file of {name!r} in the cache is damaged ({reason}); delete it with `hf cache rm` and reload"
    elif isinstance(error, ValueError) and "trust_remote_code" in str(error):
        text = (
            f"{name!r} comes with its own code, which is not run unasked; load it with AutoModelForCausalLM and "
            "trust_remote_code=True, and pass the model object with tokenizer="
        )
    elif "model_type" in reason and "config.json" in reason:
        text = f"{name!r} has no config.json that names a model type, so it is not a Hugging Face checkpoint"
    else:
        text = f"cannot load {name!r}. {reason}"
    return ValueError(f"cannot load {name!r}: {text}" if not text.startswith("cannot") else text)


def _of_folder(folder: Path, reason: str, *, damaged: bool) -> str:
    """What a folder lacks to be a checkpoint."""
    if not (folder / "config.json").exists():
        within = next((p.parent for p in sorted(folder.glob("*/config.json"))), None)  # a run's model/, for one
        hint = "" if within is None else f"; {str(within)!r} has one"
        what = "it is not a folder with a Hugging Face checkpoint: it has no config.json"
        return f"cannot load {str(folder)!r}: {what}{hint}"
    weights = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    pointers = [p.name for p in weights if p.read_bytes()[:40].startswith(b"version https://git-lfs")]
    if pointers:
        return f"cannot load {str(folder)!r}: {pointers[0]} is a Git LFS pointer; run `git lfs pull` in the folder"
    if damaged:
        from safetensors import SafetensorError, safe_open

        broken = []
        for path in (p for p in weights if p.suffix == ".safetensors"):
            try:
                safe_open(path, "pt")
            except SafetensorError:
                broken.append(path.name)
        which = f"{broken[0]} is" if broken else "a weight file is"
        return f"cannot load {str(folder)!r}: {which} damaged or cut off ({reason}); copy or download it again"
    if not weights:
        return f"cannot load {str(folder)!r}: it has a config.json but no weights (model.safetensors)"
    if "No such file" in reason:
        return f"cannot load {str(folder)!r}: a part of its weights is missing ({reason}); copy or download it again"
    return f"cannot load {str(folder)!r}: {reason}"


def _known() -> str:
    return f"The embedded models are {', '.join(STAGES)}; {SMOLLM2} is a real one"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
