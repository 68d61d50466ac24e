"""Which way the hidden states lean (§3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safecircuits.base.counted import HEADING, Beside, said
from safecircuits.base.progress import without_bars
from safecircuits.base.stats import Share
from safecircuits.base.text import percent
from safecircuits.direction.compare import DirectionComparison, compare_directions
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Parts
from safecircuits.papers.ssah.behavior import BEHAVIOR
from safecircuits.papers.ssah.settings import PAPER, Ssah
from safecircuits.plots.direction import plot_by_block, plot_by_token, plot_direction_gap
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table


def _probe(study: Ssah, reading: str) -> DirectionComparison:
    s = study.settings
    asked = study.asked.malicious.at_most(s.probe_prompts)
    sources = {study.name: study.source, **study.others}
    with without_bars():
        return compare_directions(sources, asked, suffixes=s.suffixes, **s.asking, **s.placing, **s.readings[reading])


def _section(study: Ssah, made: StudyPage) -> None:
    exhibits = []
    for number, (reading, found) in enumerate(study[PROBES].items()):
        names: dict[str, Any] = {"tokens": plot_by_token, "blocks": plot_by_block, "gap": plot_direction_gap}
        for kind, draw in names.items() if number == 0 else [("gap", plot_direction_gap)]:
            draw(found.probes, ax=made.axes(f"direction_{number}_{kind}"))
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
            Beside.of({} if probe.tally is None else probe.tally.record("malicious"), "malicious_refused").cell,
            str(probe.agreement()) if probe.measured().any() else "–",
        ]
        for reading, found in study[PROBES].items()
        for name, probe in found.probes.items()
    ]
    columns = ["reading", "model", "d_benign", "d_malicious", "to refusing", "to answering", "neither"]
    columns += ["refused", HEADING, "verdict agrees with the answer"]
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
        exhibits if study[PROBES] else [],
    )


def _claims(study: Ssah) -> Iterator[Conclusion]:
    for number, (reading, found) in enumerate(study[PROBES].items()):
        parts, right = [], []
        for name, probe in found.probes.items():
            gap = probe.gap()
            wanted = 1 if study[BEHAVIOR][name].rates["malicious_refused"] > 0.5 else -1
            leaning = gap.leaning.count(wanted)
            right.append(leaning == probe.n_layers)
            way = "refusing" if wanted > 0 else "answering"
            parts.append(
                f"{name} refuses {said(study[BEHAVIOR][name].figures, 'malicious_refused')}; {leaning} of "
                f"{probe.n_layers} blocks lean to {way}, last block {float(gap.mean[-1]):+.3f} "
                f"[{float(gap.low[-1]):+.3f}, {float(gap.high[-1]):+.3f}]".replace("-", "−")
            )
        verdicts = found.verdicts() if all(probe.measured().any() for probe in found.probes.values()) else None
        if verdicts is not None:
            parts.append(f"verdict and answer agree in {percent(float(verdicts.agreement[0, 1]))} of all prompts")
        effect = "Every block leans as the model answers, towards refusing if aligned and towards answering if not"
        shows = "yes" if all(right) else "unclear" if any(right) else "no"
        where = f"{PAPER} §3" if number == 0 else f"{PAPER} §3, control"
        text = f"d_malicious − d_benign: {'; '.join(parts)}."
        if not any(study[BEHAVIOR][name].rates["malicious_refused"] > 0.5 for name in found.probes):
            shows, text = "inconclusive", f"No model here refuses, so that none can lean towards it. {text}"
        yield f"{effect} ({reading})", where, shows, text


PROBES: Parts[Ssah, str, DirectionComparison] = Parts(
    lambda study: {reading: f"probe_{number}" for number, reading in enumerate(study.settings.readings)},
    DirectionComparison,
    _probe,
    says="reasoning direction: {0}",
    section=_section,
    claims=_claims,
)
