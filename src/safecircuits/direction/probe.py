"""The reasoning-direction probe: which opening moves a model's hidden states less, a refusing or a complying one?

With q a malicious prompt and h(x) the residual stream after a block once t tokens are generated after x,

    d_benign = 1 − cos(h(q + benign), h(q))        d_malicious = 1 − cos(h(q + malicious), h(q))

A model that leans towards refusing q has d_benign < d_malicious (SSAH §3, Figures 2 to 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.stats import Share, mean_interval
from safecircuits.behavior.agreement_table import AgreementTable
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.generate import generate
from safecircuits.behavior.verdict import verdicts
from safecircuits.behavior.verdict_table import Tally
from safecircuits.direction.states import Pool, generated_states
from safecircuits.direction.variants import Suffixes, encode_variants
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import Batch, each_batch, pad_left
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.prompts.templates import resolve_template
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Side = Literal["benign", "malicious"]
Baseline = Literal["none", "query"]
Ended = Literal["hold", "omit"]
STEPS = (2, 4, 6, 8, 10)
"""Numbers of generated tokens that the paper plots."""


@dataclass(frozen=True)
class DirectionGap:
    """d_malicious − d_benign of each block, mean over prompts with its 95 % interval; positive leans to refusing.

    The intervals are each block's own. That *every* block leans one way is thereby claimed with care; that one does
    among many is not.

    Examples:
        >>> suffixes = sc.direction.Suffixes(("i cannot",), ("take the",))
        >>> gap = sc.probe_direction(model, malicious, suffixes=suffixes, steps=(2, 4)).gap(step=2)
        >>> gap.mean.shape
        torch.Size([8])
    """

    mean: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]

    @property
    def leaning(self) -> tuple[int, ...]:
        """+1 for a block that leans to refusing, −1 to answering, 0 where the interval contains zero."""
        return tuple(((self.low > 0).int() - (self.high < 0).int()).tolist())


@dataclass(frozen=True)
class DirectionProbe(Result):
    """Cosine distances between the hidden states of a prompt as it is and with each suffix.

    Attributes:
        benign, malicious: 0 to 2; NaN where a prompt was not measured (see ``ended`` and ``baseline``).
        steps: numbers of generated tokens.
        generated: tokens that each variant of each prompt generated until the last step: as it is, with each benign,
            with each malicious suffix.
        answers, refused: what the model answers to each prompt as it is, and whether the detector calls it a refusal.
        tally: what these answers are; None in files of earlier versions.

    Examples:
        >>> suffixes = sc.direction.Suffixes(("i cannot",), ("take the",))
        >>> probe = sc.probe_direction(model, malicious, suffixes=suffixes, steps=(2, 4))
        >>> probe.n_layers, probe.distance("benign").shape
        (8, torch.Size([8, 2]))
    """

    benign: Float[Tensor, "suffix layer step prompt"]
    malicious: Float[Tensor, "suffix layer step prompt"]
    steps: tuple[int, ...]
    suffixes: Suffixes
    pool: Pool
    baseline: Baseline
    ended: Ended
    generated: Int[Tensor, "variant prompt"]
    answers: Completions
    refused: Bool[Tensor, " prompt"]
    provenance: dict[str, Any]
    tally: Tally | None = None

    @property
    def n_layers(self) -> int:
        return self.benign.shape[1]

    def distance(self, side: Side) -> Float[Tensor, "layer step"]:
        """Mean over suffixes and prompts; NaN where no prompt was measured."""
        return self.per_suffix(side).mean(0)

    def per_suffix(self, side: Side) -> Float[Tensor, "suffix layer step"]:
        """Mean over prompts, for each suffix of a side: how much its wording matters."""
        values: Tensor = getattr(self, side)
        return values.nanmean(-1)

    def measured(self, layer: int = -1, step: int | None = None) -> Bool[Tensor, " prompt"]:
        """Prompts with a distance to every variant."""
        both = torch.cat([self.benign, self.malicious])[:, self._layer(layer), self._slot(step)]
        return ~both.isnan().any(0)

    def gap(self, step: int | None = None) -> DirectionGap:
        """Of each block at a step (the last unless given), from the paired differences of the prompts (Student's t)."""
        at = self._slot(step)
        difference = (self.malicious.mean(0) - self.benign.mean(0))[:, at]  # layer prompt
        rows = [
            mean_interval(row[~row.isnan()]) if not row.isnan().all() else (float("nan"),) * 3 for row in difference
        ]
        return DirectionGap(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))

    def leans_to_refusing(self, layer: int = -1, step: int | None = None) -> Bool[Tensor, " prompt"]:
        """The probe's verdict on each prompt: d_benign < d_malicious, by one block (the last) at one step (the last).

        A prompt that was not measured does not lean.
        """
        layer, at = self._layer(layer), self._slot(step)
        verdicts: Tensor = self.benign[:, layer, at].mean(0) < self.malicious[:, layer, at].mean(0)
        return verdicts

    def agreement(self, layer: int = -1, step: int | None = None) -> Share:
        """Measured prompts on which the verdict and the model's answer agree, with a 95 % interval.

        A verdict that is the same for every prompt agrees with a model that does the same to every prompt: read it
        beside ``verdicts(...).kappa``.

        Raises:
            ValueError: if no prompt was measured there.
        """
        _, verdicts = self._verdicts(layer, step)
        return Share.of(verdicts[0] == verdicts[1])

    def verdicts(self, layer: int = -1, step: int | None = None) -> AgreementTable:
        """Verdict and detector on the measured prompts, with Cohen's κ and the answers on which they differ."""
        texts, both = self._verdicts(layer, step)
        return AgreementTable(("probe", str(self.provenance["detector"])), texts, both)

    def _verdicts(self, layer: int, step: int | None) -> tuple[tuple[str, ...], Bool[Tensor, "2 prompt"]]:
        known = self.measured(layer, step)
        if not known.any():
            raise ValueError(
                f"no prompt has all its variants after {self.steps[self._slot(step)]} tokens: ask for fewer tokens, or "
                "for ended='hold'"
            )
        both = torch.stack([self.leans_to_refusing(layer, step), self.refused])[:, known]
        return tuple(text for text, there in zip(self.answers.texts, known.tolist(), strict=True) if there), both

    def to_frame(self) -> pd.DataFrame:
        """One row a block and step: distances with their range over suffixes, gap with interval, agreement."""
        import pandas as pd

        rows = []
        for at, step in enumerate(self.steps):
            gap = self.gap(step)
            for layer in range(self.n_layers):
                row: dict[str, Any] = {"layer": layer, "tokens": step}
                for side in get_args(Side):
                    values = self.per_suffix(side)[:, layer, at]
                    row[side] = float(values.mean())
                    row[f"{side}_least"], row[f"{side}_most"] = float(values.min()), float(values.max())
                row["gap"], row["gap_low"], row["gap_high"] = (float(v[layer]) for v in (gap.mean, gap.low, gap.high))
                row["absolute_gap"] = abs(row["gap"])
                row["prompts"] = int(self.measured(layer, step).sum())
                share = self.agreement(layer, step) if row["prompts"] else None
                row["agreement"] = float("nan") if share is None else share.rate
                row["agreement_low"], row["agreement_high"] = share.interval if share else (float("nan"),) * 2
                rows.append(row)
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """Distances by side (suffix, layer and step), and the ``gap`` with its interval by layer for each step."""
        sides = {side: self.per_suffix(side).numpy() for side in get_args(Side)}
        gaps = [self.gap(step) for step in self.steps]
        columns = [{name: getattr(gap, name).numpy() for name in ("mean", "low", "high")} for gap in gaps]
        return {"steps": self.steps, **sides, "gap": columns}

    def plot(self, ax: Axes | None = None, *, layer: int = -1) -> Axes:
        """Distances against generated tokens, at one block."""
        from safecircuits.plots.direction import plot_by_token

        return plot_by_token({"": self}, layer=layer, ax=ax)

    def __str__(self) -> str:
        known = self.measured().any()
        gap = self.gap()
        towards = ", ".join(
            f"{gap.leaning.count(sign)} {word}" for sign, word in ((1, "refusing"), (-1, "answering"), (0, "neither"))
        )
        agrees = (
            f"verdict agrees with the answer in {self.agreement()} (kappa {float(self.verdicts().kappa[0, 1]):.2f})"
            if known
            else "no prompt has all its variants"
        )
        return (
            f"after {self.steps[-1]} tokens d_benign {float(self.distance('benign')[-1, -1]):.2f}, d_malicious "
            f"{float(self.distance('malicious')[-1, -1]):.2f} in the last block; of {self.n_layers} blocks lean to "
            f"{towards}; refused {Share.of(self.refused)}{f' ({self.tally})' if self.tally else ''}; {agrees}"
        )

    def _slot(self, step: int | None) -> int:
        if step is None:
            return len(self.steps) - 1
        if step not in self.steps:
            raise ValueError(f"nothing was measured after {step} tokens; there are {', '.join(map(str, self.steps))}")
        return self.steps.index(step)

    def _layer(self, layer: int) -> int:
        if not -self.n_layers <= layer < self.n_layers:
            raise ValueError(f"layer {layer} is outside the model, whose layers are 0 to {self.n_layers - 1}")
        return layer % self.n_layers


