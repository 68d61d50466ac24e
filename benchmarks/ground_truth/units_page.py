"""The page on unit scores with known answers: every number and every verdict in it comes from the results file."""
# ruff: noqa: E501  sentences of the page keep its line breaks

from __future__ import annotations

from collections.abc import Callable
from statistics import geometric_mean, mean
from typing import Any, NamedTuple

from benchmarks.ground_truth.groups import RU, SCU, UCU, as_named
from benchmarks.markdown import markdown_table
from benchmarks.since import changed_since
from safecircuits.organism.family import MIN_REFUSED, UNITS_FAMILY
from safecircuits.units.score_methods import METHODS

Results = dict[str, Any]
AIM = 5.0
"""How many times smaller than WIFV's the best score's smallest set should be on judged members."""


class Way(NamedTuple):
    """A way to order units."""

    score: str
    tokens: str
    normalize: str
    contrast: str = "difference"

    def __str__(self) -> str:
        how = {"difference": "S − U", "safety": "S", "set-difference": "S without top U"}[self.contrast]
        return f"{self.score}, {self.tokens} tokens, {self.normalize}, {how}"


def of_role(results: Results, role: str) -> dict[str, Any]:
    """The models that serve to choose a way, or those that judge it."""
    return {name: model for name, model in results["models"].items() if model["role"] == role}


def smallest_sets(results: Results) -> dict[Way, dict[str, int | None]]:
    """By way and model, the smallest set that halves refusal at an allowed loss of utility; None where none did."""
    found: dict[Way, dict[str, int | None]] = {}
    for name, model in results["models"].items():
        for curve in model["curves"]:
            way = Way(*(curve[key] for key in Way._fields))
            found.setdefault(way, {})[name] = curve["smallest_set"]
    return found


def typical(results: Results, sets: dict[str, int | None], role: str) -> float:
    """Geometric mean of the smallest sets over the models of a role; no set counts as all units."""
    models = of_role(results, role)
    return geometric_mean([sets[name] or model["n_units"] for name, model in models.items()])


def ranked(results: Results, where: Callable[[Way], bool] | None = None) -> list[Way]:
    """Ways by what they need on development models, least first."""
    found = smallest_sets(results)
    return sorted(
        (way for way in found if where is None or where(way)),
        key=lambda way: typical(results, found[way], "development"),
    )


