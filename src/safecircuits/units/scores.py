"""What a unit score is: one number a unit, and the statistics it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.files import plain
from safecircuits.base.vocabulary import MIXTURE_SITES, SITES, Site, TokenChoice
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.masks.reading import present
from safecircuits.model.in_use import used_alone
from safecircuits.model.sites import HookedModel, ModelShape, output_weight, require_units
from safecircuits.results.result import Result
from safecircuits.units.moments import Comoments, Moments
from safecircuits.units.routed import RoutedMoments, said
from safecircuits.units.score_methods import ACTIVATION_METHODS, CHANGE_METHODS, FLAP_METHODS, REMOVAL_METHODS, Method
from safecircuits.units.selection import flat, top

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class UnitScores(Result):
    """What ``score_units`` found: a score per unit, ``scores["mlp"][layer, neuron]``; ``top(n)`` masks the highest.

    Examples:
        >>> scores = sc.score_units(model, malicious)
        >>> scores.scores["mlp"].shape, scores.scores["attn"].shape
        (torch.Size([8, 384]), torch.Size([8, 8]))
        >>> strongest = scores.top(24)  # a FreezeMask, as all functions take units
        >>> strongest.n_units()
        24
    """

    scores: Mapping[Site, Float[Tensor, "layer unit"]]
    moments: Mapping[Site, Moments | RoutedMoments]
    """Per site. Of activation scores over tokens, ``[layer, channel]``: a neuron is a channel, a head ``d_head``
    consecutive ones; of FLAP's own scores its statistic of each channel, as the mean. Of gradient and attribution
    scores over prompts, ``[layer, unit]``. Of change scores over tokens: each channel's difference (``"change"``), or
    each unit's squared change of what it writes (``"wchange"``)."""
    weight_norms: Mapping[Site, Float[Tensor, "layer channel"]]
    """Squared norm of each channel's outgoing weights."""
    method: Method
    tokens: TokenChoice
    shape: ModelShape
    provenance: dict[str, Any]
    weight_sums: Mapping[Site, Float[Tensor, "layer channel"]] = field(default_factory=dict)
    """Sum of the absolute values of each channel's outgoing weights."""
    unit_parameters: Mapping[Site, float] = field(default_factory=dict)
    """Parameters a unit has, by site; see ``parameters_per_unit``."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer."""
    covariances: Mapping[Site, Comoments] = field(default_factory=dict)
    """Between the channels of each head; of ``"removal"`` scores alone."""
    weight_grams: Mapping[Site, Float[Tensor, "layer unit d_head d_head"]] = field(default_factory=dict)
    """Inner products of the outgoing weights of a head's channels; of ``"removal"`` scores alone."""

    @property
    def n_tokens(self) -> int:
        """Tokens that counted; of gradient and attribution scores the prompts."""
        return next(iter(self.moments.values())).count

    @property
    def mean(self) -> dict[Site, dict[int, Tensor]]:
        """Mean activation by site and layer, shaped as ``ablated(to=...)`` takes it.

        Raises:
            ValueError: for scores that are not made of activations.
        """
        if not self._of_activations:
            raise ValueError(f"{self.method} scores hold no mean activations; score with method='wifv' for them")
        means: dict[Site, dict[int, Tensor]] = {}
        for site, moments in self.moments.items():
            rows = moments.mean.float()
            if site == "attn":
                rows = rearrange(rows, "layer (head d_head) -> layer head d_head", head=self.shape.n_heads)
            means[site] = dict(enumerate(rows))
        return means

    @property
    def _of_activations(self) -> bool:
        """Whether the moments are those of each channel's activation."""
        return self.method in ACTIVATION_METHODS or self.method in REMOVAL_METHODS

    @property
    def beginning(self) -> int:
        """How many first positions, which every prompt begins with, did not count; as ``ablated(spare=)`` takes it."""
        facts = self.provenance.get("beginning") or {"tokens": 0, "counted": False}
        return 0 if facts["counted"] else int(facts["tokens"])

    @property
    def verdict(self) -> str:
        """Which score of how many units, and which positions counted."""
        per_token = self._of_activations or self.method in (*CHANGE_METHODS, "contrast")
        which = "" if self.tokens == "all" else f"{self.tokens} "
        over = f"{self.n_tokens:,} {which + 'tokens' if per_token else 'prompts'}"
        n_units = sum(len(self.shape.layers_with(site)) * values.shape[1] for site, values in self.scores.items())
        routed = "".join(said(moments, self.shape.layers_with(site)) for site, moments in self.moments.items())
        text = f"{self.method} of {n_units:,} units over {over}{routed if self._of_activations else ''}"
        beginning = self.provenance.get("beginning")
        if beginning is None:
            return text
        first = "first position" if beginning["tokens"] == 1 else f"{beginning['tokens']} first positions"
        if beginning["counted"]:
            return f"{text}, among them the {first} that every prompt begins with"
        return f"{text}, without the {first} that every prompt begins with"

    def top(self, n: int) -> FreezeMask:
        """The ``n`` units of highest score, all sites and layers together."""
        return top(self.scores, n, self.shape, provenance={"top": n, "by": self.method, **self.provenance})

    def to_frame(self) -> pd.DataFrame:
        """One row a unit, highest score first: ``site``, ``layer``, ``unit``, ``score``; of experts by both names."""
        import pandas as pd

        frames = []
        for site, values in self.scores.items():
            index = pd.MultiIndex.from_product([range(n) for n in values.shape], names=["layer", "unit"])
            frame = pd.DataFrame({"score": values.flatten().numpy()}, index=index).reset_index()
            frame.insert(0, "site", site)
            if site == "expert" and self.shape.mixture is not None:
                frame["expert"], frame["neuron"] = divmod(frame["unit"], self.shape.mixture.d_expert)
            frames.append(frame[frame["layer"].isin(self.shape.layers_with(site))])
        return pd.concat(frames).sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def record(self, n: int | None = None) -> dict[str, Any]:
        """How many of the ``n`` highest units (a hundredth of all unless given) lie in each layer, and by chance."""
        n = n or max(1, round(flat(self.scores).numel() / 100))
        chosen = self.top(n)
        counts = {site: chosen.at(site).sum(1).tolist() for site in self.scores}
        total = flat(self.scores).numel()
        expected = {site: n * values.shape[1] / total for site, values in self.scores.items()}
        return {"method": self.method, "n": n, "counts": counts, "expected": expected}

    def plot(self, ax: Axes | None = None, *, n: int | None = None) -> Axes:
        """Where the ``n`` highest units lie, by layer; a hundredth of all of them unless given."""
        from safecircuits.plots.scores import plot_score_map

        return plot_score_map(self.record(n), ax=ax)

    def rescore(self, method: Method) -> UnitScores:
        """Another score from the same statistics: any activation score from any other, or from ``"removal"``.

        Raises:
            ValueError: if the statistics do not hold that score.
        """
        if method in ACTIVATION_METHODS and self._of_activations:
            scores = {site: self._activation_score(method, site) for site in self.moments}
        elif method == self.method:
            scores = {site: self._own_score(site) for site in self.moments}
        else:
            raise ValueError(f"{method} scores cannot be made from the statistics of {self.method} scores")
        return replace(
            self, scores={site: self._where_there(site, rows) for site, rows in scores.items()}, method=method
        )

    def _where_there(self, site: Site, scores: Float[Tensor, "layer unit"]) -> Float[Tensor, "layer unit"]:
        """Minus infinity in layers that have no such units: nothing takes those."""
        there = present(self.shape, site)
        return scores if bool(there.all()) else scores.masked_fill(~there, -torch.inf)

    def merge(self, other: UnitScores) -> UnitScores:
        """Scores over both data sets together, as if they had been one.

        Raises:
            ValueError: for scores of another method or token choice, of another model or another tokenizer.
        """
        require_same_origin(self, other, "the other scores")
        if (self.method, self.tokens) != (other.method, other.tokens):
            raise ValueError(
                f"cannot merge {self.method} over {self.tokens} tokens with {other.method} over {other.tokens}"
            )
        for key in ("answers", "reference", "steps", "beginning"):
            if self.provenance.get(key) != other.provenance.get(key):
                raise ValueError(f"cannot merge {self.method} scores whose {key} differ")
        if self.method in FLAP_METHODS:
            raise ValueError(
                f"{self.method} goes through prompts in their order, so that two passes are not one: join data"
            )
        kept = ("answers", "reference", "steps", "beginning", "seed")
        shared: dict[str, Any] = {key: self.provenance[key] for key in kept if key in self.provenance}
        merged: dict[Site, Moments] = {site: m.merge(other.moments[site]) for site, m in self.moments.items()}
        provenance: dict[str, Any] = {"merged": [self.provenance, other.provenance], **shared}
        joint = {site: c.merge(other.covariances[site]) for site, c in self.covariances.items()}
        return replace(self, moments=merged, covariances=joint, provenance=provenance).rescore(self.method)

    def channel_scores(self, site: Site) -> Float[Tensor, "layer channel"]:
        """The score of each channel of what enters the output projection: a head's ``d_head`` before they are summed.

        Raises:
            ValueError: for scores that are not made of activations and weights channel by channel.
        """
        if self.method == "removal":
            raise ValueError("removal scores are of whole heads; rescore('wifv') has a score for each channel")
        if self.method not in ACTIVATION_METHODS or self.method == "random":
            raise ValueError(f"{self.method} scores are of whole units, not of channels: score by wifv, ifv or wifn")
        return self._channel_score(self.method, site)

    def _own_score(self, site: Site) -> Float[Tensor, "layer unit"]:
        """Of a method that is made of its own statistics alone."""
        moments, n_units = self.moments[site], self.shape.n_units(site)
        if self.method == "change":
            squares = reduce(moments.mean_square, "layer (unit width) -> layer unit", "sum", unit=n_units)
            return squares.sqrt()
        if self.method in FLAP_METHODS:
            return self._flap_score(site)
        if self.method == "removal":
            if site != "attn":
                return self._activation_score("wifv", site)
            return (self.covariances[site].covariance * self.weight_grams[site]).sum((-2, -1))
        return moments.mean.sqrt() if self.method == "wchange" else moments.mean

    def _flap_score(self, site: Site) -> Float[Tensor, "layer unit"]:
        """Its AL-AM metric: each channel's, squared for heads, standardised over a layer, and a head's mean."""
        seen = self.moments[site].mean
        if self.method == "flap_wifn":
            metric = seen.sqrt() * self.weight_sums[site] / self.shape.d_model
        else:
            metric = seen * self.weight_norms[site] if self.method == "flap_wifv" else seen
        metric = metric if site == "mlp" else metric.square()
        metric = (metric - metric.mean(1, keepdim=True)) / metric.std(1, keepdim=True)
        return reduce(metric, "layer (unit width) -> layer unit", "mean", unit=self.shape.n_units(site))

    def _activation_score(self, method: str, site: Site) -> Float[Tensor, "layer unit"]:
        n_layers, n_units = len(self.weight_norms[site]), self.shape.n_units(site)
        if method == "random":
            text = json.dumps([site, self.provenance], sort_keys=True, default=plain)
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
            generator = torch.Generator().manual_seed(seed)
            return torch.rand(n_layers, n_units, generator=generator, dtype=torch.float64)
        return reduce(self._channel_score(method, site), "layer (unit width) -> layer unit", "sum", unit=n_units)

    def _channel_score(self, method: str, site: Site) -> Float[Tensor, "layer channel"]:
        moments, norms = self.moments[site], self.weight_norms[site]
        scores: dict[str, Callable[[], Tensor]] = {
            "wifv": lambda: moments.variance * norms,
            "ifv": lambda: moments.variance,
            "wifn": lambda: moments.mean_square.sqrt() * self.weight_sums[site] / self.shape.d_model,
            "wanda": lambda: moments.mean_square.sqrt() * self.weight_sums[site],
            "wrms": lambda: (moments.mean_square * norms).sqrt(),
            "magnitude": lambda: norms,
        }
        return scores[method]()


