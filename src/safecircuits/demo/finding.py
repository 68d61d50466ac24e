"""Stations of the demo that find: behaviour, gaps, layers, groups of units, and what removing these does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from safecircuits import organism
from safecircuits.base.vocabulary import SITES, Site
from safecircuits.behavior.evaluate import Behavior, EvaluationOptions, evaluate
from safecircuits.demo.bench import REFUSAL_TOKENS, SUBJECT, Bench
from safecircuits.demo.parts import Results, with_intervals
from safecircuits.layers.localization import Localization, localize
from safecircuits.layers.onset import search_start
from safecircuits.layers.similarity import LayerGap, layer_gap
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel
from safecircuits.units.ablation import AblationTable, ablate_groups, mean_rates
from safecircuits.units.groups import GROUPS, UnitGroups, classify_units
from safecircuits.units.importance import score_units


def find_behavior(bench: Bench) -> Results:
    """Refusal, over-rejection and utility of the five stages."""
    measured = {}
    asked: dict[str, EvaluationOptions] = {
        "behavior": bench.safety_and_utility(),
        "normal": {"malicious": bench.prompts("normal", bench.settings.normal), "max_new_tokens": REFUSAL_TOKENS},
    }

    def measure(stage: str, sets: EvaluationOptions) -> Behavior:
        return evaluate(bench.load(stage), **sets)

    for stage in organism.STAGES:
        found, normal = (
            bench.run.kept(f"{name}_{stage}", Behavior, partial(measure, stage, sets)) for name, sets in asked.items()
        )
        shares = {**found.shares, "normal_refused": normal.shares["malicious_refused"]}
        measured[stage] = with_intervals(shares)
    rows = [{"model": stage, **row} for stage, row in measured.items()]
    bench.run.table("behavior", pd.DataFrame(rows)[["model", *shares]])
    return measured


def find_gaps(bench: Bench) -> dict[str, LayerGap]:
    """Angle gaps of the base, the studied and the planted stage."""
    n = bench.settings.curve_prompts
    normal, malicious = bench.prompts("normal", n), bench.prompts("malicious", n)

    def gap(stage: str) -> LayerGap:
        return layer_gap(bench.load(stage), normal, malicious)

    found = {
        stage: bench.run.kept(f"gap_{stage}", LayerGap, partial(gap, stage))
        for stage in ("base", SUBJECT, "planted-layers")
    }
    frames = [gap.to_frame().assign(model=stage) for stage, gap in found.items()]
    bench.run.table("gaps", pd.concat(frames, ignore_index=True))
    return found


def find_layers(bench: Bench, name: str, model: HookedModel, gap: LayerGap) -> Localization:
    """The safety layers of a model, kept under ``name``."""
    prompts = bench.prompts("over_rejection", bench.settings.over_rejection)
    start = search_start(gap.onset(), len(gap.gap_deg))
    found = bench.run.kept(
        name,
        Localization,
        lambda: localize(
            model,
            prompts,
            start,
            alpha="search",
            reach=bench.settings.reach,
            progress=True,
            resume=bench.run.work(f"{name}.jsonl"),
        ),
    )
    bench.run.table(name, found.to_frame())
    return found


def find_groups(bench: Bench, name: str, model: HookedModel, sites: Sequence[Site] = SITES) -> UnitGroups:
    """The groups of a model's units, kept under ``name``."""
    s = bench.settings

    def groups() -> UnitGroups:
        safety, utility = (
            score_units(model, bench.prompts(kind, s.calibration, "train"), sites=sites)
            for kind in ("malicious", "utility")
        )
        return classify_units(safety, utility, scu=s.scu, ucu=s.ucu, ru=s.ru)

    found = bench.run.kept(name, UnitGroups, groups)
    bench.run.table(name, found.to_frame())
    return found


def remove_groups(bench: Bench, groups: UnitGroups) -> Results:
    """The studied stage without each group, and without as many random units."""
    sets = bench.safety_and_utility()
    table = bench.run.kept(
        "ablation",
        AblationTable,
        lambda: ablate_groups(
            bench.model,
            groups,
            controls=bench.settings.controls,
            seed=bench.settings.seed,
            progress=True,
            resume=bench.run.work("removals.jsonl"),
            **sets,
        ),
    )
    bench.run.table("ablation", table.to_frame())
    rows = {row.name: row for row in table.rows}
    return {
        "method": groups.provenance["method"],
        "tokens": groups.provenance["tokens"],
        "normalize": groups.provenance["normalize"],
        "n_units": sum(labels.numel() for labels in groups.labels.values()),
        "share": groups.shares(),
        "share_of_parameters": {
            group: FreezeMask.units(groups, group).share_of_parameters(bench.model) for group in GROUPS
        },
        "per_layer": {
            site: {group: (labels == i).sum(-1).tolist() for i, group in enumerate(GROUPS)}
            for site, labels in groups.labels.items()
        },
        "ablation": {
            "nothing": {"units": 0, **table.intact.rates},
            **{name: {"units": row.n_units, **row.behavior.rates} for name, row in rows.items()},
        },
        "random_control": {
            name: {"units": row.n_units, "draws": len(row.random_controls), **mean_rates(row.random_controls)}
            for name, row in rows.items()
        },
    }
