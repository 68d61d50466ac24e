"""Which heads know that a prompt is harmful? A linear probe on each head's output (the baseline of Wei et al. 2024).

The output of a head is what it adds to the input of the output projection (``hook_z``), at the last prompt token.
Removing the heads of highest accuracy means their slices of the attention, ``ablated(model, probe.top(10))``; the
published code zeroes the other axis of the matrices.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from safecircuits.base.arguments import checked
from safecircuits.base.stats import Share
from safecircuits.base.vocabulary import Site
from safecircuits.hooks.passes import running
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.attach import HookFn
from safecircuits.model.sites import HookedModel, ModelShape, require_hooked, tokenizer_of, unit_hook
from safecircuits.prompts.batching import Batch
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set, encode
from safecircuits.results.result import Result
from safecircuits.units.selection import top

if TYPE_CHECKING:
    import pandas as pd

ITERATIONS = 50


@dataclass(frozen=True)
class HeadProbe(Result):
    """Of each head, on which held-out prompts its probe was right.

    Examples:
        >>> probe = sc.weights.head_probe(model, malicious, normal, folds=4)
        >>> probe.accuracy.shape
        torch.Size([8, 8])
        >>> heads = probe.top(4)
    """

    right: Bool[Tensor, "layer head prompt"]
    harmful: Bool[Tensor, " prompt"]
    shape: ModelShape
    provenance: dict[str, Any]

    @property
    def accuracy(self) -> Float[Tensor, "layer head"]:
        """Share of prompts that the probe tells apart when it was trained without them."""
        return self.right.double().mean(-1)

    @property
    def chance(self) -> float:
        """What naming the larger class always would reach."""
        share = float(self.harmful.double().mean())
        return max(share, 1 - share)

    @property
    def scores(self) -> dict[Site, Float[Tensor, "layer head"]]:
        """The accuracies as scores of units, by site."""
        return {"attn": self.accuracy}

    def top(self, n: int) -> FreezeMask:
        """The ``n`` heads of highest accuracy, of equals the first."""
        return top(self.scores, n, self.shape)

    def to_frame(self) -> pd.DataFrame:
        """One row a head: ``layer, head, accuracy`` and its 95 % interval over prompts, best first.

        The interval is each head's own: of many heads the best is above chance by luck as well.
        """
        import pandas as pd

        rows = []
        for layer, heads in enumerate(self.right):
            for head, right in enumerate(heads):
                share = Share.of(right)
                low, high = share.interval
                rows.append({"layer": layer, "head": head, "accuracy": share.rate, "low": low, "high": high})
        return pd.DataFrame(rows).sort_values("accuracy", ascending=False, kind="stable", ignore_index=True)


@checked
def head_probe(
    model: HookedModel,
    malicious: PromptSet | Sequence[str],
    normal: PromptSet | Sequence[str],
    *,
    folds: int = 5,
    penalty: float = 1.0,
    seed: int = 0,
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> HeadProbe:
    """Train a logistic regression on every head's output to tell malicious from normal prompts, cross-validated.

    Args:
        folds: every prompt is judged by a probe that was trained on the other folds; each fold has of both kinds.
        penalty: of the squared norm of the standardised inputs' weights, in units of one prompt's loss (1/C).
        seed: of the folds.

    Raises:
        ValueError: for fewer prompts of a kind than folds, fewer than two folds, or a penalty that is not positive.
        FloatingPointError: for a head's output that is not finite; names the layer.

    Examples:
        >>> probe = sc.weights.head_probe(model, malicious, normal, folds=4)
        >>> best = probe.top(4)
        >>> with sc.ablated(model, best):
        ...     answers = sc.generate(model, malicious)
    """
    require_hooked(model)
    malicious, normal = as_prompt_set(malicious, "malicious"), as_prompt_set(normal, "normal")
    if folds < 2 or min(len(malicious), len(normal)) < folds:
        raise ValueError(
            f"{folds} folds need at least 2 and a prompt of each kind in every one; there are {len(malicious)} "
            f"malicious and {len(normal)} normal prompts"
        )
    if penalty <= 0:
        raise ValueError(f"penalty is above 0, not {penalty}: without one a probe that is always right has no end")
    both = PromptSet("both", (*malicious.prompts, *normal.prompts))
    outputs = head_outputs(model, both, template=template, max_tokens=max_tokens, progress=progress)
    harmful = torch.arange(len(both)) < len(malicious)
    fold = torch.cat([_folds(len(part), folds, f"{seed} {part.name}") for part in (malicious, normal)])
    right = torch.zeros(*outputs.shape[:3], dtype=torch.bool)
    for layer, values in enumerate(outputs.double().unbind(0)):
        for k in range(folds):
            train, test = fold != k, fold == k
            mean, scale = values[:, train].mean(1, keepdim=True), values[:, train].std(1, keepdim=True)
            x = (values - mean) / torch.where(scale > 0, scale, 1.0)
            weight = logistic_regression(x[:, train], harmful[train], penalty)
            right[layer][:, test] = (_logits(x[:, test], weight) > 0) == harmful[test]
    provenance = {
        "malicious": malicious.identity,
        "normal": normal.identity,
        "folds": folds,
        "penalty": penalty,
        "seed": seed,
        "template": template,
    }
    return HeadProbe(right, harmful, ModelShape.of(model), provenance)


def head_outputs(
    model: HookedModel,
    prompts: PromptSet,
    *,
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> Float[Tensor, "layer head prompt d_head"]:
    """What every head passes to the output projection at the last token of each prompt, float32 on the CPU."""
    n_layers = int(model.cfg.n_layers)
    kept: dict[int, Tensor] = {}
    rows: list[int] = []
    values: Tensor | None = None

    def keep(layer: int) -> HookFn:
        def store(z: Tensor) -> None:
            kept[layer] = z[:, -1].clone()  # padding is on the left

        return store

    def before(batch: Batch, _copies: int) -> None:
        rows[:] = batch.rows

    def after() -> None:
        nonlocal values
        if not rows:
            return  # the prefix that all prompts share
        if values is None:
            values = torch.empty(n_layers, len(prompts), *kept[0].shape[1:], dtype=torch.float32)
        for layer, last in kept.items():
            values[layer, rows] = last.float().cpu()

    hooks = {unit_hook("attn", layer): keep(layer) for layer in range(n_layers)}
    with running(model, hooks) as runner:
        runner.watch(
            encode(tokenizer_of(model), prompts, template=template),
            before,
            after,
            last_layer=n_layers - 1,
            last_position=True,
            max_tokens=max_tokens,
            what="head outputs",
            progress=progress,
        )
    assert values is not None
    broken = (~torch.isfinite(values)).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        raise FloatingPointError(f"the activations at {unit_hook('attn', broken[0])} are not finite")
    return values.clone().transpose(1, 2)


@torch.no_grad()
def logistic_regression(
    x: Float[Tensor, "problem row d"], y: Bool[Tensor, " row"], penalty: float
) -> Float[Tensor, "problem d+1"]:
    """Weights and, last, the intercept that minimise Σ log loss + ½ penalty ‖w‖², of many problems at once (Newton)."""
    target = y.to(x.dtype).expand(x.shape[:2])
    inputs = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    decay = torch.full((inputs.shape[-1],), penalty, dtype=x.dtype)
    decay[-1] = 0.0

    def objective(weight: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(_logits(x, weight), target, reduction="none").sum(1)
        return losses + (decay * weight.square()).sum(1) / 2

    weight = torch.zeros(len(x), inputs.shape[-1], dtype=x.dtype)
    now = objective(weight)
    for _ in range(ITERATIONS):
        p = torch.sigmoid(_logits(x, weight))
        gradient = ((p - target)[..., None] * inputs).sum(1) + decay * weight
        curvature = torch.einsum("kri,kr,krj->kij", inputs, p * (1 - p), inputs)
        curvature += torch.diag(decay) + 1e-12 * torch.eye(len(decay), dtype=x.dtype)
        step = torch.linalg.solve(curvature, gradient)
        size = torch.ones(len(x), 1, dtype=x.dtype)
        for _ in range(20):  # halved where a whole step would overshoot
            after = objective(weight - size * step)
            worse = after > now + 1e-12 * now.abs()
            if not worse.any():
                break
            size[worse] /= 2
        weight, before, now = weight - size * step, now, after
        if bool(((before - now).abs() <= 1e-12 * before.abs()).all()):
            break
    return weight


def _logits(x: Float[Tensor, "problem row d"], weight: Float[Tensor, "problem d+1"]) -> Float[Tensor, "problem row"]:
    return torch.einsum("krd,kd->kr", x, weight[:, :-1]) + weight[:, -1:]


def _folds(n: int, folds: int, seed: str) -> Int[Tensor, " row"]:
    order = random.Random(seed).sample(range(n), n)
    assigned = torch.empty(n, dtype=torch.long)
    assigned[order] = torch.arange(n) % folds
    return assigned
