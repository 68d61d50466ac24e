"""The leaderboard as a page that says how to read it."""

from __future__ import annotations

import math
from statistics import mean
from textwrap import fill
from typing import Any

from benchmarks.ground_truth.leaderboard.figures import curves_of, names
from benchmarks.ground_truth.leaderboard.registry import OBJECTS, Object, localizers
from benchmarks.ground_truth.leaderboard.standing import (
    KINDS,
    Interval,
    Standing,
    chances,
    constant_block,
    constants,
    interval,
    members,
    not_run,
    pairs_of,
    standings,
)
from benchmarks.ground_truth.leaderboard.subjects import REAL, REAL_JUDGED, REAL_SEEN
from benchmarks.markdown import markdown_table
from safecircuits.base.text import join

TITLES = {"block": "Blocks of layers", "units": "Units", "direction": "Directions"}
MEASURES = {
    "block": "found and planted layers, intersection over union",
    "units": "planted share of an order's first units, as many as were planted (64 where whole layers were)",
    "direction": "absolute cosine of the direction with what planting added to the difference of the means there",
}
SIZES = {"block": "layers", "units": "units", "direction": "rank"}


def table(results: dict[str, Any], object: Object, role: str) -> str:
    """One object's standings on the members of a role."""
    rows = standings(results, object, role)
    kinds = [kind for kind in KINDS if members(results, role, kind)] if object == "units" else [""]
    head = ["method", "whose", *(f"overlap, {KINDS[kind]}" if kind else "overlap" for kind in kinds)]
    head += ["found nothing", f"smallest ({SIZES[object]})", "area over random", "forward", "backward", "seconds"]
    cells = [_row(one, kinds) for one in rows]
    by_chance, constant = chances(results, object, role), constants(results, object, role)
    empty = [""] * 6
    cells.append(["*chance*", "", *(f"{by_chance[kind]:.2f}" if kind in by_chance else "" for kind in kinds), *empty])
    guess = ["n/a" if constant is None else _mean(constant[kind]) for kind in kinds]
    cells.append(["*the same for every model*", "", *guess, *empty])
    for one, why in not_run(results, object, role):
        cells.append([one.name, one.source, *[""] * len(kinds), f"not run: {why}", *empty[1:]])
    return markdown_table(head, cells)


def _row(one: Standing, kinds: list[str]) -> list[str]:
    needs = " †" if one.localizer.needs_base else ""
    smallest = f"{'–' if one.smallest is None else f'{one.smallest:g}'} ({one.removes} of {one.judged})"
    return [
        f"{one.localizer.name}{needs}",
        one.localizer.source,
        *(_mean(one.overlap[kind]) for kind in kinds),
        f"{one.nothing} of {one.n}" if one.nothing else "",
        smallest if one.judged else NOT_MEASURED,
        _left(one),
        f"{one.forward:,.0f}",
        f"{one.backward:,.0f}" if one.backward else "–",
        f"{one.seconds:.1f}",
    ]


NOT_MEASURED = "not measured"


def _left(one: Standing) -> str:
    """The area over random."""
    if not one.judged:
        return NOT_MEASURED
    if one.nothing == one.n:
        return "–"
    return _mean(one.above, sign=True) + (f" ({one.judged} of {one.n} models)" if one.judged < one.n else "")


def _mean(values: Interval, *, sign: bool = False) -> str:
    mean, low, high = values
    plus = "+" if sign else ""
    if math.isnan(low):
        return f"{mean:{plus}.2f}"
    return f"{mean:{plus}.2f} [{low:{plus}.2f}, {high:{plus}.2f}]"


def render(results: dict[str, Any]) -> str:
    """The whole page."""
    parts = [
        _opening(results),
        _short(results),
        *(_object(results, kind) for kind in OBJECTS),
        _three(results),
        _models(results),
    ]
    return "\n\n".join([part for part in (*parts, _limits(results)) if part]) + "\n"


