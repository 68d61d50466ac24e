"""The page on localization in a real language model with known answers; every number is from the results file."""
# ruff: noqa: E501  sentences of the page keep its line breaks

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.ground_truth.scoring import GUESSES, best_constant, blocks, bootstrap, overlap
from benchmarks.ground_truth.shipped import earlier_said
from safecircuits.organism.smollm2.members import MEMBERS

N_LAYERS = 30

TITLES = {
    "gap": "gap onset",
    "decision": "decision layers",
    "bounds up": "bounds, α 1.1",
    "bounds down": "bounds, α 0.9",
}


def table(results: dict[str, Any]) -> str:
    """Mean overlap with the planted layers by method and role, with 95 % bootstrap intervals over members."""
    lines = [
        "| method | role | members | overlap | exact | none found | error of first | error of last |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for role in ("judged", "development"):
        for method, title in TITLES.items():
            found = [
                (one["methods"][method]["layers"], one["block"])
                for one in results["members"].values()
                if one["role"] == role and one["block"] is not None and method in one["methods"]
            ]
            if found:
                lines.append(_row(title, role, found))
        if planted := [block for block in _planted(results, role) if _planted(results, "development")]:
            lines.append(_row(GUESSES[0], role, [(guess(results), block) for block in planted]))
    return "\n".join(lines)


def guess(results: dict[str, Any]) -> list[int]:
    """The best constant answer on the development members, which looks at no model."""
    return best_constant(_planted(results, "development"), blocks(N_LAYERS))


def _planted(results: dict[str, Any], role: str) -> list[list[int]]:
    return [one["block"] for one in results["members"].values() if one["role"] == role and one["block"] is not None]


def _row(title: str, role: str, found: list[tuple[list[int] | None, list[int]]]) -> str:
    each = np.array([overlap(layers, block) for layers, block in found])
    low, high = bootstrap(each)
    named = [(layers, block) for layers, block in found if layers is not None]
    cells = [title, role, str(len(found)), f"{each.mean():.2f} [{low:.2f}, {high:.2f}]"]
    cells += [f"{sum(layers == block for layers, block in named)} of {len(found)}", str(len(found) - len(named))]
    for end in (0, 1):
        cells.append(f"{np.mean([layers[end] - block[end] for layers, block in named]):+.1f}" if named else "")
    return "| " + " | ".join(cells) + " |"


def render(results: dict[str, Any]) -> str:
    """The page, from the results file alone."""
    sets, rule = results["provenance"]["datasets"], results["rules"]["decision"]
    return f"""# Localization in a real language model, where the answer is known

{earlier_said(results)}Refusal was planted in known layers of SmolLM2-135M-Instruct (30 layers), and each method was asked where it is, in {sum(one["kind"] != "base" for one in results["members"].values())} of
{len(MEMBERS)} declared members so far; the base, which does not refuse, stands beside them. Methods see {sets["normal"]["n"]} normal and {sets["malicious"]["n"]} malicious prompts; the scaling methods count refusals of
{sets["over_rejection"]["n"]} over-rejection prompts, at one α, from the gap's onset or, where it has none, from the decision layers. All prompts are
of the project's own generator, held out from training. Roles were fixed before training: rules were chosen on development
members, and judged members tell how they do. This page is written by a command:

```
python -m benchmarks.ground_truth.real_layers --out docs/ground_truth_real_layers.json --page docs/ground_truth_real_layers.md
```

## Scores

{table(results)}

Overlap is the intersection over union of found and planted layers, 0 where a method names none. Intervals are 95 % bootstrap
intervals over members, which share one base. Of members with planted units the layers are those that hold them.
{_guessed(results)}
## What each method says of each member

{_members(results)}

In brackets: how many of 1,000 resamples of the prompts name the same layers. A bound search that is within noise of not
scaling at all names nothing.

## The share of the decision, layer by layer

{_shares(results)}

The decision layers are the block in which this curve grows most beyond {rule["growth"]:g} times what it would if every layer did as
much ([how that was chosen](concepts/safety-layers.md)).
"""


def _guessed(results: dict[str, Any]) -> str:
    planted = {role: _planted(results, role) for role in ("development", "judged")}
    if not planted["development"]:
        return ""
    known = [one for one in results["members"].values() if one["block"] is not None]
    named = [one["methods"].get("decision", {}).get("layers") for one in known]
    answers = sorted({tuple(layers) for layers in named if layers})
    firsts = [first for blocks_of in planted.values() for first, _ in blocks_of]
    return f"""
"{GUESSES[0]}" is {_block(guess(results))}, the best constant answer on the development members, and looks at no model. For {len(known)} members
planted from layers {min(firsts)} to {max(firsts)} on, the decision layers are always one of {", ".join(_block(list(one)) for one in answers)}.
{_by_depth(known)} Patching
sees the post-instruction tokens. Our reading: what is planted early acts where the instruction stands, and is carried
over to these tokens further up.
"""


def _by_depth(known: list[dict[str, Any]]) -> str:
    """How the decision layers do for blocks that are planted early, and for all others."""
    said = []
    for words, early in (("wholly below layer 12", True), ("that reach layer 12 or beyond", False)):
        found = [
            (one["methods"].get("decision", {}).get("layers"), one["block"])
            for one in known
            if (one["block"][1] < 12) is early and "decision" in one["methods"]
        ]
        if found:
            mean = np.mean([overlap(layers, block) for layers, block in found])
            said.append(f"{mean:.2f} for the {len(found)} blocks {words}")
    return f"Their overlap is {' and '.join(said)}."


def _members(results: dict[str, Any]) -> str:
    lines = [
        "| member | role | planted | " + " | ".join(TITLES.values()) + " |",
        "|---|---|---|" + "---|" * len(TITLES),
    ]
    for name, one in results["members"].items():
        cells = [name, one["role"], _block(one["block"]) if one["block"] else f"unknown ({one['kind']})"]
        if one["kind"] == "base":
            cells[2] = "nothing"
        for method in TITLES:
            said = one["methods"].get(method)
            cells.append("not run" if said is None else _cell(said, one["block"]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(said: dict[str, Any], block: list[int] | None) -> str:
    layers, sure = said["layers"], said["resamples"]
    if layers is None:
        return "none"
    text = f"{_block(layers)} ({sure['share']:.0%})" if sure else _block(layers)
    return f"**{text}**" if layers == block else text


def _shares(results: dict[str, Any]) -> str:
    measured = {
        name: one for name, one in results["members"].items() if one["methods"].get("decision", {}).get("layers")
    }
    n = max((len(one["methods"]["decision"]["share"]) for one in measured.values()), default=0)
    lines = ["| member | role | " + " | ".join(map(str, range(n))) + " |", "|---|---|" + "---|" * n]
    for name, one in measured.items():
        first, last = one["block"] or (n, n)
        cells = [
            f"**{share:.2f}**" if first <= layer <= last else f"{share:.2f}"
            for layer, share in enumerate(one["methods"]["decision"]["share"])
        ]
        lines.append("| " + " | ".join([name, one["role"], *cells]) + " |")
    return "\n".join(lines)


def _block(layers: list[int] | None) -> str:
    return "none" if layers is None else f"[{layers[0]}, {layers[1]}]"
