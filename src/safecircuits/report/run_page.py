"""The report of any run from what it saved: findings, figures with their numbers, tables, provenance."""

from __future__ import annotations

from collections.abc import Mapping

from safecircuits.report.html import page
from safecircuits.report.saved import SavedRun, frame_table, titled
from safecircuits.report.sections import Exhibit, Section
from safecircuits.results.run import run_provenance

SHOWN = {
    "gap": "Angle gap between harmful and harmless prompts by layer",
    "gaps": "Angle gap between harmful and harmless prompts by layer",
    "pairs": "Cosine similarity of N–N, M–M and N–M pairs by layer",
    "models": "Similarities of pairs, one panel a model",
    "comparison": "Similarities and angle gaps of the models, and their differences",
    "sweeps": "Refused over-rejection prompts against the moving bound of the scaled block",
    "decision": "Decision carried by patching the residual stream after each layer",
    "grid": "Refused over-rejection prompts for every scaled block of layers",
    "attention": "Attention of the last token to a question’s words by layer",
    "transplant": "Rates of source, target, and target with transplanted layers",
    "behavior": "Refusal, over-rejection and utility with 95 % intervals",
    "losses": "Training loss by step",
    "curves": "What is refused and answered right, by step of fine-tuning",
    "probe": "Distances that openings move the hidden states, by generated token and by block",
    "highest": "Where the units of the highest scores lie",
    "groups": "Number of units of each group in each layer",
    "ablation": "Refusal and utility left without each group, and without as many random units",
    "transfer": "Units that changed group in training",
    "enrichment": "Units by layer against chance",
}
"""What a figure shows, by its file's name: the text for those who do not see it."""


def run_page(run: SavedRun) -> str:
    """The page as HTML.

    Examples:
        >>> html = sc.report.run_page(sc.report.SavedRun.open("runs/gap"))  # doctest: +SKIP
    """
    drawings, tables = run.drawings(), run.tables()
    numbers = {name: frame_table(titled(name), frame, f"tables/{name}.csv") for name, frame in tables.items()}
    findings = list(run.record.get("findings") or [])
    parts = []
    if findings:
        parts.append(_section("found", "What was found", "", [Exhibit(None, "Findings", "\n".join(findings))]))
    if drawings:
        plates = [
            Exhibit(name, described(name), described(name), [numbers[name]] if name in numbers else [])
            for name in drawings
        ]
        parts.append(_section("figures", "Figures", "", plates))
    rest = [Exhibit(None, name, "", [table]) for name, table in numbers.items() if name not in drawings]
    if rest:
        parts.append(_section("tables", "Tables", "The same as in the folder tables of the run.", rest))
    return page(
        title(run),
        parts,
        drawings,
        facts=facts(run.record),
        conclusions=[],
        provenance=run_provenance(run.record),
    )


def title(run: SavedRun) -> str:
    """What was run, and on which model."""
    model = run.record["arguments"].get("model")
    return f"safecircuits {run.command}" + (f" on “{model}”" if model else "")


def facts(record: Mapping[str, object]) -> dict[str, object]:
    """What a reader looks for first."""
    arguments = record["arguments"]
    assert isinstance(arguments, Mapping)
    chosen = {key: arguments[key] for key in ("model", "seed", "backend", "dtype") if arguments.get(key) is not None}
    return {**chosen, "finished": record["finished"]}


def described(name: str) -> str:
    """What a figure shows: its kind, and what its file's name adds to that."""
    for kind in sorted(SHOWN, key=len, reverse=True):
        if name == kind or name.startswith(f"{kind}_"):
            more = name.removeprefix(kind).strip("_").replace("_", " ")
            return SHOWN[kind] + (f": {more}" if more else "")
    return titled(name)


def _section(id: str, heading: str, intro: str, exhibits: list[Exhibit]) -> Section:
    return Section(id, heading, intro, exhibits)
