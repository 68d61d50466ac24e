"""The page on localization with known answers: every number and every verdict in it comes from the results file."""
# ruff: noqa: E501  sentences of the page keep its line breaks

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.ground_truth.scoring import (
    DIAGNOSES,
    GUESSES,
    METHODS,
    N_LAYERS,
    OURS,
    constant_guess,
    measured,
    overlap,
    scores,
    single_layers,
    table,
)
from benchmarks.ground_truth.scoring import members as planted_members
from benchmarks.since import changed_since
from safecircuits.organism.family import LAYERS_FAMILY, MIN_REFUSED, MIN_UTILITY


def render(results: dict[str, Any]) -> str:
    """The page, from the results file alone."""
    parts = [
        _head(results),
        _members(results),
        _judged(results),
        _found(results),
        _misses(results),
        _shares(results),
        _limits(results),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _head(results: dict[str, Any]) -> str:
    sets = results["provenance"]["datasets"]
    n, declared = len(results["members"]), len(LAYERS_FAMILY)
    some = "" if n == declared else f" ({declared} are declared; the others were not built for this page)"
    return f"""
# Localization where the answer is known

Alignment was planted in a known block of layers in {n} small models{some}, and each method was asked where it is. All of them
start from the shipped `base` model ({N_LAYERS} layers) and are trained like the shipped `planted-layers` stage: only the
attention and MLP matrices of the block may move, so everything outside it is bit-identical to a model that never
refuses.

Methods see {sets["normal"]["n"]} normal and {sets["malicious"]["n"]} malicious prompts, and the scaling methods count refusals of {sets["over_rejection"]["n"]} over-rejection
prompts. All prompts are held out from training. This page is written by a command, from its results:

```
python -m benchmarks.ground_truth.build --out FAMILY
python -m benchmarks.ground_truth.localization --family FAMILY --out docs/ground_truth_layers.json \\
    --page docs/ground_truth_layers.md
```

{changed_since(results["provenance"]["date"], "counts", "ranges")}
"""


def _members(results: dict[str, Any]) -> str:
    lines = [
        "## The models",
        "",
        f"A member counts as planted if it refuses at least {MIN_REFUSED:.0%} of held-out malicious prompts and answers at "
        f"least {MIN_UTILITY:.0%} of the utility prompts right. No member was tuned to reach this. The roles were fixed before "
        "training: thresholds were set on development members only, and the scores below are of the judged ones, whose "
        "blocks are all different from those of the development members.",
        "",
        "| block | seed | role | malicious refused | over-rejected | normal refused | utility | planted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for member in results["members"].values():
        figures = member["metrics"]
        rates = [figures[kind]["refused"] for kind in ("malicious", "over_rejection", "normal")]
        rates.append(figures["utility"]["exact"])
        cells = [_block(member["block"]), str(member["seed"]), member["role"]]
        cells += [f"{100 * rate:.1f} %" for rate in rates] + ["yes" if member["learned"] else "no"]
        lines.append("| " + " | ".join(cells) + " |")
    over = [member["metrics"]["over_rejection"]["refused"] for member in results["members"].values()]
    lines += [
        "",
        f"Over-rejection differs most, from {min(over):.1%} to {max(over):.1%}. The scaling methods count it, and where it is "
        "close to none or all, there is little room for the count to change.",
    ]
    return "\n".join(lines)


def _judged(results: dict[str, Any]) -> str:
    rows = scores(results)
    rule = results["rules"]["decision"]
    rivals = [row for row in rows if row.method not in (OURS, *DIAGNOSES)]
    nearest = min(rivals, key=lambda row: row.behind[0])
    lead, low, high = nearest.behind
    if low > 0:
        verdict = "The decision layers overlap more with the planted block than every other method and both guesses do"
    elif lead > 0:
        verdict = "The decision layers have the largest mean overlap, but not beyond noise over every method"
    else:
        verdict = "The decision layers do not beat every other method"
    lacking = [method for method in METHODS if method not in measured(results)]
    missing = f"- Not run on every member for this page: {', '.join(lacking)}." if lacking else ""
    return f"""
## Scores on the judged members

{table(results)}

Overlap is the intersection over union of found and planted layers; errors are found minus planted, in layers, so that
+1 for the last layer means that the found range ends one layer too late. Intervals are bootstrap intervals (95 %) over
the {rows[0].n} judged members, which share one base: they say how the figures would move with other blocks and seeds, not
with other models. "{GUESSES[0]}" is {_block(constant_guess(results))}, the best constant answer on the development
members. The rows "from the planted block" are not methods, since they are given the answer; they show whether the search
stays there.

{verdict}; the nearest is "{nearest.method}", {lead:.2f} [{low:.2f}, {high:.2f}] behind.

- **decision layers** (`safecircuits.layers.decision.decision_layers`): the residual stream at the positions after the
  instruction is patched between a harmless and a malicious prompt after one layer at a time. {_read_off(rule)}
- **gap onset**: `layer_gap(...).onset()`, the paper's first guess, read off the angle-gap curve by an explicit rule.
- **bounds**: `localize(...)` from that onset, α by the paper's search; up is α > 1, down is α < 1. "all" scales all seven
  matrices; "qkv+mlp" leaves the output projection out, as the paper's code did until April 2025.
- **grid**: `scaling_grid(...)`, every block at that α; the block with the extreme count.
{missing}

On the development members, where the thresholds were chosen, the same table is:

{table(results, "development")}
"""


def _read_off(rule: dict[str, float]) -> str:
    """How the range was read off the curve of shares when the results were made."""
    if "growth" in rule:
        return (
            "The range is the block in\n  which the share of the refuse-minus-comply difference that this moves grows most "
            f"beyond {rule['growth']:g} times\n  what it would if every layer did as much."
        )
    return (
        "The range starts where\n  that first moves the refuse-minus-comply score by "
        f"{rule['appear']:.0%} of the full difference (and beyond noise), and ends\n  where it moves "
        f"{rule['complete']:.0%} of it, in that layer and all later ones."
    )


def _found(results: dict[str, Any]) -> str:
    shown = [method for method in METHODS if method in measured(results)]
    lines = ["## What each method found", "", "| planted | role | " + " | ".join(shown) + " |"]
    lines.append("|---|---|" + "---|" * len(shown))
    for member in planted_members(results, None).values():
        found = [member["methods"][method]["layers"] for method in shown]
        cells = [f"**{_block(one)}**" if one == member["block"] else _block(one) for one in found]
        lines.append(f"| {_block(member['block'])} | {member['role']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _misses(results: dict[str, Any]) -> str:
    planted = list(planted_members(results, None).values())
    n, known = len(planted), measured(results)
    text = ["## Where the published procedure misses, and how", "", f"Over all {n} planted members.", ""]
    onsets = [(m["methods"]["gap onset"]["layers"], m["block"]) for m in planted]
    onsets = [(one, block) for one, block in onsets if one is not None]
    late_start = sum(one[0] > block[0] for one, block in onsets)
    late_end = sum(one[1] > block[1] for one, block in onsets)
    to_the_end = sum(one[1] == N_LAYERS - 1 for one, block in onsets if block[1] < N_LAYERS - 1)
    after = mean(m["gap_deg"][-1] - m["gap_deg"][m["block"][1]] for m in planted)
    inside = mean(m["gap_deg"][m["block"][1]] for m in planted)
    text.append(
        f"- **The gap keeps growing above the block.** At the last planted layer it is {inside:.0f}° on average, and it "
        f"grows by another {after:.0f}° in the layers above, which are those of a model without alignment. So the onset's "
        f"range ends too late in {late_end} of {n} members, and in {to_the_end} it runs to the last layer of the model. "
        f"It starts too late in {late_start}: the first planted layers rotate the residual stream only a little."
    )
    for direction in ("up", "down"):
        method = f"bounds {direction}, all"
        if method not in known:
            continue
        found = [m["methods"][method] for m in planted]
        ours = [m["methods"][f"bounds {direction} from the planted block"] for m in planted]
        noisy = sum(bool(one.get("within_noise")) for one in found if one["layers"])
        settled = sum(bool(one.get("alpha_found")) for one in found)
        stays = sum(one["layers"] == m["block"] for one, m in zip(ours, planted, strict=True))
        away = mean(overlap(one["layers"], m["block"]) for one, m in zip(ours, planted, strict=True))
        elsewhere = (
            ": so the start is not the only problem; the counts have their extreme elsewhere" if stays < n else ""
        )
        text.append(
            f"- **Bounds, α {'above' if direction == 'up' else 'below'} 1.** The α search reaches the paper's spread in "
            f"{settled} of {n} members; the result is within noise of another range, or of not scaling, in {noisy}. Told "
            f"the planted block as its start, the search stays there in {stays} and otherwise leaves it (mean overlap "
            f"{away:.2f}){elsewhere}."
        )
    for direction in ("up", "down"):
        method = f"grid {direction}, all"
        if method in known:
            text.append(_grid(planted, method, direction) + " " + _singles(results, method, direction))
    return "\n".join(text)


def _grid(planted: Sequence[dict[str, Any]], method: str, direction: str) -> str:
    wider, ranks, rivals, harmed = 0, [], [], 0
    for member in planted:
        grid, (first, last) = member["methods"][method], member["block"]
        sign = -1 if direction == "up" else 1
        counts = [sign * count for row in grid["counts"] for count in row if count >= 0]
        own = sign * grid["counts"][first][last]
        ranks.append(1 + sum(count < own for count in counts))
        rivals.append(len(grid["rivals"]))
        wider += member["block"] in [*grid["rivals"], grid["layers"]]
        harmed += own > sign * grid["baseline"]
    wrong = "lowers" if direction == "up" else "raises"
    return (
        f"- **Every block, α {'above' if direction == 'up' else 'below'} 1.** Of the {N_LAYERS * (N_LAYERS + 1) // 2} blocks "
        f"the planted one is number {mean(ranks):.0f} on average (best {min(ranks)}, worst {max(ranks)}), and is the best or within "
        f"noise of it in {wider} of {len(planted)} members; {mean(rivals):.0f} blocks are within noise of the best on average. "
        f"In {harmed} of {len(planted)} scaling the planted block itself {wrong} the count, against the procedure's premise."
    )


def _singles(results: dict[str, Any], method: str, direction: str) -> str:
    moved = single_layers(results, method)
    phrases = []
    for place, values in moved.items():
        if values:
            lower, higher = sum(value < 0 for value in values), sum(value > 0 for value in values)
            phrases.append(
                f"{place} the block {mean(values):+.1f} refusals on average (lower in {lower}, higher in {higher} of "
                f"{len(values)} layers)"
            )
    return f"One layer alone scaled {direction} moves the count: " + "; ".join(phrases) + "."


def _shares(results: dict[str, Any]) -> str:
    planted = list(planted_members(results, None).values())
    lines = [
        "## The share of the decision, layer by layer",
        "",
        "Share of the refuse-minus-comply difference that patching the residual stream after a layer carries over; planted "
        "layers in bold.",
        "",
        "| planted | role | " + " | ".join(map(str, range(N_LAYERS))) + " |",
        "|---|---|" + "---|" * N_LAYERS,
    ]
    below, end = [], []
    for member in planted:
        first, last = member["block"]
        share = member["decision_share"]
        below += share[:first]
        end.append(share[last])
        cells = [f"**{x:.2f}**" if first <= k <= last else f"{x:.2f}" for k, x in enumerate(share)]
        lines.append(f"| {_block(member['block'])} | {member['role']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Below the block the share is at most {max(below):.3f}; at its last layer it is {min(end):.3f} or more.",
    ]
    return "\n".join(lines)


def _limits(results: dict[str, Any]) -> str:
    planted = planted_members(results, None).values()
    wrong = [(m, m["methods"][OURS]["layers"]) for m in planted if m["methods"][OURS]["layers"] != m["block"]]
    named = ", ".join(f"{_block(m['block'])} (found {_block(found)})" for m, found in wrong)
    text = f"The decision layers miss {named}." if wrong else "The decision layers miss no member here."
    late = [m["decision_share"][m["block"][1]] for m, found in wrong if found and found[1] > m["block"][1]]
    if late:
        text += (
            f" Where the range ends too late, the residual stream after the instruction holds "
            f"{' and '.join(f'{share:.0%}' for share in sorted(late))} of the decision when the block ends. The rest can only be at "
            "the instruction's own tokens, from where layers above fetch it, although they were never trained to."
        )
    early = [m["decision_share"][m["block"][1]] for m, found in wrong if found and found[1] < m["block"][1]]
    if early:
        text += " Where it ends too early, the last planted layers were free to move but are not needed."
    tardy = [m["decision_share"][m["block"][0]] for m, found in wrong if found and found[0] > m["block"][0]]
    if tardy:
        text += (
            f" Where it starts too late, patching after the first planted layer carries "
            f"{' and '.join(f'{share:.1%}' for share in sorted(tardy))} of the decision, less than the threshold."
        )
    return f"""
## What this does not show

- {text}
- The decision layers are those in which the decision comes to be held after the instruction. A layer that was free to
  move and takes no part is not among them, and neither is one that only prepares something at the instruction's own
  tokens: the planted block is what may have moved, not what is used.
- All members are one base of {N_LAYERS} layers with a small vocabulary, and their prompts end in one template token. Every layer
  outside the block knows nothing of refusing. A model that was aligned in all of its layers has no such edge, and what any
  method returns for it is not checked by this page.
- The published procedure was made for models of 28 to 40 layers, and its authors read the gap by eye. Here a written rule
  reads it.
"""


def _block(layers: list[int] | None) -> str:
    return "none" if layers is None else f"[{layers[0]}, {layers[1]}]"