def sites_to_score(model: HookedModel) -> tuple[Site, ...]:
    """The sites at which a model has units with an activation."""
    shape = ModelShape.of(model)
    every: tuple[Site, ...] = (*SITES, "expert", "shared")
    return tuple(site for site in every if shape.layers_with(site))


def require_sites(model: HookedModel, sites: Sequence[Site], *, mixtures: bool = False) -> None:
    """A ValueError unless these are sites, and the model has units at them: in every layer but for mixtures of experts.

    Args:
        mixtures: whether the units of mixtures of experts can be scored this way.
    """
    known = sites_to_score(model) if mixtures else SITES
    if not mixtures and not isinstance(sites, str) and (wrong := set(sites) & set(MIXTURE_SITES)):
        raise ValueError(
            f"units of a mixture of experts, of the site {min(wrong)!r}, are not scored this way: they have the "
            f"scores of activations, {', '.join(ACTIVATION_METHODS)} and removal; the others: sites=('attn',)"
        )
    if isinstance(sites, str) or not sites or not set(sites) <= {*SITES, *known}:
        raise ValueError(f"sites are some of {', '.join(map(repr, known))}, such as ({known[0]!r},), not {sites!r}")
    shape = ModelShape.of(model)
    for site in sites:
        require_units(model, site, (mixtures and shape.layers_with(site)) or range(shape.n_layers))