def _opening(results: dict[str, Any]) -> str:
    small = results["family"] == "organisms"
    n = {role: len(members(results, role)) for role in ("development", "judged")}
    rules = results["rules"]
    commands = ["python -m benchmarks.ground_truth.build --out FAMILY --part all"] if small else []
    which = "--family FAMILY" if small else "--real NAME …"
    commands += [f"python -m benchmarks.ground_truth.leaderboard {which} --out FILE.json --page PAGE.md"]
    kinds = "small models" if small else "real models of [one family](smollm2_family.md)"
    what = paragraph(
        f"""Refusal is said to sit in a block of layers, in a few units, or in one direction. Here methods that locate
        one of these objects are run on {sum(n.values())} {kinds} in which refusal was *planted*, so that the answer is
        known. A method may be chosen and tuned on the development models ({n["development"]}); the first table of each
        object is of the judged ones ({n["judged"]}). All models are listed at the end."""
    )
    how = paragraph(
        f"""**How to read a row.** *Overlap* compares what was found with what was planted, as the mean over models
        with a 95 % interval. Compare it with *chance*, and with the best answer that is *the same for every model*,
        chosen on the development models. *Smallest* is the median of the smallest size at which refusal is gone (a
        tenth or less is left) at a cost of at most {100 * rules["utility_loss"]:.0f} points of utility and
        {rules["kl"]:g} nats of first-token KL on ordinary prompts, followed by the number of models with such a size
        among those tried. *Area over random*: the share of refusal lost minus the share of utility lost, mean over
        sizes on a log scale, minus the same for random objects of that kind. *Forward* and *backward*: passes of one
        prompt through the whole model that the search took; seconds are on one core. † also uses the checkpoint
        before planting, which for most models is not available. *Found nothing*: the method's own rule gave no
        answer, which counts as no overlap."""
    )
    return "\n\n".join(
        [
            f"# Leaderboard: which method finds where refusal is{'' if small else ' in a real language model'}?",
            what,
            *([] if small else [paragraph(_on_real(results))]),
            how,
            f"Measured on {results['provenance']['date']} by",
            "```\n" + "\n".join(commands) + "\n```",
            "To add [your method](how-to/add-a-localizer.md), write one function and give it a name.",
        ]
    )


def _on_real(results: dict[str, Any]) -> str:
    """What is asked of real members, and how it is judged, as far as it was."""
    there = results["members"].values()
    n_layers = max(member["n_layers"] for member in there)
    text = f"""The models have {n_layers} layers. Each method sees {REAL_SEEN} malicious and {REAL_SEEN} ordinary
        requests that no member was trained on. An answer of {REAL.tokens} tokens refuses if it has a usual opening or
        one of the wordings that the family was taught."""
    judged = [f"`{name}`" for name, member in results["members"].items() if _is_judged(member)]
    if judged:
        sizes = " and ".join(map(str, REAL.counts))
        text += f""" {REAL_JUDGED} other requests of each kind judge; utility is the share of ordinary ones that are
        neither refused nor answered incoherently. Tried are {sizes} units, one direction, and the block that was found,
        beside {REAL.draws} draw of random units and of a random direction and {REAL.blocks} blocks of that length. One
        answer is {100 / REAL_JUDGED:.0f} points, so that the bound on utility allows none to be lost."""
        if len(judged) < len(there):
            text += f""" What is left without what a method found was measured on {join(judged)} alone; on the others
                only *where* it looks is compared with the known answer."""
    else:
        text += """ Here only *where* each method looks is compared with the known answer: what is left without what it
        found was not measured."""
    text += " Members of the family that are not listed at the end were not measured."
    return text + " [The small models' page](leaderboard.md) has more models and every method."


def _is_judged(member: dict[str, Any]) -> bool:
    """Whether what is left was measured, as far as anything was found."""
    return any(cell.get("above") is not None for cell in member["cells"].values())


def _short(results: dict[str, Any]) -> str:
    """For each object: which method is best, how far it is right, at what cost, and where it is wrong."""
    lines = [_sentence(results, kind) for kind in OBJECTS if members(results, "judged")]
    bullets = [f"- {paragraph(line)}".replace("\n", "\n  ") for line in lines if line]
    parts = ["## In short", "\n".join(bullets)] if bullets else []
    if curves_of(results):
        parts += [
            f"![Refusal left against KL, for blocks, units and directions]({names(results)['curves']})",
            paragraph(CURVES),
        ]
    return "\n\n".join(parts)


