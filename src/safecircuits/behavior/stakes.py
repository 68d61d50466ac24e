"""What a model has to lose: a claim that removing or freezing keeps something says nothing where nothing is there."""

from __future__ import annotations

from collections.abc import Mapping

from safecircuits.base.notices import notify

LEAST = 0.05
"""A rate below this has less to lose than the five points by which it would have to fall."""

_WORDS = {
    "malicious_refused": "it refuses {} of the malicious prompts",
    "over_rejected": "it refuses {} of the over-rejection prompts",
    "utility": "it answers {} of the utility prompts right",
}


def nothing_to_lose(rates: Mapping[str, float], *names: str, least: float = LEAST) -> str:
    """Why a claim about these rates is inconclusive, as a sentence; empty if all of them have something to lose.

    Args:
        rates: of the model before anything is done to it, 0 to 1; those that were not measured are passed over.
        names: which of them the claim needs; all unless given.
        least: what a rate must at least be.
    """
    missing = [
        _WORDS[name].format(f"{round(100 * rates[name], 1):g} %")
        for name in names or rates
        if name in rates and name in _WORDS and not rates[name] >= least
    ]
    return f"There is nothing to lose: as the model is, {' and '.join(missing)}." if missing else ""


def tell_if_nothing_to_lose(rates: Mapping[str, float], work: str) -> None:
    """A notice, before the ``work`` begins, of what it cannot show on a model that has none of it."""
    if why := nothing_to_lose(rates, "malicious_refused", "utility"):
        notify(f"{why[:-1]}; {work} cannot show what carries or keeps that, and what it says of it is inconclusive")