def require_same_origin(mine: UnitScores, other: UnitScores, what: str) -> None:
    """A ValueError unless ``other`` comes from the model and the tokenizer that ``mine`` comes from."""
    other.shape.require_same(mine.shape, what)
    if set(mine.moments) != set(other.moments):
        raise ValueError(f"{what} are of the sites {sorted(other.moments)}, not {sorted(mine.moments)}")
    if mine.tokenizer and other.tokenizer and mine.tokenizer != other.tokenizer:
        raise ValueError(f"{what} were made with another tokenizer ({other.tokenizer}, not {mine.tokenizer})")
    for site, norms in mine.weight_norms.items():
        if not torch.allclose(norms, other.weight_norms[site], rtol=1e-5, atol=0):
            raise ValueError(f"{what} were made with other weights: the output projections of the {site} site differ")


def model_facts(model: HookedModel, sites: Sequence[Site]) -> dict[str, Any]:
    """The fields of UnitScores that depend on the model alone."""
    norms: dict[Site, Tensor] = {}
    sums: dict[Site, Tensor] = {}
    for site in sites:
        with used_alone(model):  # or another thread has changed them for a moment
            weights = _outgoing(model, site)
        norms[site] = torch.stack([w.square().sum(-1) for w in weights]).cpu()
        sums[site] = torch.stack([w.abs().sum(-1) for w in weights]).cpu()
    return {
        "weight_norms": norms,
        "weight_sums": sums,
        "shape": ModelShape.of(model),
        "unit_parameters": parameters_per_unit(model),
        "tokenizer": tokenizer_fingerprint(model.tokenizer),
    }


