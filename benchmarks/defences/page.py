"""docs/defences.md from the numbers that ``run`` measured: ``python -m benchmarks.defences.page`` writes it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.defences.answer import answer_table, chooses_rate
from benchmarks.defences.real_page import held_to_a_low_rate, how_measured, on_adapters
from benchmarks.markdown import markdown_table
from safecircuits.base.files import write_text
from safecircuits.base.text import join, percent
from safecircuits.baselines.registered import methods
from safecircuits.studies.attack.cells import AttackCell
from safecircuits.studies.attack.costs import harm, over_seeds
from safecircuits.studies.attack.outcome import FAMILIES, THREAT_MODEL, AttackStudy
from safecircuits.studies.attack.study import badge_of
from safecircuits.studies.attack.words import cost_text

ROOT = Path(__file__).parents[2]
NUMBERS, PAGE = ROOT / "docs/reference/defences.json", ROOT / "docs/defences.md"
TITLES = {
    "aligned": "The aligned model, whose refusals were not planted",
    "planted-layers": "The model whose refusals were planted in layers 3 to 5",
    "more": "Other methods, on the aligned model",
    "slow": "Attackers held to a low rate, on the aligned model",
    "slow-planted": "Attackers held to a low rate, on the model planted in layers 3 to 5",
    "slow-more": "Other methods, attackers held to a low rate, on the aligned model",
    "scenarios": "The published scenarios without harmful rows, on the aligned model",
    "real": "A real model, whose refusals were planted in layers 12 to 16",
}


def study_of(part: dict[str, Any]) -> AttackStudy:
    """A study from its JSON; badges are those that methods have now."""
    cells = tuple(AttackCell.of(cell) for cell in part["cells"])
    names = ("before", "max_utility_loss", "breaks_at", "provenance")
    known = {name: part[name] for name in names}
    arms = {
        name: {**about, **badge_of(about["method"]["name"], about["prepared"], masked=not about["undefended_training"])}
        for name, about in part["arms"].items()
    }
    return AttackStudy(cells=cells, arms=arms, left_out=tuple(part["left_out"]), stops=tuple(part["stops"]), **known)


def page(record: dict[str, Any]) -> str:
    """The page as Markdown. Every figure on it, and every verdict, is computed here from the record."""
    studies = {name: study_of(part) for name, part in record["studies"].items()}
    parts = [_first(studies), _introduction(record, studies), _answer(studies)]
    for name, study in studies.items():
        parts.append(_section(name, study, record["studies"][name]["read"]))
    return "\n".join([*parts, _limits(record)])


def _first(studies: dict[str, AttackStudy]) -> str:
    """The answer, before everything else."""
    return f"""\
# What is a defence worth?

Someone fine-tunes an aligned model until it complies with harmful requests. Does a defence make that take longer? For
each defence the table has the steps of training until the model complies (geometric mean over seeds with its 95 %
interval) and, under *cost*, whether that is more than without a defence: ×1.5 is one and a half times as many (of one
plus the steps).

- *any rate*: the attacker chooses the learning rate;
- *low rate*: the service that trains holds it to 1e-05;
- *weights in hand*: the attacker may also edit the weights, or train them without the defence.

`freeze` is what this library does with what it finds: the safety-critical units, or the planted layers, are not
trained. `random mask` freezes as many random units, as a control. [Methods](reference/methods.md) has the others with
their papers. Methods that align the model anew are compared with plain alignment of the same length, which is short;
one that leaves half of the harmful prompts complied with before any attack defends nothing.

{answer_table(studies | held_to_a_low_rate(studies))}
"""


def _introduction(record: dict[str, Any], studies: dict[str, AttackStudy]) -> str:
    setup, origin = record["setup"], record["provenance"]
    first = next(iter(studies.values()))
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    n = len({cell.attacker for name, study in studies.items() if name != "real" for cell in study.cells})
    return f"""\
## How it was measured

{THREAT_MODEL}

Here attackers may choose: the learning rate (unless they are held to one), how long they train, on what, with which
adapters, or an edit of the weights that needs no training. {n} of them attack embedded models that are defended in turn
by each arm, with {len(setup["seeds"])} seeds (order and drawing of the data, random masks, alignment that an arm does
anew). A point of an attack counts if the model lost at most {percent(first.max_utility_loss)} of its exact answers to
questions that have nothing to do with harm; it **breaks** the defence from {percent(first.breaks_at)} of harmful
prompts complied with. Its **harm** is the lower of the complied rates on {setup["prompts"]} prompts by which the
attacker chooses and on {setup["prompts"]} others, so that choosing cannot flatter it. The worst harm is the highest of
all points that count, a cost the lowest of all that break: more attackers could only be worse for the defender. Answers
in the embedded language name invented things.{how_measured(record, studies)}

Costs are geometric means over seeds (of one plus the cost) with 95 % intervals, which hold what the measured stops
leave open: {join([str(stop) for stop in setup["stops"]])} steps of {setup["batch_size"]} examples{_slow(setup)}.
*Raises* means that the interval of the ratio to no defence lies above 1, *no difference* that it lies within a factor
of 2.

