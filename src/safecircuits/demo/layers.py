"""The demo's parts about layers: what the stages do, where their prompts part, which layers refuse, and the planted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from safecircuits import organism
from safecircuits.base.counted import Beside
from safecircuits.base.paired import LEVEL
from safecircuits.base.record import rows_of
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.evaluate import evaluate
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.stakes import tell_if_nothing_to_lose
from safecircuits.demo.gap_controls import gap_controls, grown
from safecircuits.demo.settings import SMALL, SUBJECT, Demo
from safecircuits.layers.comparison import GapComparison, compare_gaps
from safecircuits.layers.harmless_pairs import benign_controls
from safecircuits.layers.localization import Localization, localize
from safecircuits.layers.onset import OnsetRule, search_start
from safecircuits.layers.similarity import LayerGap, layer_gap
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage, behavior_exhibit, sweeps_exhibit
from safecircuits.papers.part import Part, Parts
from safecircuits.plots.layers import plot_gap
from safecircuits.plots.pairs import models_side_by_side
from safecircuits.report import tables
from safecircuits.report.sections import Exhibit

PAPER, PLANTED = "Safety Layers", "planted-layers"


def _normal(study: Demo, stage: str) -> Behavior:
    prompts = study.prompts("normal", study.settings.normal)
    return evaluate(study.stage(stage), malicious=prompts, max_new_tokens=study.settings.max_new_tokens)


def rates(study: Demo) -> dict[str, dict[str, Any]]:
    """The rates of each stage with their intervals."""
    normal = study[NORMAL]
    return {
        stage: {
            **found.record(),
            "normal_refused": normal[stage].shares["malicious_refused"].rate,
            "normal_refused_interval": list(normal[stage].shares["malicious_refused"].interval),
            **normal[stage].tallies["malicious"].record("normal"),
        }
        for stage, found in study[BEHAVIOR].items()
    }


def _show_behavior(study: Demo, made: StudyPage) -> None:
    made.add(
        "behavior",
        "What the models do",
        "Rates on held-out prompts. Refusal rate: harmful (malicious) prompts that are refused, as they should be. "
        "Over-rejection: harmless prompts that merely sound dangerous and are refused all the same. Normal refused: "
        "plainly harmless prompts that are refused. Utility: answers that are exactly right.",
        [behavior_exhibit(made, "behavior", "Refusal, over-rejection and utility of each model", rates(study))],
    )


def _gap(study: Demo, stage: str) -> LayerGap:
    n = study.settings.curve_prompts
    return layer_gap(study.stage(stage), study.prompts("normal", n), study.prompts("malicious", n))


def _opened(study: Demo) -> GapComparison:
    """The gap of the subject and of its base beside those between harmless sets, which a gap of harm has to beat."""
    n = study.settings.curve_prompts
    normal, borderline = study.prompts("normal", n), study.prompts("over_rejection", n)
    models = {stage: study.stage(stage) for stage in (SUBJECT, "base")}
    return compare_gaps(models, normal, study.prompts("malicious", n), controls=benign_controls(normal, borderline))


def _show_gaps(study: Demo, made: StudyPage) -> None:
    gaps = study[GAPS]
    plot_gap(gaps, ax=made.axes("gap"))
    made.figures["pairs"] = models_side_by_side(gaps)
    text = " ".join(f"{stage}: {gap.verdict}." for stage, gap in gaps.items())
    records = {stage: gap.record() for stage, gap in gaps.items()}
    made.add(
        "gap",
        "Where harmful and harmless prompts part",
        "After each layer the residual stream at a prompt’s last token is a direction. The angle gap is how much wider "
        "the angle between a normal and a malicious prompt (N–M) is, on average, than that between two normal ones "
        "(N–N): where it opens, the model has begun to tell them apart. Layers are counted from 0, and a range "
        f"includes both ends. Prompts: {study.settings.curve_prompts} of each kind.",
        [
            Exhibit(
                "gap", "Angle gap by layer, one line a model", f"{text} Onset: {OnsetRule()}.", [tables.gaps(records)]
            ),
            Exhibit("pairs", "Cosine similarity of N–N and N–M pairs by layer", "One panel a model."),
        ],
    )


def _claim_gaps(study: Demo) -> Iterator[Conclusion]:
    base, aligned = (study[GAPS][stage] for stage in ("base", SUBJECT))
    most, least = float(aligned.gap_deg.max()), float(base.gap_deg.max())
    text = f"The N-M angle exceeds the N-N angle by up to {most:.1f}° in aligned and up to {least:.1f}° in base."
    refused = [study[BEHAVIOR][stage].rates["malicious_refused"] for stage in (SUBJECT, "base")]
    threshold = OnsetRule().min_gap_deg
    opened = study[OPENED].opened("base")
    shows = "yes" if most >= threshold > least and opened else "no" if most < threshold or not opened else "unclear"
    text += f" {grown(study[OPENED], 'base')}"
    if refused[0] - refused[1] < SMALL:
        shows, text = (
            "inconclusive",
            f"The aligned model refuses no more than base: there is no alignment to see. {text}",
        )
    elif aligned.within_noise:
        shows, text = "no", f"{text} Prompts dealt out at random to two sets show as much."
    yield "Alignment opens a gap between harmful and harmless prompts", PAPER, shows, text

    effect, onset = "Early layers do not tell them apart", aligned.onset()
    if onset is None:
        yield effect, PAPER, "inconclusive", "No layer tells them apart: the aligned model's curve has no onset."
        return
    first, last = onset.layers
    text = f"In aligned the gap grows in layers [{first}, {last}] of {len(aligned.gap_deg)}"
    if first == 0:
        yield effect, PAPER, "no", f"{text}, from the very first layer."
        return
    before = float(aligned.gap_deg[:first].abs().max())
    text += f"; before them it is at most {before:.1f}°, {100 * before / most:.1f} % of its largest value."
    yield effect, PAPER, "yes" if before <= 0.1 * most else "unclear", text


def _locate(study: Demo, stage: str, name: str) -> Localization:
    s, gap = study.settings, study[GAPS][stage]
    return localize(
        study.stage(stage),
        study.prompts("over_rejection", s.over_rejection),
        search_start(gap.onset(), len(gap.gap_deg)),
        alpha="search",
        reach=s.reach,
        max_new_tokens=8,
        progress=True,
        resume=study.work(f"{name}.jsonl"),
    )


def _show_sweeps(study: Demo, made: StudyPage) -> None:
    label = "Refused over-rejection prompts against the moving bound of the scaled block"
    made.add(
        "sweeps",
        "Which layers refuse: the scaling sweeps",
        "Scaling a block of layers by α > 1 strengthens what the block does, and α < 1 weakens it. One bound of the "
        "block moves while the other stays, and each time the refused over-rejection prompts are counted. The idea: "
        "with α > 1 the count is largest when the block is just the layers that refuse (with α < 1, smallest).",
        [sweeps_exhibit(made, "sweeps", label, study[LOCATED])],
    )


def _claim_sweeps(study: Demo) -> Iterator[Conclusion]:
    found = study[LOCATED]
    frame = found.to_frame()
    best = rows_of(frame[(frame["bound"] == "lower") & frame["best"]])[0]
    n, baseline = len(found.baseline.refused), found.baseline.count
    p = "< 0.001" if found.p < 0.001 else f"= {found.p:.2g}"
    text = (
        f"Scaling layers {list(found.layers)} by {found.alpha:g} changes over-rejections from {baseline} "
        f"to {best['refused']} of {n} (change {best['change']:+d}, "
        f"95 % interval {best['change_low']:+.0f} to {best['change_high']:+.0f}; p {p} for the best of "
        f"{len(found.tried)} blocks and scales). Of the answers unscaled "
        f"{Beside.of(found.baseline.record(), 'refused')}; scaled {Beside.of(best, 'refused')}."
    )
    wanted = 1 if found.direction == "up" else -1
    shows = "unclear" if found.p >= LEVEL else "yes" if best["change"] * wanted > 0 else "no"
    if baseline == (n if wanted > 0 else 0):
        shows, text = "inconclusive", f"There is nothing left to move. {text}"
    yield "Scaling the located block moves over-rejection", PAPER, shows, text


def planted_block() -> LayerRange:
    """Where refusal was trained into the stage of that name."""
    truth = organism.planted(PLANTED).layers
    return LayerRange(min(truth), max(truth))


def _show_planted(study: Demo, made: StudyPage) -> None:
    planted, found = planted_block(), study[PLANTED_LOCATED]
    plot_planted(study, ax=made.axes("planted_layers"))
    made.add(
        "planted",
        "A planted block, and what is found",
        "In this model the answer is known: its alignment training could change only a chosen block of layers. What "
        "each method finds is held against that; overlap is intersection over union, in layers.",
        [
            Exhibit("planted_layers", "Angle gap, planted block, onset and located block", f"Planted: {planted}."),
            sweeps_exhibit(made, "planted_sweeps", "Scaling sweeps on the model with a planted block", found),
        ],
    )


def plot_planted(study: Demo, ax: Any) -> Any:
    """The gap of the model with a planted block, and what was found."""
    found = study[PLANTED_LOCATED]
    located = found.layers if found.located else None
    return plot_gap({PLANTED: study[GAPS][PLANTED]}, planted=planted_block(), localized=located, ax=ax)


def _claim_planted(study: Demo) -> Iterator[Conclusion]:
    planted, found, onset = planted_block(), study[PLANTED_LOCATED], study[GAPS][PLANTED].onset()
    first = f"the gap's onset {onset.layers}" if onset else "a gap without an onset"
    overlap = found.layers.overlap(planted)
    text = (
        f"Refusal was trained into layers {planted}. Found: {first} (overlap "
        f"{onset.layers.overlap(planted) if onset else 0.0:.2f}), then {found.layers} by scaling (overlap "
        f"{overlap:.2f}; 1 is exact)."
    )
    shows = "yes" if overlap == 1 else "unclear" if overlap >= 0.5 else "no"
    if not found.located:
        shows, text = "no", f"Scaling located nothing: {found.verdict}. {text}"
    yield "The procedure finds the planted block", PAPER, shows, text


def _stages(name: str, stages: tuple[str, ...] = organism.STAGES) -> Any:
    names: Mapping[str, str] = {stage: f"{name}_{stage}" for stage in stages}
    return lambda _: names


BEHAVIOR: Parts[Demo, str, Behavior] = Parts(
    _stages("behavior"),
    Behavior,
    lambda study, stage: evaluate(study.stage(stage), **study.measured),
    says="behaviour of the five stages",
    then=lambda study: tell_if_nothing_to_lose(study[BEHAVIOR][SUBJECT].rates, "the demo"),
)
NORMAL: Parts[Demo, str, Behavior] = Parts(
    _stages("normal"),
    Behavior,
    _normal,
    section=_show_behavior,
    tables=lambda study: {"behavior": pd.DataFrame([{"model": name, **row} for name, row in rates(study).items()])},
)
GAPS: Parts[Demo, str, LayerGap] = Parts(
    _stages("gap", ("base", SUBJECT, PLANTED)),
    LayerGap,
    _gap,
    says="similarity of {0}",
    section=_show_gaps,
    claims=_claim_gaps,
    tables=lambda study: {"gaps": pd.concat([gap.to_frame().assign(model=name) for name, gap in study[GAPS].items()])},
)
OPENED = gap_controls(_opened)
LOCATED: Part[Demo, Localization] = Part(
    "localization",
    Localization,
    lambda study: _locate(study, SUBJECT, "localization"),
    says="localization on aligned",
    section=_show_sweeps,
    claims=_claim_sweeps,
    tables=lambda study: {"localization": study[LOCATED].to_frame()},
)
PLANTED_LOCATED: Part[Demo, Localization] = Part(
    "planted_localization",
    Localization,
    lambda study: _locate(study, PLANTED, "planted_localization"),
    says="planted layers: what is found",
    section=_show_planted,
    claims=_claim_planted,
    tables=lambda study: {"planted_localization": study[PLANTED_LOCATED].to_frame()},
)
