"""Layer transplant: put a block of one checkpoint's layers into another and see what moves with it (§3.6, A.5.3).

The paper put layers 16 to 31 of Llama-3-8B-Instruct into Llama-3-8B: the answers got better and refusals did not come.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from safecircuits.base.arguments import checked
from safecircuits.base.errors import keeping
from safecircuits.base.notices import notify
from safecircuits.base.progress import track
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.categories import category_frame
from safecircuits.behavior.divergence import TOKENS, KLReference, divergences, references_of
from safecircuits.behavior.evaluate import EvaluationOptions, evaluate
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.stakes import LEAST
from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.model.load import Backend, load_model, to_hugging_face
from safecircuits.model.modules import decoder_layers
from safecircuits.model.sites import HookedModel
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd

# What a layer computes beside its weights; None stands for both "no such setting" and "unset".
_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "use_parallel_residual",
)


@dataclass(frozen=True)
class Transplant:
    """What the target does with ``layers`` of the source in it."""

    name: str
    layers: LayerRange
    behavior: Behavior


@dataclass(frozen=True)
class TransplantTable(Result):
    """Safety and utility of source and target as they are, and of the target with each block of the source's layers.

    Examples:
        >>> table = sc.layers.transplant_study("aligned", "base", {"late": (5, 7)}, malicious=malicious.take(4))
        >>> table.source.rates["malicious_refused"]
        1.0
    """

    source: Behavior
    target: Behavior
    rows: tuple[Transplant, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a model: name, first and last transplanted layer (missing for source and target), and its rates.

        Behind them how far its next tokens are from the target's (``Behavior.kl_means``), in nats.
        """
        import pandas as pd

        whole = [
            {"model": "source", **self.source.figures, **self.source.kl_means},
            {"model": "target", **self.target.figures},
        ]
        parts = [
            {
                "model": row.name,
                "first": row.layers.first,
                "last": row.layers.last,
                **row.behavior.figures,
                **row.behavior.kl_means,
            }
            for row in self.rows
        ]
        columns = ["model", "first", "last", *self.source.figures, *self.source.kl_means]
        return pd.DataFrame(whole + parts, columns=columns).astype({"first": "Int64", "last": "Int64"})

    def categories(self) -> pd.DataFrame:
        """One row a model, set and category of its prompts (``category_frame``); none without categories."""
        rows = [("source", self.source), ("target", self.target), *((row.name, row.behavior) for row in self.rows)]
        return category_frame([({"model": name}, behavior.by_category) for name, behavior in rows], ["model"])


def transplant(source: Any, target: Any, layers: LayerRange | Sequence[int], *, norms: bool = True) -> Any:
    """A new Hugging Face model: ``target`` with the decoder layers ``layers`` of ``source``.

    Embeddings, final norm and head stay the target's, and so do its dtype and device. Both inputs stay as they are and
    share no memory with the result. Hooks on them have no part in it: only weights move.

    Args:
        source, target: Hugging Face models, hooked models, or what ``load_model`` loads; of one architecture and shape.
        layers: 0-indexed and inclusive.
        norms: whether the norms inside the layers move with them; otherwise those of the target stay.

    Raises:
        ValueError: if the two differ in architecture, shape or a setting that their layers depend on (names what
            differs), or if the range is outside the model.

    Examples:
        >>> grafted = sc.layers.transplant("aligned", "base", (3, 5))
        >>> grafted.config.num_hidden_layers
        8
    """
    (source, _), (target, _) = _plain(source), _plain(target)
    _require_same_layers(source, target)
    block = LayerRange.of(layers, len(decoder_layers(target)))
    result = copy.deepcopy(target)
    for theirs, ours in zip(_chosen(source, block), _chosen(result, block), strict=True):
        kept = set() if norms else _norm_entries(ours)
        mine = ours.state_dict()
        for name, value in theirs.state_dict().items():
            if name not in kept:
                mine[name].copy_(value)
    return result