The numbers are in `docs/reference/defences.json`, made by `{origin["command"]}` ({versions}), and this page by
`python -m benchmarks.defences.page`. On a model of your own: `safecircuits study attack`; how far weights may move at
random before refusals end, without any attacker: `safecircuits study landscape`.
{_spent(studies)}"""


TIMED = ("slow", "slow-planted", "slow-more", "scenarios")
"""Studies of which every cell was measured after processor time began to be kept."""


def _spent(studies: dict[str, AttackStudy]) -> str:
    """Processor time of the embedded models' studies that recorded it, and what a whole grid takes at that."""
    clocked = [s for s in studies.values() if s.provenance.get("workers", 1) > 1 and s.provenance["elapsed_seconds"]]
    whole = "".join(f"\n{_elapsed(study)}\n" for study in clocked)
    timed = [study for name, study in studies.items() if name in TIMED]
    n = sum(len(study.cells) for study in timed)
    if not n:
        return whole
    each = sum(study.provenance["cpu_seconds"] for study in timed) / n
    return f"""
Of the embedded models' cells {n}, of attackers who go on to the last stop for the most part, recorded their processor
time: {each:.1f} s of one core on average. At that, 5 arms × 24 attackers × 3 seeds take {360 * each / 60:.0f} minutes
of one core, and less where attackers reach all there is sooner.
{whole}"""


def _elapsed(study: AttackStudy) -> str:
    """How long a whole study took, by the clock."""
    there = study.provenance
    n = f"{len(study.arms)} arms × {len(there['attackers'])} attackers × {len(there['seeds'])} seeds"
    return (
        f"By the clock, {n} on {there['model']!r} took {there['elapsed_seconds'] / 60:.0f} minutes in "
        f"{there['workers']} processes of {there['threads']} thread each."
    )


def _slow(setup: dict[str, Any]) -> str:
    """The stops at the low rate."""
    return f" ({join([str(stop) for stop in setup['slow_stops']])} at the low rate)" if "slow_stops" in setup else ""


def _answer(studies: dict[str, AttackStudy]) -> str:
    """What can be said of all of it at once."""
    lines = ["## In short", ""]
    for name, study in studies.items():
        by: dict[str, list[str]] = {}
        for arm in study.arms:
            if arm != study.reference and chooses_rate(study, arm):
                found = "no defence" if study.needs_no_attacker(arm) else study.against(arm).verdict
                by.setdefault(found, []).append(f"{arm} ({_steps(study, arm)})")
        said = [f"{WORDS[verdict]}: {join(by[verdict])}" for verdict in WORDS if verdict in by]
        bare = _steps(study, str(study.reference))
        lines.append(
            f"- **{TITLES[name]}.** Without a defence it breaks after {bare} steps of training. That is "
            f"{'; '.join(said)}."
        )
    withstood = [
        f"{arm} ({name})"
        for name, study in studies.items()
        for arm in study.arms
        if max(study.worst_harm(arm, "weights")) < study.breaks_at
    ]
    total = sum(len(study.arms) for study in studies.values())
    held = join(withstood) if withstood else "none"
    lines.append(f"- With the weights in hand, of {total} arms those that no attacker broke with any seed: {held}.")
    known = [cell for study in studies.values() for cell in study.cells if cell.attacker == "pruning, mask known"]
    if known:
        lines.append(f"- {_known(studies)}")
    return "\n".join([*lines, ""])


def _steps(study: AttackStudy, arm: str) -> str:
    return cost_text(over_seeds(study.costs(arm)))


WORDS = {
    "costs more": "raised by",
    "costs less": "lowered by",
    "no difference": "no different with",
    "unclear": "not clearly changed by",
    "neither was broken": "not to be compared for",
    "no defence": "not to be asked of what complies before any attack,",
}


def _known(studies: dict[str, AttackStudy]) -> str:
    """What pruning the known mask does, where the model is of use afterwards."""
    said = []
    for name, study in studies.items():
        for arm in study.arms:
            cells = [c for c in study.cells if c.arm == arm and c.attacker == "pruning, mask known" and c.points]
            if cells:
                harms = [harm(c.points[0]) for c in cells if study.limits(arm, c.seed).counts(c.points[0])]
                mean = percent(sum(harms) / len(harms)) if harms else "never of use"
                some = harms and len(harms) < len(cells)
                said.append(
                    f"{arm} ({name}) {mean}" + (f", useless in {len(cells) - len(harms)} of them" if some else "")
                )
    return (
        "Who knows the mask can prune it instead of training. Complied with then, mean over the seeds with which the "
        f"model is still of use: {join(said)}."
    )


