"""Stations of the demo where the answer is known: the planted layers and the planted units, found again."""

from __future__ import annotations

import json

import pandas as pd

from safecircuits import organism
from safecircuits.base.files import write_text
from safecircuits.base.vocabulary import LayerRange, Site
from safecircuits.behavior.evaluate import Behavior, EvaluationOptions
from safecircuits.demo.bench import Bench
from safecircuits.demo.finding import find_groups, find_layers
from safecircuits.demo.parts import Results, common, localization_part
from safecircuits.layers.similarity import LayerGap
from safecircuits.model.sites import ModelShape
from safecircuits.units.ablation import ablation_curve
from safecircuits.units.selection import count_units, random_units


def planted_layers(bench: Bench, gap: LayerGap) -> Results:
    """The planted block beside the onset and the localization."""
    truth = organism.planted("planted-layers").layers
    block = LayerRange(min(truth), max(truth))
    onset = gap.onset()
    found = find_layers(bench, "planted_localization", bench.load("planted-layers"), gap)
    return {
        "planted": list(block),
        "onset": list(onset.layers) if onset else None,
        "onset_overlap": onset.layers.overlap(block) if onset else 0.0,
        "localized": list(found.layers),
        "overlap": found.layers.overlap(block),
        "localization": localization_part(found),
    }


def planted_units(bench: Bench) -> Results:
    """Kept as it is: a curve of behaviours is no result of its own."""
    path = bench.run.work("planted_units.json")
    if not path.exists():
        write_text(path, json.dumps(_measure_planted_units(bench)))
    part: Results = json.loads(path.read_text(encoding="utf-8"))
    bench.run.table("planted_units", pd.DataFrame(part["curve"]))
    return part


def _measure_planted_units(bench: Bench) -> Results:
    truth: dict[Site, dict[int, tuple[int, ...]]] = {"mlp": dict(organism.planted("planted-units").mlp_units)}
    model = bench.load("planted-units")
    shape = ModelShape.of(model)
    s = bench.settings
    groups = find_groups(bench, "planted_groups", model, ("mlp",))  # only neurons were planted: only neurons compete
    n_units = shape.n_layers * shape.d_mlp
    counts = [round(share * n_units) for share in s.curve_shares]
    sets: EvaluationOptions = {**bench.safety_and_utility(), "over_rejection": None}
    curve = ablation_curve(model, {k: groups.top(k) for k in counts}, progress=True, **sets)
    random_curve = ablation_curve(
        model, {k: random_units(groups.top(k), shape, s.seed) for k in counts}, progress=True, **sets
    )
    n_planted = count_units(truth)
    without_planted = ablation_curve(model, {n_planted: truth}, **sets)[n_planted]

    def row(k: int, behavior: Behavior, **more: float) -> Results:
        return {"removed": k, "share": k / n_units, **more, **behavior.rates}

    return {
        "planted_units": n_planted,
        "n_units": n_units,
        "planted_among_top": common(groups.top(n_planted), truth) / n_planted,
        "chance": n_planted / n_units,
        "curve": [row(k, behavior, planted_share=common(groups.top(k), truth) / k) for k, behavior in curve.items()],
        "random_curve": [row(k, behavior) for k, behavior in random_curve.items()],
        "remove_planted": {"removed": n_planted, **without_planted.rates},
    }
