"""The stations of the demo: what is measured, in the order of the flow, each kept as soon as it is found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch

from safecircuits import organism
from safecircuits.behavior.evaluate import Behavior, EvaluationOptions, evaluate
from safecircuits.demo.parts import (
    Results,
    common,
    localization_part,
    similarity_part,
    with_intervals,
)
from safecircuits.demo.settings import DemoSettings
from safecircuits.files import write_text
from safecircuits.layers.localization import Localization, localize
from safecircuits.layers.onset import search_start
from safecircuits.layers.similarity import LayerGap, layer_gap
from safecircuits.masks import FreezeMask
from safecircuits.models import load_model
from safecircuits.organism.grammar import Kind, Split
from safecircuits.parameters import checkpoint_parameters
from safecircuits.progress import say
from safecircuits.prompts import PromptSet
from safecircuits.rundir import RunDirectory
from safecircuits.sites import SITES, HookedModel, LayerRange, ModelShape, Site
from safecircuits.stats import mean_interval
from safecircuits.studies.arms import Arm
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.scenarios import organism_new_task
from safecircuits.units.ablation import (
    AblationTable,
    ablate_groups,
    ablation_curve,
    count_units,
    mean_rates,
    random_units,
)
from safecircuits.units.groups import GROUPS, UnitGroups, classify_units
from safecircuits.units.importance import score_units

SUBJECT = "aligned"
"""The stage that is studied, frozen and fine-tuned; the planted ones are where the answer is known."""

REFUSAL_TOKENS = 8
"""Every refusal of the embedded language has begun by then (Safety Layers §3.4.3: 4 to 8 tokens)."""


def demo_prompts(settings: DemoSettings) -> dict[tuple[Kind, Split], PromptSet]:
    """The sets of prompts, by kind and split; those that a station takes fewer of are the first of these."""
    s = settings
    new_task = min(s.utility, len(organism.prompts("new_task")))
    sizes: dict[tuple[Kind, Split], int] = {
        ("normal", "test"): max(s.normal, s.curve_prompts),
        ("malicious", "test"): max(s.malicious, s.curve_prompts),
        ("over_rejection", "test"): s.over_rejection,
        ("utility", "test"): s.utility,
        ("new_task", "test"): new_task,
        ("malicious", "train"): s.calibration,
        ("utility", "train"): s.calibration,
    }
    return {key: organism.prompts(*key, n=n, seed=s.seed) for key, n in sizes.items()}


class Demo:
    """One run: models and prompts are loaded once, and each station adds its part of the results.

    What a station has found is kept in the run directory at once, and read from there by a run that goes on.
    """

    def __init__(self, settings: DemoSettings, run: RunDirectory) -> None:
        self.settings, self.kept_in = settings, run
        self.sets = demo_prompts(settings)
        self.mask: FreezeMask
        self.model = self.load(SUBJECT)

    def run(self) -> Results:
        """All stations in the order of the flow."""
        say(f"safecircuits demo on the embedded models, backend {self.settings.backend}")
        results: Results = {"schema": 1, "model": self.describe_model()}
        results["behavior"] = self.station("behaviour of the five stages", self.behavior)
        gaps = self.station("similarity: base, aligned, planted-layers", self.gaps)
        results["similarity"] = similarity_part(gaps, self.settings.curve_prompts)
        found = self.station(
            "localization on aligned", lambda: self.localize("localization", self.model, gaps[SUBJECT])
        )
        results["localization"] = localization_part(found)
        groups = self.station("unit scores and groups", lambda: self.classify("groups", self.model))
        self.mask = FreezeMask.layers(found.layers) | FreezeMask.units(groups, "SCU")
        results["units"] = self.station("group ablation with random control", lambda: self.ablate(groups))
        results["planted"] = {
            "layers": self.station(
                "planted layers: what is found", lambda: self.planted_layers(gaps["planted-layers"])
            ),
            "units": self.station("planted units: ablation curve", self.planted_units),
        }
        results["finetune"] = self.station("fine-tuning arms", lambda: self.finetune(found.layers, groups))
        return results

    def station(self, what: str, run: Callable[[], Any]) -> Any:
        """Run one station and say how long it took."""
        started = time.perf_counter()
        result = run()
        say(f"  {what}: {time.perf_counter() - started:.1f} s")
        return result

    @property
    def placing(self) -> dict[str, Any]:
        """How models are loaded."""
        s = self.settings
        return {
            "backend": s.backend,
            "device": s.device,
            "dtype": None if s.dtype is None else getattr(torch, s.dtype),
        }

    def load(self, stage: str) -> HookedModel:
        return load_model(stage, **self.placing)

    def prompts(self, kind: Kind, n: int, split: Split = "test") -> PromptSet:
        return self.sets[kind, split].take(n)

    def safety_and_utility(self) -> EvaluationOptions:
        """The sets that every measurement uses."""
        s = self.settings
        return {
            "malicious": self.prompts("malicious", s.malicious),
            "over_rejection": self.prompts("over_rejection", s.over_rejection),
            "utility": self.prompts("utility", s.utility),
            "refusal_tokens": REFUSAL_TOKENS,
        }

    # --- stations ------------------------------------------------------------------------------------------------

    def describe_model(self) -> Results:
        shape = ModelShape.of(self.model)
        return {
            "name": SUBJECT,
            **vars(shape),
            "n_parameters": sum(p.numel() for p in checkpoint_parameters(self.model).values()),
            "backend": self.settings.backend,
        }

    def behavior(self) -> Results:
        measured = {}
        harmless = self.prompts("normal", self.settings.normal)
        asked: dict[str, EvaluationOptions] = {
            "behavior": self.safety_and_utility(),
            "normal": {"malicious": harmless, "max_new_tokens": REFUSAL_TOKENS},
        }
        for stage in organism.STAGES:
            found, normal = (
                self.kept_in.kept(f"{name}_{stage}", Behavior, partial(self.evaluate, stage, sets))
                for name, sets in asked.items()
            )
            shares = {**found.shares, "normal_refused": normal.shares["malicious_refused"]}
            measured[stage] = with_intervals(shares)
        rows = [{"model": stage, **row} for stage, row in measured.items()]
        self.kept_in.table("behavior", pd.DataFrame(rows)[["model", *shares]])
        return measured

    def evaluate(self, stage: str, sets: EvaluationOptions) -> Behavior:
        return evaluate(self.model if stage == SUBJECT else self.load(stage), **sets)

    def gaps(self) -> dict[str, LayerGap]:
        n = self.settings.curve_prompts
        normal, malicious = self.prompts("normal", n), self.prompts("malicious", n)

        def gap(stage: str) -> LayerGap:
            return layer_gap(self.load(stage), normal, malicious)

        found = {
            stage: self.kept_in.kept(f"gap_{stage}", LayerGap, partial(gap, stage))
            for stage in ("base", SUBJECT, "planted-layers")
        }
        frames = [gap.to_frame().assign(model=stage) for stage, gap in found.items()]
        self.kept_in.table("gaps", pd.concat(frames, ignore_index=True))
        return found

    def localize(self, name: str, model: HookedModel, gap: LayerGap) -> Localization:
        start = search_start(gap.onset(), len(gap.gap_deg))
        prompts = self.prompts("over_rejection", self.settings.over_rejection)
        found = self.kept_in.kept(
            name,
            Localization,
            lambda: localize(
                model,
                prompts,
                start,
                alpha="search",
                reach=self.settings.reach,
                progress=True,
                resume=self.kept_in.work(f"{name}.jsonl"),
            ),
        )
        self.kept_in.table(name, found.to_frame())
        return found

    def classify(self, name: str, model: HookedModel, sites: Sequence[Site] = SITES) -> UnitGroups:
        s = self.settings

        def groups() -> UnitGroups:
            safety, utility = (
                score_units(model, self.prompts(kind, s.calibration, "train"), sites=sites)
                for kind in ("malicious", "utility")
            )
            return classify_units(safety, utility, scu=s.scu, ucu=s.ucu, ru=s.ru)

        found = self.kept_in.kept(name, UnitGroups, groups)
        self.kept_in.table(name, found.to_frame())
        return found

    def ablate(self, groups: UnitGroups) -> Results:
        sets = self.safety_and_utility()
        table = self.kept_in.kept(
            "ablation",
            AblationTable,
            lambda: ablate_groups(
                self.model,
                groups,
                controls=self.settings.controls,
                seed=self.settings.seed,
                progress=True,
                resume=self.kept_in.work("removals.jsonl"),
                **sets,
            ),
        )
        self.kept_in.table("ablation", table.to_frame())
        rows = {row.name: row for row in table.rows}
        return {
            "method": groups.provenance["method"],
            "tokens": groups.provenance["tokens"],
            "normalize": groups.provenance["normalize"],
            "n_units": sum(labels.numel() for labels in groups.labels.values()),
            "share": groups.shares(),
            "share_of_parameters": {
                group: FreezeMask.units(groups, group).share_of_parameters(self.model) for group in GROUPS
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

    def planted_layers(self, gap: LayerGap) -> Results:
        truth = organism.planted("planted-layers").layers
        block = LayerRange(min(truth), max(truth))
        onset = gap.onset()
        found = self.localize("planted_localization", self.load("planted-layers"), gap)
        return {
            "planted": list(block),
            "onset": list(onset.layers) if onset else None,
            "onset_overlap": onset.layers.overlap(block) if onset else 0.0,
            "localized": list(found.layers),
            "overlap": found.layers.overlap(block),
            "localization": localization_part(found),
        }

    def planted_units(self) -> Results:
        """Kept as it is: a curve of behaviours is no result of its own."""
        path = self.kept_in.work("planted_units.json")
        if not path.exists():
            write_text(path, json.dumps(self.measure_planted_units()))
        part: Results = json.loads(path.read_text(encoding="utf-8"))
        self.kept_in.table("planted_units", pd.DataFrame(part["curve"]))
        return part

    def measure_planted_units(self) -> Results:
        truth: dict[Site, dict[int, tuple[int, ...]]] = {"mlp": dict(organism.planted("planted-units").mlp_units)}
        model = self.load("planted-units")
        shape = ModelShape.of(model)
        s = self.settings
        groups = self.classify("planted_groups", model, ("mlp",))  # only neurons were planted: only neurons compete
        n_units = shape.n_layers * shape.d_mlp
        counts = [round(share * n_units) for share in s.curve_shares]
        sets: EvaluationOptions = {**self.safety_and_utility(), "over_rejection": None}
        curve = ablation_curve(model, {k: groups.top(k) for k in counts}, progress=True, **sets)
        random_curve = ablation_curve(
            model, {k: random_units(groups.top(k), shape, s.seed) for k in counts}, progress=True, **sets
        )
        n_planted = count_units(truth)
        without_planted = ablation_curve(model, {n_planted: truth}, **sets)[n_planted]

        def rows(measured: Mapping[int, Behavior]) -> list[Results]:
            return [
                {
                    "removed": k,
                    "share": k / n_units,
                    "planted_share": common(groups.top(k), truth) / k,
                    **behavior.rates,
                }
                for k, behavior in measured.items()
            ]

        return {
            "planted_units": n_planted,
            "n_units": n_units,
            "planted_among_top": common(groups.top(n_planted), truth) / n_planted,
            "chance": n_planted / n_units,
            "curve": rows(curve),
            "random_curve": [
                {key: value for key, value in row.items() if key != "planted_share"} for row in rows(random_curve)
            ],
            "remove_planted": {"removed": n_planted, **without_planted.rates},
        }

    def finetune(self, layers: LayerRange, groups: UnitGroups) -> Results:
        shape = ModelShape.of(self.model)
        s = self.settings
        n_units = sum(labels.numel() for labels in groups.labels.values())
        top_cu = FreezeMask.of_units(groups.top(round(s.top_cu * n_units), "CU"), shape)
        scu_cu = FreezeMask.units(groups, "SCU") | top_cu
        block = FreezeMask.layers(layers)
        n_others = min(len(layers), shape.n_layers - len(layers))
        arms = {
            "nothing frozen": Arm("none", "nothing"),
            "safety layers": Arm("safety_layers", f"layers {layers}", block),
            "other layers": Arm(
                "random_layers", f"{n_others} layers outside {layers}, drawn by seed", block, draw="layers"
            ),
            "SCU + top CU": Arm("scu_cu", f"all SCU and the top {100 * s.top_cu:g} % of CU", scu_cu),
            "random units": Arm("random", "as many units of each site, drawn by seed", scu_cu, draw="units"),
        }
        if n_others == 0:
            del arms["other layers"]
        part: Results = {"task": "new_task", "settings": {**s.finetuning, "seeds": list(s.seeds)}}
        study = self.kept_in.kept(
            "finetuning",
            FinetuningStudy,
            lambda: finetuning_study(
                SUBJECT,
                [replace(organism_new_task(seed=s.seed), held_out=self.sets["new_task", "test"])],
                list(arms.values()),
                malicious=self.prompts("malicious", s.malicious),
                over_rejection=self.prompts("over_rejection", s.over_rejection),
                utility=self.prompts("utility", s.utility),
                evaluation={"refusal_tokens": REFUSAL_TOKENS},
                seeds=s.seeds,
                settings=s.finetuning,
                points=1,
                curve_prompts=1,
                out=self.kept_in.work("finetuning"),
                **self.placing,
            ),
        )
        self.kept_in.table("finetuning", study.summary())
        part["before"] = _with_new_task(study.runs[0].before)
        for label, arm in arms.items():
            runs = [run for run in study.runs if run.arm == arm.name]
            masks = [arm.mask_for(shape, seed) for seed in s.seeds]
            summary: Results = {"label": label, "frozen": arm.frozen}
            measured = [_with_new_task(run.figures) | {"train_loss": run.train_loss} for run in runs]
            for key in measured[0]:
                values = [figures[key] for figures in measured]
                mean, low, high = mean_interval(torch.tensor(values))
                summary |= {key: mean, f"{key}_interval": [low, high], f"{key}_seeds": values}
            summary["share_of_units"] = sum(mask.share_of_units() if mask else 0.0 for mask in masks) / len(masks)
            summary["share_of_parameters"] = sum(run.share_frozen for run in runs) / len(runs)
            # With nothing frozen there is nothing that could have moved.
            summary["frozen_bit_identical"] = all(run.frozen_bit_identical is not False for run in runs)
            part[arm.name] = summary
        if n_others:
            part["random_layers"]["size_matched"] = n_others == len(layers)
        return part


def _with_new_task(figures: Mapping[str, float]) -> dict[str, float]:
    """A study's figures under the demo's names."""
    return {key: figures[key] for key in ("malicious_refused", "over_rejected", "utility")} | {
        "new_task": figures["task_score"]
    }
