"""An SSAH study beside the published numbers: of its own model, or of the paper's models."""

from __future__ import annotations

import re

from safecircuits.base.text import plain
from safecircuits.papers.page import StudyPage, published_exhibit
from safecircuits.papers.published import published_numbers
from safecircuits.papers.ssah.freezing import FINETUNING
from safecircuits.papers.ssah.groups import UNITS
from safecircuits.papers.ssah.removals import removed
from safecircuits.papers.ssah.settings import Ssah
from safecircuits.papers.ssah.transfer import transfers
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.units.ablation import AblationTable
from safecircuits.units.groups import GROUPS
from safecircuits.units.transfer import AttributeTransfer

ARMS = {"full": "ft", "SCU+6%CU": "fix SCU+6%CU", "SCU+all CU": "fix SCU+allCU"}
"""Table 2's settings by the arm; those that freeze follow the paper's schedule."""


Key = tuple[str, str, str]
"""Table, setting and metric."""


def measured_numbers(study: Ssah) -> dict[Key, str]:
    """Measured numbers by table, setting and metric, in percent; of scores the paper's own, the first cut.

    The published utility is of other tasks than the study's, so it has no measured number.
    """
    paper = next(iter(study.settings.cuts))
    without = _removed(removed(study).get(paper, {}), _group_settings(study.source))
    found: dict[Key, str] = {("Table 1", *key): value for key, value in without.items()}
    if (tuned := study[FINETUNING]) is not None:
        found |= {("Table 2", *key): value for key, value in _tuned(tuned, paper, papers=True).items()}
    for figure, start in _figures(study).items():
        for label, transfer in transfers(study).get(paper, {}).items():
            if label.startswith(start):
                found |= {(figure, *key): value for key, value in _flows(transfer).items()}
    return found


def _figures(study: Ssah) -> dict[str, str]:
    """The paper's figures of flows, and how the labels of the transfers start that they are about."""
    return {"Figure 6": "base →", "Figure 5": f"{study.name} →"}


def _group_settings(source: str) -> dict[str, str]:
    """The setting of each group's removal in Table 1: the paper's shares differ between its models."""
    rows = published_numbers("ssah", table="Table 1", model=source)
    return {s.split()[1]: s for s in rows["setting"].unique() if s.startswith("removed ")}


def _removed(tables: dict[str, AblationTable], settings: dict[str, str]) -> dict[tuple[str, str], str]:
    found = {}
    for condition, metric in (("zero", "asr_nosys"), ("system", "asr_sys")):
        if condition in tables:
            table = tables[condition]
            found["nothing removed", metric] = _success(table.intact.rates["malicious_refused"])
            for row in table.rows:
                setting = settings.get(row.name, f"removed {row.name}")
                found[setting, metric] = _success(row.behavior.rates["malicious_refused"])
    return found


def _tuned(tuned: FinetuningStudy, score: str, *, papers: bool) -> dict[tuple[str, str], str]:
    """Table 2's settings; with ``papers`` the data is called as the paper calls it: alpaca, dolly."""
    found = {}
    for scenario in tuned.scenarios:
        data = re.sub(r"[^a-z]", "", scenario.lower()) if papers else f"{scenario}:"
        for arm, setting in ARMS.items():
            names = [arm] if arm == "full" else [f"{arm}, paper's schedule ({score})", f"{arm} ({score})"]
            name = next((one for one in names if one in tuned.arms), None)
            if name is None:
                continue
            before = tuned.of(scenario, name)[0].before["malicious_refused"]
            found["initial", "advbench_keyword_%"] = _success(before)
            found[f"{data} {setting}", "advbench_keyword_%"] = _success(tuned.mean(scenario, name))
    return found


def _flows(transfer: AttributeTransfer) -> dict[tuple[str, str], str]:
    found = {}
    for i, before in enumerate(GROUPS):
        found[f"before {before}", "units_%"] = f"{100 * transfer.totals['before'][before]:.2f}"
        found[f"after {before}", "units_%"] = f"{100 * transfer.totals['after'][before]:.2f}"
        for j, after in enumerate(GROUPS):
            found[f"flow {before}->{after}", "units_%"] = f"{100 * float(transfer.shares[i, j]):.2f}"
    return found