def render(results: Results) -> str:
    """The page, from the results file alone."""
    parts = [_head(results), _models(results), _sets(results), _verdict(results), _normalisations(results)]
    parts += [_precision(results), _groups(results), _limits(results)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(results: Results) -> str:
    n, asked = results["provenance"]["calibration"], results["provenance"]["prompts"]
    return f"""
# Unit scores where the answer is known

Which unit score finds the units that really carry refusal? In these small models the answer is known: refusal was planted
in a known set of MLP neurons, and every other weight was left as it was.

Each score ranks all units, neurons and heads together. Units are then removed (set to zero) from the highest score down, and
the fewer it takes to halve refusal without losing utility, the better the score. Refusals are counted on {asked} held-out
malicious prompts, utility by right answers to {asked} others. Units are scored on {n} malicious prompts with refusals (S), {n}
utility prompts with answers (U) and, for attribution, {n} normal prompts. The same is asked of a
[real model](smollm2_units.md).

A *way* to score is written as the score, the tokens that it counts, how it is normalised across layers, and the order in which
units are taken: "wifv, prompt tokens, none, S − U" is WIFV on prompt tokens, not normalised, by the score on refusals minus the
score on answers. [Safety-critical units](concepts/units.md) defines the scores. This page is written by a command, from its
results:

```
python -m benchmarks.ground_truth.build --out FAMILY --part all
python -m benchmarks.ground_truth.units --models aligned planted-units FAMILY/units-* --out docs/ground_truth_units.json \\
    --page docs/ground_truth_units.md
```

{changed_since(results["provenance"]["date"], "units")}
"""


def _models(results: Results) -> str:
    rows = []
    for name, model in results["models"].items():
        planted = model["planted"] or {}
        where = ", ".join(f"{n} in layer {layer}" for layer, n in planted.items()) or "not planted: aligned freely"
        without = model["planted_removed"]
        left = f"{_percent(without['refusal'])} / {_percent(without['utility'])}" if without else ""
        intact = f"{_percent(model['intact']['malicious_refused'])} / {_percent(model['intact']['utility'])}"
        rows.append([f"`{name}`", model["role"], where, intact, left])
    missing = [one.name for one in UNITS_FAMILY if one.name not in results["models"]]
    some = f" Declared but not measured here: {', '.join(missing)}." if missing else ""
    return f"""
## The models

Roles were fixed before training: a way to score may be chosen on development models, and is judged on the others.{some}

{markdown_table(["model", "role", "planted neurons", "refused / right, intact", "without exactly the planted"], rows)}

A planted set is where training was allowed to write; the smallest set that carries refusal may be part of it.
"""


def _sets(results: Results) -> str:
    found, names = smallest_sets(results), list(results["models"])
    best = []
    for score in METHODS:
        best += ranked(results, lambda way, score=score: way.score == score)[:1]
    best += ranked(results, lambda way: way.score == "wifv" and way.normalize == "none")
    rows = []
    for way in sorted(set(best), key=ranked(results).index):
        cells = [str(found[way][name] or "–") for name in names]
        rows.append([str(way), *cells, *(f"{typical(results, found[way], role):.1f}" for role in _roles(results))])
    head = ["way", *(f"`{name}`" for name in names), *_roles(results)]
    return f"""
## The smallest set that halves refusal

At no more than 2 points of utility lost. Each score at its best on the development models, and WIFV (the paper's score)
over all three choices of tokens. A dash: no set of up to {results["counts"][-1]} units did; it counts as all units in the geometric
means on the right. All {len(found)} ways with all curves are in `ground_truth_units.json`.

{markdown_table(head, rows)}
"""


def _verdict(results: Results) -> str:
    found = smallest_sets(results)
    roles = _roles(results)
    winner = ranked(results)[0]
    wifv = ranked(results, lambda way: way.score == "wifv" and way.contrast == "difference")
    least = typical(results, found[winner], "development")
    equal = [str(way) for way in ranked(results)[1:] if typical(results, found[way], "development") == least]
    as_small = f" (as small there: {'; '.join(equal)})" if equal else ""
    lines = [
        f"Chosen on the development models: **{winner}**{as_small}. Against it, WIFV needs this many times more units "
        "(geometric mean):",
        "",
    ]
    rows = []
    named = [("the best way for WIFV, chosen on the development models", wifv[0])]
    named += [(f"WIFV over {t} tokens, not normalised", Way("wifv", t, "none")) for t in ("prompt", "all", "response")]
    for label, way in named:
        ratios = {role: typical(results, found[way], role) / typical(results, found[winner], role) for role in roles}
        shown = f"{label} ({way.tokens} tokens, {way.normalize})" if way is named[0][1] else label
        met = [f"{'met' if ratios[role] >= AIM else 'missed'}" for role in roles if role == "judged"]
        rows.append([shown, *(f"{ratios[role]:.1f}" for role in roles), *met])
    head = ["WIFV", *roles, *([f"aim ≥ {AIM:g} on judged members"] if "judged" in roles else [])]
    return "\n".join(lines) + "\n" + markdown_table(head, rows)


def _normalisations(results: Results) -> str:
    found, roles = smallest_sets(results), _roles(results)
    rows = []
    for way in ranked(results, lambda way: way.score == "wifv" and way.contrast == "difference"):
        rows.append([way.tokens, way.normalize, *(f"{typical(results, found[way], role):.1f}" for role in roles)])
    return f"""
## What normalisation and tokens do to WIFV

Geometric mean of the smallest sets, S − U.

{markdown_table(["tokens", "normalisation", *roles], rows)}
"""


def _precision(results: Results) -> str:
    names = [name for name, model in results["models"].items() if model["planted"]]
    if not names:
        return ""
    chosen: dict[Way, None] = {ranked(results)[0]: None}
    for tokens in ("prompt", "all", "response"):
        chosen[Way("wifv", tokens, "none")] = None
    chosen |= dict.fromkeys(ranked(results, lambda way: way.score == "random")[:1])
    rows = []
    for way in chosen:
        cells = []
        for name in names:
            curves = results["models"][name]["curves"]
            curve = next(c for c in curves if Way(*(c[key] for key in Way._fields)) == way)
            few = curve["planted"][results["counts"].index(8)] if 8 in results["counts"] else 0
            cells.append(f"{few} of 8; {_percent(curve['recall'])}")
        rows.append([str(way), *cells])
    return f"""
## Planted neurons among the highest

Of the eight highest units, and the share of the planted neurons among as many highest units as were planted (or the
nearest number that was measured).

{markdown_table(["way", *(f"`{name}`" for name in names)], rows)}
"""


def _groups(results: Results) -> str:
    roles = _roles(results)
    ways = [(row["score"], row["tokens"], row["normalize"]) for row in next(iter(results["models"].values()))["groups"]]

    def lost(index: int, role: str) -> list[dict[str, Any]]:
        return [model["groups"][index]["lost"] for model in of_role(results, role).values()]

    def figure(index: int, role: str) -> float:
        return mean(as_named(one) for one in lost(index, role))

    order = sorted(range(len(ways)), key=lambda index: -figure(index, roles[0]))
    rows = []
    for index in order:
        role = roles[-1]
        cells = []
        for group in ("SCU", "UCU", "RU"):
            refusal, utility = (mean(one[group][what] for one in lost(index, role)) for what in ("refusal", "utility"))
            cells.append(f"{_percent(refusal)} / {_percent(utility)}")
        rows.append([*ways[index], *cells, *(f"{figure(index, one):.2f}" for one in roles)])
    score, tokens, how = ways[order[0]]
    judged = max(range(len(ways)), key=lambda index: figure(index, roles[-1]))
    other, whose, by = ways[judged]
    ahead = f"({figure(order[0], roles[-1]):.2f} against {figure(judged, roles[-1]):.2f})"
    same = "also the best" if judged == order[0] else f"behind {other} over {whose} tokens, {by} {ahead},"
    return f"""
## Do the groups do what their names say?

SSAH's Table 1: SCU ({SCU:.1%}), UCU ({UCU:.1%}) and RU ({RU:.1%} of all units, the paper's shares of Llama-2) are cut by each way of
scoring and removed. Shown are the shares of refusal / of utility that are lost, mean over the {roles[-1]} models. Without SCU
refusal should go and utility stay, without UCU the reverse, without RU neither. The last columns sum it up: 1 if every group
does so wholly, 0.33 if no removal changes anything.

{markdown_table(["score", "tokens", "normalisation", "without SCU", "without UCU", "without RU", *roles], rows)}

The best on the {roles[0]} models is {score} over {tokens} tokens, {how}: the default of `score_units` and `classify_units`.
It is {same} on the {roles[-1]} models.
"""


def _limits(results: Results) -> str:
    asked = results["provenance"]["prompts"]
    return f"""
## What this does not show

- All models are one base of 8 layers with a small vocabulary; neurons were planted, no heads. Members refuse at least
  {MIN_REFUSED:.0%} of held-out malicious prompts, and their refusals begin with one token, which suits an attribution of the first
  answer token.
- A rate over {asked} prompts has an interval of about ±12 points at one half, so the place where refusal halves may move to
  a neighbouring number of units. Numbers of units were measured at {", ".join(map(str, results["counts"]))}.
- Attribution is told what to look for: it needs normal prompts to compare with, and tokens that begin refusals and answers.
  WIFV needs the two data sets alone. Attribution says nothing of what utility needs, so UCU and RU cannot be cut by it.
"""


def _roles(results: Results) -> list[str]:
    return [role for role in ("development", "judged") if of_role(results, role)]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
