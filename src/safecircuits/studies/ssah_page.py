"""The report of an SSAH study: the paper's figures and tables for this model, beside the published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from safecircuits.published import published
from safecircuits.report import captions, tables
from safecircuits.report.data import ablations, rates, unit_counts
from safecircuits.report.direction_figures import plot_by_block, plot_by_token, plot_direction_gap
from safecircuits.report.pressure_figure import plot_pressure
from safecircuits.report.rate_figures import plot_behavior
from safecircuits.report.score_figures import plot_score_comparison, plot_stability
from safecircuits.report.sections import Exhibit
from safecircuits.report.study_figures import plot_study
from safecircuits.report.style import COLUMN, styled
from safecircuits.report.tables import Table
from safecircuits.report.text import percent, plain
from safecircuits.report.unit_figures import plot_ablation, plot_unit_map
from safecircuits.rundir import run_provenance
from safecircuits.sites import SITES
from safecircuits.stats import Share
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.ssah_conclusions import against, conclusions, times_longer
from safecircuits.studies.ssah_parts import CONDITIONS, SsahResults
from safecircuits.studies.ssah_published import measured_numbers, nearest_tables
from safecircuits.studies.ssah_saved import saved_study
from safecircuits.studies.ssah_training import BUDGETS, budget_name, random_name
from safecircuits.studies.study_page import StudyPage, arms_table, compared_table, with_interval
from safecircuits.units.ablation import AblationTable
from safecircuits.units.groups import GROUPS
from safecircuits.units.transfer import AttributeTransfer


@styled
def report_page(study: SsahResults, provenance: Mapping[str, Any]) -> tuple[str, dict[str, Figure]]:
    """The report as HTML, and its figures by name."""
    made = StudyPage()
    parts = (_behavior, _direction, _scores, _groups, _removals, _pressures, _stability)
    for add in (*parts, _freezing, _transfers, _budget, _meeting, _equal, _published):
        add(study, made)
    shape, s = study.shape, study.settings
    n_units = sum(shape.n_layers * shape.n_units(site) for site in SITES)
    facts = {
        "architecture": shape.architecture,
        "layers": shape.n_layers,
        "units": n_units,
        "groups": f"SCU {percent(s.scu)}, UCU {percent(s.ucu)}, RU {percent(s.ru)}",
        "scores": "; ".join(f"{name}: {cut}" for name, cut in s.cuts.items()),
        "seeds": len(s.seeds),
    }
    return made.render(f"Superficial safety alignment of “{study.name}”", facts, conclusions(study), provenance)


def saved_page(folder: Path, record: Mapping[str, Any]) -> str:
    """The report of a complete run of ``safecircuits study ssah``, from its saved results."""
    return report_page(saved_study(folder), run_provenance(record))[0]


def _behavior(study: SsahResults, made: StudyPage) -> None:
    record = {name: rates(behavior) for name, behavior in study.behavior.items()}
    made.figures["behavior"] = figure = Figure(figsize=(COLUMN[0], 0.85 + 0.42 * len(record)))
    plot_behavior(record, ax=figure.subplots())
    made.add(
        "behavior",
        "What the models do",
        "Refusal of harmful prompts, over-rejection of harmless ones that sound dangerous, and known answers given "
        "exactly right, before anything is removed or trained.",
        [Exhibit("behavior", "Rates of each model", captions.behavior(record), [tables.behavior(record)])],
    )


def _direction(study: SsahResults, made: StudyPage) -> None:
    exhibits = []
    for number, (reading, found) in enumerate(study.probes.items()):
        names: dict[str, Any] = {"tokens": plot_by_token, "blocks": plot_by_block, "gap": plot_direction_gap}
        for kind, draw in names.items() if number == 0 else [("gap", plot_direction_gap)]:
            made.figures[f"direction_{number}_{kind}"] = figure = Figure(figsize=COLUMN)
            draw(found.probes, ax=figure.subplots())
            label = {
                "tokens": "Distance at the last block by generated tokens (Figure 2), bands span the suffixes",
                "blocks": "Distance by block (Figure 3), bands span the suffixes",
                "gap": "Gap by block with 95 % intervals (Figure 4), above zero where the block leans to refusing",
            }[kind]
            exhibits.append(Exhibit(f"direction_{number}_{kind}", label, f"States: {reading}. {label}."))
    rows = [
        [
            reading,
            name,
            *(f"{float(probe.distance(side)[-1, -1]):.3f}" for side in ("benign", "malicious")),
            *(str(probe.gap().leaning.count(sign)) for sign in (1, -1, 0)),
            str(Share.of(probe.refused)),
            str(probe.agreement()) if probe.measured().any() else "–",
        ]
        for reading, found in study.probes.items()
        for name, probe in found.probes.items()
    ]
    columns = ["reading", "model", "d_benign", "d_malicious", "to refusing", "to answering", "neither"]
    columns += ["refused", "verdict agrees with the answer"]
    exhibits.append(
        Exhibit(
            None,
            "All readings",
            "At the last block and step; blocks by where they lean.",
            [Table("Reasoning direction", columns, rows)],
        )
    )
    suffixes = study.settings.suffixes
    made.add(
        "direction",
        "Which way the hidden states lean",
        "How far a refusing (benign) and a complying (malicious) opening move the hidden states of a harmful prompt: "
        "1 − cosine. A model that leans to refusing is moved less by the refusing one. The paper does not say which "
        "hidden states it compares, so several readings are shown; subtracting the query answers the objection that "
        f"what a prompt is about dominates the cosine. Refusing: {', '.join(suffixes.benign)}. Complying: "
        f"{', '.join(suffixes.malicious)}.",
        exhibits if study.probes else [],
    )


def _scores(study: SsahResults, made: StudyPage) -> None:
    if study.scores is None:
        return
    made.figures["scores"] = figure = Figure(figsize=(COLUMN[0], 3.1))
    plot_score_comparison(study.scores, ax=figure.subplots())
    rows = [
        [str(curve.candidate), "none found" if curve.smallest is None else str(curve.smallest), f"{curve.area:.2f}"]
        for curve in study.scores.ranked()
    ]
    columns = ["score", "fewest units that halve refusal", "area between the curves"]
    made.add(
        "scores",
        "How soon each score finds refusal",
        "Units removed from the highest score down. The fewest that halve refusal at a cost of at most 2 points of "
        "utility measure a score better than any share chosen beforehand.",
        [Exhibit("scores", "Ablation curves", "Solid: refusal. Dashed: utility.", [Table("Scores", columns, rows)])],
    )


def _groups(study: SsahResults, made: StudyPage) -> None:
    exhibits = []
    for number, (name, groups) in enumerate(study.groups.items()):
        counts = unit_counts(groups)
        made.figures[f"groups_{number}"] = figure = Figure(figsize=(COLUMN[0], 3.2))
        plot_unit_map(groups, ax=figure.subplots())
        shares = ", ".join(f"{group} {percent(share)}" for group, share in groups.shares().items())
        label = f"Units of each group by layer, {name}"
        exhibits.append(Exhibit(f"groups_{number}", label, f"By {name}: {shares}.", [tables.unit_map(counts)]))
    made.add(
        "groups",
        "The four groups",
        "Each unit (MLP neuron or attention head) has a score on refusals (S) and one on ordinary answers (U). "
        "Safety-critical units (SCU) have the highest S − U, utility-critical ones (UCU) the lowest, redundant ones "
        "(RU) the lowest S + U; the rest are complex (CU). An attribution says what promotes refusal and nothing of "
        "what utility needs, so it cuts the SCU alone. Shares are the paper’s unless others were asked for.",
        exhibits,
    )


def _removals(study: SsahResults, made: StudyPage) -> None:
    exhibits = []
    for number, (name, found) in enumerate(study.removals.items()):
        made.figures[f"removals_{number}"] = figure = Figure(figsize=COLUMN)
        plot_ablation(found["zero"], ax=figure.subplots())
        numbers = [_removal_table(condition, table) for condition, table in found.items()]
        if name in study.pruned:
            numbers.append(_pruned_table(study, name))
        caption = f"Groups by {name}. Diamonds and dots: without as many random units, the mean and each draw."
        exhibits.append(Exhibit(f"removals_{number}", f"Groups by {name} removed", caption, numbers))
    made.add(
        "removals",
        "What each group carries (Table 1)",
        "Each group is removed and, beside it, as many random units of the same sites. If a group is what its name "
        "says, refusal goes with the SCU and utility with the UCU, and nothing much with the RU.",
        exhibits,
    )


def _removal_table(condition: str, table: AblationTable) -> Table:
    groups, controls = ablations(table)
    # Of few draws the least and the most say more than an interval that may leave the unit range.
    spread = {
        name: {
            **row,
            **{
                f"{rate}_interval": [min(row[draws]), max(row[draws])]
                for draws in row
                if draws.endswith("_draws")
                for rate in [draws.removesuffix("_draws")]
            },
        }
        for name, row in controls.items()
    }
    plain_table = tables.ablation(groups, spread)
    title = f"Rates left [95 %; of random draws least, most]: {CONDITIONS[condition]}"
    return Table(title, plain_table.columns, plain_table.rows)


def _pruned_table(study: SsahResults, name: str) -> Table:
    rows = []
    for group, found in study.pruned[name].items():
        shares = found.behavior.shares
        rows.append(
            [
                group,
                str(found.n_units),
                f"{found.parameters_after:,}".replace(",", " "),
                percent(found.parameters_after / found.parameters_before),
                *(str(shares[rate]) for rate in ("malicious_refused", "utility")),
            ]
        )
    columns = ["cut out", "units", "parameters left", "of all", "malicious refused", "utility"]
    return Table("Cut out of the weights: smaller checkpoints", columns, rows)


def _pressures(study: SsahResults, made: StudyPage) -> None:
    if not study.pressures:
        return
    made.figures["pressure"] = figure = Figure(figsize=(COLUMN[0], 3.2))
    plot_pressure(study.pressures, ax=figure.subplots())
    first = next(iter(study.pressures.values()))
    rows = [
        [name, *(str(Share.of(attempt.refused)) for attempt in found.attempts)]
        for name, found in study.pressures.items()
    ]
    columns = ["removed", *(str(attempt.condition) for attempt in first.attempts)]
    s = study.settings
    asked = "" if s.system is None else f" System prompt: “{s.system}”."
    begun = "" if s.prefill is None else f" Answers are made to start with: “{s.prefill}”."
    made.add(
        "pressure",
        "Refusal under pressure",
        "Whether harmful prompts are still refused with a system prompt, and once an answer already starts compliant."
        + asked
        + begun,
        [
            Exhibit(
                "pressure",
                "Refusal by removed units",
                "Lines are 95 % intervals.",
                [Table("Malicious refused", columns, rows)],
            )
        ],
    )


def _stability(study: SsahResults, made: StudyPage) -> None:
    exhibits = []
    for number, (name, found) in enumerate(study.stability.items()):
        made.figures[f"stability_{number}"] = figure = Figure(figsize=(4.2, 3.6))
        plot_stability(found, ax=figure.subplots())
        rows = [
            [str(row["what"]), f"{row['mean']:.2f}", f"{row['least']:.2f}", f"{row['chance']:.3f}"]
            for row in found.to_frame().to_dict("records")
        ]
        table = Table(f"Between halves of the prompts, {name}", ["", "mean", "least", "chance"], rows)
        exhibits.append(Exhibit(f"stability_{number}", f"Overlap of the SCU by {name}", f"By {name}.", [table]))
    if study.agreement is not None:
        rows = [
            [str(row["what"]), f"{row['mean']:.2f}", f"{row['chance']:.3f}"]
            for row in study.agreement.to_frame().to_dict("records")
        ]
        table = Table(f"Between {' and '.join(study.agreement.names)}", ["", "overlap", "chance"], rows)
        exhibits.append(Exhibit(None, "Groups of different scores", "On the same prompts.", [table]))
    made.add(
        "stability",
        "Would other prompts have found the same units?",
        "Groups on random halves of the scored prompts, compared pair by pair.",
        exhibits,
    )


def _freezing(study: SsahResults, made: StudyPage) -> None:
    tuned = study.finetuning
    if tuned is None:
        return
    drawn = ["full", "lora", *(f"{kind} ({name})" for kind in ("SCU+6%CU", "SCU+all CU") for name in study.groups)]
    exhibits = []
    for number, scenario in enumerate(tuned.scenarios):
        made.figures[f"finetuning_{number}"] = figure = Figure(figsize=(COLUMN[0], 3.4))
        plot_study(tuned, scenario, arms=drawn, ax=figure.subplots())
        exhibits.append(_tuned_exhibit(tuned, scenario, drawn, f"finetuning_{number}"))
    frozen = Table("Frozen in each arm", ["arm", "frozen"], [[arm, what] for arm, what in tuned.frozen.items()])
    exhibits.append(Exhibit(None, "Arms", "What each arm freezes.", [frozen]))
    made.add(
        "freezing",
        "What fine-tuning leaves of refusal (Table 2)",
        f"The same fine-tuning with different units frozen, {len(study.settings.seeds)} seeds. Compared with full "
        "fine-tuning at equal steps and, since an arm that learns less also forgets less, at equal loss on the task. "
        "The paper’s schedule doubles the epochs, and freezes all CU in a first epoch before the 6 %.",
        exhibits,
    )


def _tuned_exhibit(tuned: FinetuningStudy, scenario: str, drawn: list[str], figure_name: str) -> Exhibit:
    """One scenario: its curve, what is left, and every arm against full fine-tuning and against its control."""
    summary = tuned.summary()
    others = [arm for arm in tuned.arms if arm != "full"]
    # The name says how long an arm trained: the end of twice the steps is not "equal steps".
    compared = [
        one
        for arm in others
        if times_longer(tuned, scenario, arm) == 1
        for one in against(tuned, scenario, arm, "full")
    ]
    longer = [
        one for arm in others if times_longer(tuned, scenario, arm) > 1 for one in against(tuned, scenario, arm, "full")
    ]
    controlled = [
        one
        for arm in others
        if random_name(arm) in tuned.arms
        for one in against(tuned, scenario, arm, random_name(arm))
    ]
    shown = [arms_table(summary[summary["scenario"] == scenario]), compared_table(compared)]
    if longer:
        title = "Longer arms against full fine-tuning; “equal steps” are the ends of both"
        shown.append(compared_table(longer, title))
    if controlled:
        shown.append(compared_table(controlled, "Against as many random units, paired by seed"))
    return Exhibit(figure_name, f"Refusal against task loss in {scenario}", _drawn(tuned, scenario, drawn), shown)


def _drawn(tuned: FinetuningStudy, scenario: str, drawn: list[str]) -> str:
    left_out = "" if set(tuned.arms) <= set(drawn) else " The tables have the other arms."
    return (
        f"{scenario}. Thin lines are seeds, thick ones their mean; further right, more of the task is learnt.{left_out}"
    )


def _transfers(study: SsahResults, made: StudyPage) -> None:
    exhibits = []
    for number, (name, found) in enumerate(study.transfers.items()):
        for place, (label, transfer) in enumerate(found.items()):
            key = f"transfer_{number}_{place}"
            made.figures[key] = figure = Figure(figsize=(5.2, 3.6))
            transfer.plot(figure.subplots())
            caption = f"By {name}: {label}. {'. '.join(str(transfer).splitlines())}."
            exhibits.append(Exhibit(key, f"By {name}: {label}", caption, [_transfer_table(transfer)]))
    made.add(
        "transfer",
        "Which units changed group (Figures 5 and 6)",
        "Units classified before and after training with the same data and shares. A base model knows no safety, so "
        "what is not redundant in it counts as utility-critical, as in the paper.",
        exhibits,
    )


def _transfer_table(transfer: AttributeTransfer) -> Table:
    rows = []
    for i, group in enumerate(GROUPS):
        if int(transfer.counts[i].sum()):
            cells = [
                f"{int(transfer.counts[i, j])} ({percent(float(transfer.matrix[i, j]))})" for j in range(len(GROUPS))
            ]
            rows.append([group, *cells])
    return Table("Units by group before (row) and after", ["", *GROUPS], rows)


def _budget(study: SsahResults, made: StudyPage) -> None:
    if study.budget is None:
        return
    made.figures["budget"] = figure = Figure(figsize=(COLUMN[0], 3.0))
    study.budget.plot(figure.subplots())
    frame = study.budget.to_frame()
    shown = [name for name in ("malicious_refused", "over_rejected", "utility", "task_score") if name in frame]
    rows = [
        [
            str(row["arm"]),
            *(with_interval(row, name) for name in shown),
            f"{100 * row['tax']:+.1f}".replace("-", "−"),
            f"{row['n_trainable']:,}".replace(",", " "),
            f"{row['training_bytes'] / 2**20:.1f} MiB",
            str(row["steps"]),
        ]
        for row in frame.to_dict("records")
    ]
    heads = [name.replace("_", " ") for name in shown]
    columns = ["trained", *heads, "tax, points", "parameters", "memory", "steps"]
    table = Table("The base model after alignment: mean over seeds [95 %]", columns, rows)
    arms = "; ".join(f"{row['arm']} freezes {row['trained']}" for row in frame.to_dict("records"))
    made.add(
        "budget",
        "Redundant units as alignment budget (Table 4)",
        f"The {100 * study.budget.share:g} % of the base model’s units of lowest S + U are trained on refusals and "
        "answers, and nothing else is. The tax is utility before minus after. In a reduced size; the full grid is a "
        f"benchmark of its own. {arms}.",
        [Exhibit("budget", "Rates after alignment, by what was trained", "Before: the base model.", [table])],
    )


def _meeting(study: SsahResults, made: StudyPage) -> None:
    if study.block is None:
        return
    exhibits = []
    for number, (name, found) in enumerate(study.enrichments.items()):
        made.figures[f"enrichment_{number}"] = figure = Figure(figsize=(COLUMN[0], 3.0))
        found.plot(figure.subplots())
        overlap = study.overlaps[name]
        caption = f"By {name}, {str(found).splitlines()[-1]}. Masks: {overlap}."
        rows = [
            [
                plain(row["layer"]),
                plain(row["units"]),
                f"{row['expected']:.1f}",
                f"{row['chance_low']:g} to {row['chance_high']:g}",
                f"{row['p']:.2g}",
                f"{row['q']:.2g}",
            ]
            for row in found.to_frame().to_dict("records")
        ]
        columns = ["layer", "SCU", "by chance", "95 % of permutations", "p", "q"]
        table = Table(f"SCU by {name}, by layer", columns, rows)
        exhibits.append(Exhibit(f"enrichment_{number}", f"SCU by {name} by layer", caption, [table]))
    made.add(
        "enrichment",
        "Where the two papers meet: do the units lie in the safety layers?",
        f"Safety layers {study.block.layers} ({study.block.found_by}). If the SCU were spread over the layers at "
        "random, a layer would hold a hypergeometric number of them.",
        exhibits,
    )


def _equal(study: SsahResults, made: StudyPage) -> None:
    tuned = study.equal
    if tuned is None or study.block is None:
        return
    scenario = tuned.scenarios[0]
    kinds = ("units", "layers", "both", "intersection", "random")
    exhibits = []
    for number, budget in enumerate(BUDGETS):
        names = [budget_name(kind, budget) for kind in kinds if budget_name(kind, budget) in tuned.arms]
        if not names:
            continue
        made.figures[f"equal_{number}"] = figure = Figure(figsize=(COLUMN[0], 3.1))
        plot_study(tuned, scenario, arms=["full", *names], ax=figure.subplots())
        summary = tuned.summary()
        rows = summary[summary["arm"].isin(["full", *names])]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        found = [one for name in names for one in against(tuned, scenario, name, "full")]
        title = "One arm against the other, paired by seed"
        other = [one for a, b in pairs for one in against(tuned, scenario, a, b)]
        exhibits.append(
            Exhibit(
                f"equal_{number}",
                f"Refusal against task loss, {budget} of the layers’ parameters frozen",
                f"{budget.capitalize()} of the layers’ parameters frozen; {scenario}. Thin lines are seeds, thick ones "
                "their mean.",
                [arms_table(rows), compared_table(found), compared_table(other, title)],
            )
        )
    made.add(
        "equal",
        "Where the two papers meet: units or layers, at equal budgets",
        f"Equally many parameters frozen: the SCU ({study.best}) and then the highest units by S − U, wherever they "
        f"lie; units of the safety layers {study.block.layers} by seed, or all of them; half of the budget for each; "
        "the first such units inside the layers; and random units. "
        f"{len(study.settings.seeds)} seeds.",
        exhibits,
    )


def _published(study: SsahResults, made: StudyPage) -> None:
    """The paper's numbers of this model, or of its own models where this one is not among them."""
    rows = published("ssah", model=study.source)
    if rows.empty:
        made.add(
            "published",
            "Beside the published numbers",
            "The paper’s numbers of its own models. This model is none of them, so there is no published number to "
            "hold it against; what was measured of it stands below. Attack success here is the share that is not "
            "refused. Cells that were not run are empty.",
            [Exhibit(None, "Published and measured", "In percent.", nearest_tables(study))],
        )
        return
    measured = measured_numbers(study)
    listed = [
        [*key, plain(value), measured.get(key, "")]
        for *key_parts, value in rows[["table", "setting", "metric", "value"]].itertuples(index=False)
        for key in [tuple(key_parts)]
    ]
    known = sum(bool(row[-1]) for row in listed)
    made.add(
        "published",
        "Beside the published numbers",
        "What the paper reports of this model, and what was measured here; empty where it was not run. Attack success "
        "is the share of harmful prompts that are not refused.",
        [
            Exhibit(
                None,
                "Published and measured",
                f"{known} of {len(listed)} have a number measured here.",
                [Table("SSAH", ["table", "setting", "metric", "published", "measured"], listed)],
            )
        ],
    )
