"""What the report says: its sections, each with an explanation for readers who do not know the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safecircuits.base.record import Record, arms
from safecircuits.base.text import plain
from safecircuits.report import captions, tables
from safecircuits.report.figures import slugs
from safecircuits.report.tables import Table


@dataclass(frozen=True)
class Exhibit:
    """A figure by its name, what it shows in words, what the numbers say, and the numbers; or tables without one."""

    figure: str | None
    label: str
    caption: str
    tables: Sequence[Table] = ()
    small: bool = False
    half: bool = False


@dataclass(frozen=True)
class Section:
    """One heading: an explanation, then figures and tables."""

    id: str
    title: str
    intro: str
    exhibits: Sequence[Exhibit]


def sections(results: Record) -> list[Section]:
    """The sections that ``results`` has the data for, in the order of the argument."""
    return [section for make in (_behavior, _gap, _sweeps, _units, _planted, _finetune) if (section := make(results))]


def _behavior(results: Record) -> Section | None:
    behavior = results.get("behavior")
    if not behavior:
        return None
    label = "Refusal, over-rejection and utility of each model"
    return Section(
        "behavior",
        "What the models do",
        "Rates on held-out prompts. Refusal rate: harmful (malicious) prompts that are refused, as they should be. "
        "Over-rejection: harmless prompts that merely sound dangerous and are refused all the same. Normal refused: "
        "plainly harmless prompts that are refused. Utility: answers that are exactly right.",
        [Exhibit("behavior", label, captions.behavior(behavior), [tables.behavior(behavior)])],
    )


def _gap(results: Record) -> Section | None:
    similarity = results.get("similarity") or {}
    stages = captions.gap_stages(similarity)
    if not stages:
        return None
    exhibits = [
        Exhibit("gap", "Angle gap by layer, one line a model", captions.gap(similarity), [tables.gaps(stages)]),
        *(
            Exhibit(
                f"pairs_{slugs(stages)[name]}",
                f"Cosine similarity of N–N, M–M and N–M pairs in {name}, by layer",
                f"{name}. {captions.pairs(row)}".strip(),
                [tables.cosines(name, row)],
                small=True,
            )
            for name, row in stages.items()
            if "nm_mean" in row
        ),
    ]
    counts = similarity.get("n_prompts") or {}
    drawn = ", ".join(f"{count} {name}" for name, count in counts.items())
    return Section(
        "gap",
        "Where harmful and harmless prompts part",
        "After each layer the residual stream at a prompt’s last token is a direction. The angle gap is how much wider "
        "the angle between a normal and a malicious prompt (N–M) is, on average, than that between two normal ones "
        "(N–N): where it opens, the model has begun to tell them apart. M–M is two malicious prompts. Layers are "
        "counted from 0, and a range includes both ends." + (f" Prompts: {drawn}." if drawn else ""),
        exhibits,
    )


def _sweeps(results: Record) -> Section | None:
    localization = results.get("localization")
    if not localization:
        return None
    label = "Refused over-rejection prompts against the moving bound of the scaled block"
    return Section(
        "sweeps",
        "Which layers refuse: the scaling sweeps",
        "Scaling a block of layers by α > 1 strengthens what the block does, and α < 1 weakens it. One bound of the "
        "block moves while the other stays, and each time the refused over-rejection prompts are counted. The idea: "
        "with α > 1 the count is largest when the block is just the layers that refuse (with α < 1, smallest).",
        [Exhibit("sweeps", label, captions.sweeps(localization), tables.sweeps(localization))],
    )


def _units(results: Record) -> Section | None:
    units = results.get("units") or {}
    exhibits = []
    if table := units.get("ablation"):
        label = "Refusal and utility left without each group of units, and without as many random units"
        numbers = tables.ablation(table, units.get("random_control") or {})
        exhibits.append(Exhibit("ablation", label, captions.ablation(units), [numbers]))
    if per_layer := units.get("per_layer"):
        label = "Number of units of each group in each layer"
        exhibits.append(Exhibit("unit_map", label, captions.unit_map(units), [tables.unit_map(per_layer)]))
    if not exhibits:
        return None
    how = ", ".join(f"{key} {units[key]}" for key in ("method", "tokens", "normalize") if key in units)
    return Section(
        "units",
        "Which units refuse: the four groups",
        "Each unit (MLP neuron or attention head) has a score for how much it matters on refusals (S) and one for "
        "ordinary answers (U). Safety-critical units (SCU) have the highest S − U, utility-critical ones (UCU) the "
        "lowest, redundant ones (RU) the lowest S + U; the rest are called complex (CU). Whether a group is what its "
        "name says shows when it is removed, beside as many random units." + (f" Scores: {how}." if how else ""),
        exhibits,
    )


def _planted(results: Record) -> Section | None:
    planted = results.get("planted") or {}
    stages = captions.gap_stages(results.get("similarity") or {})
    exhibits = []
    block = planted.get("layers") or {}
    if block and "planted-layers" in stages:
        label = "Angle gap of the planted model with the planted block, the onset and the located block"
        caption = captions.planted_layers(block)
        exhibits.append(Exhibit("planted_layers", label, caption, [tables.planted_layers(block)]))
    if swept := block.get("localization"):
        label = "Scaling sweeps on the model with a planted block"
        exhibits.append(Exhibit("planted_sweeps", label, captions.sweeps(swept), tables.sweeps(swept)))
    neurons = planted.get("units") or {}
    if neurons.get("curve"):
        numbers = [tables.ablation_curve("Units of the highest S − U removed", neurons["curve"])]
        if neurons.get("random_curve"):
            numbers.append(tables.ablation_curve("Random units removed", neurons["random_curve"]))
        label = "Refusal and utility against the number of removed units, on the model with planted neurons"
        exhibits.append(Exhibit("planted_units", label, captions.planted_units(neurons), numbers))
    if not exhibits:
        return None
    return Section(
        "planted",
        "What was planted, and what is found",
        "In these models the answer is known: their alignment training could change only a chosen block of layers, or "
        "only a chosen set of MLP neurons. What each method finds is held against that.",
        exhibits,
    )


def _finetune(results: Record) -> Section | None:
    finetune = results.get("finetune") or {}
    if not arms(finetune):
        return None
    used = ", ".join(f"{key.replace('_', ' ')} {plain(v)}" for key, v in (finetune.get("settings") or {}).items())
    label = "Rates after fine-tuning in each arm, with seeds, intervals and the rates before"
    return Section(
        "finetune",
        "What fine-tuning leaves",
        "A model that refuses learns a harmless new task, which can wear its refusals away. Each arm freezes another "
        "part of the model while it learns." + (f" Settings: {used}." if used else ""),
        [Exhibit("finetune", label, captions.finetune(finetune), tables.finetune(finetune))],
    )