@checked
def transplant_study(
    source: Any,
    target: Any,
    blocks: Mapping[str, LayerRange | Sequence[int]],
    *,
    tokenizer: Any = None,
    backend: Backend = "bridge",
    norms: bool = True,
    kl_tokens: int = TOKENS,
    progress: bool = False,
    **sets: Unpack[EvaluationOptions],
) -> TransplantTable:
    """Safety and utility of source, target, and the target with each named block of the source's layers (A.5.3).

    Args:
        source, target, norms: as in ``transplant``.
        blocks: layer ranges by the name of their row.
        tokenizer: puts every prompt to every model, so that chat templates that differ do not pass for layers that
            differ. The target's own unless given, else the source's; required when both are Hugging Face models.
        backend: what the models run as.
        kl_tokens: of how many tokens of each of the target's own answers the KL to the target is measured, on malicious
            and on harmless prompts (``Behavior.kl``); none: 0. A distribution over the vocabulary is held for each.
        sets: passed to ``evaluate``: ``malicious``, ``over_rejection``, ``utility``, ``detector``, …

    Raises:
        ValueError: as ``transplant`` and ``evaluate`` do, before anything is measured; or without a tokenizer.
        JudgingError: a ValueError, if the detector raises; its ``kept["finished"]`` has the behaviour of the models
            measured before, by name, and ``kept`` the completions of the one it failed on.

    Examples:
        >>> table = sc.layers.transplant_study("aligned", "base", {"middle": (3, 5)}, malicious=malicious.take(4))
        >>> [row.name for row in table.rows]
        ['middle']
    """
    (source, source_tokenizer), (target, target_tokenizer) = _plain(source), _plain(target)
    tokenizer = tokenizer or target_tokenizer or source_tokenizer
    if tokenizer is None:
        raise ValueError("neither the source nor the target comes with a tokenizer: pass tokenizer=")
    _require_same_layers(source, target)
    ranges = {name: LayerRange.of(block, len(decoder_layers(target))) for name, block in blocks.items()}

    finished: dict[str, Behavior] = {}
    intact = {"source": source, "target": target}
    both = {name: load_model(one, backend=backend, tokenizer=tokenizer) for name, one in intact.items()}
    sets.setdefault("unchanged", tuple(both.values()))  # what either of them knows is language

    references: dict[str, KLReference] = {}

    def measure(name: str, model: HookedModel) -> Behavior:
        with keeping(lambda: {"finished": dict(finished)}):
            behavior = evaluate(model, **sets)
            if kl_tokens and not references:  # the target is the first
                references.update(references_of(model, sets, n_tokens=kl_tokens))
            else:
                behavior = replace(behavior, kl=divergences(references, model))
            finished[name] = behavior
        return behavior

    def grafted(block: LayerRange) -> HookedModel:
        return load_model(transplant(source, target, block, norms=norms), backend=backend, tokenizer=tokenizer)

    whole = {name: measure(name, both[name]) for name in ("target", "source")}
    before = whole["source"], whole["target"]
    _tell_if_nothing_to_carry(*before)
    rows = tuple(
        Transplant(name, block, measure(name, grafted(block)))
        for name, block in track(ranges.items(), "transplants", total=len(ranges), enabled=progress)
    )
    return TransplantTable(*before, rows)


def _tell_if_nothing_to_carry(source: Behavior, target: Behavior) -> None:
    """A notice if the source does not refuse more than the target: then no block can bring refusal along."""
    name = "malicious_refused"
    if name in source.rates and source.rates[name] - target.rates[name] < LEAST:
        notify(
            f"the source refuses {source.shares[name]} of the malicious prompts and the target {target.shares[name]}: "
            "there is no refusal to carry over, and what the transplants say of it is inconclusive"
        )


def _chosen(hf_model: Any, block: LayerRange) -> list[nn.Module]:
    return list(decoder_layers(hf_model)[block.first : block.last + 1])


def _plain(model: Any) -> tuple[Any, Any]:
    """``model`` as a Hugging Face model with weights, and its tokenizer if it has one; a name or folder is loaded."""
    if isinstance(model, str | Path):
        return load_checkpoint(model, None, None, None)
    hf_model = to_hugging_face(model)
    if not isinstance(hf_model, nn.Module) or not hasattr(hf_model, "config"):
        raise ValueError(
            f"cannot transplant layers of a {type(model).__name__}: pass a name, a folder, a Hugging Face model, "
            "a HookedTransformer or a TransformerBridge"
        )
    if any(p.is_meta for p in hf_model.parameters()):
        raise ValueError("the model is on the meta device, so it has no weights; load it with weights first")
    return hf_model, getattr(model, "tokenizer", None)


def _norm_entries(layer: nn.Module) -> set[str]:
    """Names in the layer's state dict that belong to its norms, those of queries and keys among them."""
    norms = [name for name, module in layer.named_modules() if "norm" in type(module).__name__.lower()]
    return {entry for entry in layer.state_dict() if entry.rpartition(".")[0] in norms}


def _traits(hf_model: Any) -> list[dict[str, Any]]:
    """What two models must have in common for a layer of one to work in the other, the most telling first."""
    layers, config = decoder_layers(hf_model), hf_model.config.get_text_config()
    return [
        {"architecture": type(hf_model).__name__},
        {"number of layers": len(layers)},
        {setting: getattr(config, setting, None) for setting in _SETTINGS},
        {f"shape of {name} in the layers": tuple(value.shape) for name, value in layers.state_dict().items()},
    ]


def _require_same_layers(source: Any, target: Any) -> None:
    for theirs, ours in zip(_traits(source), _traits(target), strict=True):
        differs = [
            f"{trait} {theirs.get(trait)} in the source, {ours.get(trait)} in the target"
            for trait in dict.fromkeys((*theirs, *ours))
            if theirs.get(trait) != ours.get(trait)
        ]
        if differs:
            raise ValueError(f"layers of the one do not fit into the other, use two of one kind: {'; '.join(differs)}")
