"""The page on unit scores on a real model with known answers: every number in it comes from the results file."""
# ruff: noqa: E501  sentences of the page keep its line breaks

from __future__ import annotations

from typing import Any

from benchmarks.ground_truth.real_units_scores import removed, ways
from benchmarks.ground_truth.shipped import earlier_said
from benchmarks.markdown import markdown_table
from safecircuits.organism.smollm2.members import MEMBERS

Results = dict[str, Any]
Member = dict[str, Any]

ROLES = ("development", "judged")


def of_role(results: Results, role: str) -> dict[str, Member]:
    """Members of a role that were measured, in the family's order."""
    found = results["members"]
    return {name: found[name] for name in MEMBERS if name in found and found[name]["role"] == role}


def render(results: Results) -> str:
    """The page, from the results file alone."""
    parts = [_head(results), _members(results)]
    for role in ROLES:
        for name, member in of_role(results, role).items():
            parts += [f"## `{name}` ({role})", _overlap(member), _removed(member)]
    parts += [_says(results), _limits(results)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(results: Results) -> str:
    sets = results["provenance"]["datasets"]
    members = "".join(f" --member {name}" for name in results["members"])
    return f"""
# Unit scores on a real model whose answer is known

{earlier_said(results)}Refusal was planted in known neurons or layers of SmolLM2-135M-Instruct ([the family](smollm2_family.md)), and every unit
score was asked where it is. Scores see {sets["malicious, scored"]["n"]} malicious and {sets["ordinary, scored"]["n"]} ordinary requests with the model's own answers; what
is left without the units of highest score is measured on {sets["malicious, measured"]["n"]} and {sets["ordinary, measured"]["n"]} others. All of them are of the generator's
test split, about acts that no member was trained on. Nothing was tuned for this page, which a command writes from its results:

```
python -m benchmarks.ground_truth.real_units --out docs/smollm2_units.json --page docs/smollm2_units.md \\
    --prompts {sets["malicious, scored"]["n"]}{members}
```

It was measured on {results["provenance"]["date"]}. The same of small models, with more scores and normalisations, is in
[unit scores where the answer is known](ground_truth_units.md).
"""


def _members(results: Results) -> str:
    rows = []
    for role in ROLES:
        for name, member in of_role(results, role).items():
            left = [_left(member["removed"].get("planted", {}).get(fill)) for fill in ("mean", "zero")]
            layers = member["planted"]
            what = f"{member['k']} units in" if member["kind"] != "layers" else "all of"
            intact = _percent(member["intact"]) if "intact" in member else ""
            rows.append([f"`{name}`", role, f"{what} layers {layers[0]} to {layers[-1]}", intact, *left])
    head = ["member", "role", "planted", "refused, intact", "without the planted, mean", "without the planted, zero"]
    return f"""
## The members

A role says whether a way to score may be chosen on a member (development) or only judged by it. "Without" is the share that
is still refused / the first-token KL on ordinary requests, from the intact model's distribution, in nats. Removed units are
set to their mean over ordinary requests, with the positions that every prompt begins with spared; or to zero everywhere. Where
layers are planted, the neurons of all of them are removed: that much a set of neurons could do at most.

{markdown_table(head, rows)}
"""


def _overlap(member: Member) -> str:
    chance = next(iter(member["overlap"].values()))["chance"]
    place = "planted" if member["kind"] != "layers" else "in the planted layers"
    rows = [
        [
            row["method"], row["tokens"], "counted" if row["counted"] else "", row["contrast"],
            _percent(row["above"] + row["chance"]), f"{_points(row['above'])} [{_points(row['low'])}, {_points(row['high'])}]",
        ]
        for row in sorted(member["overlap"].values(), key=lambda row: -row["above"])
    ]  # fmt: skip
    head = ["score", "tokens", "beginning", "of", place, "over chance, points"]
    return f"""
### How many of the {member["k"]} highest are {place}

By chance {_percent(chance)}. In brackets, where 90 % of the 70 halves of the scored prompts lie.

{markdown_table(head, rows)}
"""


def _removed(member: Member) -> str:
    found = {name: row for name, row in member["removed"].items() if name != "planted"}
    if not found:
        return ""

    def cells(fill: str, row: dict[str, Any]) -> list[str]:
        curve = row[fill]
        n = curve["smallest"]
        at = str(n or curve["random"]["units"])
        return [str(n) if n else f"none ({at}:)", _left(curve["tried"][at]), _left(curve["random"])]

    order = sorted(found, key=lambda name: (found[name]["mean"]["smallest"] or 10**6, _kl(found[name]["mean"])))
    rows = [[name, *cells("mean", found[name]), *cells("zero", found[name])] for name in order]
    head = ["score", "set, mean", "left", "random", "set, zero", "left", "random"]
    return f"""
### The smallest set whose removal halves refusal

Left are the share refused / the first-token KL on ordinary requests. Random are as many units in the same layers. Where no set
halves refusal, the figures are those of the largest that was tried.

{markdown_table(head, rows)}
"""


def _says(results: Results) -> str:
    lines = ["## What each score says", ""]
    for role in ROLES:
        for name, member in of_role(results, role).items():
            lines += [f"On `{name}` ({role}) {_summary(member)}", ""]
            lines += [*(f"- {sentence}" for sentence in _sentences(member)), ""]
    return "\n".join(lines)


def _summary(member: Member) -> str:
    """The best that any way does, whose tokens tell most, and what removal costs beside that of the planted units."""

    def best(rows: list[dict[str, Any]]) -> float:
        return max((row["above"] + row["chance"] for row in rows), default=0.0)

    every = list(member["overlap"].values())
    tokens = ", ".join(
        f"{_percent(best([row for row in every if row['tokens'] == of and row['contrast'] == 'S − U']))} over {of} tokens"
        for of in ("all", "prompt", "response")
    )
    what = "are planted" if member["kind"] != "layers" else "lie in the planted layers"
    text = (
        f"at most {_percent(best(every))} of the {member['k']} highest by any score {what}; by S − U at most {tokens}."
    )
    curves = [row["mean"] for name, row in member["removed"].items() if name != "planted"]
    costs = [_kl(curve) for curve in curves if curve["smallest"]]
    if costs:
        planted = member["removed"]["planted"]["mean"]["kl"]
        text += (
            f" Every set by a score that halves refusal moves ordinary first tokens by a KL of {min(costs):.2f} or more; "
            f"removing the planted takes refusal to {_percent(member['removed']['planted']['mean']['refused'])} at {planted:.2f}."
        )
    return text


def _sentences(member: Member) -> list[str]:
    every = member["overlap"]
    methods = dict.fromkeys(row["method"] for row in every.values())
    said = []
    for method in methods:
        own = {name: row for name, row in every.items() if row["method"] == method}
        best = max(own, key=lambda name: own[name]["above"])
        row = own[best]
        sure = "above chance in 95 % of halves" if row["low"] > 0 else "not above chance in 95 % of halves"
        if method == "magnitude":
            sure = "the same whatever the prompts"
        above = sum(one["low"] > 0 for one in own.values())
        text = f"**{method}** at best ({best.partition(', ')[2]}) {_points(row['above'])} points, {sure}"
        if len(own) > 1:
            text += f"; {above} of its {len(own)} ways are above chance in 95 % of halves"
        said.append(text + _removal_said(member, method) + ".")
    return said


def _removal_said(member: Member, method: str) -> str:
    """Of the ways of a score whose top was removed, the one that needs least; and whether it costs what the planted do."""
    rows = {name: row["mean"] for name, row in member["removed"].items() if name.split(",")[0] == method}
    enough = {name: row for name, row in rows.items() if row["smallest"]}
    if not rows:
        return ""
    if not enough:
        return f"; its {max(row['random']['units'] for row in rows.values())} highest do not halve refusal"
    name = min(enough, key=lambda one: (enough[one]["smallest"], _kl(enough[one])))
    row = enough[name]
    ceiling = member["removed"]["planted"]["mean"]["kl"]
    control = row["random"]["refused"] <= member["intact"] / 2
    also = ", as do as many random ones of the same layers" if control else ""
    return (
        f"; {row['smallest']} ({name.partition(', ')[2]}) halve refusal{also}, at a KL of {_kl(row):.2f} "
        f"where the planted cost {ceiling:.2f}"
    )


def _limits(results: Results) -> str:
    declared = [name for name, one in MEMBERS.items() if one.kind != "aligned"]
    missing = [f"`{name}`" for name in declared if name not in results["members"]]
    lacking = [f"- Not measured here: {', '.join(missing)}."] if missing else []
    for name, one in results["members"].items():
        lacking += [
            f"- Of `{name}` {what}: {'; '.join(map(str, those))}."
            for what, those in (
                ("these were not scored", [way for way in ways() if str(way) not in one["overlap"]]),
                (
                    "the top of these was not removed",
                    [w for w in ways() if removed(w) and str(w) not in one["removed"]],
                ),
            )
            if those
        ]
    n = results["provenance"]["datasets"]["malicious, measured"]["n"]
    return "\n".join(
        [
            "## What this does not show",
            "",
            *lacking,
            f"- A rate over {n} prompts has an interval of about ±{98 / n**0.5:.0f} points at one half. Smallest sets are of the sizes tried",
            "  alone, found by bisection, as if a larger set never left more refusal than a smaller one.",
            "- Refusals are looked for in the first 8 tokens, by the taught wordings and usual openings.",
            "- Planted is where training was allowed to write. The planted neurons need not all carry refusal, and neurons that were",
            "  not trained may carry on what they wrote: a score that finds those removes refusal and overlaps with nothing.",
            "- Of WIFV's kin only S − U over all tokens is removed, and no normalisation is tried; `integrated` takes 4 points on the way.",
            "- One base model, one training a member.",
        ]
    )


def _kl(curve: dict[str, Any]) -> float:
    found: float = curve["tried"][str(curve["smallest"] or curve["random"]["units"])]["kl"]
    return found


def _left(left: dict[str, float] | None) -> str:
    return "" if left is None else f"{_percent(left['refused'])} / {left['kl']:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