@checked
def probe_direction(
    model: HookedModel,
    malicious: PromptSet | Sequence[str],
    *,
    suffixes: Suffixes | None = None,
    steps: Sequence[int] = STEPS,
    pool: Pool = "last",
    baseline: Baseline = "none",
    ended: Ended = "hold",
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int = 16,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
) -> DirectionProbe:
    """Generate after each malicious prompt, as it is and with each suffix, and compare the hidden states on the way.

    Args:
        suffixes: openings of refusals and answers; the paper's examples unless given.
        steps: after how many generated tokens; 0 is before the first.
        pool: the state at the ``"last"`` generated token, or the ``"mean"`` over all generated ones. The paper does
            not say which.
        baseline: ``"query"`` subtracts the state at the end of the prompt as it is, before anything is generated, from
            all states: what the prompt is about dominates the cosine otherwise. A prompt that the model answers with
            nothing has no direction then and is left out of the means.
        ended: a variant that ends before a step keeps the state of its last token (``"hold"``), or its distances there
            are left out (``"omit"``). Where both variants have ended, their last tokens are often the same full
            stop, and close for that reason.
        detector, max_new_tokens, template, system: of the answers to the prompts as they are, as in ``evaluate``.
        max_tokens: tokens in one batch of all variants, padding included, instead of the usual 8,192, or of what
            fits into free memory. It does not change the result.

    Raises:
        ValueError: for steps that are negative or repeated, a suffix with unknown words, or a baseline at step 0, where
            nothing is left of the prompt as it is.
        FloatingPointError: if a residual stream is not finite; names the layer.

    Examples:
        >>> suffixes = sc.direction.Suffixes(("i cannot",), ("take the",))
        >>> probe = sc.probe_direction(model, malicious, suffixes=suffixes, steps=(2, 4))
        >>> probe.leans_to_refusing(layer=-1, step=2).shape
        torch.Size([8])
    """
    prompts = as_prompt_set(malicious, "malicious")
    suffixes = suffixes or Suffixes()
    steps = tuple(steps)
    _check(steps, pool, baseline, ended)
    template = resolve_template(tokenizer_of(model), template)
    variants = encode_variants(model.tokenizer, prompts, suffixes, template=template, system=system)
    size = (len(variants) - 1, int(model.cfg.n_layers), len(steps), len(prompts))
    distances = torch.full(size, float("nan"), dtype=torch.float32)
    generated = torch.zeros(len(variants), len(prompts), dtype=torch.long)

    def work(batch: Batch) -> None:
        rows = list(batch.rows)
        # All variants of a prompt stand in one batch, so that its hidden states are let go at once.
        together = pad_left([variant[row] for variant in variants for row in rows])
        found = generated_states(model, together, steps, pool)
        states = rearrange(found.values, "step layer (variant row) d -> step layer variant row d", row=len(rows))
        if baseline == "query":
            states = states - found.start[:, None, : len(rows)]
        apart = _cosine_distance(states[:, :, 1:], states[:, :, :1]).permute(2, 1, 0, 3).cpu()
        lengths = found.generated.reshape(len(variants), len(rows))
        if ended == "omit":
            there = lengths[:, None] >= torch.tensor(steps)[:, None]  # variant step prompt
            apart = apart.masked_fill(~(there[1:] & there[:1])[:, None], float("nan"))
        distances[..., rows], generated[:, rows] = apart, lengths

    longest = [max(of_prompt, key=len) for of_prompt in zip(*variants, strict=True)]
    budget = max(1, batch_tokens(model, longest, max_tokens, more=max(steps), cached=True) // len(variants))
    finished = each_batch(longest, work, budget, beside=max(steps))
    each_done = (1 for n in finished for _ in range(n))
    for _ in track(each_done, "reasoning direction", total=len(prompts), enabled=progress):
        pass
    answers = generate(
        model, prompts, max_new_tokens=max_new_tokens, template=template, system=system, max_tokens=max_tokens
    )
    found = verdicts(answers, detector)
    n_benign = len(suffixes.benign)
    return DirectionProbe(
        benign=distances[:n_benign].clone(),
        malicious=distances[n_benign:].clone(),
        steps=steps,
        suffixes=suffixes,
        pool=pool,
        baseline=baseline,
        ended=ended,
        generated=generated,
        answers=answers,
        refused=found.refused,
        tally=found.tally,
        provenance={
            "malicious": prompts.identity,
            "template": template,
            "system": system,
            "detector": detector if isinstance(detector, str) else repr(detector),
            "max_new_tokens": max_new_tokens,
        },
    )


def _cosine_distance(a: Float[Tensor, "*n d_model"], b: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n"]:
    """1 − cos as half the squared distance of the unit vectors, exact near zero; NaN where one of the two is zero."""
    a, b = (x / x.norm(dim=-1, keepdim=True) for x in (a, b))
    return (a - b).square().sum(-1) / 2


def _check(steps: tuple[int, ...], pool: str, baseline: str, ended: str) -> None:
    if not steps or len(set(steps)) < len(steps):
        raise ValueError(f"steps are different numbers of generated tokens, at least one, not {list(steps)}")
    if pool not in get_args(Pool):
        raise ValueError(f"pool is 'last' or 'mean', not {pool!r}")
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline is 'none' or 'query', not {baseline!r}")
    if ended not in get_args(Ended):
        raise ValueError(f"ended is 'hold' or 'omit', not {ended!r}")
    if baseline == "query" and 0 in steps:
        raise ValueError("after 0 tokens nothing is left of the prompt beyond the query: leave step 0 out")