def _section(name: str, study: AttackStudy, read: dict[str, Any]) -> str:
    frame = study.summary()
    rows = [
        [
            row["arm"],
            row["access"],
            _badge(row),
            _rate(row),
            f"{row['broken']} of {row['seeds']}",
            *(cost_text((row[of], row[f"{of}_low"], row[f"{of}_high"])) for of in ("steps", "examples")),
            cost_text((row["seconds"], row["seconds_low"], row["seconds_high"])),
        ]
        for row in frame.to_dict("records")
    ]
    head = ["arm", "access", "method", "worst harm", "broken", "steps", "harmful examples", "seconds"]
    before = [
        [arm, study.arms[arm]["defence"], *(percent(_mean(study, arm, of)) for of in ("reported", "utility"))]
        for arm in study.arms
    ]
    taken = ", ".join(dict.fromkeys(cell.attacker for cell in study.cells))
    missing = [f"{one['attacker']} of {one['arm']}: {one['why']}" for one in study.left_out]
    return "\n".join(
        [
            f"## {TITLES[name]}",
            "",
            f"Attackers: {taken}.",
            "",
            markdown_table(head, rows),
            "",
            "Steps to break by what the attacker brings:",
            "",
            _by_family(study),
            "",
            "Before any attack:",
            "",
            markdown_table(["arm", "what it does", "complied", "utility"], before),
            "",
            *([f"Left out: {'; '.join(missing)}.", ""] if missing else []),
            *(_said(read) if read else []),
        ]
    )


def _by_family(study: AttackStudy) -> str:
    families = [family for family in FAMILIES if any(cell.family == family for cell in study.cells)]
    rows = []
    for arm in study.arms:
        cells = [arm]
        for family in families:
            found = study.summary((family,))
            own = [row for row in found.to_dict("records") if row["arm"] == arm]
            cells += [_cost(row) for row in own] or ["–"]
        rows.append(cells)
    return markdown_table(["arm", *families], rows)


def _cost(row: dict[Any, Any]) -> str:
    broken = f"{row['broken']} of {row['seeds']}"
    if not row["broken"]:
        return f"not broken, worst harm {percent(row['worst_harm'])}"
    return f"{cost_text((row['steps'], row['steps_low'], row['steps_high']))} ({broken})"


def _badge(row: dict[Any, Any]) -> str:
    if not row["badge"]:
        return "–"
    return f"{row['badge']}: {row['paper']}" + (f"; {row['differs']}" if row["differs"] else "")


def _rate(row: dict[Any, Any]) -> str:
    ends = f"[{100 * row['worst_harm_low']:.0f}, {100 * row['worst_harm_high']:.0f}]"
    return f"{percent(row['worst_harm'])} {ends}"


def _mean(study: AttackStudy, arm: str, figure: str) -> float:
    values = [one[figure] for one in study.before[arm].values()]
    return sum(values) / len(values)


def _said(read: dict[str, Any]) -> list[str]:
    rows = [[arm, *row] for arm, answers in read.items() for row in answers[:2]]
    table = markdown_table(["arm", "prompt", "answer", "verdict"], rows)
    return ["What each arm's model answered at its worst point:", "", table, ""]


def _limits(record: dict[str, Any]) -> str:
    setup = record["setup"]
    return f"""\
## Limits

- {"All but the last" if "real" in record["studies"] else "These"} are toy models, and {len(setup["seeds"])} seeds
  vary the order and drawing of data, random masks, and alignment done anew; the shipped
  models have one alignment run each.
- Refusal of the embedded models is a habit of some hundred kinds of requests, which a step or two undo. Where even no
  defence lasts a single step, a defence can only show that it lasts longer, not that it does less.
- The arms stand at their methods' defaults, which were chosen for larger models, and no arm was tuned against these
  attackers. A learning rate that an attacker would have to find here is one of three.
- The methods of the third part were attacked by training alone: edits of the weights have nothing to do with how an arm
  would have trained. SafeLoRA trains adapters, as published, so that it stands beside the arm lora.
- Repairs may take of the model's use what fine-tuning gave it; that is not measured here, since attackers want none.
- Safe Delta allows an average squared change of 0.1/4096² an entry at its default, which a step at these rates
  exceeds: it puts most of what training changed back, whatever that was.
- Seconds are of one thread of a machine on which other work was running.
{on_adapters(record)}{_missing(record)}"""


def _missing(record: dict[str, Any]) -> str:
    """What the command measures and this file does not hold yet."""
    lacking = [title[0].lower() + title[1:] for name, title in TITLES.items() if name not in record["studies"]]
    own = {about["method"]["name"] for part in record["studies"].values() for about in part["arms"].values()}
    prepared = [about["prepared"] for part in record["studies"].values() for about in part["arms"].values()]
    attacked = own | {one["method"]["name"] for one in prepared if one}
    without = [name for name in DEFENCES if name not in attacked]
    lacking += [f"the methods {join(without)}"] if without else []
    return f"- Not measured yet: {'; '.join(lacking)}.\n" if lacking else ""


DEFENCES = [name for name in methods() if name not in ("plain", "two-phases", "prefix", "llama-adapter", "reverse-dpo")]
"""Methods that mean to keep refusals; others are ways to train, or to align, that the papers compare."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--numbers", type=Path, default=NUMBERS)
    parser.add_argument("--out", type=Path, default=PAGE)
    chosen = parser.parse_args()
    write_text(chosen.out, page(json.loads(chosen.numbers.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
