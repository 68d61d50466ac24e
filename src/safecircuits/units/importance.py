"""How much each MLP neuron and attention head matters on a data set: structured-pruning importance, in one pass.

    WIFV:  I_j = Var_n(x_{n,j}) · ‖W_{:,j}‖²     (SSAH §4.1, FLAP)

where x is what enters the sublayer's output projection and W that projection. The variance runs over tokens, merged in
float64 batch by batch (Chan et al.), so memory is O(units), and batch size and order change nothing but rounding. A
head owns d_head channels and scores their sum: the fluctuation that its removal takes out of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.batching import Batch, batches
from safecircuits.forward import run
from safecircuits.hooks.attach import HookFn, attached
from safecircuits.progress import track
from safecircuits.prompts import PromptSet, encode
from safecircuits.results import Result
from safecircuits.sites import SITES, HookedModel, ModelShape, Site, output_weight, unit_hook

Method = Literal["wifv", "ifv", "wifn", "magnitude"]
TokenChoice = Literal["response", "prompt", "all"]

METHODS: dict[str, str] = {
    "wifv": "variance × squared norm of the outgoing weights",
    "ifv": "variance",
    "wifn": "root mean square activation × norm of the outgoing weights",
    "magnitude": "squared norm of the outgoing weights (needs no data, so it is the same on every set)",
}


@dataclass(frozen=True)
class Moments:
    """Streaming count, mean and summed squared deviation of many channels; merging is exact up to rounding."""

    count: int
    mean: Float[Tensor, "... channel"]
    m2: Float[Tensor, "... channel"]

    @classmethod
    def of(cls, x: Float[Tensor, "token channel"]) -> Moments:
        """Moments of one batch of tokens, in float64."""
        x = x.double()
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).square().sum(0))

    def merge(self, other: Moments) -> Moments:
        """Moments of both together (Chan, Golub and LeVeque's update)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, m2)

    @property
    def variance(self) -> Float[Tensor, "... channel"]:
        """Sample variance (ddof 1)."""
        return self.m2 / max(self.count - 1, 1)

    @property
    def mean_square(self) -> Float[Tensor, "... channel"]:
        return self.mean.square() + self.m2 / self.count


@dataclass(frozen=True)
class UnitScores(Result):
    """One score a unit, with the statistics it came from, so that other scores and merges need no second pass."""

    scores: Mapping[Site, Float[Tensor, "layer unit"]]
    moments: Mapping[Site, Moments]
    """Per site, over ``[layer, channel]``: a neuron is a channel, a head ``d_head`` consecutive ones."""
    weight_norms: Mapping[Site, Float[Tensor, "layer channel"]]
    method: Method
    tokens: TokenChoice
    shape: ModelShape
    provenance: dict[str, Any]

    @property
    def n_tokens(self) -> int:
        return next(iter(self.moments.values())).count

    @property
    def mean(self) -> dict[Site, dict[int, Tensor]]:
        """Mean activation by site and layer, shaped as ``ablated(to=...)`` takes it."""
        means: dict[Site, dict[int, Tensor]] = {}
        for site, moments in self.moments.items():
            rows = moments.mean.float()
            if site == "attn":
                rows = rearrange(rows, "layer (head d_head) -> layer head d_head", head=self.shape.n_heads)
            means[site] = dict(enumerate(rows))
        return means

    def rescore(self, method: Method) -> UnitScores:
        """Another score from the same statistics."""
        scores = {
            site: _unit_scores(method, self.moments[site], norms, self.shape.n_units(site))
            for site, norms in self.weight_norms.items()
        }
        return UnitScores(scores, self.moments, self.weight_norms, method, self.tokens, self.shape, self.provenance)

    def merge(self, other: UnitScores) -> UnitScores:
        """Scores over both data sets together, as if they had been one."""
        self.shape.require_same(other.shape, "the other scores")
        if (self.method, self.tokens) != (other.method, other.tokens):
            raise ValueError(
                f"cannot merge {self.method} over {self.tokens} tokens with {other.method} over {other.tokens}"
            )
        merged = {site: moments.merge(other.moments[site]) for site, moments in self.moments.items()}
        provenance = {"merged": [self.provenance, other.provenance]}
        return UnitScores(
            self.scores, merged, self.weight_norms, self.method, self.tokens, self.shape, provenance
        ).rescore(self.method)


def score_units(
    model: HookedModel,
    data: PromptSet,
    *,
    method: Method = "wifv",
    tokens: TokenChoice = "response",
    sites: Sequence[Site] = SITES,
    template: str = "auto",
    max_tokens: int = 8192,
    progress: bool = False,
) -> UnitScores:
    """Score every unit of every layer on ``data`` (prompts with responses), all sites in one streaming pass.

    Args:
        method: one of ``METHODS``. Scores are per token, so that sets of different length compare.
        tokens: which positions count: those of the response (with its end of sequence), of the prompt, or all.
        max_tokens: tokens in one batch, padding included; it does not change the result.

    Raises:
        ValueError: if the data has no responses although they are asked for, or fewer than two tokens count.
        FloatingPointError: for an activation that is not finite; names the hook point.
    """
    if method not in METHODS:
        raise ValueError(f"no unit score {method!r}; there are {', '.join(METHODS)}")
    if tokens not in ("response", "prompt", "all"):
        raise ValueError(f"tokens is 'response', 'prompt' or 'all', not {tokens!r}")
    shape = ModelShape.of(model)
    examples = encode(model.tokenizer, data, template=template, with_responses=tokens != "prompt")
    running: dict[tuple[Site, int], Moments] = {}
    chosen: Bool[Tensor, "batch pos"]

    def watch(site: Site, layer: int) -> HookFn:
        def update(activation: Tensor) -> None:
            # [batch pos d_mlp] or [batch pos head d_head], to one row a token that counts
            moments = Moments.of(activation.flatten(2)[chosen])
            if not torch.isfinite(moments.m2).all():
                raise FloatingPointError(f"the activations at {unit_hook(site, layer)} are not finite")
            before = running.get((site, layer))
            running[site, layer] = moments if before is None else before.merge(moments)

        return update

    hooks = {unit_hook(site, layer): watch(site, layer) for site in sites for layer in range(shape.n_layers)}
    with torch.inference_mode(), attached(model, hooks):
        for batch in track(list(batches(examples, max_tokens)), f"{method} scores", enabled=progress):
            chosen = _counting_positions(batch, tokens)
            if chosen.any():
                run(model, batch)
    stacked = {site: _stack([running[site, layer] for layer in range(shape.n_layers)]) for site in sites}
    n_tokens = next(iter(stacked.values())).count
    if n_tokens < 2:
        raise ValueError(f"a variance needs at least two {tokens} tokens; {data.name!r} has {n_tokens}")
    norms = {
        site: torch.stack(
            [output_weight(model, site, i).double().square().sum(-1) for i in range(shape.n_layers)]
        ).cpu()
        for site in sites
    }
    scores = {site: _unit_scores(method, stacked[site], norms[site], shape.n_units(site)) for site in sites}
    provenance = {
        "data": {"name": data.name, "n": len(data), "sha": data.fingerprint},
        "tokens_counted": n_tokens,
        "template": template,
    }
    return UnitScores(scores, stacked, norms, method, tokens, shape, provenance)


def _counting_positions(batch: Batch, tokens: TokenChoice) -> Bool[Tensor, "batch pos"]:
    real = batch.attention_mask.bool()
    if tokens == "response":
        return batch.is_response
    return real & ~batch.is_response if tokens == "prompt" else real


def _stack(layers: list[Moments]) -> Moments:
    mean = torch.stack([m.mean for m in layers]).cpu()
    return Moments(layers[0].count, mean, torch.stack([m.m2 for m in layers]).cpu())


def _unit_scores(
    method: Method, moments: Moments, norms: Float[Tensor, "layer channel"], n_units: int
) -> Float[Tensor, "layer unit"]:
    channel = {
        "wifv": lambda: moments.variance * norms,
        "ifv": lambda: moments.variance,
        "wifn": lambda: (moments.mean_square * norms).sqrt(),
        "magnitude": lambda: norms,
    }[method]()
    return reduce(channel, "layer (unit width) -> layer unit", "sum", unit=n_units)
