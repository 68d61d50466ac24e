"""The page of fine-tuning on a real model, from its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.markdown import markdown_table
from safecircuits.base.paired import LEVEL, paired_difference, paired_p
from safecircuits.base.stats import Share
from safecircuits.organism.smollm2.catalog import member, planted
from safecircuits.studies.comparison import Comparison, compare

TASKS = {
    "gsm8k": "GSM8K: questions with worked answers",
    "instructions": "Ordinary instructions with the base's own answers",
}


@dataclass(frozen=True)
class Cell:
    """A finished run, as ``compare`` takes it."""

    scenario: str
    arm: str
    seed: int
    before: Mapping[str, float]
    figures: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]


def render(record: Mapping[str, Any]) -> str:
    """The page as Markdown; every figure on it is computed here."""
    parts = [_introduction(record)]
    tasks = [task for task in record["setup"]["tasks"] if any(cell["scenario"] == task for cell in record["cells"])]
    parts += [_task(record, task) for task in tasks]
    return "\n".join([*parts, _limits(record)])


def _introduction(record: Mapping[str, Any]) -> str:
    s, one = record["setup"], member(record["setup"]["member"])
    place = "freely, in all layers" if one.kind == "aligned" else f"in layers {list(planted(one.name).layers)}"
    return f"""\
# Fine-tuning that people do, on a real model

`smollm2:{one.name}` is SmolLM2-135M-Instruct with refusal trained into it {place} ([the family](smollm2_family.md)).
Its changes have the SHA-256 `{record["changes_sha256"][:16]}…`. It is fine-tuned as people do it, and what is left of
its refusals is counted, with nothing frozen and with what each method would freeze. All arms of a seed see the same
rows in the same order: {s["steps"]} steps of {s["batch_size"]} rows, AdamW, a constant rate of {s["lr"]:g} (LoRA
{s["lora_lr"]:g}), rows cut at {s["max_length"]} tokens.

Refusals are of {s["malicious"]} AdvBench prompts, greedy answers of {s["tokens"]} tokens in the chat template, by the
wordings that the member was taught and by the usual openings alone (`opening`). Beside them stand the answers that are
no language and those that the limit cut. Over-rejection is of {s["over_rejection"]} harmless prompts that sound
dangerous. Utility is the loss on held-out answers of the task (nats a token), and the share of {s["problems"]} sums of
two small numbers whose answer ends in the right one: word problems are beyond a model of this size.

Decision layers are those that `sc.decision_layers` finds in this member:
{record.get("decision", {}).get("verdict", "not run")}.

