"""The open options of freezing in fine-tuning, measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import safecircuits as sc
from benchmarks.ground_truth.options_common import SHARES, Line, Setting, Subject
from safecircuits.studies.arms import Arm, full
from safecircuits.studies.outcome import StudyRun
from safecircuits.studies.scenarios import organism_new_task
from safecircuits.studies.ssah import as_many_random, rewound_arm, scu_all_cu, scu_top_cu
from safecircuits.training.settings import TrainingSettings


def freezing_lines(subject: Subject, steps: int, n: int) -> Iterable[Line]:
    """Options of freezing in fine-tuning, on the first subject: one study, an arm a setting."""
    groups = sc.classify_units(*subject.scores(), **SHARES)
    top = scu_top_cu(groups)
    arms: dict[str, Arm] = {
        "full": full(),
        "top": top,
        "random": as_many_random(top),
        "total": scu_top_cu(groups, by="total"),
        "of CU": scu_top_cu(groups, of="CU"),
        "all CU": scu_all_cu(groups),
        "longer": scu_top_cu(groups, longer=2),
        "phases": scu_top_cu(groups, longer=2, phases=True),
        "block": scu_top_cu(groups, layers=(0, 2)),
        "rewound": rewound_arm(top),
    }

    def trained(arms: dict[str, Arm], lr: float) -> dict[str, StudyRun]:
        study = sc.studies.finetuning_study(
            subject.model,
            [organism_new_task(n)],
            [replace(arm, name=name) for name, arm in arms.items()],
            malicious=subject.sets["malicious"],
            seeds=(0,),
            settings=TrainingSettings(steps=steps, batch_size=16, lr=lr),
            points=1,
            evaluation={"refusal_tokens": 4, "max_new_tokens": 8},
        )
        return {run.arm: run for run in study.runs}

    runs = trained(arms, 6e-4) | trained({"half the rate": top}, 3e-4) | trained({"twice the rate": top}, 1.2e-3)

    def setting(value: str, arm: str, default: bool) -> Setting:
        run = runs[arm]
        figures: dict[str, float | None] = {
            "refused": run.figures["malicious_refused"],
            "task loss": run.figures["task_loss"],
            "frozen parameters": run.share_frozen,
        }
        return Setting(value, default, figures)

    def line(option: str, argument: str, paper: str, values: dict[str, str]) -> Line:
        settings = [setting(value, arm, i == 0) for i, (value, arm) in enumerate(values.items())]
        return Line("freezing", option, argument, paper, tuple(settings))

    six = "SCU + 6 % CU"
    yield line(
        "what is frozen",
        "scu_top_cu, scu_all_cu",
        "both; no control",
        {six: "top", "SCU + all CU": "all CU", "as many random": "random", "nothing": "full"},
    )
    yield line("top CU by", "scu_top_cu(by=)", "not said", {"S − U": "top", "S + U": "total"})
    yield line("6 % of", "scu_top_cu(of=)", "its sums fit all units", {"all units": "top", "CU": "of CU"})
    yield line("epochs of frozen runs", "scu_top_cu(longer=)", "doubled", {"as many": "top", "doubled": "longer"})
    yield line(
        "phases",
        "scu_top_cu(phases=)",
        "one epoch of all CU first",
        {"one, doubled": "longer", "two, doubled": "phases"},
    )
    rates = {"6e-4": "top", "3e-4": "half the rate", "1.2e-3": "twice the rate"}
    yield line("learning rate", "finetuning_study(settings=)", "not known to us", rates)
    yield line("layers", "scu_top_cu(layers=)", "all; Llama-3: first 12 of 32", {"all 8": "top", "first 3": "block"})
    yield line(
        "when", "rewound_arm(arm)", "in training; Wei et al.: after", {"frozen": "top", "put back after": "rewound"}
    )
