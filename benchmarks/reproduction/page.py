"""The page of both papers' tables, from the published numbers and ours: ``python -m benchmarks.reproduction.page``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reproduction.measured import NUMBERS, ROOT
from benchmarks.since import changed_since
from safecircuits.base.files import write_text
from safecircuits.papers.published import PAPERS, Paper, published_numbers
from safecircuits.report.opening import WORDS, tally

if TYPE_CHECKING:
    import pandas as pd

PAGE = ROOT / "docs/reproduction.md"

TITLES: dict[Paper, str] = {"safety_layers": "Safety Layers (ICLR 2025)", "ssah": "SSAH (ICLR 2026)"}
STUDIES: dict[Paper, str] = {"safety_layers": "study safety-layers", "ssah": "study ssah"}

# What a table is of, and what measures the same here. The order is that of the papers.
TABLES: dict[Paper, dict[str, tuple[str, str]]] = {
    "safety_layers": {
        "§3.4.1": ("malicious queries answered before and after scaling", "`answered_malicious`"),
        "Table 1": ("over-rejections of 721 prompts by scaled range; the ranges found", "`localize`"),
        "Table 2": ("fine-tuning on three data sets with and without frozen layers", "`finetuning_study`"),
        "Table 4": ("over-rejections with α too small", "`localize(alpha=1.05)`"),
        "Table 5": ("the search for Phi-3 scaled up", '`localize(direction="up")`'),
        "Table 7": ("fine-tuning on data with harmful rows, and Lisa", "`finetuning_study`, `lisa_arm`"),
        "Table 8": ("the layers before or after the block frozen instead", "`finetuning_study`"),
        "Table 10": ("reverse DPO with and without frozen layers", "`reverse_dpo`"),
        "A.5.3": ("layers transplanted into the base model", "`transplant_study`"),
    },
    "ssah": {
        "Table 1": ("perplexity, tasks and attack success without each group of units", "`ablate_groups`, `pressure`"),
        "Table 2": ("attack success after fine-tuning with units frozen", "`ssah_arms`, `finetuning_study`"),
        "Table 3": ("the same against parameter-efficient methods", "`ssah_arms`, `finetuning_study`"),
        "Table 4": ("redundant units as the budget of alignment", "`alignment_budget`"),
        "Figure 5": ("units that change group in fine-tuning, nothing frozen", "`attribute_transfer`"),
        "Figure 6": ("units that change group in fine-tuning, safety-critical ones frozen", "`attribute_transfer`"),
    },
}


def page(entries: Sequence[dict[str, Any]]) -> str:
    """The page as Markdown. Every number on it comes from the published tables or from ``entries``."""
    return "\n".join([_introduction(entries), *(_paper(paper, entries) for paper in PAPERS)])


def _introduction(entries: Sequence[dict[str, Any]]) -> str:
    tables = {paper: published_numbers(paper).to_dict("records") for paper in PAPERS}
    total = sum(map(len, tables.values()))
    oldest = min((entry["provenance"]["date"] for entry in entries), default="9999")
    ours = sum(_measured(paper, row, entries) is not None for paper, rows in tables.items() for row in rows)
    text = f"""\
# Reproduction

What both papers report, what was measured here, and what was not run. The papers' models have two to eight billion
parameters, and most need a licence to be accepted: for {ours} of the {total} published numbers the same was measured
here. Everything that the tables need is in the library and tested on available models, and the scripts in
`benchmarks/models` run both papers on each of the papers' models. The claims below are tested on an **embedded model**
of 1.6 million parameters. That shows whether a procedure works and whether an effect appears where it can be checked,
not what a large chat model would do.

*Not run* means that no number of that model was measured here. This page is made from `safecircuits.papers.published`
and [`reproduction.json`](reference/reproduction.json) by `python -m benchmarks.reproduction.page`; results of your own
run are added by `python -m benchmarks.reproduction.measured RUN`.

