"""Would other prompts, or other scores, have found the same units?"""

from __future__ import annotations

from collections.abc import Iterator

from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Maybe, Parts
from safecircuits.papers.ssah.groups import UNITS, classify
from safecircuits.papers.ssah.settings import Ssah
from safecircuits.plots.scores import plot_stability
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.units.resampling import Stability, calibration_subsets, compare_groups


def _half(study: Ssah) -> int:
    return min(len(study.asked.safety), len(study.asked.utility)) // 2


def _on_halves(study: Ssah, name: str) -> Stability:
    p, s = study.asked, study.settings
    subsets = calibration_subsets(p.safety, p.utility, n=_half(study), draws=s.draws, seed=s.seeds[0])
    cut = s.cuts[name]
    return compare_groups({subset: classify(study, study.model, cut, sets) for subset, sets in subsets.items()})


def _section(study: Ssah, made: StudyPage) -> None:
    agreement = study[AGREEMENT]
    exhibits = []
    for number, (name, found) in enumerate(study[STABILITY].items()):
        plot_stability(found, ax=made.axes(f"stability_{number}", 3.6))
        rows = [
            [str(row["what"]), f"{row['mean']:.2f}", f"{row['least']:.2f}", f"{row['chance']:.3f}"]
            for row in found.to_frame().to_dict("records")
        ]
        table = Table(f"Between halves of the prompts, {name}", ["", "mean", "least", "chance"], rows)
        exhibits.append(Exhibit(f"stability_{number}", f"Overlap of the SCU by {name}", f"By {name}.", [table]))
    if agreement is not None:
        rows = [
            [str(row["what"]), f"{row['mean']:.2f}", f"{row['chance']:.3f}"]
            for row in agreement.to_frame().to_dict("records")
        ]
        table = Table(f"Between {' and '.join(agreement.names)}", ["", "overlap", "chance"], rows)
        exhibits.append(Exhibit(None, "Groups of different scores", "On the same prompts.", [table]))
    made.add(
        "stability",
        "Would other prompts have found the same units?",
        "Groups on random halves of the scored prompts, compared pair by pair.",
        exhibits,
    )


def _claims(study: Ssah) -> Iterator[Conclusion]:
    agreement = study[AGREEMENT]
    for name, found in study[STABILITY].items():
        rows = found.to_frame().set_index("what")
        scu = rows.loc["Jaccard SCU"]
        rank = rows.loc["rank correlation of S − U"]
        text = (
            f"{len(found.names)} random halves of the prompts: Jaccard overlap of the SCU {scu['mean']:.2f} on average "
            f"(least {scu['least']:.2f}, chance {scu['chance']:.3f}), rank correlation {rank['mean']:.2f}."
        )
        shows = "yes" if scu["least"] >= 0.5 else "no" if scu["mean"] < 0.5 else "unclear"
        if not scu["chance"]:
            shows, text = "inconclusive", f"The share of SCU is less than a unit: there are none to find again. {text}"
        yield f"Other prompts find the same SCU (by {name})", "reviewers’ control", shows, text
    if agreement is not None:
        table = agreement.jaccard["SCU"]
        overlap = float(table[0, -1])
        # Cuts may share S − U and differ in what SCU are cut by, so its rank correlation says nothing of the SCU.
        text = f"Jaccard overlap of the SCU {overlap:.2f} (chance {agreement.chance['SCU']:.3f})."
        names = agreement.names
        shows = "yes" if overlap >= 0.5 else "no"
        yield f"The scores {names[0]} and {names[-1]} find the same SCU", "control", shows, text


STABILITY: Parts[Ssah, str, Stability] = Parts(
    lambda study: study.by_cut("stability"),
    Stability,
    _on_halves,
    when=_half,
    says="stability of the groups by {0}",
)
AGREEMENT: Maybe[Ssah, Stability] = Maybe(
    "agreement",
    Stability,
    lambda study: compare_groups(study[UNITS]),
    when=lambda study: len(study[UNITS]) > 1,
    section=_section,
    claims=_claims,
)