CURVES = """Refusal that is left, as a share of the intact model's, against how far first tokens on ordinary prompts
have moved: means over the judged models, one dot a size (of a block, the block). Low and to the left is good. Drawn are
the five methods of largest area over random, and dashed what knows nothing; dotted is the bound on KL. Bars are
95 % intervals over models."""


def _sentence(results: dict[str, Any], kind: Object) -> str:
    """Computed, whatever comes out: the methods are chosen on the development models, the figures are of the judged."""
    known, judged = (
        {
            row.localizer.name: row
            for row in standings(results, kind, role)
            if row.localizer.source != "control" and not row.localizer.needs_base
        }
        for role in ("development", "judged")
    )
    both = [name for name in known if name in judged and known[name].nothing < known[name].n]
    if not both:
        return ""
    name = max(both, key=lambda one: mean([value[0] for value in known[one].overlap.values()]))
    judging = [one for one in both if known[one].judged and judged[one].judged]
    best, constant = judged[name], constants(results, kind, "judged")
    said = ", ".join(_mean(value) + (f" ({KINDS[of]})" if of else "") for of, value in best.overlap.items())
    same = (
        ""
        if constant is None
        else f", that of the same answer for every model {', '.join(_mean(v) for v in constant.values())}"
    )
    wrong = [
        f"`{of}`"
        for of, member in results["members"].items()
        if member["role"] == "judged" and member["cells"][name]["overlap"] < _least(kind, member["cells"][name])
    ]
    bound = "less than twice chance" if kind == "units" else "less than half"
    left = ""
    if judging:
        strong = max(judging, key=lambda one: known[one].above[0])
        left = (
            f" *{strong}* has the largest area over random there; on the judged ones {_left(judged[strong])}, within "
            f"the bounds on {judged[strong].removes} of {judged[strong].judged}."
        )
    return (
        f"**{TITLES[kind]}**: *{name}* has the largest overlap on the development models; on the judged ones its "
        f"overlap is {said}{same}, in {best.forward:,.0f} forward and {best.backward:,.0f} backward passes of one "
        "prompt. "
        f"{_where(results, kind, name)}It is wrong ({bound}) on {', '.join(wrong) or 'none'}.{left}"
    )


def _where(results: dict[str, Any], kind: Object, name: str) -> str:
    """Where it found its object in the judged models, beside where that was planted."""
    there = [(m, m["cells"][name]) for m in members(results, "judged")]
    if kind == "block":
        found = [(m["block"], cell["layers"]) for m, cell in there if "layers" in cell]
        exact = sum(block == layers for block, layers in found)
        ends = [mean([layers[end] - block[end] for block, layers in found]) for end in (0, 1)]
        return (
            f"It names the planted layers exactly on {exact} of {len(there)}; its blocks begin {ends[0]:+.1f} and end "
            f"{ends[1]:+.1f} layers from the planted ones, on average. "
        )
    if kind == "direction":
        after = [cell["layer"] - m["block"][1] for m, cell in there if "layer" in cell]
        return f"It is found {mean(after):+.1f} layers from the last planted one, on average. "
    return ""


def _least(kind: Object, cell: dict[str, Any]) -> float:
    return 2 * float(cell.get("chance", 0.0)) if kind == "units" else 0.5


def paragraph(text: str) -> str:
    """One paragraph in lines of a page's width."""
    return fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


CHANGED = {
    "block": "What is measured without a block is the model with the matrices of its base there.",
    "units": "What is measured without units is the model with their activations at zero.",
    "direction": "What is measured without directions is the model with them taken out everywhere (by the published "
    "rule), or put to the harmless mean once, after the layer where they were found (by all others). What planting "
    "added is itself a difference of means, of which the base has next to none: a mean difference meets it nearly by "
    "construction, so that a direction is worth what the columns behind the overlap say.",
}


FOUND = {
    "block": "The layers that each method found; bold where they are those that were planted, – where it found none.",
    "units": "The planted share of the first units of each order, minus chance.",
    "direction": "After which layer each direction is, and its overlap.",
}


