"""Where harmful and harmless prompts part: cosine and angle of their last tokens, layer by layer (§3.2–3.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.notices import notify
from safecircuits.base.paired import LEVEL
from safecircuits.base.resamples import DRAWS, RangeResamples
from safecircuits.base.stats import half_width
from safecircuits.hooks.collect import Residuals, collect_residuals
from safecircuits.layers.angles import Formula, degrees, require_pairs, unit_vectors
from safecircuits.layers.interval import resampled_gaps, resampled_onsets
from safecircuits.layers.onset import Onset, OnsetRule, find_onset
from safecircuits.layers.pairs import PairCurve, all_across, all_within, sampled
from safecircuits.layers.relabelled import largest_gap_p
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.prompts.templates import resolve_template
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Pairs = Literal["all", "paper", "given"]


@dataclass(frozen=True)
class LayerGap(Result):
    """What ``layer_gap`` found: N-N, M-M and N-M similarities by layer, and how much wider the N-M angle is than N-N.

    Examples:
        >>> gap = sc.layer_gap(model, normal, malicious)
        >>> gap.gap_deg.shape
        torch.Size([8])
        >>> gap.nm.angle_deg.shape  # mean angle between a normal and a malicious prompt, by layer
        torch.Size([8])
        >>> gap.onset().layers
        LayerRange(first=2, last=7)
    """

    nn: PairCurve
    mm: PairCurve
    nm: PairCurve
    gap_deg: Float[Tensor, " layer"]
    """Mean angle of N-M pairs minus that of N-N pairs, degrees."""
    pairs: Pairs
    formula: Formula
    provenance: dict[str, Any]
    p: float | None = None
    """p-value of the largest gap of all layers against prompts of one kind (``largest_gap_p``, over all pairs); None
    for curves of given cosines, whose prompts are not known."""
    resampled: Float[Tensor, "draw layer"] | None = None
    """The gap over all pairs in bootstrap resamples of the prompts, degrees; None for curves of given cosines."""

    @property
    def within_noise(self) -> bool:
        """Whether prompts dealt out at random to two sets would show as large a gap in some layer."""
        return self.p is not None and self.p >= LEVEL

    @property
    def chance(self) -> str:
        """The comparison with chance in words, after a comma; empty if it could not be made."""
        if self.p is None:
            return ""
        return f", p = {self.p:.2g}: within noise" if self.within_noise else f", p = {self.p:.2g}"

    def onset(self, rule: OnsetRule | None = None) -> Onset | None:
        """First guess of the range: from where the gap appears to where it first levels off.

        None without a gap beyond noise. ``decision_layers`` may still find where refusing is decided: ``localize``
        starts from either.
        """
        if self.within_noise:
            return None
        low = None if self.resampled is None else self.gap_deg - half_width(self.resampled)
        return find_onset(self.gap_deg, rule or OnsetRule(), low)

    def onset_resamples(self, rule: OnsetRule | None = None) -> RangeResamples | None:
        """How sure the onset is; None for curves of given cosines, whose prompts are not known."""
        return None if self.resampled is None else resampled_onsets(self.resampled, rule or OnsetRule())

    @property
    def verdict(self) -> str:
        """The largest gap and the onset in one sentence, with how sure it is."""
        layer, onset, sure = int(self.gap_deg.argmax()), self.onset(), self.onset_resamples()
        found = f"onset {onset}" if onset else "no onset"
        if sure is not None:
            found += f" ({sure.words(onset.layers if onset else None)})"
        return f"largest gap {float(self.gap_deg[layer]):.1f}° (layer {layer}{self.chance}), {found}"

    def to_frame(self) -> pd.DataFrame:
        """One row a layer."""
        import pandas as pd

        columns = {"layer": range(len(self.gap_deg)), "gap_deg": self.gap_deg.tolist()}
        for name in ("nn", "mm", "nm"):
            curve: PairCurve = getattr(self, name)
            columns[f"{name}_mean"] = curve.mean.tolist()
            columns[f"{name}_std"] = curve.std.tolist()
            columns[f"{name}_angle_deg"] = curve.angle_deg.tolist()
        return pd.DataFrame(columns)

    def record(self) -> dict[str, Any]:
        """``gap_deg``, ``nn_mean``, ``nn_std`` … by layer, and the ``onset``, (first, last) or None, with resamples.

        ``gap_low`` and ``gap_high`` are the 95 % bootstrap interval of the gap, where prompts were resampled.
        """
        onset = self.onset()
        curves = {
            f"{kind}_{what}": getattr(getattr(self, kind), what).tolist()
            for kind in ("nn", "mm", "nm")
            for what in ("mean", "std")
        }
        layers, sure = onset.layers if onset else None, self.onset_resamples()
        said: dict[str, Any] = {} if sure is None else {"onset_resamples": sure.record(layers)}
        if self.resampled is not None:
            ends = torch.quantile(self.resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
            said |= {"gap_low": ends[0].tolist(), "gap_high": ends[1].tolist()}
        return {"gap_deg": self.gap_deg.tolist(), "onset": list(layers) if layers else None, **said, **curves}

    def plot(self, ax: Axes | None = None) -> Axes:
        """The angle-gap curve with the onset range shaded."""
        from safecircuits.plots.layers import plot_gap

        return plot_gap({"gap": self}, ax=ax)


def layer_gap(
    model: HookedModel,
    normal: PromptSet | Sequence[str],
    malicious: PromptSet | Sequence[str],
    *,
    pairs: Pairs = "all",
    formula: Formula = "paper",
    template: str = "auto",
    final_norm: bool = False,
    progress: bool = False,
) -> LayerGap:
    """The angle gap between normal (N) and malicious (M) prompts at every layer (Safety Layers §3.3).

    Cosines and angles are between residual streams at the last prompt token, over pairs of prompts. The gap is how much
    wider the angle of an N-M pair is than that of an N-N pair, in degrees; ``onset()`` is where it opens.

    Args:
        normal, malicious: two prompt sets, or lists of prompts; they need not be of the same size.
        pairs: ``"all"`` is exact and deterministic; ``"paper"`` draws the authors' 500 pairs with their seeds.
        formula: ``"paper"`` takes the mean of the angles (§3.3); ``"code"`` the angle of the mean cosine, as the
            authors' plotting code does.
        template, final_norm: see ``collect_residuals``.

    Raises:
        ValueError: if a set is empty or has a single prompt: then no pair of its own exists.

    Warns:
        Notice: if a prompt occurs more than once, in a set or in both. A prompt's pair with its copy has a cosine of 1
            whatever the model does: within the normal set it widens the gap, across the sets it narrows it.

    Examples:
        >>> gap = sc.layer_gap(model, normal, malicious)
        >>> gap.onset().layers
        LayerRange(first=2, last=7)
    """
    normal, malicious = as_prompt_set(normal, "normal"), as_prompt_set(malicious, "malicious")
    require_pairs(normal, malicious)
    n = collect_residuals(model, normal, template=template, final_norm=final_norm, progress=progress)
    m = collect_residuals(model, malicious, template=template, final_norm=final_norm, progress=progress)
    gap = compare(n, m, pairs=pairs, formula=formula)
    how = {"template": resolve_template(model.tokenizer, template), "final_norm": final_norm}
    return replace(gap, provenance=gap.provenance | how)


@checked
def compare(
    normal: Residuals,
    malicious: Residuals,
    *,
    pairs: Pairs = "all",
    formula: Formula = "paper",
    draws: int = DRAWS,
    seed: int = 0,
) -> LayerGap:
    """The comparison of ``layer_gap`` on residuals that were collected before.

    Args:
        draws, seed: bootstrap resamples of the prompts.

    Examples:
        >>> harmless, harmful = (sc.collect_residuals(model, prompts) for prompts in (normal, malicious))
        >>> sc.layers.compare(harmless, harmful).onset().layers
        LayerRange(first=2, last=7)
    """
    require_pairs(normal.prompts, malicious.prompts)
    _tell_of_duplicates(normal.prompts, malicious.prompts)
    n, m = unit_vectors(normal.values), unit_vectors(malicious.values)
    if pairs == "all":
        nn, mm, nm = all_within(n), all_within(m), all_across(n, m)
    elif pairs == "paper":
        nn, mm, nm = (sampled(n, m, kind) for kind in ("nn", "mm", "nm"))
    else:
        raise ValueError(f"pairs is 'all' or 'paper', not {pairs!r}")
    provenance = {
        "normal": normal.prompts.identity,
        "malicious": malicious.prompts.identity,
    }
    gap = _gap(nn, nm, formula)
    p = largest_gap_p(n, m, (normal.prompts, malicious.prompts), formula=formula)
    resampled = resampled_gaps(normal, malicious, draws=draws, seed=seed, formula=formula)
    return LayerGap(nn, mm, nm, gap, pairs, formula, provenance, p, resampled)


def gap_of_cosines(
    nn: Float[Tensor, "pair layer"],
    mm: Float[Tensor, "pair layer"],
    nm: Float[Tensor, "pair layer"],
    *,
    formula: Formula = "paper",
) -> LayerGap:
    """The curves from cosines computed elsewhere, as the authors' code saves them: one row per drawn pair.

    Raises:
        ValueError: for anything but three tables of as many layers with at least one pair each and cosines in [-1, 1].

    Examples:
        >>> import torch
        >>> alike, apart = torch.full((10, 8), 0.99), torch.linspace(0.99, 0.5, 8).expand(10, 8)
        >>> gap = sc.layers.gap_of_cosines(alike, alike, apart)
        >>> gap.gap_deg.round().tolist()
        [0.0, 15.0, 24.0, 31.0, 37.0, 42.0, 47.0, 52.0]
    """
    curves = {}
    for kind, given in (("nn", nn), ("mm", mm), ("nm", nm)):
        cosines = torch.as_tensor(given, dtype=torch.float64)
        if cosines.ndim != 2 or 0 in cosines.shape:
            raise ValueError(f"{kind} must be a table of pairs by layers, not of shape {tuple(cosines.shape)}")
        if not (cosines.abs() <= 1 + 1e-6).all():
            raise ValueError(f"{kind} holds values that are no cosines: they must be finite and between -1 and 1")
        curves[kind] = PairCurve.of(cosines.T)
    depths = {kind: len(curve.mean) for kind, curve in curves.items()}
    if len(set(depths.values())) > 1:
        raise ValueError(f"the three tables differ in their number of layers: {depths}")
    drawn = {"pairs": {"nn": len(nn), "mm": len(mm), "nm": len(nm)}}
    n_n, m_m, n_m = (curves[kind] for kind in ("nn", "mm", "nm"))
    return LayerGap(n_n, m_m, n_m, _gap(n_n, n_m, formula), "given", formula, drawn)


def _tell_of_duplicates(normal: PromptSet, malicious: PromptSet) -> None:
    for prompts in (normal, malicious):
        again = [prompt for prompt, count in Counter(prompts).items() if count > 1]
        if again:
            extra = len(prompts) - len(set(prompts))
            notify(
                f"prompt set {prompts.name!r} has {extra} duplicate prompt{'s'[: extra > 1]} among {len(prompts)}, for "
                f"example {again[0]!r}; pairs of equal prompts have a cosine of 1 and bias the curves: remove them"
            )
    if shared := sorted(set(normal) & set(malicious)):
        notify(
            f"{len(shared)} prompt{'s'[: len(shared) > 1]} stand{'s'[: len(shared) == 1]} in both {normal.name!r} and "
            f"{malicious.name!r}, for example {shared[0]!r}; that narrows the gap: remove them from one"
        )


def _gap(nn: PairCurve, nm: PairCurve, formula: Formula) -> Float[Tensor, " layer"]:
    if formula == "paper":
        return nm.angle_deg - nn.angle_deg
    if formula == "code":
        return degrees(nm.mean) - degrees(nn.mean)
    raise ValueError(f"formula is 'paper' or 'code', not {formula!r}")
