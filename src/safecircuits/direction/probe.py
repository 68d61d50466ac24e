"""The reasoning-direction probe: which opening moves a model's hidden states less, a refusing or a complying one?

With q a malicious prompt and h(x) the residual stream after a block once t tokens are generated after x,

    d_benign = 1 − cos(h(q + benign), h(q))        d_malicious = 1 − cos(h(q + malicious), h(q))

A model that leans towards refusing q has d_benign < d_malicious (SSAH §3, Figures 2 to 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.generate import generate
from safecircuits.behavior.verdict import notice_needed, verdicts
from safecircuits.direction.probed import Baseline, DirectionProbe, Ended
from safecircuits.direction.states import Pool, generated_states
from safecircuits.direction.variants import Suffixes, encode_variants
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import Batch, each_batch, pad_left
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.prompts.templates import resolve_template

STEPS = (2, 4, 6, 8, 10)
"""Numbers of generated tokens that the paper plots."""


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
    max_new_tokens: int | None = None,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
) -> DirectionProbe:
    """SSAH's reasoning-direction probe: does the opening of a refusal move hidden states less than that of an answer?

    Each malicious prompt is continued as it is and with each suffix, and the residual streams are compared after every
    block, by cosine distance.

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
        detector, max_new_tokens, template, system: of the answers to the prompts as they are, as in ``evaluate``: as
            many tokens as the detector needs unless given.
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
    limit = max_new_tokens or notice_needed(detector, len(prompts))
    answers = generate(model, prompts, max_new_tokens=limit, template=template, system=system, max_tokens=max_tokens)
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
        judged=found,
        provenance={
            "malicious": prompts.identity,
            "template": template,
            "system": system,
            "detector": detector if isinstance(detector, str) else repr(detector),
            "max_new_tokens": limit,
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
