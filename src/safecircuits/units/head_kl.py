"""Which heads does the answer hang on? Each head ablated by itself, all heads of a layer in one batch (Ships, Sahara).

    Ships(q, h) = KL( p(· | q) ‖ p(· | q, without h) )

at the first answer token (Zhou et al., "On the Role of Attention Heads in Large Language Model Safety", ICLR 2025,
arXiv 2410.13708). A row of a batch is a prompt without one head, so that a layer takes one pass over prompts × heads,
and the prefix that all prompts share is computed once a head. Query heads are ablated one by one under grouped-query
attention, too: what they share, keys and values, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.behavior.divergence import kl_divergence
from safecircuits.hooks.collect import final_normed
from safecircuits.hooks.passes import Runner, running
from safecircuits.hooks.roles import roles_of
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.attach import HookFn
from safecircuits.model.forward import Decoder
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import (
    HookedModel,
    ModelShape,
    is_bridge,
    require_hooked,
    require_units,
    resid_post,
    tokenizer_of,
    unit_hook,
)
from safecircuits.prompts.batching import Batch, each_batch, without_prefix
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.results.result import Result
from safecircuits.units.moments import Moments
from safecircuits.units.scores import UnitScores, model_facts

if TYPE_CHECKING:
    import pandas as pd

HeadAblation = Literal["undifferentiated", "zero"]
"""``"undifferentiated"``: the head's query is zero, so that it attends alike to all it may see (the paper's better one;
its code scales the query by 1e-5). ``"zero"``: what the head writes is zero."""

Criterion = Literal["angle", "kl"]

Masks = Bool[Tensor, "row layer head"]


@dataclass(frozen=True)
class HeadGroup(Result):
    """Heads in the order in which a greedy search took them, and how far the answer has moved without all so far.

    Examples:
        >>> group = sc.units.head_group(model, malicious, 2)
        >>> len(group.heads), group.units.n_units("attn")
        (2, 2)
    """

    heads: tuple[tuple[int, int], ...]
    """Layer and query head."""
    shifts: tuple[float, ...]
    """Degrees (``"angle"``), or nats (``"kl"``)."""
    by: str
    shape: ModelShape
    provenance: dict[str, Any]

    @property
    def units(self) -> FreezeMask:
        """The heads as a set of units."""
        by_layer: dict[int, list[int]] = {}
        for layer, head in self.heads:
            by_layer.setdefault(layer, []).append(head)
        return FreezeMask.of_units({"attn": by_layer}, self.shape, {"group": "heads", "by": self.by, **self.provenance})

    def to_frame(self) -> pd.DataFrame:
        """One row a head in order: ``layer``, ``head``, and the ``shift`` of the group so far."""
        import pandas as pd

        rows = [(layer, head, shift) for (layer, head), shift in zip(self.heads, self.shifts, strict=True)]
        return pd.DataFrame(rows, columns=["layer", "head", "shift"])

    def record(self) -> dict[str, Any]:
        """``heads``, ``shifts`` and what they are measured ``by``."""
        return {"heads": [list(head) for head in self.heads], "shifts": list(self.shifts), "by": self.by}


@checked
def head_scores(
    model: HookedModel,
    prompts: PromptSet | Sequence[str],
    *,
    ablation: HeadAblation = "undifferentiated",
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> UnitScores:
    """Ships: the mean over prompts of KL(intact ‖ without the head) at the first answer token, in nats, of every head.

    One pass over prompts × heads for each layer; the intact model runs once.

    Args:
        prompts: malicious ones find what refusals hang on, and what any answer hangs on too: compare with ordinary
            prompts.
        ablation: see ``HeadAblation``.

    Raises:
        ValueError: for a single prompt, or a model whose queries no hook can reach (for ``"undifferentiated"``).
        FloatingPointError: for logits that are not finite.

    Examples:
        >>> scores = sc.units.head_scores(model, malicious)
        >>> scores.scores["attn"].shape, scores.method
        (torch.Size([8, 8]), 'ships')
    """
    prompts, shape = _checked(model, prompts, ablation), ModelShape.of(model)
    trial = _Trial(model, encode(tokenizer_of(model), prompts, template=template), ablation, max_tokens)
    intact = trial.logits(torch.zeros(1, shape.n_layers, shape.n_heads, dtype=torch.bool))[0]
    none = torch.zeros(shape.n_layers, shape.n_heads, dtype=torch.bool)
    each = torch.zeros(len(prompts), shape.n_layers, shape.n_heads, dtype=torch.float64)
    for layer in track(range(shape.n_layers), "heads", total=shape.n_layers, enabled=progress):
        each[:, layer] = trial.divergence(_one_more(none, layer, range(shape.n_heads)), intact).T
    moments = Moments.of(each.flatten(1))
    by_head = Moments(moments.count, moments.mean.view(none.shape), moments.m2.view(none.shape))
    provenance = {"data": prompts.identity, "template": template, "ablation": ablation}
    empty = UnitScores(
        scores={},
        moments={"attn": by_head},
        method="ships",
        tokens="prompt",
        provenance=provenance,
        **model_facts(model, ("attn",)),
    )
    return empty.rescore("ships")


@checked
def head_group(
    model: HookedModel,
    prompts: PromptSet | Sequence[str],
    n: int,
    *,
    by: Criterion = "angle",
    rank: int = 1,
    ablation: HeadAblation = "undifferentiated",
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> HeadGroup:
    """Sahara: take the head without which, and without those taken before, the answers move most; ``n`` times.

    Args:
        by: ``"angle"``, as published: principal angles, in degrees, between the ``rank`` leading left singular vectors
            of the last hidden states (prompt × d_model, behind the final norm, at the last token) of the intact and the
            ablated model, summed. ``"kl"``: the mean over prompts of the KL at the first answer token.
        rank: 1 in the code.

    Raises:
        ValueError: as ``head_scores``; for more heads than there are, and a rank above the number of prompts.

    Examples:
        >>> group = sc.units.head_group(model, malicious, 2, by="kl")
        >>> group.shifts[1] > 0
        True
    """
    prompts, shape = _checked(model, prompts, ablation), ModelShape.of(model)
    if by not in get_args(Criterion):
        raise ValueError(f"by is 'angle' or 'kl', not {by!r}")
    if n > shape.n_layers * shape.n_heads:
        raise ValueError(f"cannot take {n} of {shape.n_layers * shape.n_heads} heads")
    if rank > min(len(prompts), shape.d_model):
        raise ValueError(f"{len(prompts)} prompts span no {rank} directions: lower rank, or give more prompts")
    trial = _Trial(model, encode(tokenizer_of(model), prompts, template=template), ablation, max_tokens)
    taken = torch.zeros(shape.n_layers, shape.n_heads, dtype=torch.bool)
    intact = trial.logits(taken[None])[0] if by == "kl" else trial.hidden(taken[None])[0]

    def shifts(masks: Masks) -> Float[Tensor, " row"]:
        if by == "kl":
            return trial.divergence(masks, intact).mean(1)
        return torch.stack([_angle(intact, states, rank) for states in trial.hidden(masks)])

    heads, moved = [], []
    steps = ((step, layer) for step in range(n) for layer in range(shape.n_layers))
    best: tuple[float, int, int] = (-1.0, -1, -1)
    for _, layer in track(steps, "head groups", total=n * shape.n_layers, enabled=progress):
        left = [head for head in range(shape.n_heads) if not taken[layer, head]]
        if left:
            found = shifts(_one_more(taken, layer, left))
            where = int(found.argmax())
            best = max(best, (float(found[where]), layer, left[where]), key=lambda one: one[0])
        if layer == shape.n_layers - 1:
            shift, *head = best
            taken[head[0], head[1]] = True
            heads.append((head[0], head[1]))
            moved.append(shift)
            best = (-1.0, -1, -1)
    provenance = {"data": prompts.identity, "template": template, "ablation": ablation, "rank": rank}
    return HeadGroup(tuple(heads), tuple(moved), by, shape, provenance)


def _checked(model: HookedModel, prompts: PromptSet | Sequence[str], ablation: str) -> PromptSet:
    require_hooked(model, "ablating heads")
    if ablation not in get_args(HeadAblation):
        raise ValueError(f"ablation is 'undifferentiated' or 'zero', not {ablation!r}")
    require_units(model, "attn", range(int(model.cfg.n_layers)))
    prompts = as_prompt_set(prompts)
    if len(prompts) < 2:
        raise ValueError(
            f"{prompts.name!r} has one prompt, and a head's effect on one is that prompt's: give at least two"
        )
    return prompts


def _one_more(taken: Bool[Tensor, "layer head"], layer: int, heads: Sequence[int]) -> Masks:
    """A row for each head: those taken, and this one."""
    masks = taken.repeat(len(heads), 1, 1)
    masks[torch.arange(len(heads)), layer, torch.tensor(list(heads))] = True
    return masks


def _angle(a: Float[Tensor, "prompt d_model"], b: Float[Tensor, "prompt d_model"], rank: int) -> Tensor:
    left = [torch.linalg.svd(states.double(), full_matrices=False)[0][:, :rank] for states in (a, b)]
    cosines = torch.linalg.svdvals(left[0].T @ left[1]).clamp(max=1.0)
    angles: Tensor = cosines.arccos().rad2deg()
    return angles.sum()


class _Trial:
    """The prompts, under each of several sets of ablated heads at once."""

    def __init__(
        self, model: HookedModel, examples: Sequence[Encoded], ablation: HeadAblation, max_tokens: int | None
    ) -> None:
        self.model, self.examples, self.ablation = model, list(examples), ablation
        self.budget = batch_tokens(model, examples, max_tokens, cached=True)
        self.point = _z if ablation == "zero" else _query
        self.now: Masks = torch.zeros(0, 0, 0, dtype=torch.bool)

    def logits(self, masks: Masks) -> Float[Tensor, "set prompt d_vocab"]:
        """At the first answer token, on the CPU."""
        out: dict[int, Tensor] = {}
        for rows, logits in self._passes(masks, {}):
            for place, row in enumerate(rows):
                out[row] = logits[:, place].cpu()
        return torch.stack([out[row] for row in range(len(self.examples))], dim=1)

    def divergence(self, masks: Masks, intact: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, "set prompt"]:
        """KL(intact ‖ ablated) in nats; a set at a time, so that one distribution a prompt is in float64 at once."""
        found = torch.zeros(len(masks), len(self.examples), dtype=torch.float64)
        for rows, logits in self._passes(masks, {}):
            here = intact[list(rows)].to(logits.device)
            for which, ablated in enumerate(logits):
                found[which, list(rows)] = kl_divergence(here, ablated).cpu()
        return found

    def hidden(self, masks: Masks) -> Float[Tensor, "set prompt d_model"]:
        """The last hidden state of each prompt, behind the final norm, float32 on the CPU."""
        last: list[Tensor] = []

        def keep(resid: Tensor) -> None:
            last[:] = [resid[:, -1].clone()]

        out = torch.zeros(len(masks), len(self.examples), int(self.model.cfg.d_model))
        for rows, _ in self._passes(masks, {resid_post(int(self.model.cfg.n_layers) - 1): keep}):
            states = final_normed(self.model, last[0])
            out[:, list(rows)] = states.view(len(masks), len(rows), -1)
        return out

    def _passes(self, masks: Masks, more: dict[str, HookFn]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Prompts of a batch and their logits, ``[set prompt d_vocab]``; in a row's order sets come first."""
        layers = masks.any(2).any(0).nonzero().flatten().tolist()
        hooks: dict[str, HookFn] = {self.point(self.model, layer): self._ablate(layer) for layer in layers}
        found: list[tuple[tuple[int, ...], Tensor]] = []
        n_sets = len(masks)
        with running(self.model, hooks | more) as runner:
            shared = runner.prefix_length(self.examples)
            prefix = self._prefix(runner, masks, shared) if shared else None

            def work(batch: Batch) -> None:
                n = len(batch)
                self.now = masks.repeat_interleave(n, 0)
                rows = torch.arange(n_sets).repeat_interleave(n)
                decoder = runner.decoder() if prefix is None else prefix.rows(rows)
                logits = decoder.step(batch.input_ids.repeat(n_sets, 1), batch.attention_mask.repeat(n_sets, 1))
                found.append((batch.rows, logits.view(n_sets, n, -1)))

            rest = without_prefix(self.examples, shared) if shared else self.examples
            for _ in each_batch(rest, work, max(1, self.budget // n_sets), beside=shared):
                yield found.pop()

    def _prefix(self, runner: Runner, masks: Masks, shared: int) -> Decoder:
        """What all prompts begin with, once for each set of ablated heads."""
        ids = torch.tensor(self.examples[0].ids[:shared]).repeat(len(masks), 1)
        self.now = masks
        decoder = runner.decoder()
        decoder.feed(ids, torch.ones_like(ids), runner.block(int(self.model.cfg.n_layers) - 1), keep=True)
        return decoder

    def _ablate(self, layer: int) -> HookFn:
        n_heads = ModelShape.of(self.model).n_heads

        def hook(activation: Tensor) -> Tensor:
            by_head = activation
            if activation.ndim == 3:
                by_head = activation.reshape(*activation.shape[:2], n_heads, -1)
            if by_head.ndim != 4 or by_head.shape[2] != n_heads:
                raise ValueError(
                    f"{self.ablation!r} ablation does not fit this {ModelShape.of(self.model).architecture}: at "
                    f"{self.point(self.model, layer)} there are {list(activation.shape)} and no {n_heads} heads; take "
                    "ablation='zero'"
                )
            gone = self.now[:, layer].to(activation.device)[:, None, :, None]
            return torch.where(gone, torch.zeros_like(by_head), by_head).reshape(activation.shape)

        return hook


def _z(_: HookedModel, layer: int) -> str:
    return unit_hook("attn", layer)


def _query(model: HookedModel, layer: int) -> str:
    """Where a head's query is its own: behind the norm that takes in the queries of all heads, where there is one."""
    usual = f"blocks.{layer}.attn.{'q.hook_out' if is_bridge(model) else 'hook_q'}"
    return roles_of(model).behind.get((layer, "q"), usual)