{changed_since(oldest, "units", "counts", "rates", "prompts")}"""
    return text.rstrip() + "\n"


def _paper(paper: Paper, entries: Sequence[dict[str, Any]]) -> str:
    frame = published_numbers(paper)
    sections = [f"## {TITLES[paper]}", *_studies(paper, entries), _overview(paper, frame, entries)]
    sections += [_table(paper, name, frame[frame["table"] == name], entries) for name in TABLES[paper]]
    return "\n\n".join(sections) + "\n"


def _studies(paper: Paper, entries: Sequence[dict[str, Any]]) -> list[str]:
    """What studies of the whole paper conclude."""
    found = [entry for entry in entries if entry["run"] == STUDIES[paper]]
    if not found:
        return [f"### Claims\n\n`safecircuits {STUDIES[paper]}`: not run."]
    return [_study(entry) for entry in found]


def _study(entry: dict[str, Any]) -> str:
    origin = entry["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    rows = [
        f"| {_text(one['effect'])} | {_text(one['paper'])} | {WORDS[one['shows']]} | {_text(one['text'])} |"
        for one in entry["conclusions"]
    ]
    return "\n".join(
        [
            f"### Claims, on `{entry['model']}`",
            "",
            f"{len(rows)} claims and controls: {tally(entry['conclusions'])}. A claim is supported or not supported "
            "only if the intervals leave no doubt.",
            "",
            "| claim | where | verdict | numbers |",
            "|---|---|---|---|",
            *rows,
            "",
            f"`{entry['command']}`, {origin['date']}, safecircuits {origin['version']}, {versions}, Python "
            f"{origin['python']}.",
        ]
    )


def _overview(paper: Paper, frame: pd.DataFrame, entries: Sequence[dict[str, Any]]) -> str:
    rows = []
    for name, (what, function) in TABLES[paper].items():
        part = frame[frame["table"] == name]
        n = sum(_measured(paper, row, entries) is not None for row in part.to_dict("records"))
        models = ", ".join(dict.fromkeys(part["model"]))
        ran = f"{n} of {len(part)}" if n else "not run"
        rows.append(f"| [{name}](#{_anchor(paper, name)}) | {what} | {models} | {len(part)} | {ran} | {function} |")
    head = "| table | of | models | numbers | measured here | the same here |\n|---|---|---|---|---|---|"
    return f"### Tables of {TITLES[paper]}\n\n{head}\n" + "\n".join(rows)


def _table(paper: Paper, name: str, frame: pd.DataFrame, entries: Sequence[dict[str, Any]]) -> str:
    """A published table, model by model, with what was measured behind each number."""
    what, _ = TABLES[paper][name]
    parts = [f"### {name}: {what} {{#{_anchor(paper, name)}}}"]
    for model in dict.fromkeys(frame["model"]):
        rows = frame[frame["model"] == model].to_dict("records")
        found = {(row["setting"], row["metric"]): _cell(paper, row, entries) for row in rows}
        settings = list(dict.fromkeys(row["setting"] for row in rows))
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        n = sum(_measured(paper, row, entries) is not None for row in rows)
        state = f"{n} of {len(rows)} measured here (in bold)" if n else "not run here"
        lines = [f"| {_text(s)} | {' | '.join(found.get((s, m), '') for m in metrics)} |" for s in settings]
        head = f"| {model} | {' | '.join(metrics)} |\n|---|{'---|' * len(metrics)}"
        parts.append(f"Published; {state}.\n\n{head}\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _cell(paper: Paper, row: dict[str, Any], entries: Sequence[dict[str, Any]]) -> str:
    mine = _measured(paper, row, entries)
    return f"{row['value']:g}" + (f" / **{mine}**" if mine is not None else "")


def _measured(paper: Paper, row: dict[str, Any], entries: Sequence[dict[str, Any]]) -> str | None:
    """What a run measured of this model under this setting and metric."""
    for entry in entries:
        if published_numbers(paper, model=entry["model"]).empty or row["model"] not in set(
            published_numbers(paper, model=entry["model"])["model"]
        ):
            continue
        for number in entry["numbers"]:
            if number["paper"] == paper and all(number[key] == row[key] for key in ("table", "setting", "metric")):
                return str(number["measured"])
    return None


def _anchor(paper: Paper, name: str) -> str:
    return f"{paper}-{''.join(c if c.isalnum() else '-' for c in name.lower())}".replace("§", "")


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduction.page", description=__doc__)
    parser.add_argument("--numbers", default=str(NUMBERS), help="what was measured")
    parser.add_argument("--out", default=str(PAGE), help="the Markdown file to write")
    options = parser.parse_args(argv)
    entries = json.loads(Path(options.numbers).read_text(encoding="utf-8"))
    write_text(options.out, page(entries))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
