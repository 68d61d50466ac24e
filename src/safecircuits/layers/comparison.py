"""Several models on the same prompts: is the gap a product of alignment? Base against aligned in one call (§3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.stats import simultaneous_band
from safecircuits.hooks.collect import collect_residuals
from safecircuits.layers.angles import Formula, require_pairs
from safecircuits.layers.by_category import CategoryGap, category_gaps, category_gaps_frame
from safecircuits.layers.interval import GapInterval, interval_of
from safecircuits.layers.onset import Onset, OnsetRule
from safecircuits.layers.similarity import LayerGap, Pairs, compare
from safecircuits.model.each_model import Source, described, measure_each
from safecircuits.model.load import Backend
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GapDifference:
    """Gap of the reference minus that of another model, degrees, with its paired 95 % bootstrap band.

    The band holds for all layers at once (``simultaneous_band``): that a layer lies outside it is no accident of there
    being many.

    Examples:
        >>> import torch
        >>> mean = torch.tensor([0.1, 4.0, 9.0])
        >>> found = sc.layers.GapDifference(mean, low=mean - 1, high=mean + 1)
        >>> found.layers_apart  # whose band excludes 0
        (1, 2)
    """

    mean: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]

    @property
    def layers_apart(self) -> tuple[int, ...]:
        """Layers where the band does not contain zero."""
        return tuple(((self.low > 0) | (self.high < 0)).nonzero().flatten().tolist())

    def record(self) -> dict[str, Any]:
        """``mean``, ``low`` and ``high`` by layer, degrees, and ``layers_apart``."""
        curves = {name: getattr(self, name).tolist() for name in ("mean", "low", "high")}
        return {**curves, "layers_apart": list(self.layers_apart)}


@dataclass(frozen=True)
class GapComparison(Result):
    """The curves of several models by name, in the order given; the first is the reference of the differences.

    Examples:
        >>> found = sc.compare_gaps({"aligned": "aligned", "base": "base"}, normal, malicious, draws=200)
        >>> found.reference
        'aligned'
        >>> found.onsets["aligned"].layers
        LayerRange(first=2, last=7)
    """

    gaps: Mapping[str, LayerGap]
    intervals: Mapping[str, GapInterval]
    differences: Mapping[str, GapDifference]
    """Reference minus each other model of the same depth: layers of models of different depths do not correspond."""
    rule: OnsetRule
    provenance: dict[str, Any]
    controls: Mapping[str, Mapping[str, LayerGap]] = field(default_factory=dict)
    """By control and model: gaps between two sets that differ in something else than harm."""
    beyond: Mapping[str, Mapping[str, GapDifference]] = field(default_factory=dict)
    """By control and other model: how much more the reference's gap exceeds that model's than the control's does."""
    by_category: Mapping[str, Mapping[str, CategoryGap]] = field(default_factory=dict)
    """By model and category of the malicious prompts, where they have categories."""

    def opened(self, name: str) -> tuple[int, ...]:
        """Layers in which the reference's gap exceeds that of ``name``, and by more than every control's does.

        Without controls a gap may be one of topic, length or wording, which any training may sharpen.

        Raises:
            ValueError: for a model that the reference was not compared with.
        """
        if name not in self.differences:
            raise ValueError(f"{name!r} is not among {', '.join(self.differences) or 'any models that were compared'}")
        against = [self.differences[name], *(by_model[name] for by_model in self.beyond.values())]
        return tuple(torch.stack([one.low > 0 for one in against]).all(0).nonzero().flatten().tolist())

    @property
    def reference(self) -> str:
        return next(iter(self.gaps))

    @property
    def onsets(self) -> dict[str, Onset | None]:
        """By model: from where its gap appears to where it first levels off; None without a gap."""
        return {name: gap.onset(self.rule) for name, gap in self.gaps.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row a model and layer: its curves, the interval of its gap, and the reference's gap minus this one."""
        import pandas as pd

        frames = []
        for name, gap in self.gaps.items():
            frame = gap.to_frame()
            interval, difference = self.intervals[name], self.differences.get(name)
            frame.insert(0, "model", name)
            frame.insert(3, "gap_low", interval.low.tolist())
            frame.insert(4, "gap_high", interval.high.tolist())
            for column in ("mean", "low", "high"):
                label = "difference" if column == "mean" else f"difference_{column}"
                frame[label] = float("nan") if difference is None else getattr(difference, column).tolist()
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def categories(self) -> pd.DataFrame:
        """One row a model, category of the malicious prompts and layer: ``n``, ``gap_deg``, ``low``, ``high``."""
        return category_gaps_frame(self.by_category)

    def record(self) -> dict[str, Any]:
        """By model: ``gaps``, ``intervals``, ``onsets``, and ``differences`` to the ``reference``; and the ``rule``."""
        return {
            "reference": self.reference,
            "gaps": {name: gap.record() for name, gap in self.gaps.items()},
            "intervals": {name: interval.record() for name, interval in self.intervals.items()},
            "differences": {name: difference.record() for name, difference in self.differences.items()},
            "onsets": {name: list(onset.layers) if onset else None for name, onset in self.onsets.items()},
            "rule": str(self.rule),
            "beyond": {c: {name: one.record() for name, one in m.items()} for c, m in self.beyond.items()},
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """The gap curves with their intervals, and the onset of each."""
        from safecircuits.plots.layers import plot_gap

        return plot_gap(self.gaps, onset=dict(self.onsets), intervals=self.intervals, ax=ax)

    def figure(self) -> Figure:
        """Above, N-N against N-M similarity of each model; below, the gap curves and their differences."""
        from safecircuits.plots.pairs import comparison_figure

        return comparison_figure(self)

    @property
    def verdict(self) -> str:
        """A line a model: its largest gap, its onset and how often resamples have it, and whether it differs."""
        lines = []
        for name, gap in self.gaps.items():
            onset = self.onsets[name]
            layer = int(gap.gap_deg.argmax())
            interval = self.intervals[name]
            range_found = f"onset {onset}" if onset else "no onset"
            line = (
                f"{name}: largest gap {float(gap.gap_deg[layer]):.1f}° [{float(interval.low[layer]):.1f}, "
                f"{float(interval.high[layer]):.1f}] (layer {layer}{gap.chance}), {range_found} "
                f"({interval.resampled.words(onset.layers if onset else None)})"
            )
            if name in self.differences:
                apart = self.differences[name].layers_apart
                line += f"; differs from {self.reference} in {len(apart)} of {len(gap.gap_deg)} layers"
                if self.controls:
                    opened = self.opened(name)
                    line += f", whose gap is larger beyond {', '.join(self.controls)} in {len(opened)}"
            lines.append(line)
        return "\n".join(lines)

    @property
    def caveat(self) -> str:
        """What to hold against it first, of the first model of which there is something; else empty."""
        for name, gap in self.gaps.items():
            onset = self.onsets[name]
            if gap.within_noise:
                return f"the gap of {name} is within noise: prompts dealt out to two sets at random show as large a one"
            if doubt := self.intervals[name].resampled.doubt(onset.layers if onset else None):
                return f"where the gap of {name} begins is not sure: {doubt}"
        return ""

    def __str__(self) -> str:
        return self.verdict


@checked
def compare_gaps(
    models: Mapping[str, Source],
    normal: PromptSet | Sequence[str],
    malicious: PromptSet | Sequence[str],
    *,
    controls: Mapping[str, tuple[PromptSet, PromptSet]] | None = None,
    pairs: Pairs = "all",
    formula: Formula = "paper",
    template: str | Mapping[str, str] = "auto",
    final_norm: bool = False,
    rule: OnsetRule | None = None,
    draws: int = 1000,
    seed: int = 0,
    backend: Backend = "bridge",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> GapComparison:
    """The gap curves of several models on the same prompts, and how far they differ (§3.3: aligned against base).

    Models are taken one at a time. Those given as a name, a folder or a function are loaded when their turn comes and
    let go before the next one: two large models never need to fit together.

    Args:
        models: by name; the first is the reference. The same model may come twice, to compare templates (A.3.2).
        controls: pairs of sets by name that take the place of the normal and the malicious set: two benign sets, or
            harmless prompts of the malicious ones' topics. A gap between N and M may be one of topic; that alignment
            opens a gap needs to beat these (``GapComparison.opened``).
        pairs, formula, final_norm: as in ``layer_gap``; the bootstrap is over all pairs in any case.
        template: for all models, or by name. An aligned model often has a chat template where its base has none, so
            that ``"auto"`` would ask them differently: that is an error, not a finding.
        rule: what counts as an onset.
        draws, seed: bootstrap resamples of the prompts; every model gets the same ones.
        backend, dtype, device: of models that are loaded here.

    Raises:
        ValueError: for no models, an empty or single-prompt set, models whose templates differ without being named.

    Examples:
        >>> found = sc.compare_gaps({"aligned": "aligned", "base": "base"}, normal, malicious, draws=200)
        >>> list(found.gaps)
        ['aligned', 'base']
        >>> found.differences["base"].layers_apart
        (2, 3, 4, 5, 6, 7)
    """
    normal, malicious = as_prompt_set(normal, "normal"), as_prompt_set(malicious, "malicious")
    require_pairs(normal, malicious)
    sets = {"": (normal, malicious)} | _controls(controls or {})

    def measure(model: HookedModel, asked: str) -> tuple[dict[str, LayerGap], dict[str, CategoryGap]]:
        found, kinds = {}, {}
        for name, both in sets.items():
            n, m = (
                collect_residuals(model, prompts, template=asked, final_norm=final_norm, progress=progress)
                for prompts in both
            )
            found[name] = compare(n, m, pairs=pairs, formula=formula, draws=draws, seed=seed)
            if not name:
                kinds = category_gaps(n, m, pairs=pairs, formula=formula, draws=draws, seed=seed)
        return found, kinds

    measured, used = measure_each(
        models, measure, template=template, backend=backend, dtype=dtype, device=device, progress=progress
    )
    gaps = {name: found[""] for name, (found, _) in measured.items()}
    beside = {name: {model: found[name] for model, (found, _) in measured.items()} for name in sets if name}
    by_category = {name: kinds for name, (_, kinds) in measured.items() if kinds}
    drawn = {name: gap.resampled for name, gap in gaps.items() if gap.resampled is not None}
    reference = next(iter(models))
    differences = {
        name: _difference(gaps[reference], gaps[name], drawn[reference] - drawn[name])
        for name in list(models)[1:]
        if drawn[name].shape == drawn[reference].shape
    }
    provenance = {
        **{side: gaps[reference].provenance[side] for side in ("normal", "malicious")},
        "models": {name: described(source) for name, source in models.items()},
        "template": used,
        "final_norm": final_norm,
        "draws": draws,
        "seed": seed,
    }
    rule = rule or OnsetRule()
    intervals = {name: interval_of(curves, rule) for name, curves in drawn.items()}
    beyond = {
        control: {name: _beyond(gaps, theirs, reference, name) for name in differences}
        for control, theirs in beside.items()
    }
    return GapComparison(gaps, intervals, differences, rule, provenance, beside, beyond, by_category)


def _controls(controls: Mapping[str, tuple[PromptSet, PromptSet]]) -> dict[str, tuple[PromptSet, PromptSet]]:
    read = {}
    for name, both in controls.items():
        if not name or not isinstance(both, tuple | list) or len(both) != 2:
            raise ValueError(f"control {name!r} is a pair of prompt sets by a name, such as {{'topic': (one, other)}}")
        first, second = as_prompt_set(both[0], f"{name} a"), as_prompt_set(both[1], f"{name} b")
        require_pairs(first, second)
        read[name] = (first, second)
    return read


def _beyond(gaps: Mapping[str, LayerGap], controls: Mapping[str, LayerGap], reference: str, name: str) -> GapDifference:
    """The difference of two models' gaps minus that of their gaps between a control's sets.

    The sets are resampled each by itself, and of small ones fewer resamples hold two prompts of a kind: as many count
    as both have.
    """
    means, drawn = [], []
    for of in (gaps, controls):
        ours, theirs = of[reference], of[name]
        assert ours.resampled is not None
        assert theirs.resampled is not None
        means.append(ours.gap_deg - theirs.gap_deg)
        drawn.append(ours.resampled - theirs.resampled)
    n = min(map(len, drawn))
    mean = means[0] - means[1]
    return GapDifference(mean, *simultaneous_band(mean, drawn[0][:n] - drawn[1][:n]))


def _difference(ours: LayerGap, theirs: LayerGap, drawn: Float[Tensor, "draw layer"]) -> GapDifference:
    mean = ours.gap_deg - theirs.gap_deg
    return GapDifference(mean, *simultaneous_band(mean, drawn))
