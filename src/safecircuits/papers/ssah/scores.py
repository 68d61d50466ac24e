"""How soon each score finds refusal (§4.1)."""

from __future__ import annotations

from collections.abc import Iterator

from safecircuits.base.text import percent
from safecircuits.base.vocabulary import SITES
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.stakes import nothing_to_lose
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Maybe
from safecircuits.papers.ssah.behavior import BEHAVIOR
from safecircuits.papers.ssah.settings import PAPER, Ssah
from safecircuits.plots.scores import plot_score_comparison
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.results.by_category import with_categories
from safecircuits.units.comparison import COUNTS, ScoreComparison, score_comparison


def measured(study: Ssah) -> EvaluationOptions:
    """What is measured of a model without some of its units."""
    p = study.asked
    return {"malicious": p.malicious, "utility": p.measured_utility, **study.settings.judging}


def _compare(study: Ssah) -> ScoreComparison:
    p, s = study.asked, study.settings
    assert p.normal is not None
    return score_comparison(
        study.model,
        p.safety,
        p.utility,
        p.normal,
        candidates=tuple(cut.safest for cut in s.cuts.values()),
        counts=_counts(study),
        proportionate=True,  # as groups are cut, so that a curve passes through its SCU
        resume=study.work("curves.jsonl"),
        progress=True,
        **measured(study),
    )


def _counts(study: Ssah) -> tuple[int, ...]:
    """How many units the curves remove; as many as are SCU among them, since the claim is about those."""
    s, shape = study.settings, study.shape
    n_units = sum(shape.n_layers * shape.n_units(site) for site in SITES)
    asked = s.counts or tuple(count for count in COUNTS if count <= n_units)
    return tuple(sorted({*asked, max(1, round(s.scu * n_units))}))


def _section(study: Ssah, made: StudyPage) -> None:
    scores = study[SCORES]
    if scores is None:
        return
    plot_score_comparison(scores, ax=made.axes("scores", 3.1))
    rows = [
        [str(curve.candidate), "none found" if curve.smallest is None else str(curve.smallest), f"{curve.area:.2f}"]
        for curve in scores.ranked()
    ]
    columns = ["score", "fewest units that halve refusal", "area between the curves"]
    made.add(
        "scores",
        "How soon each score finds refusal",
        "Units removed from the highest score down. The fewest that halve refusal at a cost of at most 2 points of "
        "utility measure a score better than any share chosen beforehand.",
        [Exhibit("scores", "Ablation curves", "Solid: refusal. Dashed: utility.", [Table("Scores", columns, rows)])],
    )


def _claims(study: Ssah) -> Iterator[Conclusion]:
    scores = study[SCORES]
    if scores is None:
        return
    named = {cut.safest: name for name, cut in study.settings.cuts.items()}
    within = round(study.settings.scu * scores.n_units)
    parts = []
    for curve in scores.curves:
        most = max(point.removed for point in curve.points)
        found = f"more than {most}" if curve.smallest is None else str(curve.smallest)
        parts.append(f"{named[curve.candidate]}: {found} units")
    paper = next(iter(study.settings.cuts.values()))
    first = next(curve for curve in scores.curves if curve.candidate == paper.safest)
    shows = "yes" if first.smallest is not None and first.smallest <= within else "no"
    text = (
        f"Fewest units whose removal halves refusal at 2 points of utility or less: {'; '.join(parts)}. "
        f"{percent(study.settings.scu)} of the {scores.n_units} units are {within}."
    )
    if why := nothing_to_lose(scores.intact.rates, "malicious_refused", "utility"):
        shows, text = "inconclusive", f"{why} {text}"
    yield "As few units as the paper says carry refusal, found by its score", f"{PAPER} §4.1", shows, text


SCORES: Maybe[Ssah, ScoreComparison] = Maybe(
    "scores",
    ScoreComparison,
    _compare,
    # Without refusals there is nothing to halve.
    when=lambda study: study.asked.normal is not None and study[BEHAVIOR][study.name].rates["malicious_refused"],
    says="ablation curves of the scores",
    section=_section,
    claims=_claims,
    tables=lambda study: {} if (found := study[SCORES]) is None else with_categories({"scores": found}),
)