def _each(results: dict[str, Any], kind: Object) -> str:
    """What each method found on each model, controls left out."""
    there = results["members"].values()
    methods = [one for one in localizers() if one.object == kind and one.source != "control"]
    methods = [one for one in methods if any("overlap" in member["cells"].get(one.name, {}) for member in there)]
    rows = []
    for name, member in results["members"].items():
        cells = [member["cells"].get(one.name) for one in methods]
        rows.append([f"`{name}`", str(member["block"]), *(_found(kind, member, cell) for cell in cells)])
    return markdown_table(["model", "planted", *(one.name for one in methods)], rows)


def _found(kind: Object, member: dict[str, Any], cell: dict[str, Any] | None) -> str:
    if cell is None or "not run" in cell:
        return "not run"
    if cell.get("above", 0.0) is None:
        return "–"
    if kind == "block":
        return f"**{cell['layers']}**" if cell["layers"] == member["block"] else str(cell["layers"])
    if kind == "units":
        return f"{cell['overlap'] - cell['chance']:+.2f}"
    return f"{cell['layer']}: {cell['overlap']:.2f}"


def _object(results: dict[str, Any], kind: Object) -> str:
    text = f"Overlap: {MEASURES[kind]}. {CHANGED[kind]}"
    if kind != "direction" and constants(results, kind, "judged"):
        text += (
            f" The same answer for every model is {'units of ' if kind == 'units' else ''}{constant_block(results)}."
        )
    parts = [f"## {TITLES[kind]}", paragraph(text)]
    for role in ("judged", "development"):
        if members(results, role):
            parts += [f"### {TITLES[kind]}, {role} models", table(results, kind, role)]
    parts += [f"### {TITLES[kind]}, model by model", paragraph(FOUND[kind]), _each(results, kind)]
    return "\n\n".join(parts)


def _three(results: dict[str, Any]) -> str:
    rows = []
    for (a, b), pairs in pairs_of(results).items():
        both, by_chance = (sum(p[what] for p in pairs) / len(pairs) for what in ("both", "expected"))
        above = sum(p["both"] > p["high"] for p in pairs)
        ratio = interval([p["over_chance"] for p in pairs])
        rows.append([f"{a} and {b}", f"{both:.1f}", f"{by_chance:.1f}", _mean(ratio), f"{above} of {len(pairs)}"])
    head = ["pair", "units in common", "by chance", "times chance", "above 95 % of chance"]
    text = paragraph(
        """SCU by SSAH's scores and shares, the decision layers as safety layers, and as many top writers of the refusal
        direction as there are SCU; each is a set of units of the same model, and so is what was planted. Means over the
        models on which they were compared, with the interval over models."""
    )
    if not rows:
        return ""
    parts = ["## Do the three objects coincide?", text, markdown_table(head, rows)]
    return "\n\n".join([*parts, f"![Common units over chance, one dot a model]({names(results)['objects']})"])


def _models(results: dict[str, Any]) -> str:
    rows = []
    for name, m in results["members"].items():
        units = str(m["k"]) if m["kind"] == "units" else "all of the layers"
        rates = [f"{100 * m['intact'][what]:.0f} %" for what in ("refused", "utility")]
        rows.append([f"`{name}`", m["role"], str(m["block"]), units, *rates])
    return "## The models\n\n" + markdown_table(
        ["model", "role", "layers", "planted units", "refused", "utility"], rows
    )


def _limits(results: dict[str, Any]) -> str:
    points = [
        """Intervals are over models of one base: they say how the figures would vary with other places and seeds, not
        with other models. Of three or four models, as those with planted units, they are very rough.""",
        """What was planted and what refusal depends on are not the same: refusal also passes through units that were
        never trained.""",
        """Blocks are replaced by the base's, units set to zero, directions ablated: sizes can be compared within one
        kind of object, not between kinds.""",
    ]
    if results["family"] == "organisms":
        points.insert(0, "The base has 8 layers and a small vocabulary, and refusals begin with one token.")
    bullets = [f"- {paragraph(point)}".replace("\n", "\n  ") for point in points]
    return "## What this does not show\n\n" + "\n".join(bullets)