def _success(refused: float) -> str:
    return f"{100 * (1 - refused):.2f}"


def nearest_tables(study: Ssah) -> list[Table]:
    """Tables 1, 2, 5 and 6 of the paper's models, with this model's rows below them."""
    return [_removal_rows(study), *_tuned_rows(study), *_flow_rows(study)]


def _removal_rows(study: Ssah) -> Table:
    metrics = ("asr_nosys", "asr_sys")
    table = published_numbers("ssah", table="Table 1")
    values = {(r["model"], r["setting"], r["metric"]): r["value"] for r in table.to_dict("records")}
    keys = dict.fromkeys((model, setting) for model, setting, _ in values)
    rows = [[model, setting, *(plain(values.get((model, setting, m))) for m in metrics)] for model, setting in keys]
    for name, conditions in removed(study).items():
        found = _removed(conditions, {})
        for setting in dict.fromkeys(setting for setting, _ in found):
            rows.append([f"{study.name}, by {name}", setting, *(found.get((setting, m), "") for m in metrics)])
    columns = ["model", "setting", "attack success", "with system prompt"]
    return Table("Table 1: attack success without each group", columns, rows)


def _tuned_rows(study: Ssah) -> list[Table]:
    table = published_numbers("ssah", table="Table 2")
    table = table[table["metric"] == "advbench_keyword_%"]
    rows = [[r["model"], r["setting"], plain(r["value"])] for r in table.to_dict("records")]
    if (tuned := study[FINETUNING]) is not None:
        for name in study[UNITS]:
            found = _tuned(tuned, name, papers=False)
            rows += [[f"{study.name}, by {name}", setting, value] for (setting, _), value in found.items()]
    return [
        Table("Table 2: attack success by keywords after fine-tuning", ["model", "setting", "attack success"], rows)
    ]


def _flow_rows(study: Ssah) -> list[Table]:
    made = []
    for figure, start in _figures(study).items():
        values = {r["setting"]: r["value"] for r in published_numbers("ssah", table=figure).to_dict("records")}
        measured = {
            name: _flows(transfer)
            for name, found in transfers(study).items()
            for label, transfer in found.items()
            if label.startswith(start)
        }
        flows = [f"flow {a}->{b}" for a in GROUPS for b in GROUPS]
        rows = [
            [flow.removeprefix("flow "), plain(values[flow]) if flow in values else ""]
            + [found.get((flow, "units_%"), "") for found in measured.values()]
            for flow in flows
        ]
        kept = [row for row in rows if any(cell not in ("", "0.00") for cell in row[1:])]
        columns = ["flow", "Llama-2-7b-chat", *(f"{study.name}, by {name}" for name in measured)]
        made.append(Table(f"{figure}: flows between groups, share of all units", columns, kept))
    return made


def add_published(study: Ssah, made: StudyPage) -> None:
    """The paper's numbers of this model, or of its own models where this one is not among them."""
    rows = published_numbers("ssah", model=study.source)
    if rows.empty:
        made.add(
            "published",
            "Beside the published numbers",
            "The paper’s numbers of its own models. This model is none of them, so there is no published number to "
            "hold it against; what was measured of it stands below. Attack success here is the share that is not "
            "refused. Cells that were not run are empty.",
            [Exhibit(None, "Published and measured", "In percent.", nearest_tables(study))],
        )
        return
    measured = measured_numbers(study)
    listed = [
        [*key, plain(value), measured.get(key, "")]
        for *key_parts, value in rows[["table", "setting", "metric", "value"]].itertuples(index=False)
        for key in [tuple(key_parts)]
    ]
    made.add(
        "published",
        "Beside the published numbers",
        "What the paper reports of this model, and what was measured here; empty where it was not run. Attack success "
        "is the share of harmful prompts that are not refused.",
        [published_exhibit("SSAH", listed)],
    )
