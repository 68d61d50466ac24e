"""Sections of the SSAH report about units: scores, groups, what is left without them, and whether they are stable."""

from __future__ import annotations

from safecircuits.base.record import ablations
from safecircuits.base.stats import Share
from safecircuits.base.text import percent
from safecircuits.papers.page import StudyPage
from safecircuits.papers.ssah.parts import CONDITIONS, SsahResults
from safecircuits.plots.pressure import plot_pressure
from safecircuits.plots.scores import plot_score_comparison, plot_stability
from safecircuits.plots.units import plot_ablation, plot_unit_map
from safecircuits.report import tables
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.units.ablation import AblationTable


def add_scores(study: SsahResults, made: StudyPage) -> None:
    """How soon each score finds refusal."""
    if study.scores is None:
        return
    plot_score_comparison(study.scores, ax=made.axes("scores", 3.1))
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


def add_groups(study: SsahResults, made: StudyPage) -> None:
    """The units of each group by layer, for every cut."""
    exhibits = []
    for number, (name, groups) in enumerate(study.groups.items()):
        counts = groups.record()
        plot_unit_map(groups, ax=made.axes(f"groups_{number}", 3.2))
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


def add_removals(study: SsahResults, made: StudyPage) -> None:
    """What is left without each group, by hook and cut out of the weights (Table 1)."""
    exhibits = []
    for number, (name, found) in enumerate(study.removals.items()):
        plot_ablation(found["zero"], ax=made.axes(f"removals_{number}"))
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


def add_pressures(study: SsahResults, made: StudyPage) -> None:
    """Refusal with a system prompt and once an answer starts compliant, without units."""
    if not study.pressures:
        return
    plot_pressure(study.pressures, ax=made.axes("pressure", 3.2))
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


def add_stability(study: SsahResults, made: StudyPage) -> None:
    """Whether other prompts, or other scores, find the same units."""
    exhibits = []
    for number, (name, found) in enumerate(study.stability.items()):
        plot_stability(found, ax=made.axes(f"stability_{number}", 3.6))
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
