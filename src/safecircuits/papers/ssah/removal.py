"""What the SSAH study removes: units by score, whole groups by hook or for good, and the SCU under pressure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safecircuits.base.progress import say, without_bars
from safecircuits.base.vocabulary import SITES
from safecircuits.behavior.conditions import Pressure, pressure
from safecircuits.behavior.evaluate import EvaluationOptions, evaluate
from safecircuits.hooks.ablate import ablated
from safecircuits.model.each_model import release
from safecircuits.model.load import load_model
from safecircuits.model.sites import HookedModel
from safecircuits.papers.ssah.parts import REMOVED, PrunedGroup, SsahStudy
from safecircuits.results.run import RunDirectory
from safecircuits.units.ablation import AblationTable, ablate_groups
from safecircuits.units.comparison import COUNTS, ScoreComparison, score_comparison
from safecircuits.units.groups import UnitGroups
from safecircuits.units.importance import score_units
from safecircuits.units.prune import prune_units
from safecircuits.units.scores import UnitScores
from safecircuits.units.selection import count_units, random_units


def curves(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
    """How soon each cut's score finds refusal, where the model refuses at all."""
    p, s = study.prompts, study.settings
    if p.normal is None or not study.behavior[study.name].rates["malicious_refused"]:
        return  # without refusals there is nothing to halve
    say("ablation curves of the scores")
    reference, sets = p.normal, _measured(study)
    study.scores = run.kept(
        "scores",
        ScoreComparison,
        lambda: score_comparison(
            model,
            p.safety,
            p.utility,
            reference,
            candidates=tuple(cut.safest for cut in s.cuts.values()),
            counts=_curve_counts(study),
            proportionate=True,  # as groups are cut, so that a curve passes through its SCU
            resume=run.work("curves.jsonl"),
            progress=True,
            **sets,
        ),
    )


def _curve_counts(study: SsahStudy) -> tuple[int, ...]:
    """How many units the curves remove; as many as are SCU among them, since the claim is about those."""
    s, shape = study.settings, study.shape
    n_units = sum(shape.n_layers * shape.n_units(site) for site in SITES)
    asked = s.counts or tuple(count for count in COUNTS if count <= n_units)
    return tuple(sorted({*asked, max(1, round(s.scu * n_units))}))


def _measured(study: SsahStudy) -> EvaluationOptions:
    """What is measured of a model without some of its units."""
    p = study.prompts
    return {"malicious": p.malicious, "utility": p.measured_utility, **study.settings.judging}


def removals(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
    """Table 1: each group of each cut set to zero, to its mean, and asked with the system prompt; and pruned."""
    p, s, sets = study.prompts, study.settings, _measured(study)
    # What a unit does on average is a fact about the model, so it is counted over the prompts that are not harmful.
    means = run.kept(
        "means", UnitScores, lambda: score_units(model, p.utility, method="wifv", tokens="all", template=s.template)
    )
    study.unit_parameters = means.unit_parameters
    conditions: dict[str, dict[str, Any]] = {"zero": {**sets}, "mean": {**sets, "to": means.mean}}
    if s.system is not None:
        conditions["system"] = {**sets, "utility": None, "system": s.system}
    for number, (name, groups) in enumerate(study.groups.items()):
        study.removals[name] = {}
        for condition, options in conditions.items():
            say(f"groups by {name} removed: {condition}")

            def remove(
                number: int = number,
                groups: UnitGroups = groups,
                condition: str = condition,
                options: Mapping[str, Any] = options,
            ) -> AblationTable:
                return ablate_groups(
                    model,
                    groups,
                    names=REMOVED,
                    controls=s.controls if condition == "zero" else 0,
                    seed=s.seeds[0],
                    resume=run.work(f"removals_{number}_{condition}.jsonl"),
                    progress=True,
                    **options,
                )

            kept = run.kept(f"removals_{number}_{condition}", AblationTable, remove)
            study.removals[name][condition] = kept
        if s.prune:
            study.pruned[name] = _pruned(run, model, number, groups, sets)


def _pruned(
    run: RunDirectory, model: HookedModel, number: int, groups: UnitGroups, sets: EvaluationOptions
) -> dict[str, PrunedGroup]:
    """The model without each group's units, by group."""
    found = {}
    for group in REMOVED:
        units = groups.members(group)
        if not count_units(units):
            continue
        say(f"{group} cut out of the weights")

        def cut(units: Any = units) -> PrunedGroup:
            smaller = prune_units(model, units)
            with without_bars():
                hooked = load_model(smaller.hf_model, tokenizer=smaller.tokenizer, backend="bridge")
            behavior = evaluate(hooked, **sets)
            return PrunedGroup(smaller.n_units, smaller.parameters_before, smaller.parameters_after, behavior)

        found[group] = run.kept(f"pruned_{number}_{group}", PrunedGroup, cut)
        release()
    return found


def pressures(study: SsahStudy, run: RunDirectory, model: HookedModel) -> None:
    """Refusal with the system prompt and once answers start compliant: intact, and without units."""
    p, s = study.prompts, study.settings
    if s.system is None and s.prefill is None:
        return
    random = random_units(study.groups[study.best].members("SCU"), study.shape, s.seeds[0])
    removed: list[Any] = [{}, random, *(groups.members("SCU") for groups in study.groups.values())]
    for number, (name, units) in enumerate(zip(study.pressed, removed, strict=True)):
        say(f"under pressure, without {name}")

        def press(units: Any = units) -> Pressure:
            with ablated(model, units):
                return pressure(
                    model,
                    p.malicious,
                    system=s.system,
                    prefill=s.prefill,
                    prefill_tokens=s.prefill_tokens if s.prefill is not None else None,
                    **s.asking,
                )

        study.pressures[name] = run.kept(f"pressure_{number}", Pressure, press)
