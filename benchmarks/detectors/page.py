"""The page on how well detectors agree with readers: every number in it comes from the results file."""
# ruff: noqa: E501  sentences of the page keep its line breaks

from __future__ import annotations

from typing import Any

from benchmarks.detectors.agreement import kappa, precision_recall
from benchmarks.detectors.completions import LIMITS
from benchmarks.detectors.robustness import changes, tables
from benchmarks.markdown import markdown_table
from safecircuits.base.stats import Share
from safecircuits.behavior.verdict import OPENING_TOKENS
from safecircuits.behavior.verdict_table import VERDICTS


def render(results: dict[str, Any]) -> str:
    labels = results["labels"]
    n = sum(labels.values())
    longest = str(LIMITS[-1])
    whole = {name: limits[longest]["all"] for name, limits in results["counts"].items()}
    turned = tables(results["robustness"])
    best = max(whole, key=lambda name: kappa(whole[name])[0])
    return f"""# How well the detectors agree with readers

{n} completions of {", ".join(results["models"])} (SmolLM2-135M-Instruct and what was made of it), greedy, of {longest} tokens at most, over AdvBench, both halves of XSTest, the over-rejection prompts of Safety Layers and ordinary instructions, the harmful and the borderline ones also with a system prompt that asks for care. Each was labelled by reading: {", ".join(f"{labels[label]} {label}" for label in VERDICTS if labels[label])}. There is one reader so far, and one small model family: take the table as what a detector does on such answers, not on all. The list of `opening` was revised after these answers were read, so that its row is no test of it on unseen ones; as first written it had precision 0.70 (7 of 10) and recall 0.30 (7 of 23), since this model declines in the clause after its apology. The other lists are as published. The texts are not shipped; the labels are kept by prompt and seed, and the completions are made again by

    python -m benchmarks.detectors.completions --data FOLDER --out completions.jsonl
    python -m benchmarks.detectors completions.jsonl

which wrote this page. Labels are of the {longest} tokens; at fewer a detector sees less than the reader did. Intervals are 95 %: Wilson for shares, multinomial draws for κ. Precision: of the answers a detector calls refusals, those that are. Recall: of the refusals, those it finds. Undecided counts as no refusal.

## By detector

{_table(whole)}

On these answers the detector with the highest κ is `{best}`. `opening` is the default: it looks at the start alone and needs {OPENING_TOKENS} tokens, where lists that look anywhere are made for whole answers.

## By token limit (`opening`)

{markdown_table(["tokens", "precision", "recall", "κ", "undecided"], [_row(str(limit), results["counts"]["opening"][str(limit)]["all"]) for limit in LIMITS])}

## By kind of prompt (`opening`, {longest} tokens)

{markdown_table(["prompts", "precision", "recall", "κ", "undecided"], [_row(kind, table) for kind, table in results["counts"]["opening"][longest].items()])}

## The other verdicts (`opening`, {longest} tokens)

{markdown_table(["verdict", "precision", "recall", "κ"], [[verdict, *_figures(whole["opening"], verdict)] for verdict in VERDICTS if labels[verdict]])}

Deflection by words alone finds courtesy and nothing else: whether an answer helps with something other than what was asked takes a judge. Most readers' deflections are of that kind, and count as complying here.

## What turns a detector

To the same completions something is added that makes an answer no less of an answer, or a refusal no less of a refusal, and the verdicts that flip are counted, of those that the detector had called so before; incoherent and undecided ones are left out. No verdict should flip, but for the last column, where an answer follows the refusal and all should. The refusal that is added is a common one; lists with other wordings do not see it, which is no strength.

Of completions that comply, by the detector's own verdict, those that flip:

{turned["complies"]}

Of completions that refuse, by the detector's own verdict, those that flip:

{turned["refuses"]}

What is added to a completion …:

{changes()}

The same table of your own completions, and of a judge, is printed by

    safecircuits judge robustness --completions RUN/completions/malicious.jsonl --out runs/robustness
"""


def _table(whole: dict[str, Any]) -> str:
    rows = [_row(f"`{name}`", table) for name, table in whole.items()]
    return markdown_table(["detector", "precision", "recall", "κ", "undecided"], rows)


def _row(name: str, table: Any) -> list[str]:
    return [name, *_figures(table, "refuses"), str(sum(row.get("undecided", 0) for row in table.values()))]


def _figures(table: Any, verdict: str) -> list[str]:
    precision, recall = precision_recall(table, verdict)
    value, low, high = kappa(table, verdict)
    known = value == value
    return [_share(precision), _share(recall), f"{value:.2f} [{low:.2f}, {high:.2f}]" if known else "–"]


def _share(share: Share) -> str:
    if not share.n:
        return "– (0 of 0)"
    low, high = share.interval
    return f"{share.rate:.2f} [{low:.2f}, {high:.2f}] ({share.hits} of {share.n})"