def _outgoing(model: HookedModel, site: Site) -> list[Float[Tensor, "channel d_model"]]:
    """Outgoing weights by layer, in float64; zero in layers that have no such units."""
    shape = ModelShape.of(model)
    found = {layer: output_weight(model, site, layer).double() for layer in shape.layers_with(site)}
    none = torch.zeros_like(next(iter(found.values()))) if len(found) < shape.n_layers else None
    return [found.get(layer, none) for layer in range(shape.n_layers)]  # type: ignore[misc]  # none is of no use else


def head_grams(model: HookedModel) -> Float[Tensor, "layer head d_head d_head"]:
    """Inner products of the outgoing weights of each head's channels, float64 on the CPU."""
    n_heads, grams = ModelShape.of(model).n_heads, []
    for layer in range(int(model.cfg.n_layers)):
        weight = output_weight(model, "attn", layer).double()
        by_head = weight.reshape(n_heads, -1, weight.shape[1])
        grams.append((by_head @ by_head.transpose(1, 2)).cpu())
    return torch.stack(grams)


def parameters_per_unit(model: HookedModel) -> dict[Site, float]:
    """Matrix entries that go with one neuron or head, so that budgets count alike (FLAP weighs heads so).

    A neuron has its rows of in and gate and its column of out; a head its slices of q and o, and its share of the
    key/value head that it shares with others under GQA.
    """
    cfg, shape = model.cfg, ModelShape.of(model)
    group = shape.n_heads / shape.n_kv_heads
    neuron = shape.d_model * (3 if cfg.gated_mlp else 2)
    of_experts: dict[Site, float] = {} if shape.mixture is None else {"expert": float(neuron), "shared": float(neuron)}
    return {"mlp": float(neuron), **of_experts, "attn": shape.d_model * int(cfg.d_head) * (2 + 2 / group)}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Sixteen hex digits of the SHA-256 of the vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
