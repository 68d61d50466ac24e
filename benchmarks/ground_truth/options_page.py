"""The page on the options that SSAH leaves open: every number in it comes from the results file."""
# ruff: noqa: E501  sentences of the page keep its line breaks

from __future__ import annotations

from typing import Any

from benchmarks.markdown import markdown_table
from benchmarks.since import changed_since

SHARE_FIGURES = ("agreement", "refused", "utility", "planted found", "frozen parameters", "dropped")
MAIN = {"probe": ("aligned: blocks to refusing",), "transfer": ("flows drawn",), "freezing": ("refused",)}
"""The figures that an option's effect is read off, by topic; of units what refusal loses on each model."""


def render(record: dict[str, Any]) -> str:
    """The page, from the results file alone."""
    made = record["provenance"]
    models = record["models"]
    parts = [
        f"""
# What the open details do

The SSAH paper leaves some details open: which token's state the probe reads, how scores are normalised, how the groups are cut,
and so on. Here each is a named option. This page changes one option at a time, leaves all others at their defaults, and shows
what that does on the embedded models. Use it to see which options can decide a result. The default is in bold.

It does not say what an option does to a model of 7 billion parameters: these models have 8 layers, and there is one draw of {made["datasets"]["malicious"]["n"]}
malicious and {made["datasets"]["utility"]["n"]} utility prompts. Differences of shares up to {100 * noise(made["datasets"]["malicious"]["n"]):.0f} points are within noise, and are called that.

One command measures everything and writes this page:

```
python -m benchmarks.ground_truth.options --out docs/ssah_options.json --page docs/ssah_options.md
```

{changed_since(made["date"], "units", "counts")}
""",
        f"""
## Reasoning direction

Of the 8 blocks, how many the probe sees leaning to refusing and how many to answering (those whose 95 % interval excludes zero),
on `aligned` and `unaligned`. *Agreement*: of {made["probe_prompts"]} malicious prompts, the share on which the probe's verdict at the last block is what the
model then does.

{_table(record, "probe", "")}

{_effects(record, "probe")}
""",
        f"""
## Scores: in what order units are taken

Units are scored by WIFV on {made["calibration"]} prompts a side and removed in the order of S − U (score on refusals minus score on ordinary answers). *Units*: how
many of 2, 4, 8, … 512 must be removed to halve refusal (— where 512 do not), and *utility*: what is left of it then. *Planted found*: how many of the
{models["planted-units"]["planted"]} planted neurons are among as many units of highest S − U. Intact, {_intact(models)}.

{_table(record, "units", "units")}

{_effects(record, "units")}

## Groups: where SCU is cut

How many neurons and heads are in SCU, the safety-critical group, and what the model does without them.

{_table(record, "units", "SCU")}

{_effects(record, "cut")}
""",
        f"""
## Attribute transfer

Units change groups when a model is aligned. The figure of these flows from `base` to `aligned` draws the larger ones: how many it draws,
and the share of all units in flows that are too small to be drawn.

{_table(record, "transfer", "")}

## Freezing

`aligned` is fine-tuned for {made["steps"]} steps on facts that are new to it; *refused* is the share of malicious prompts that it refuses afterwards. There is
one seed; the fine-tuning studies ([when freezing helps](freezing.md)) have several, and intervals.

{_table(record, "freezing", "")}

{_effects(record, "freezing")}
""",
        """
## Where else the options are shown

- Which score finds the planted units: `python -m benchmarks.ground_truth.units`.
- The probe under all combinations of its options: `python -m benchmarks.ground_truth.direction`.
- Bias compensation is exact: removal by hooks to the mean equals the pruned checkpoint with compensation in logits
  (`tests/units/test_prune.py`).
- The denominator of a score (tokens or prompts) is no option: scores are per token, so that data sets of different length
  compare; the published code's sum over tokens divided by prompts makes them incomparable.
""",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _lines(record: dict[str, Any], topic: str, kind: str) -> list[dict[str, Any]]:
    """The lines of a topic whose figures are of a kind: an order of units, or a cut."""
    chosen = [line for line in record["lines"] if line["topic"] == topic]
    return [
        line
        for line in chosen
        if not kind or any(kind in key.split(": ")[-1] for key in line["settings"][0]["figures"])
    ]


def _table(record: dict[str, Any], topic: str, kind: str) -> str:
    lines = _lines(record, topic, kind)
    figures = list(lines[0]["settings"][0]["figures"])
    head = ["option", "the paper", "values", *figures]
    rows = []
    for line in lines:
        settings = line["settings"]
        values = "<br>".join(f"**{s['value']}**" if s["default"] else s["value"] for s in settings)
        cells = ["<br>".join(shown(figure, s["figures"].get(figure)) for s in settings) for figure in figures]
        rows.append([f"{line['option']}<br>`{line['argument']}`", line["paper"], values, *cells])
    return markdown_table(head, rows)


def shown(figure: str, value: float | None) -> str:
    """A figure as the page prints it."""
    name = figure.split(": ")[-1]
    if value is None:
        return "—"
    if name in SHARE_FIGURES:
        return f"{100 * value:.0f} %" if value >= 0.1 or value == 0 else f"{100 * value:.1f} %"
    return f"{value:.2f}" if name == "task loss" else f"{value:.0f}"


def noise(n: int) -> float:
    """Two shares of ``n`` prompts that differ by less may be one: 1.96 standard errors at worst."""
    return float(1.96 * (0.5 / n) ** 0.5)


def _effects(record: dict[str, Any], topic: str) -> str:
    """Between what each option moves the main figures, and which do not move them or by no more than noise."""
    kind = {"units": "units", "cut": "SCU"}.get(topic, "")
    lines = _lines(record, "units" if topic == "cut" else topic, kind)
    models = record["models"]
    main = MAIN.get(topic) or tuple(f"{name}: {'units' if topic == 'units' else 'refused'}" for name in models)
    least = noise(record["provenance"]["datasets"]["malicious"]["n"])
    moved: list[str] = []
    unclear: list[str] = []
    same: list[str] = []
    for line in lines:
        parts, beyond = [], False
        for figure in main:
            values = [setting["figures"].get(figure) for setting in line["settings"]]
            texts = {shown(figure, value) for value in values}
            if len(texts) > 1:
                known = sorted(value for value in values if value is not None)
                ends = [shown(figure, value) for value in (known[0], known[-1])] if known else []
                share = figure.split(": ")[-1] in SHARE_FIGURES
                beyond |= not share or known[-1] - known[0] > least
                text = " to ".join(dict.fromkeys(ends)) or "none"
                parts.append(f"{figure} {text}" + (" or never" if None in values else ""))
        group = (moved if beyond else unclear) if parts else same
        group.append(f"{line['option']} ({'; '.join(parts)})" if parts else str(line["option"]))
    said = {"Moved by": moved, "By no more than noise": unclear, "Unmoved by": same}
    return " ".join(f"{word}: {', '.join(names)}." for word, names in said.items() if names)


def _intact(models: dict[str, Any]) -> str:
    return "; ".join(
        f"`{name}` refuses {shown('refused', found['intact']['malicious_refused'])} and answers "
        f"{shown('utility', found['intact']['utility'])} right"
        for name, found in models.items()
    )
