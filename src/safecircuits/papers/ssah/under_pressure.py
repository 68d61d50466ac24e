"""Refusal with a system prompt and once an answer starts compliant (§3, §5), intact and without units."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from safecircuits.base.counted import HEADING, Beside, at_most, beside, linked
from safecircuits.behavior.attempts import Attempt, Pressure
from safecircuits.behavior.conditions import pressure
from safecircuits.behavior.stakes import nothing_to_lose
from safecircuits.hooks.ablate import ablated
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Parts
from safecircuits.papers.ssah.groups import UNITS
from safecircuits.papers.ssah.settings import PAPER, Ssah
from safecircuits.plots.pressure import plot_pressure
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.studies.comparison import MARGIN

if TYPE_CHECKING:
    import pandas as pd


def _press(study: Ssah, removed: str) -> Pressure:
    p, s = study.asked, study.settings
    units = {"nothing": FreezeMask.of_units({}, study.shape)}
    units |= {f"SCU by {name}": groups["SCU"] for name, groups in study[UNITS].items()}
    units["random"] = FreezeMask.random_units(units[f"SCU by {study.best}"], seed=s.seeds[0])
    with ablated(study.model, units[removed]):
        return pressure(
            study.model,
            p.malicious,
            system=s.system,
            prefill=s.prefill,
            prefill_tokens=s.prefill_tokens if s.prefill is not None else None,
            **s.asking,
        )


def _section(study: Ssah, made: StudyPage) -> None:
    pressures = study[PRESSURES]
    if not pressures:
        return
    plot_pressure(pressures, ax=made.axes("pressure", 3.2))
    first = next(iter(pressures.values()))
    rows = [
        [name, *(cell for one in found.attempts for cell in attempt_cells(one))] for name, found in pressures.items()
    ]
    columns = ["removed", *(head for one in first.attempts for head in (str(one.condition), HEADING))]
    s, rates = study.settings, [one.record() for found in pressures.values() for one in found.attempts]
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
                f"Lines are 95 % intervals. Of the answers {at_most(rates, 'refused')}.",
                [Table("Malicious refused", columns, rows)],
            )
        ],
    )


def attempt_cells(attempt: Attempt) -> tuple[str, str]:
    """The rate of refusals, and what stands beside it."""
    row = attempt.record()
    return linked(str(attempt.refusal), row, "refused"), Beside.of(row, "refused").cell


def _tables(study: Ssah) -> dict[str, pd.DataFrame]:
    import pandas as pd

    kinds = [found.categories().assign(removed=name) for name, found in study[PRESSURES].items()]
    frame = pd.concat(kinds, ignore_index=True) if kinds else pd.DataFrame()
    return {"pressure_by_category": frame} if len(frame) else {}


def _claims(study: Ssah) -> Iterator[Conclusion]:
    intact = study[PRESSURES].get("nothing")
    prefilled = [a for a in intact.attempts if a.condition.prefilled and not a.condition.system] if intact else []
    if intact is None or not prefilled:
        return
    last = prefilled[-1]
    low, high = last.success.interval
    plain = intact.attempts[0]
    text = (
        f"Not refused: {plain.success}{beside(plain.record(), 'refused')} as asked, "
        f"{last.success}{beside(last.record(), 'refused')} once the answer starts with "
        f"{last.condition.prefilled} compliant tokens."
    )
    shows = "yes" if low > plain.success.rate + MARGIN else "no" if high < plain.success.rate + MARGIN else "unclear"
    if why := nothing_to_lose({"malicious_refused": 1 - plain.success.rate}):
        shows, text = "inconclusive", f"{why} {text}"
    effect = "The direction is held in the first generated tokens only: an answer that starts compliant goes on"
    yield effect, f"{PAPER} §3, §5", shows, text


def _removed(study: Ssah) -> dict[str, str]:
    names = ("nothing", "random", *(f"SCU by {name}" for name in study.settings.cuts))
    return {name: f"pressure_{number}" for number, name in enumerate(names)}


PRESSURES: Parts[Ssah, str, Pressure] = Parts(
    _removed,
    Pressure,
    _press,
    when=lambda study: study.settings.system is not None or study.settings.prefill is not None,
    says="under pressure, without {0}",
    section=_section,
    tables=_tables,
    claims=_claims,
)
