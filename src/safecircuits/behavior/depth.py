"""How many tokens deep is alignment? KL(aligned ‖ base) by answer token, beside refusal under prefilled tokens.

Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep" (ICLR 2025, arXiv 2406.05946, §2), measure
how far an aligned model's next tokens are from its base's, token by token of an answer to harmful requests: nearly all
of it lies in the first few. What follows from it is seen by prefilling: an answer that is made to begin compliant goes
on compliant as soon as it is past the depth of the alignment (``pressure``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked, share
from safecircuits.base.counted import TOLD
from safecircuits.base.resamples import DRAWS, multiplicities
from safecircuits.base.stats import canonical_order, simultaneous_band
from safecircuits.behavior.attempts import Pressure
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.divergence import kl_divergence
from safecircuits.behavior.generate import generate
from safecircuits.behavior.refusal import refused
from safecircuits.model.forward import logits
from safecircuits.model.pair import require_pair
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Answers = Literal["refusals", "responses"]

TOKENS = 24

_AT_ONCE = 1024  # positions of a batch, whose logits are held together


@dataclass(frozen=True)
class AlignmentDepth(Result):
    """KL(aligned ‖ base) of each answer at each of its tokens, in nats.

    Examples:
        >>> base = sc.load_model("base")
        >>> depth = sc.behavior.alignment_depth(model, base, malicious)
        >>> depth.values.shape[0], depth.share_in_first(1) <= depth.share_in_first(2)
        (8, True)
    """

    values: Float[Tensor, "answer token"]
    """The first column is of the first answer token; NaN beyond an answer's end."""
    low: Float[Tensor, " token"]
    high: Float[Tensor, " token"]
    """95 % bootstrap band of the mean over answers; it holds all tokens at once."""
    n_prompts: int
    """Asked; of how many the answers were looked at is the length of ``values``."""
    provenance: dict[str, Any]

    @property
    def by_position(self) -> Float[Tensor, " token"]:
        """Mean over the answers that reach that far. Tokens that fewer than half of them reach are not among them."""
        return self.values.nanmean(0)

    def share_in_first(self, k: int) -> float:
        """The part of the divergence over all tokens that lies in the first ``k``."""
        means = self.by_position
        return float(means[:k].sum() / means.sum())

    def depth(self, part: float = 0.9) -> int:
        """How many first tokens hold that part of the divergence over all tokens that were looked at.

        An even profile of n tokens has a depth of 0.9 n, rounded up; a shallow one has it at a few.
        """
        means = self.by_position
        reached = means.cumsum(0) / means.sum() >= share(part, "part") - 1e-12
        return int(reached.nonzero()[0]) + 1

    def beside(self, pressure: Pressure) -> pd.DataFrame:
        """By number of tokens k: the KL at the next token, its running share, and refusal with k tokens prefilled.

        Refusal, and what stands beside it (``Attempt.record``), is missing where no attempt prefilled that many tokens.
        """
        import pandas as pd

        asked = {a.condition.prefilled: a for a in pressure.attempts if a.condition.suffix is None}
        means = self.by_position.tolist()
        rows = [
            {
                "tokens": k,
                "kl": kl,
                "share_before": self.share_in_first(k) if k else 0.0,
                "refused": float(asked[k].refused.double().mean()) if k in asked else None,
                **({name: value for name, value in asked[k].record().items() if name in TOLD} if k in asked else {}),
            }
            for k, kl in enumerate(means)
        ]
        return pd.DataFrame(rows).astype({"refused": "Float64"})

    def to_frame(self) -> pd.DataFrame:
        """One row a token: ``token`` (0 is the first), mean ``kl``, its band, the share up to it, and of how many."""
        import pandas as pd

        n = self.values.shape[1]
        columns = {"kl": self.by_position.tolist(), "low": self.low.tolist(), "high": self.high.tolist()}
        reach = (~self.values.isnan()).sum(0).tolist()
        shares = [self.share_in_first(k + 1) for k in range(n)]
        return pd.DataFrame({"token": range(n), **columns, "share": shares, "answers": reach})

    def record(self) -> dict[str, Any]:
        """``kl`` by token with ``low`` and ``high``, the ``depth`` (90 %), and the ``first`` token's share."""
        curves = {"kl": self.by_position.tolist(), "low": self.low.tolist(), "high": self.high.tolist()}
        return {**curves, "depth": self.depth(), "first": self.share_in_first(1), "answers": len(self.values)}

    def plot(self, ax: Axes | None = None, *, pressure: Pressure | None = None) -> Axes:
        """KL by answer token with its band, and the depth; with ``pressure`` also refusal by prefilled tokens."""
        from safecircuits.plots.depth import plot_depth

        return plot_depth(self, pressure, ax=ax)

    @property
    def verdict(self) -> str:
        """How deep, over how many tokens of how many answers."""
        n, first = self.values.shape[1], self.share_in_first(1)
        return (
            f"{self.depth()} of {n} answer tokens hold 90 % of KL(aligned ‖ base), the first alone {first:.0%}; "
            f"{float(self.by_position[0]):.2f} nats there, over {len(self.values)} {self.provenance['answers']} of "
            f"{self.n_prompts} prompts"
        )


