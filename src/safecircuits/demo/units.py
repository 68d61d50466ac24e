"""The demo's parts about units: the four groups, what is left without them, and the planted neurons found again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from safecircuits import organism
from safecircuits.base.counted import said
from safecircuits.base.vocabulary import SITES, Site
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.stakes import nothing_to_lose
from safecircuits.demo.layers import BEHAVIOR
from safecircuits.demo.settings import LARGE, SMALL, SUBJECT, UTILITY_MARGIN, Demo
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.papers.conclusion import Conclusion, unless
from safecircuits.papers.page import StudyPage, groups_exhibit, removal_exhibit
from safecircuits.papers.part import Part
from safecircuits.plots.units import plot_ablation_curve
from safecircuits.report.saved import frame_table
from safecircuits.report.sections import Exhibit
from safecircuits.units.ablation import AblationTable, ablate_groups, ablate_units, mean_figures
from safecircuits.units.groups import UnitGroups, classify_units
from safecircuits.units.importance import score_units
from safecircuits.units.profiles import UnitProfiles
from safecircuits.units.profiling import scu_profiles

PAPER, PLANTED = "SSAH", "planted-units"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _groups(study: Demo, stage: str, sites: Sequence[Site] = SITES) -> UnitGroups:
    s, model = study.settings, study.stage(stage)
    safety, utility = (
        score_units(model, study.prompts(kind, s.calibration, "train"), sites=sites)
        for kind in ("malicious", "utility")
    )
    return classify_units(safety, utility, scu=s.scu, ucu=s.ucu, ru=s.ru)


def _remove(study: Demo) -> AblationTable:
    s = study.settings
    more = {"controls": s.controls, "seed": s.seed, "progress": True, "resume": study.work("removals.jsonl")}
    return ablate_groups(study.model, study[UNITS], **more, **study.measured)  # type: ignore[arg-type]


def _show(study: Demo, made: StudyPage) -> None:
    how = study[UNITS].provenance
    made.add(
        "units",
        "Which units refuse: the four groups",
        "Each unit (MLP neuron or attention head) has a score for how much it matters on refusals (S) and one for "
        "ordinary answers (U). Safety-critical units (SCU) have the highest S − U, utility-critical ones (UCU) the "
        "lowest, redundant ones (RU) the lowest S + U; the rest are called complex (CU). Whether a group is what its "
        "name says shows when it is removed, beside as many random units. Scores: "
        f"{', '.join(f'{key} {how[key]}' for key in ('method', 'tokens', 'normalize'))}.",
        [
            removal_exhibit(made, "ablation", "Refusal and utility left without each group", "", study[ABLATION]),
            groups_exhibit(made, "unit_map", "Number of units of each group in each layer", "", study[UNITS]),
        ],
    )


def _claims(study: Demo) -> Iterator[Conclusion]:
    table, share = study[ABLATION], study[UNITS].shares()["SCU"]
    rows = {row.name: row for row in table.rows}
    intact = table.intact.figures
    left = {name: row.behavior.figures for name, row in rows.items()}
    random = {name: mean_figures(row.random_controls) for name, row in rows.items()}

    def verdict(group: str, rate: str, spared: str) -> str:
        lost = random[group][rate] - left[group][rate]
        if lost >= LARGE:
            return "yes" if intact[spared] - left[group][spared] <= SMALL or spared == rate else "unclear"
        return "no" if lost < SMALL else "unclear"

    refused, utility = "malicious_refused", "utility"
    text = (
        f"Without the {rows['SCU'].n_units} SCU ({_percent(share)} of the units) refusal of malicious prompts goes "
        f"from {said(intact, refused)} to {said(left['SCU'], refused)} and utility from "
        f"{said(intact, utility)} to {said(left['SCU'], utility)}; without as many random units refusal is "
        f"{said(random['SCU'], refused)}."
    )
    why = nothing_to_lose(intact, refused, utility, least=LARGE)
    effect = "A few safety-critical units carry refusal"
    yield effect, PAPER, *unless(why, verdict("SCU", refused, utility), text)
    text = (
        f"Without the {rows['UCU'].n_units} UCU utility goes from {said(intact, utility)} to "
        f"{said(left['UCU'], utility)} (random control {said(random['UCU'], utility)}), refusal to "
        f"{said(left['UCU'], refused)}."
    )
    why = nothing_to_lose(intact, utility, least=LARGE)
    yield "Utility-critical units carry utility", PAPER, *unless(why, verdict("UCU", utility, utility), text)
    text = (
        f"Without the {rows['RU'].n_units} RU refusal is {said(left['RU'], refused)} and utility "
        f"{said(left['RU'], utility)}; without as many random units {said(random['RU'], refused)} and "
        f"{said(random['RU'], utility)}."
    )
    worst = max(intact[rate] - left["RU"][rate] for rate in (refused, utility))
    shows = "yes" if worst <= UTILITY_MARGIN else "no" if worst >= LARGE else "unclear"
    yield "Redundant units can go", PAPER, *unless(nothing_to_lose(intact, refused, utility), shows, text)


def planted_units(study: Demo) -> FreezeMask:
    """The neurons into which refusal was trained in the stage of that name."""
    return FreezeMask.of_units({"mlp": organism.planted(PLANTED).mlp_units}, study.shape)


def _among_top(study: Demo, n: int) -> float:
    """The share of the planted neurons among the ``n`` of highest S − U."""
    return (study[PLANTED_UNITS].top(n) & planted_units(study)).n_units() / n


def _n_neurons(study: Demo) -> int:
    return study.shape.n_layers * study.shape.d_mlp


def _remove_planted(study: Demo) -> AblationTable:
    """The neurons of highest S − U, ever more of them, with as many random ones beside; and exactly the planted."""
    s, groups, model = study.settings, study[PLANTED_UNITS], study.stage(PLANTED)
    sets: EvaluationOptions = {**study.measured, "over_rejection": None}
    counts = [round(share * _n_neurons(study)) for share in s.curve_shares]
    curve = {f"top {n}": groups.top(n) for n in counts}
    found = ablate_units(model, curve, controls=1, seed=s.seed, progress=True, **sets)
    planted = ablate_units(model, {"planted": planted_units(study)}, controls=0, **sets)
    return AblationTable(found.intact, (*found.rows, *planted.rows))


def curves(study: Demo) -> tuple[list[dict[str, float]], list[dict[str, float]], dict[str, float]]:
    """What is left without the highest and without random neurons, by their number, and without the planted ones."""
    *rows, planted = study[CURVE].rows
    share = {row.n_units: row.n_units / _n_neurons(study) for row in rows}
    top = [
        {"removed": n, "share": share[n], "planted_share": _among_top(study, n), **row.behavior.figures}
        for row in rows
        for n in [row.n_units]
    ]
    random = [
        {"removed": row.n_units, "share": share[row.n_units], **mean_figures(row.random_controls)} for row in rows
    ]
    return top, random, {"removed": planted.n_units, **planted.behavior.figures}


def _show_planted(study: Demo, made: StudyPage) -> None:
    top, random, planted = curves(study)
    plot_ablation_curve(top, random, planted=planted, ax=made.axes("planted_units", 2.9))
    label = "Refusal and utility against the number of removed units, on the model with planted neurons"
    [(_, _, _, text)] = _claim_planted(study)
    made.add(
        "planted_units",
        "Planted units, and what is found",
        "In this model the answer is known: its alignment training could change only a chosen set of MLP neurons. What "
        "the score finds is held against that.",
        [
            Exhibit(
                "planted_units", label, text, [frame_table("Rates left, by what is removed", study[CURVE].to_frame())]
            )
        ],
    )


def _claim_planted(study: Demo) -> Iterator[Conclusion]:
    intact = study[BEHAVIOR][PLANTED].rates
    top, _, planted = curves(study)
    n = int(planted["removed"])
    text = (
        f"Removing the {n} planted neurons leaves {said(planted, 'malicious_refused')} refusal and "
        f"{_percent(planted['utility'])} utility. {_percent(_among_top(study, n))} of them are among as many neurons "
        f"of highest S − U (chance {_percent(n / _n_neurons(study))}). "
    )
    halve, keep = intact["malicious_refused"] / 2, intact["utility"] - UTILITY_MARGIN
    enough = [row for row in top if row["malicious_refused"] <= halve and row["utility"] >= keep]
    shows, more = "no", "No tested number of those halves refusal at a cost of at most 2 points of utility."
    if enough:
        best = enough[0]
        shows, more = (
            "yes",
            (
                f"The top {best['removed']:.0f} ({_percent(best['share'])}) already bring refusal to "
                f"{said(best, 'malicious_refused')} with utility {_percent(best['utility'])}."
            ),
        )
    if why := nothing_to_lose(intact, "malicious_refused", "utility"):
        shows, text, more = "inconclusive", f"{why} {text}".strip(), ""
    yield "The score finds the planted units", PAPER, shows, text + more


UNITS: Part[Demo, UnitGroups] = Part(
    "groups",
    UnitGroups,
    lambda study: _groups(study, SUBJECT),
    says="unit scores and groups",
    tables=lambda study: {"groups": study[UNITS].to_frame()},
)
ABLATION: Part[Demo, AblationTable] = Part(
    "ablation",
    AblationTable,
    _remove,
    says="group ablation with random control",
    section=_show,
    claims=_claims,
    tables=lambda study: {"ablation": study[ABLATION].to_frame()},
)
PLANTED_UNITS: Part[Demo, UnitGroups] = Part(
    "planted_groups",
    UnitGroups,
    lambda study: _groups(study, PLANTED, ("mlp",)),  # only neurons were planted: only neurons compete
    says="planted units: ablation curve",
    tables=lambda study: {"planted_groups": study[PLANTED_UNITS].to_frame()},
)
CURVE: Part[Demo, AblationTable] = Part(
    "planted_units",
    AblationTable,
    _remove_planted,
    section=_show_planted,
    claims=_claim_planted,
    tables=lambda study: {"planted_units": study[CURVE].to_frame()},
)
PROFILES: Part[Demo, UnitProfiles] = Part(
    "profiles",
    UnitProfiles,
    lambda study: scu_profiles(
        study.model,
        study[UNITS],
        {kind: study.prompts(kind, study.settings.calibration, "train") for kind in ("malicious", "utility")},
    ),
    says="what drives the safety-critical units, and what they write",
    tables=lambda study: {"profiles": study[PROFILES].to_frame()},
)
