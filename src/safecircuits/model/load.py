"""Any source in, a TransformerLens model out; and back again to a Hugging Face checkpoint."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from safecircuits.base.dtypes import torch_dtype
from safecircuits.base.notices import notify
from safecircuits.base.outputs import require_replaceable
from safecircuits.model.adapters import is_adapter_folder, is_peft, load_adapter, merged_view
from safecircuits.model.attach import hooks_in_force
from safecircuits.model.bridge import (
    BUILT_FROM,
    BuiltFrom,
    bridge_of,
    forget_packing,
    generation_config_of,
    hf_config_of,
    plain_name,
    source_of,
)
from safecircuits.model.checkpoint import DeviceMap, load_checkpoint, require_weights
from safecircuits.model.checkpoint_folder import rehearse, ties_of, write_checkpoint
from safecircuits.model.copies import let_copies_be_apart
from safecircuits.model.equivalence import require_equivalent
from safecircuits.model.fused import fuse_again
from safecircuits.model.modules import with_buffers
from safecircuits.model.offload import is_offloaded, require_in_place
from safecircuits.model.own_weights import MERGE
from safecircuits.model.packed import packing_of
from safecircuits.model.publish import push, require_pushable
from safecircuits.model.quantised import Quantization
from safecircuits.model.sites import HookedModel, is_bridge, require_unprocessed

Backend = Literal["bridge", "hooked"]

_COMPARED = "_safecircuits_compared"
"""Set on a quantised or offloaded model that was compared with Hugging Face when it was loaded."""


def load_model(
    source: Any,
    *,
    backend: Backend = "bridge",
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    quantization: Quantization | Any = None,
    revision: str | None = None,
) -> HookedModel:
    """Load ``source`` as a TransformerLens model, without weight processing: every parameter is the checkpoint's own.

    Args:
        source: an embedded model's name (``safecircuits.organism.STAGES``, or ``organism:STAGE``), ``smollm2`` or a
            member of its family (``smollm2:layers-12-16``; ``safecircuits.organism.smollm2``), a local Hugging Face
            folder, a GGUF file or a folder that holds one (its weights are unpacked; extra ``gguf``), a hub id, a
            Hugging Face model object (which stays as it is and shares its parameters with the result), a ``PeftModel``
            or a folder with its adapter (a merged copy is loaded, with a notice; extra ``peft``), or a ready
            ``TransformerBridge`` or ``HookedTransformer``, which is checked and returned itself.

            The hooked model is compared with Hugging Face's own forward pass on a few tokens, once for each
            configuration in a process, which takes seconds. So is a ready bridge, unless hooks are on it; for a ready
            HookedTransformer the original is unknown, so only processed weights are refused.
        backend: ``"bridge"`` for a TransformerBridge; ``"hooked"`` for a HookedTransformer (transformer-lens 3.x). A
            ready model keeps its own.
        tokenizer: required with a Hugging Face model object; otherwise replaces the checkpoint's own.
        dtype: of a checkpoint, such as ``torch.bfloat16`` or ``"bfloat16"``; float32 on a CPU and the checkpoint's own
            on a GPU unless given. A model object keeps its own.
        device: ``"cuda"`` where there is one unless given; of several processes (``torchrun``) each has its own.
        device_map: instead of ``device``, spreads a bridge over several: ``"auto"``, or a device by module name, as
            Accelerate takes it. What is on the CPU beside GPUs comes to them while a layer runs; such a model is for
            reading, as a quantised one is.
        quantization: of a checkpoint that is to be quantised while it loads: ``"4bit"`` (NF4), ``"8bit"`` (LLM.int8;
            extra ``quantised``), or a quantization config of transformers. Checkpoints that are quantised already load
            as they are, wherever transformers has what reads them. Either way the model, a bridge, is for reading:
            collecting, generating, scaling, ablating, scoring. Masks, training and export refuse it.
        revision: of a hub id.

    Raises:
        ValueError: for a name that cannot be loaded, a checkpoint that lacks something, a missing library, a missing
            tokenizer, a model whose weights were processed (folded norms), or a configuration
            that transformer-lens computes differently from Hugging Face: says where, by how much, and whether alone,
            padded or with a cache.
        torch.OutOfMemoryError: before a checkpoint is read, if its weights are larger than the memory that is free.

    Examples:
        >>> model = sc.load_model("aligned")
        >>> type(model).__name__
        'TransformerBridge'
        >>> model.cfg.n_layers, model.cfg.d_model
        (8, 128)
    """
    if backend not in ("bridge", "hooked"):
        raise ValueError(f"backend is 'bridge' or 'hooked', not {backend!r}")
    if device_map is not None and (backend == "hooked" or not isinstance(source, str | Path)):
        reason = "a HookedTransformer is on one device" if backend == "hooked" else "a model object is where it is"
        raise ValueError(f"device_map= is for loading a checkpoint as a bridge: {reason}")
    if quantization is not None and (backend == "hooked" or not isinstance(source, str | Path)):
        reason = "a HookedTransformer computes with copies" if backend == "hooked" else "a model object is as it is"
        raise ValueError(f"quantization= is for loading a checkpoint as a bridge: {reason}")
    wanted = torch_dtype(dtype)
    if isinstance(source, nn.Module) and wanted not in (None, found := next(source.parameters()).dtype):
        raise ValueError(
            f"dtype={wanted} is for loading a checkpoint: this model object is in {found}; use .to({wanted})"
        )
    if isinstance(source, nn.Module) and hasattr(source, "hook_dict"):
        ready: HookedModel = _checked_ready_model(source, tokenizer)
        return ready
    if isinstance(source, nn.Module):
        hf_model = source
        if tokenizer is None:
            raise ValueError(f"a {type(source).__name__} object comes without a tokenizer: pass tokenizer=")
    elif isinstance(source, str | Path):

        def read(name: str | Path) -> tuple[nn.Module, Any]:
            return load_checkpoint(
                name, wanted, device, revision, device_map=device_map, quantization=quantization, tokenizer=tokenizer
            )

        given = tokenizer
        hf_model, tokenizer = load_adapter(Path(source), read) if is_adapter_folder(source) else read(source)
        tokenizer = given or tokenizer
    else:
        raise ValueError(
            f"cannot load a model from a {type(source).__name__}: pass a name, a folder, a Hugging Face model, "
            "a HookedTransformer or a TransformerBridge"
        )
    if is_peft(hf_model):
        hf_model = merged_view(hf_model)
    require_weights(hf_model)
    if backend == "hooked":
        require_in_place(hf_model, "a HookedTransformer, which computes with copies of them,")
    make = bridge_of if backend == "bridge" else _hooked
    model: HookedModel = make(hf_model)
    require_equivalent(model, hf_model, make)
    if _reads_only(model):
        setattr(model, _COMPARED, True)
    _give_tokenizer(model, tokenizer)
    return model


def save_pretrained(
    model: Any,
    folder: str | Path,
    *,
    card: str | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> Path:
    """Write ``model`` as a checkpoint that ``AutoModelForCausalLM.from_pretrained`` loads with equal logits.

    Configuration, generation settings, tokenizer, chat template, dtype and tying come back as the model has them. A new
    folder appears complete or not at all. Of an existing one only what an earlier save left is replaced, once all is
    written; other files in it stay, and it may be a mount point or a link.

    Args:
        card: text of the model card, ``README.md``: ``safecircuits.gate.model_card`` makes one.
        push_to_hub: upload what was written, the card with it, as one commit to ``repo_id`` on the Hugging Face hub.
        repo_id, private, token, commit_message: as ``push_to_hub`` of transformers has them: a repository that is not
            there is made, ``private`` or not; ``token`` in place of the login's (``hf auth login``).

    Raises:
        ValueError: for a HookedTransformer that ``load_model`` did not build, which has no Hugging Face configuration;
            for virtual tokens, which are an adapter; for a file of that name, for a folder with a PEFT adapter, which
            would be loaded on top, and for one with another card where one is to be written. For what cannot be
            pushed, before anything is written; and if the hub does not take it, once the folder is.
        OSError: if it cannot be written; the earlier checkpoint stays.

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> folder = sc.save_pretrained(model, "copy")
        >>> AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers
        8
    """
    if push_to_hub:
        repo_id = require_pushable(repo_id, token)
    elif repo_id is not None:
        raise ValueError(f"repo_id={repo_id!r} is where to push to: pass push_to_hub=True with it")
    require_in_place(model, "saving it")
    hf_model = to_hugging_face(model)
    if not hasattr(hf_model, "save_pretrained"):
        kept = "its adapter with model.peft.save_pretrained(folder)" if hasattr(model, "peft") else "its state_dict()"
        raise ValueError(f"a {type(model).__name__} is no model of Hugging Face's that a checkpoint holds: save {kept}")
    if card is not None:
        require_replaceable(Path(folder) / CARD_FILE, "checkpoint card")
    beside = {} if card is None else {CARD_FILE: card}
    written = write_checkpoint(hf_model, getattr(model, "tokenizer", None), folder, beside=beside)
    if repo_id is not None:
        push(Path(folder), written, repo_id, private=private, token=token, commit_message=commit_message)
    return Path(folder)


CARD_FILE = "README.md"


def require_exportable(model: Any) -> None:
    """Raise a ValueError, before an hour of training, for a model that ``save_pretrained`` could not write after it.

    A module that is no model of Hugging Face's (one with virtual tokens) is for its owner to save.
    """
    if not hasattr(model, "hook_dict") and not hasattr(model, "save_pretrained"):
        return
    require_in_place(model, "training it")
    tokenizer = getattr(model, "tokenizer", None)
    try:
        if not hasattr(model, "hook_dict") or is_bridge(model):
            rehearse(to_hugging_face(model), tokenizer)
        else:  # load_model has found where each entry of a HookedTransformer belongs
            rehearse(source_of(model), tokenizer)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        what = f"this {type(getattr(model, 'original_model', model)).__name__}"
        raise ValueError(f"{what} could not be saved after training, so it is not trained: {error}") from error


# accelerate's model without weights changes ``nn.Module`` for all threads: blocks that overlap would leave it changed.
_ONE_AT_A_TIME = threading.RLock()


def to_hugging_face(model: Any) -> Any:
    """A plain Hugging Face model with the weights that ``model`` has now (shared with it where that is possible)."""
    if not hasattr(model, "hook_dict"):
        return model
    with _ONE_AT_A_TIME:
        return _to_hugging_face(model)


def _to_hugging_face(model: Any) -> Any:
    require_in_place(model, "exporting it")
    config = hf_config_of(model)
    tied = _tied(model, config)
    if tied is not None and tied != bool(getattr(config, "tie_word_embeddings", False)):
        config = copy.deepcopy(config)
        config.tie_word_embeddings = tied
        if not tied and not is_bridge(model):
            notify(
                "the checkpoint tied its embeddings, but this HookedTransformer, which cannot, has moved them apart; "
                "it is exported with an output embedding of its own (tie_word_embeddings=False). Train a bridge to "
                "keep them tied"
            )
    weights = next(model.parameters())
    exported = with_buffers(config, weights.dtype)
    if is_bridge(model):
        fuse_again(model)
        unwrapped = {plain_name(k): v for k, v in model.original_model.state_dict().items()}
        if lacking := sorted(set(exported.state_dict()) - set(unwrapped)):
            raise ValueError(
                f"the model has no {lacking[0]!r} of its own, as its architecture says, but a wrapper in its place, "
                f"which no plain checkpoint holds; {MERGE}"
            )
        state: dict[str, Tensor] = {k: unwrapped[k] for k in exported.state_dict()}
        own = {plain_name(name): buffer for name, buffer in model.original_model.named_buffers()}
    else:
        from safecircuits.model.hooked import hf_state_from_hooked

        state, own = hf_state_from_hooked(model, exported), {}
        for key in set(exported.state_dict()) - set(state):
            tied_to = exported.all_tied_weights_keys.get(key)
            state[key] = exported.get_buffer(key) if tied_to is None else state[tied_to]
    exported.load_state_dict(state, assign=True, strict=True)
    exported.tie_weights()
    for name, buffer in list(exported.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        kept = own.get(name, buffer)
        setattr(exported.get_submodule(owner), leaf, kept if kept.shape == buffer.shape else buffer)
    exported.generation_config = copy.deepcopy(generation_config_of(model) or exported.generation_config)
    return exported.eval()


def _tied(model: Any, config: Any) -> bool | None:
    """Whether the embeddings of a hooked model are one; None where its architecture has nothing to tie."""
    if is_bridge(model):
        return ties_of(model.original_model, plain_name)
    return bool(getattr(config, "tie_word_embeddings", False)) and torch.equal(model.W_U.T, model.W_E)


def _hooked(hf_model: nn.Module) -> Any:
    from safecircuits.model.hooked import build_hooked_transformer

    model = build_hooked_transformer(hf_model)
    kept = BuiltFrom(copy.deepcopy(hf_model.config), copy.deepcopy(getattr(hf_model, "generation_config", None)))
    forget_packing(kept.config)
    setattr(model, BUILT_FROM, kept)
    return model


def _give_tokenizer(model: Any, tokenizer: Any) -> None:
    """Set the tokenizer as it is, with what TransformerLens's own text methods need to know of it.

    TransformerLens's own ways may put a reloaded tokenizer in its place, and fail for one that was never saved.
    """
    if is_bridge(model):
        model._tokenizer = None  # so that the next line counts as the first assignment, which only stores
    model.tokenizer = tokenizer
    added = tokenizer("")["input_ids"]
    model.cfg.tokenizer_prepends_bos = tokenizer.bos_token_id is not None and added[:1] == [tokenizer.bos_token_id]
    model.cfg.tokenizer_appends_eos = len(added) > 0 and added[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id


def _reads_only(model: Any) -> bool:
    return packing_of(model) is not None or is_offloaded(model)


def _checked_ready_model(model: Any, tokenizer: Any) -> Any:
    require_unprocessed(model)
    if _reads_only(model) and not hasattr(model, _COMPARED):
        raise ValueError(
            f"this {type(model).__name__} is of quantised or offloaded weights, so that there is no plain model left "
            "to compare it with: pass the Hugging Face model itself, with tokenizer="
        )
    require_weights(model)
    if not is_bridge(model) and model.cfg.normalization_type == "LN":
        # from_pretrained(fold_ln=False) still centres what is written to the residual stream and leaves no other trace
        embedding = model.W_E.detach().float()
        if embedding.mean(-1).abs().max() < 1e-5 * embedding.abs().mean():
            raise ValueError(
                "this HookedTransformer's writing weights were centred, which changes their norms and what is "
                "exported; load it with from_pretrained_no_processing"
            )
    if is_bridge(model):
        let_copies_be_apart(model)
    if tokenizer is not None:
        _give_tokenizer(model, tokenizer)
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(f"this {type(model).__name__} has no tokenizer: pass tokenizer=")
    if is_bridge(model) and not hasattr(model, _COMPARED) and not hooks_in_force(model)[0]:
        require_equivalent(model, model.original_model, bridge_of, reference=lambda: to_hugging_face(model))
    return model