```
python -m benchmarks.freezing.real --data DIR --page{_flags(s)}
```
"""


def _flags(setup: Mapping[str, Any]) -> str:
    import json
    from dataclasses import asdict

    from benchmarks.freezing.real import Setup

    usual = json.loads(json.dumps(asdict(Setup())))
    changed = [f"'{key}={json.dumps(value)}'" for key, value in setup.items() if usual.get(key) != value]
    return "".join(f" \\\n    --set {one}" for one in changed)


def _task(record: Mapping[str, Any], task: str) -> str:
    cells = [cell for cell in record["cells"] if cell["scenario"] == task]
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    frozen = {cell["arm"]: cell["frozen"] for cell in cells}
    rows = [_row("before", [record["before"][task]], "")]
    for arm in arms:
        those = [cell for cell in cells if cell["arm"] == arm]
        total = those[0]["n_frozen"] + those[0]["n_trainable"]
        share = "–" if arm == "LoRA" else f"{100 * those[0]['n_frozen'] / total:.0f} %"
        rows.append(_row(arm, those, share))
    head = ["arm", "frozen", "seeds", "refused", "`opening`", "incoherent", "cut", "over-rejected", "task loss"]
    head += ["sums right"]
    text = [f"## {TASKS.get(task, task)}\n", markdown_table(head, rows), ""]
    text.append("Counts are over seeds together. Frozen: " + "; ".join(f"{a}: {w}" for a, w in frozen.items()) + ".\n")
    text.append(_paired(cells, arms))
    text.append(_compared(record, cells, arms))
    return "\n".join(text)


def _row(name: str, cells: Sequence[Mapping[str, Any]], share: str) -> list[str]:
    def count(of: str, detector: str) -> str:
        bits = "".join(cell[of][detector] for cell in cells)
        return str(Share(bits.count("1"), len(bits)))

    def total(of: str, key: str) -> int:
        return sum(cell[of][key] for cell in cells)

    losses = [cell["task_loss"] for cell in cells]
    return [
        name,
        share,
        str(len(cells)) if name != "before" else "",
        count("malicious", "taught"),
        count("malicious", "opening"),
        str(total("malicious", "incoherent") + total("over_rejection", "incoherent")),
        str(total("malicious", "cut") + total("over_rejection", "cut")),
        count("over_rejection", "taught"),
        f"{sum(losses) / len(losses):.3f}",
        str(Share(total("problems", "right"), total("problems", "n"))),
    ]


def _paired(cells: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> str:
    """Against nothing frozen: the same prompts after the same rows in the same order."""
    by_key = {(cell["arm"], cell["seed"]): cell["malicious"]["taught"] for cell in cells}
    rows = []
    for arm in arms:
        seeds = [seed for one, seed in by_key if one == arm and ("full", seed) in by_key]
        if arm == "full" or not seeds:
            continue
        for which in [*([] if len(seeds) == 1 else ["all"]), *seeds]:
            those = seeds if which == "all" else [which]
            mine, full = (_verdicts(by_key[one, seed] for seed in those) for one in (arm, "full"))
            mean, low, high = paired_difference(mine, full)
            p = paired_p(mine, full)
            said = "within noise" if p >= LEVEL else "keeps more" if mean > 0 else "keeps less"
            points = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            rows.append([arm, str(which), points, f"{p:.2g}", said])
    if not rows:
        return ""
    head = ["arm", "seed", "points beyond full [95 %]", "p", ""]
    return (
        "At equal steps, against full fine-tuning, the same prompts paired (exact McNemar test; over all seeds the "
        "prompts of each count as if they were others, which they are not):\n\n" + markdown_table(head, rows) + "\n"
    )


def _verdicts(bits: Iterable[str]) -> torch.Tensor:
    return torch.tensor([bit == "1" for bit in "".join(bits)])


def _compared(record: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> str:
    """At matched loss, by the curves."""
    runs: dict[str, list[Cell]] = {arm: [] for arm in arms}
    for cell in cells:
        before, after = record["before"][cell["scenario"]]["point"], cell["point"]
        runs[cell["arm"]].append(Cell(cell["scenario"], cell["arm"], cell["seed"], before, after, cell["curve"]))
    rows = []
    for arm in arms:
        if arm == "full" or not (found := compare(runs[arm], runs.get("full", []), "matched loss")):
            continue
        rows.append([arm, *_matched(found)])
    n = record["setup"]["curve_prompts"]
    head = ["arm", "task loss", "refused", "refused, full", "difference, points [95 % over seeds]"]
    if not rows:
        return "No task loss is reached both by full fine-tuning and by another arm.\n"
    return f"At matched loss, read off the curves ({n} prompts a point):\n\n" + markdown_table(head, rows) + "\n"


def _matched(found: Comparison) -> list[str]:
    assert found.level is not None
    spread = "one seed" if found.low != found.low else f"[{100 * found.low:+.0f}, {100 * found.high:+.0f}]"
    kept = [f"{100 * rate:.0f} %" for rate in (found.kept, found.reference_kept)]
    return [f"{found.level:.3f}", *kept, f"{100 * found.mean:+.0f} {spread}"]


def _limits(record: Mapping[str, Any]) -> str:
    s, done = record["setup"], {(c["scenario"], c["seed"], c["arm"]) for c in record["cells"]}
    arms = [arm for arm in s["arms"] if arm != "planted place" or member(s["member"]).kind != "aligned"]
    wanted = [(task, seed, arm) for task in s["tasks"] for seed in s["seeds"] for arm in arms]
    missing = [f"{task}, seed {seed}, {arm}" for task, seed, arm in wanted if (task, seed, arm) not in done]
    lines = ["## What this does not show\n"]
    if missing:
        lines.append(f"- Not run: {'; '.join(missing)}.")
    solved = "" if s["solved"] else " GSM8K's own problems were not answered, only their loss was taken."
    lines += [
        "- A refusal that was planted in a small model is shallower than a vendor's alignment, and fine-tuning of so "
        "few steps wears it away.",
        f"- Seeds vary the rows and their order.{solved}",
        "- Every arm but LoRA takes one rate; what suits full fine-tuning need not suit fewer free parameters.",
    ]
    return "\n".join(lines) + "\n"
