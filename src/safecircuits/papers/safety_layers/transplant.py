"""Layers of the model put into the base model."""

from __future__ import annotations

from collections.abc import Iterator

from safecircuits.base.counted import said
from safecircuits.base.progress import without_bars
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.stakes import LEAST
from safecircuits.layers.transplanting import TransplantTable, transplant_study
from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.model.each_model import release
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage, behavior_exhibit
from safecircuits.papers.part import Maybe
from safecircuits.papers.safety_layers.localization import DECISION, NOT_LOCATED, located
from safecircuits.papers.safety_layers.settings import SafetyLayers
from safecircuits.results.by_category import with_categories


def _measure(study: SafetyLayers) -> TransplantTable:
    p, s, n_layers = study.asked, study.settings, study.shape.n_layers
    blocks = {"located block": located(study).layers}
    if decided := study[DECISION].layers:
        blocks["decision layers"] = decided
    if study.planted is not None:
        blocks["planted block"] = study.planted
    half = n_layers // 2
    blocks |= {"first half": LayerRange(0, half - 1), "second half": LayerRange(half, n_layers - 1)}
    sets: EvaluationOptions = {"malicious": p.measured, "utility": p.utility, **s.judging}
    with without_bars():
        donor, donor_tokenizer = load_checkpoint(study.source, s.dtype, s.device, None)
        target, tokenizer = load_checkpoint(study.others["base"], s.dtype, s.device, None)
    return transplant_study(donor, target, blocks, tokenizer=tokenizer or donor_tokenizer, backend=s.backend, **sets)


def _section(study: SafetyLayers, made: StudyPage) -> None:
    table = study[TRANSPLANT]
    if table is None:
        return
    rows: dict[str, Behavior] = {"base": table.target}
    rows |= {f"with {row.name} {row.layers}": row.behavior for row in table.rows}
    rows[study.name] = table.source
    made.add(
        "transplant",
        "Layers put into the base model",
        f"The base model with blocks of {study.name}’s layers in place of its own. The paper moves halves.",
        [behavior_exhibit(made, "transplant", "Rates with transplanted layers", rows)],
    )


def claims(study: SafetyLayers) -> Iterator[Conclusion]:
    """Whether the located block carries refusal by itself."""
    table = study[TRANSPLANT]
    if table is None:
        return
    rows = {row.name: row.behavior.figures for row in table.rows}
    source, target = table.source.rates["malicious_refused"], table.target.rates["malicious_refused"]
    listed = "; ".join(f"with {name} {said(row, 'malicious_refused')}" for name, row in rows.items())
    wholes = [said(whole.figures, "malicious_refused") for whole in (table.target, table.source)]
    text = f"Malicious prompts refused: base {wholes[0]}, {study.name} {wholes[1]}; {listed}."
    carried = rows["located block"]["malicious_refused"] - target
    shows = "yes" if carried > 0.5 * (source - target) else "no" if carried < 0.1 * (source - target) else "unclear"
    if source - target < LEAST:
        shows, text = "inconclusive", f"{study.name} refuses no more than the base model: nothing to carry over. {text}"
    elif not located(study).located:
        shows, text = "inconclusive", f"{NOT_LOCATED} {text}"
    yield "The located block alone carries refusal into the base model", "beyond the paper", shows, text


TRANSPLANT: Maybe[SafetyLayers, TransplantTable] = Maybe(
    "transplant",
    TransplantTable,
    _measure,
    when=lambda study: "base" in study.others,
    says="transplants into the base model",
    then=lambda _: release(),
    section=_section,
    claims=claims,
    tables=lambda study: {} if (found := study[TRANSPLANT]) is None else with_categories({"transplant": found}),
)
