"""How many tokens deep alignment is: the divergence from the base by answer token, beside the prefill curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.base.counted import HEADING
from safecircuits.behavior.depth import AlignmentDepth, alignment_depth
from safecircuits.model.each_model import release
from safecircuits.model.pair import require_pair
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Maybe
from safecircuits.papers.ssah.behavior import BEHAVIOR
from safecircuits.papers.ssah.settings import Ssah
from safecircuits.papers.ssah.under_pressure import PRESSURES, attempt_cells
from safecircuits.plots.depth import plot_depth
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table

if TYPE_CHECKING:
    import pandas as pd

BASE = "base"
LEAST = 2
"""Refusals that a profile needs."""


def _comparable(study: Ssah) -> bool:
    """Whether there is a base whose tokens and layers are the model's, and refusals to follow; loads the base."""
    refused = study[BEHAVIOR][study.name].malicious
    if BASE not in study.others or refused is None or int(refused.sum()) < LEAST:
        return False
    study.beside = BASE, study.settings.load(study.others[BASE])
    try:
        require_pair(study.model, study.beside[1])
    except ValueError as error:
        assert study.run is not None
        study.run.say(f"the depth of alignment is not measured: {error}")
        _let_go(study)
        return False
    return True


def _let_go(study: Ssah) -> None:
    study.beside = None
    release()


def _measure(study: Ssah) -> AlignmentDepth:
    assert study.beside is not None
    s = study.settings
    return alignment_depth(
        study.model, study.beside[1], study.asked.malicious, detector=s.detector, template=s.template
    )


def beside_prefills(study: Ssah) -> pd.DataFrame:
    """By number of answer tokens: the divergence at the next one, what of it lies before, and refusal if prefilled."""
    depth, intact = study[DEPTH], study[PRESSURES].get("nothing")
    assert depth is not None
    return depth.to_frame().rename(columns={"token": "tokens"}) if intact is None else depth.beside(intact)


def _section(study: Ssah, made: StudyPage) -> None:
    depth = study[DEPTH]
    if depth is None:
        return
    intact = study[PRESSURES].get("nothing")
    plot_depth(depth, intact, ax=made.axes("depth"))
    under = {a.condition.prefilled: a for a in intact.attempts if not a.condition.system} if intact else {}
    rows = [
        [
            str(tokens),
            f"{kl:.3g}",
            f"{depth.share_in_first(tokens) if tokens else 0.0:.0%}",
            *(attempt_cells(under[tokens]) if tokens in under else ("–", "–")),
        ]
        for tokens, kl in enumerate(depth.by_position.tolist())
    ]
    columns = ["answer tokens before", "KL(aligned ‖ base) at the next, nats", "of it before", "refused", HEADING]
    made.add(
        "depth",
        "How many tokens deep?",
        "How far the model's next tokens are from its base's, token by token of its refusals (Qi et al., 2025), and "
        "beside it what is still refused when an answer begins with as many compliant tokens. "
        f"{depth.verdict[0].upper()}{depth.verdict[1:]}.",
        [
            Exhibit(
                "depth",
                "Divergence from the base by answer token",
                "With the 95 % band of all tokens at once; the dotted line is behind the tokens that hold 90 % of the "
                "divergence.",
                [Table("Divergence and refusal by answer token", columns, rows)],
            )
        ],
    )


DEPTH: Maybe[Ssah, AlignmentDepth] = Maybe(
    "depth",
    AlignmentDepth,
    _measure,
    when=_comparable,
    says="depth of alignment",
    then=_let_go,
    section=_section,
    tables=lambda study: {} if study[DEPTH] is None else {"depth": beside_prefills(study)},
)
