"""Profiles of units as a page holds them: layer, unit and prompt, each leading to the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from safecircuits.report.answers import HARMLESS
from safecircuits.report.scripts import as_data
from safecircuits.units.profiles import UnitProfiles

READABLE = (*HARMLESS, "answered", "known")
"""Names of sets whose prompts may be shown to anybody."""


@dataclass(frozen=True)
class UnitsShown:
    """The units of a page: the data, and how many prompts' texts are left out."""

    data: Markup
    withheld: int


def units_shown(results: Mapping[str, Any], *, texts: bool) -> UnitsShown | None:
    """All profiles among results, by the names of these; None if there are none.

    Args:
        texts: whether prompts of harmful sets are shown, or only which they are.
    """
    found = dict(_within(results))
    if not found:
        return None
    withheld = set()
    groups = []
    for name, one in found.items():
        readable = [texts or of in READABLE for of in one.sets]
        withheld |= {prompt for row in one.strongest.tolist() for prompt in row if not readable[prompt]}
        groups.append(_group(name, one, readable))
    return UnitsShown(as_data(groups), len(withheld))


def _within(results: Mapping[str, Any], before: str = "") -> list[tuple[str, UnitProfiles]]:
    found = []
    for name, one in results.items():
        label = f"{before}{name}".replace("_", " ")
        if isinstance(one, UnitProfiles):
            found.append((label, one))
        elif isinstance(one, Mapping):
            found += _within({str(key): value for key, value in one.items()}, f"{label} · ")
    return found


def _group(name: str, found: UnitProfiles, readable: list[bool]) -> dict[str, Any]:
    means = {of: values.tolist() for of, values in found.by_set().items()}
    units = []
    for row, (site, layer, unit) in enumerate(found.units):
        writes = [
            [[word, _round(value)] for word, value in zip(words[row], logits[row].tolist(), strict=False)]
            for words, logits in (
                (found.promoted, found.promoted_logits),
                (found.suppressed, found.suppressed_logits),
            )
        ]
        shown = found.strongest[row].tolist()
        units.append(
            {
                "site": site,
                "layer": layer,
                "unit": unit,
                "score": _round(float(found.scores[row])),
                "means": [_round(values[row]) for values in means.values()],
                "peaks": [_round(value) for value in found.peaks[row].tolist()],
                "top": shown,
                "along": [
                    [_round(value) for value in found.along[row, place, : len(found.tokens[prompt])].tolist()]
                    for place, prompt in enumerate(shown)
                ],
                "adds": writes[0],
                "takes": writes[1],
            }
        )
    prompts = [
        [
            found.ids[i],
            found.sets[i],
            found.prompts[i] if readable[i] else None,
            list(found.tokens[i]) if readable[i] else None,
        ]
        for i in range(len(found.ids))
    ]
    return {"label": name, "sets": list(means), "units": units, "prompts": prompts}


def _round(value: float) -> float | None:
    return None if value != value else float(f"{value:.3g}")
