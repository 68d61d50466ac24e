"""Parts of the demo's results file, and the small pieces of set arithmetic behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safecircuits.base.stats import Share
from safecircuits.base.vocabulary import Site
from safecircuits.layers.localization import Localization
from safecircuits.layers.onset import OnsetRule
from safecircuits.layers.similarity import LayerGap

Results = dict[str, Any]


def with_intervals(shares: Mapping[str, Share]) -> Results:
    part: Results = {}
    for name, share in shares.items():
        part |= {name: share.rate, f"{name}_interval": list(share.interval)}
    return part


def similarity_part(gaps: Mapping[str, LayerGap], n_prompts: int) -> Results:
    part: Results = {}
    for stage, gap in gaps.items():
        onset = gap.onset()
        part[stage] = {"gap_deg": gap.gap_deg.tolist(), "onset": list(onset.layers) if onset else None}
        part[stage] |= {"p": gap.p, "within_noise": gap.within_noise}
        for name in ("nn", "mm", "nm"):
            curve = getattr(gap, name)
            part[stage] |= {f"{name}_mean": curve.mean.tolist(), f"{name}_std": curve.std.tolist()}
    part["onset_rule"] = vars(OnsetRule())
    part["n_prompts"] = {"normal": n_prompts, "malicious": n_prompts}
    return part


def localization_part(found: Localization) -> Results:
    frame = found.to_frame()
    sweeps = {
        bound: frame[frame["bound"] == bound].drop(columns="bound").to_dict("records") for bound in frame["bound"]
    }
    return {
        "alpha": found.alpha,
        "direction": found.direction,
        "alpha_found": found.alpha_found if found.alpha_searched else None,
        "baseline_refused": found.baseline.count,
        "n_prompts": len(found.baseline.refused),
        "start": found.provenance["start"],
        "layers": list(found.layers),
        "upper": sweeps["upper"],
        "lower": sweeps["lower"],
        "located": found.located,
        "p": found.p,
        "n_tried": len(found.tried),
        "within_noise": found.within_noise,
        "verdict": found.verdict,
    }


def common(a: Mapping[Site, Mapping[int, Sequence[int]]], b: Mapping[Site, Mapping[int, Sequence[int]]]) -> int:
    """Units in both selections."""
    return sum(len(set(units) & set(b.get(site, {}).get(layer, ()))) for site in a for layer, units in a[site].items())