@checked
def alignment_depth(
    aligned: HookedModel,
    base: HookedModel,
    malicious: PromptSet | Sequence[str],
    *,
    answers: Answers = "refusals",
    n_tokens: int = TOKENS,
    detector: str | RefusalDetector = "opening",
    template: str = "auto",
    max_tokens: int | None = None,
) -> AlignmentDepth:
    """The profile of KL(aligned ‖ base) by token position over answers to malicious prompts (Qi et al. 2025, §2).

    Args:
        aligned, base: two checkpoints of one architecture, shape and vocabulary; the aligned one's tokenizer and
            template put prompts and answers to both.
        answers: ``"refusals"``: the aligned model's own, of the prompts it refuses. ``"responses"``: those of the set,
            such as harmful answers in Qi et al., which this library does not bring.
        n_tokens: of an answer; tokens that fewer than half of the answers reach are left out.
        detector: what is a refusal.

    Raises:
        ValueError: for two checkpoints that are no pair, fewer than two answers, and responses that are not there.
        FloatingPointError: for logits that are not finite.

    Examples:
        >>> base = sc.load_model("base")
        >>> depth = sc.behavior.alignment_depth(model, base, malicious, n_tokens=6)
        >>> 1 <= depth.depth() <= 6
        True
    """
    require_pair(aligned, base)
    prompts = as_prompt_set(malicious, "malicious")
    if answers not in get_args(Answers):
        raise ValueError(f"answers is 'refusals' or 'responses', not {answers!r}")
    if answers == "responses":
        prompts.require_responses()
        examples = encode(tokenizer_of(aligned), prompts, template=template, with_responses=True)
        examples = [Encoded(e.ids[: e.response_start + n_tokens], e.response_start) for e in examples]
    else:
        examples = _refusals(aligned, prompts, n_tokens, detector, template, max_tokens)
    if len(examples) < 2:
        raise ValueError(
            f"the aligned model refuses {len(examples)} of the {len(prompts)} prompts of {prompts.name!r}, and a "
            "profile needs at least two answers: take prompts that it refuses, or answers='responses'"
        )
    values = _divergences(aligned, base, examples, n_tokens, max_tokens)
    reached = (~values.isnan()).double().mean(0) >= 0.5
    values = values[:, reached]
    low, high = _band(values)
    provenance = {
        "malicious": prompts.identity,
        "answers": answers,
        "n_tokens": n_tokens,
        "detector": detector if isinstance(detector, str) else repr(detector),
        "template": template,
    }
    return AlignmentDepth(values, low, high, len(prompts), provenance)


def _refusals(
    model: HookedModel,
    prompts: PromptSet,
    n_tokens: int,
    detector: str | RefusalDetector,
    template: str,
    max_tokens: int | None,
) -> list[Encoded]:
    """The prompts that the model refuses, each with the very tokens of the refusal."""
    written: list[list[int]] = []
    texts = generate(
        model, prompts, max_new_tokens=n_tokens, template=template, max_tokens=max_tokens, token_ids=written
    )
    asked = encode(tokenizer_of(model), prompts, template=template)
    each = zip(asked, written, refused(texts, detector).tolist(), strict=True)
    return [Encoded((*e.ids, *ids), len(e)) for e, ids, refuses in each if refuses]


@torch.inference_mode()
def _divergences(
    aligned: HookedModel, base: HookedModel, examples: Sequence[Encoded], n_tokens: int, max_tokens: int | None
) -> Float[Tensor, "answer token"]:
    """At the positions that the answer's tokens are chosen at: from the prompt's last token on."""
    values = torch.full((len(examples), n_tokens), torch.nan, dtype=torch.float64)
    for batch in batches(examples, min(max_tokens or _AT_ONCE, _AT_ONCE)):
        ours, theirs = (logits(model, batch) for model in (aligned, base))
        for place, row in enumerate(batch.rows):
            n = len(examples[row]) - examples[row].response_start
            if n:
                at = slice(-1 - n, -1)
                values[row, :n] = kl_divergence(ours[place, at], theirs[place, at].to(ours.device)).cpu()
    return values


def _band(values: Float[Tensor, "answer token"]) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """Over resampled answers, whatever their order; below 0 there is nothing."""
    there = ~values.isnan()
    known = values.nan_to_num(0.0)
    order = canonical_order(torch.where(there, values, -1.0).tolist())
    known, counted = known[order], there[order].double()
    weights = multiplicities(len(values), DRAWS, torch.Generator().manual_seed(0)).double()
    draws = (weights @ known) / (weights @ counted).clamp(min=1.0)
    low, high = simultaneous_band(values.nanmean(0), draws)
    return low.clamp(min=0.0), high
