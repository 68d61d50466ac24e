"""What fine-tuning left in each arm, as its figure takes it; the same in both demos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safecircuits.base.record import number
from safecircuits.base.stats import Share
from safecircuits.studies.outcome import FinetuningStudy

FIGURES = {
    "malicious_refused": "malicious_refused",
    "over_rejected": "over_rejected",
    "utility": "utility",
    "new_task": "task_score",
}
"""A study's figures by the rates that ``plot_finetune`` shows."""


def rates_of_arms(
    tuned: FinetuningStudy, labels: Mapping[str, str], prompts: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Each arm's rates as ``plot_finetune`` takes them, with those of each seed, and those before.

    Args:
        labels: what arms are called; one that is not among them by its own name.
        prompts: by rate, of how many prompts it is. Then an interval is over them where there is one seed.
    """
    there = {key: name for key, name in FIGURES.items() if name in tuned.runs[0].figures}
    record: dict[str, Any] = {"before": {key: tuned.runs[0].before[name] for key, name in there.items()}}
    for row in tuned.summary().to_dict("records"):
        arm = str(row["arm"])
        record[arm] = {"label": labels.get(arm, arm), "share_of_parameters": row["share_frozen"]}
        for key, name in there.items():
            seeds = [run.figures[name] for run in tuned.of(str(row["scenario"]), arm)]
            spread = row[f"{name}_low"], row[f"{name}_high"]
            if prompts is not None and None in map(number, spread):
                n = prompts[key]
                spread = Share(round(row[name] * n), n).interval
            record[arm] |= {key: row[name], f"{key}_interval": spread, f"{key}_seeds": seeds}
    return record
