"""Edges: how much of what one component writes reaches the choice to refuse through what another one reads.

Edge attribution patching (Syed et al. 2023, arXiv 2310.10348) by TransformerLens's own ``attribution_patch``, where the
installed version scores edges (4.3 does, 3.9 scores nodes alone). For a malicious and a normal prompt of as many tokens

    score(u → v) = (u on the malicious prompt − u on the normal one) · ∂m/∂(input of v on the normal one)

with m the refuse-minus-comply logit difference at the first answer token: a positive edge promotes refusal. Summed over
positions, mean over pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked, whole
from safecircuits.base.progress import track
from safecircuits.model.forward import device_of, evaluating
from safecircuits.model.sites import HookedModel, is_bridge, require_hooked, tokenizer_of
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.results.result import Result
from safecircuits.units.answer_tokens import AnswerTokens, find_answer_tokens

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EdgeScores(Result):
    """Scores of edges from what writes to the residual stream to what reads it.

    Examples:
        >>> found = sc.units.edge_scores(model, malicious, normal)  # doctest: +SKIP
        >>> found.top(1).iloc[0]["reader"]  # doctest: +SKIP
        'logits'
    """

    sources: tuple[str, ...]
    """``embed``, ``head 3.1`` (layer and head), ``mlp 3``."""
    readers: tuple[str, ...]
    """``q 3.1``, ``k 3.1``, ``v 3.1``, ``mlp 3``, ``logits``."""
    scores: Float[Tensor, "source reader"]
    """NaN where no edge can be: a reader before its source."""
    pairs: int
    provenance: dict[str, Any]

    def top(self, k: int = 10) -> pd.DataFrame:
        """The ``k`` edges of the largest scores, of either sign."""
        frame = self.to_frame()
        order = frame["score"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order[: whole(k, "k", 1)]].reset_index(drop=True)

    def to_frame(self) -> pd.DataFrame:
        """One row an edge: ``source``, ``reader``, ``score``."""
        import pandas as pd

        rows = [
            (source, reader, float(self.scores[i, j]))
            for i, source in enumerate(self.sources)
            for j, reader in enumerate(self.readers)
            if not bool(self.scores[i, j].isnan())
        ]
        return pd.DataFrame(rows, columns=["source", "reader", "score"])

    def record(self) -> dict[str, Any]:
        """The twenty largest edges, and of how many ``pairs``."""
        return {"pairs": self.pairs, "top": self.top(20).to_dict("records")}


@checked
def edge_scores(
    model: HookedModel,
    malicious: PromptSet | Sequence[str],
    normal: PromptSet | Sequence[str],
    *,
    answers: AnswerTokens | None = None,
    template: str = "auto",
    progress: bool = False,
) -> EdgeScores:
    """Attribute the choice to refuse to edges between components, on pairs of prompts with as many tokens.

    Each malicious prompt is paired with the next normal one of its length; those without one are left out. Two forward
    passes and a backward pass a pair.

    Args:
        answers: which tokens refuse and which comply; found from the model's own answers unless given.

    Raises:
        ValueError: where the installed transformer-lens scores no edges; for a HookedTransformer; for prompts of which
            no two have as many tokens; and as transformer-lens does, for a model with fewer key/value heads than query
            heads, or one that puts a norm behind its heads.

    Examples:
        >>> found = sc.units.edge_scores(model, malicious, normal)  # doctest: +SKIP
    """
    require_hooked(model, "scoring edges")
    patch, config = _of_transformer_lens()
    if not is_bridge(model):
        raise ValueError(
            "transformer-lens scores edges of a TransformerBridge alone: load the model with backend='bridge'"
        )
    bad, good = as_prompt_set(malicious, "malicious"), as_prompt_set(normal, "normal")
    tokenizer = tokenizer_of(model)
    pairs = list(_pairs(*(encode(tokenizer, prompts, template=template) for prompts in (bad, good))))
    if not pairs:
        raise ValueError("no malicious and normal prompt have as many tokens, so that no pair of them can be patched")
    tokens = answers or find_answer_tokens(model, bad, good, template=template)

    def refuses(logits: Tensor) -> Tensor:
        return tokens.difference(logits[:, -1]).sum()

    totals: dict[tuple[str, str], float] = {}
    for pair in track(pairs, "edges", total=len(pairs), enabled=progress):
        clean, corrupt = (torch.tensor([one.ids], device=device_of(model)) for one in pair)
        with torch.enable_grad(), evaluating(model):
            found = patch(model, clean, corrupt, refuses, config)
        for (writer, reader), score in found.edge_scores.items():
            key = (_name(writer), _name(reader))
            totals[key] = totals.get(key, 0.0) + score / len(pairs)
    sources, readers = (tuple(dict.fromkeys(key[end] for key in totals)) for end in (0, 1))
    scores = torch.full((len(sources), len(readers)), torch.nan, dtype=torch.float64)
    for (source, reader), score in totals.items():
        scores[sources.index(source), readers.index(reader)] = score
    provenance = {
        "malicious": bad.identity,
        "normal": good.identity,
        "template": str(template),
        "answers": [list(tokens.refuse), list(tokens.comply)],
    }
    return EdgeScores(sources, readers, scores, len(pairs), provenance)


def _of_transformer_lens() -> tuple[Any, Any]:
    """Its function and its setting for edges, where it has them: found by trying, as 3.9 declares what it refuses."""
    import transformer_lens

    try:
        from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

        return attribution_patch, EdgeAttributionConfig(granularity="edge")
    except (ImportError, NotImplementedError) as error:
        version = getattr(transformer_lens, "__version__", "as installed")
        raise ValueError(
            f"transformer-lens {version} scores no edges, and this library has none of its own: install "
            "transformer-lens 4.3, or score units (score_units(..., method='attribution'))"
        ) from error


def _pairs(bad: Sequence[Encoded], good: Sequence[Encoded]) -> Iterator[tuple[Encoded, Encoded]]:
    left = list(good)
    for one in bad:
        other = next((other for other in left if len(other) == len(one)), None)
        if other is not None:
            left.remove(other)
            yield one, other


_NAMES = {"attn_head_out": "head", "mlp_out": "mlp", "q_input": "q", "k_input": "k", "v_input": "v", "mlp_in": "mlp"}


def _name(node: Any) -> str:
    if node.kind in ("embed", "logits"):
        return str(node.kind)
    head = "" if node.head is None else f".{node.head}"
    return f"{_NAMES[node.kind]} {node.layer}{head}"
