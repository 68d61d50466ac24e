"""What a fine-tuning study found: every run with its curve, means over seeds, and comparisons between arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

import torch

from safecircuits.base.counted import beside
from safecircuits.base.stats import mean_interval, rate_interval
from safecircuits.behavior.answers import of_plain, plain
from safecircuits.behavior.categories import category_frame
from safecircuits.behavior.verdict_table import Tally, Verdicts
from safecircuits.results.result import Result
from safecircuits.studies.comparison import At, Comparison, compare

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class StudyRun(Result):
    """One fine-tuning run of a study.

    Attributes:
        arm, scenario, seed: which run.
        before, figures: the model before and after: shares ``malicious_refused``, ``over_rejected``, ``utility`` (where
            measured), ``task_score`` (exact matches), ``task_loss`` (nats per response token), your own metrics, and
            the KL to the model before (``harmless_first_token_kl``, ``malicious_per_token_kl``, …, in nats).
        curve: ``step``, ``malicious_refused`` and ``task_loss`` on the way, step 0 included.
        train_loss: mean training loss of the last 20 steps, in nats per target token.
        steps: optimizer steps.
        step_seconds: mean wall-clock time of one of them, measuring excluded.
        n_trainable, n_frozen: entries of parameters.
        share_frozen: of all entries of the model, embeddings included.
        gradient_bytes, optimizer_bytes: memory that training needs beside the weights and activations.
        peak_bytes: peak of allocated GPU memory in the run; None on a CPU, where it cannot be told per run.
        frozen_bit_identical: compared by digest; None if nothing was frozen.
        answers: what the model answers afterwards, judged, by set; the held-out rows of the scenario are ``task``.

    Examples:
        >>> study = sc.studies.finetuning_study("aligned", scenarios, arms, malicious=malicious)  # doctest: +SKIP
        >>> [run.frozen_bit_identical for run in study.runs]  # doctest: +SKIP
    """

    arm: str
    scenario: str
    seed: int
    before: Mapping[str, float]
    figures: Mapping[str, float]
    curve: tuple[Mapping[str, float], ...]
    train_loss: float
    steps: int
    step_seconds: float
    n_trainable: int
    n_frozen: int
    share_frozen: float
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int | None
    frozen_bit_identical: bool | None
    answers: Mapping[str, Verdicts] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> StudyRun:
        """A run from its plain record, as JSON holds it."""
        known = {one.name: record[one.name] for one in fields(cls) if one.name != "answers"}
        answers = of_plain(record.get("answers") or {})  # those of earlier versions have none
        return cls(**known | {"curve": tuple(record["curve"]), "answers": answers})

    def plain(self) -> dict[str, Any]:
        """The record that ``of`` takes."""
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        return known | {"answers": plain(self.answers)}


RATES = (
    "malicious_refused",
    "over_rejected",
    "utility",
    "task_score",
    "refused_with_system",
    "refused_prefilled",
)
"""The figures that are shares, and whose intervals therefore stay within 0 to 1."""

COSTS = ("step_seconds", "gradient_bytes", "optimizer_bytes", "share_frozen")


def over_seeds(runs: Sequence[StudyRun], figure: str, n_malicious: int | None = None) -> tuple[float, float, float]:
    """A figure's mean over runs and its 95 % interval: one that stays within 0 to 1 for a rate, else Student's t.

    Args:
        n_malicious: of how many prompts the rates of refusal are.
    """
    values = torch.tensor([run.figures[figure] for run in runs], dtype=torch.float64)
    if figure not in RATES:
        return mean_interval(values)
    return rate_interval(values, trials=n_malicious if "refused" in figure else None)


@dataclass(frozen=True)
class FinetuningStudy(Result):
    """All runs of a study.

    Attributes:
        runs: by scenario, seed and arm.
        frozen: what each arm froze, in words.
        settings: the hyper-parameters of each scenario, the same for all arms.
        provenance: model, seeds, prompt sets.
        before: by scenario, what the model answered before training, as ``answers`` of a run.

    Examples:
        >>> study = sc.studies.finetuning_study("aligned", scenarios, arms, malicious=malicious)  # doctest: +SKIP
        >>> study.summary()  # doctest: +SKIP
        >>> study.against("D_N", "sppft", "full", at="loss").verdict  # doctest: +SKIP
    """

    runs: tuple[StudyRun, ...]
    frozen: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    before: Mapping[str, Mapping[str, Verdicts]] = field(default_factory=dict)

    @property
    def scenarios(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.scenario for run in self.runs))

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    def of(self, scenario: str, arm: str) -> tuple[StudyRun, ...]:
        """The runs of an arm in a scenario, one a seed.

        Raises:
            ValueError: if there are none (lists those that there are).
        """
        found = tuple(run for run in self.runs if (run.scenario, run.arm) == (scenario, arm))
        if not found:
            raise ValueError(
                f"no runs of arm {arm!r} in scenario {scenario!r}; the study has scenarios "
                f"{', '.join(self.scenarios)} and arms {', '.join(self.arms)}"
            )
        return found

    def mean(self, scenario: str, arm: str, figure: str = "malicious_refused") -> float:
        """A figure of an arm in a scenario, mean over seeds."""
        runs = self.of(scenario, arm)
        return sum(run.figures[figure] for run in runs) / len(runs)

    def means(self, scenario: str, arm: str) -> dict[str, float]:
        """Every figure of an arm in a scenario, mean over seeds."""
        runs = self.of(scenario, arm)
        return {name: sum(run.figures[name] for run in runs) / len(runs) for name in runs[0].figures}

    def times_longer(self, scenario: str, arm: str, reference: str = "full") -> int:
        """How many times the steps of the reference an arm took."""
        return round(self.of(scenario, arm)[0].steps / self.of(scenario, reference)[0].steps)

    def to_frame(self) -> pd.DataFrame:
        """One row a run: the figures after it, what they were before (``…_before``), R_h, and what it cost."""
        import pandas as pd

        rows = []
        for run in self.runs:
            row: dict[str, Any] = {"scenario": run.scenario, "arm": run.arm, "seed": run.seed, **run.figures}
            row["R_h"] = 1 - run.figures["malicious_refused"]
            row |= {f"{name}_before": value for name, value in run.before.items()}
            row |= {name: getattr(run, name) for name in ("train_loss", "steps", *COSTS, "peak_bytes")}
            rows.append(row)
        return pd.DataFrame(rows)

    def categories(self) -> pd.DataFrame:
        """One row a run, set and category of its prompts (``category_frame``); before training as arm "before"."""
        before = (
            ({"scenario": scenario, "arm": "before", "seed": None}, _by_category(answers))
            for scenario, answers in self.before.items()
        )
        after = (
            ({"scenario": run.scenario, "arm": run.arm, "seed": run.seed}, _by_category(run.answers))
            for run in self.runs
        )
        return category_frame((*before, *after), ["scenario", "arm", "seed"])

    def curves(self) -> pd.DataFrame:
        """One row a point of a run's curve: scenario, arm, seed, step, malicious_refused, task_loss."""
        import pandas as pd

        return pd.DataFrame(
            {"scenario": run.scenario, "arm": run.arm, "seed": run.seed, **point}
            for run in self.runs
            for point in run.curve
        )

    def summary(self) -> pd.DataFrame:
        """Means over seeds by scenario and arm, each figure with its 95 % interval (``…_low``, ``…_high``)."""
        import pandas as pd

        n_malicious = self.provenance.get("malicious", {}).get("n")
        rows = []
        for scenario in self.scenarios:
            for arm in self.arms:
                runs = [run for run in self.runs if (run.scenario, run.arm) == (scenario, arm)]
                if not runs:
                    continue
                row: dict[str, Any] = {
                    "scenario": scenario,
                    "arm": arm,
                    "frozen": self.frozen.get(arm, arm),
                    "seeds": len(runs),
                }
                for name in runs[0].figures:
                    row[name], row[f"{name}_low"], row[f"{name}_high"] = over_seeds(runs, name, n_malicious)
                row |= {f"{of}_answers": found.digest for of, found in runs[0].answers.items()}
                row |= {name: sum(getattr(run, name) for run in runs) / len(runs) for name in ("steps", *COSTS)}
                # Time is noisy in one direction only: the fastest run is the least disturbed.
                row["step_seconds"] = min(run.step_seconds for run in runs)
                rows.append(row)
        return pd.DataFrame(rows)

    def compare(self, reference: str = "full") -> tuple[Comparison, ...]:
        """Every other arm against the reference in every scenario: at equal steps and, where possible, matched loss.

        Raises:
            ValueError: if the reference is no arm of the study.
        """
        there = {(run.scenario, run.arm) for run in self.runs}
        return tuple(
            found
            for scenario in self.scenarios
            for arm in self.arms
            if arm != reference and (scenario, arm) in there
            for found in self.against(scenario, arm, reference, get_args(At))
        )

    def against(
        self, scenario: str, arm: str, reference: str = "full", at: Sequence[At] = ("equal steps", "matched loss")
    ) -> tuple[Comparison, ...]:
        """One arm against another in a scenario, at those of ``at`` where the two can be compared.

        Raises:
            ValueError: if one of them has no runs there.
        """
        ours, theirs = self.of(scenario, arm), self.of(scenario, reference)
        found = (compare(ours, theirs, where) for where in at)
        return tuple(comparison for comparison in found if comparison is not None)

    def record(self) -> dict[str, Any]:
        """The ``curve`` of each run with its ``scenario``, ``arm`` and ``seed``; ``n_malicious`` prompts were asked."""
        names = ("scenario", "arm", "seed", "curve")
        runs = [{name: getattr(run, name) for name in names} for run in self.runs]
        return {"runs": runs, "n_malicious": self.provenance.get("malicious", {}).get("n")}

    def plot(self, scenario: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Refusal against task loss along training, a line an arm; see ``plots.finetuning.plot_study``."""
        from safecircuits.plots.finetuning import plot_study

        return plot_study(self, scenario, ax=ax)

    def __str__(self) -> str:
        """The means over seeds and the comparisons as text, with what freezing saves."""
        lines = []
        frame = self.summary()
        shown = [name for name in ("malicious_refused", "over_rejected", "utility", "task_score") if name in frame]
        for scenario, rows in frame.groupby("scenario", sort=False):
            lines.append(str(scenario))
            for _, row in rows.iterrows():
                rates = ", ".join(
                    f"{name.replace('_', ' ')} {100 * row[name]:.1f} %{beside(dict(row), name)}" for name in shown
                )
                lines.append(
                    f"  {row['arm']}: {rates}, task loss {row['task_loss']:.3g}; "
                    f"{1000 * row['step_seconds']:.1f} ms a step, gradients and optimizer "
                    f"{(row['gradient_bytes'] + row['optimizer_bytes']) / 2**20:.1f} MiB"
                )
        if "full" in self.arms:
            lines += [str(comparison) for comparison in self.compare()]
        return "\n".join(lines)


def _by_category(answers: Mapping[str, Verdicts]) -> dict[str, dict[str, Tally]]:
    """Of the sets whose refusals were judged: answers that are right or wrong have no such verdicts."""
    judged = {of: found for of, found in answers.items() if not {"right", "wrong"} & set(found.verdicts)}
    return {of: kinds for of, found in judged.items() if (kinds := found.by_category)}
