"""Redundant units as alignment budget: are the units that a base model hardly uses enough to align it? (SSAH §4.3)

The redundant units (RU) of a base model are those of lowest S + U. Training only them on alignment data (refused
harmful prompts and answered normal ones) is compared with training everything, and with training random units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.base.arguments import checked
from safecircuits.model.each_model import release
from safecircuits.model.load import Backend, load_model
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.studies.arms import Arm, full
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.outcome import FinetuningStudy, over_seeds
from safecircuits.studies.scenarios import Scenario
from safecircuits.training.plain import Plain
from safecircuits.training.settings import TrainingSettings
from safecircuits.units.groups import Normalisation, UnitGroups, classify_units
from safecircuits.units.importance import score_units
from safecircuits.units.score_methods import Method

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCENARIO = "alignment"


@dataclass(frozen=True)
class AlignmentBudget(Result):
    """Alignment by redundant units alone beside alignment of everything; ``groups`` are those of the base model.

    Examples:
        >>> budget = sc.studies.alignment_budget("unaligned", refusals, answers, held_out, **options)  # doctest: +SKIP
        >>> budget.to_frame()  # doctest: +SKIP
    """

    study: FinetuningStudy
    groups: UnitGroups
    share: float
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row an arm: safety and utility before and after (mean over seeds, 95 % interval), and what it cost.

        ``tax`` is utility before minus utility after: what alignment took from the model.
        """
        import pandas as pd

        rows = []
        for arm in self.study.arms:
            runs = self.study.of(SCENARIO, arm)
            row: dict[str, Any] = {"arm": arm, "trained": self.study.frozen[arm], "seeds": len(runs)}
            for name in runs[0].figures:
                row[f"{name}_before"] = runs[0].before[name]
                row[name], row[f"{name}_low"], row[f"{name}_high"] = over_seeds(runs, name)
            if "utility" in row:
                row["tax"] = row["utility_before"] - row["utility"]
            row |= {
                "n_trainable": runs[0].n_trainable,
                "training_bytes": runs[0].gradient_bytes + runs[0].optimizer_bytes,
                "steps": runs[0].steps,
                "step_seconds": sum(run.step_seconds for run in runs) / len(runs),
            }
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Rates after training by arm, with those before it."""
        from safecircuits.plots.rates import plot_behavior

        rates = ("malicious_refused", "over_rejected", "utility")
        frame = self.to_frame()
        shown = [rate for rate in rates if rate in frame]
        first = frame.iloc[0]
        rows: dict[str, Any] = {"before": {rate: first[f"{rate}_before"] for rate in shown}}
        rows |= {row["arm"]: {rate: row[rate] for rate in shown} for _, row in frame.iterrows()}
        return plot_behavior(rows, ax=ax)


@checked
def alignment_budget(
    model: Any,
    refusals: PromptSet,
    answers: PromptSet,
    held_out: PromptSet,
    *,
    malicious: PromptSet,
    over_rejection: PromptSet | None = None,
    utility: PromptSet | None = None,
    share: float = 0.2,
    method: Method = "wifv",
    normalize: Normalisation = "none",
    longer: int = 2,
    seeds: Sequence[int] = (0, 1, 2),
    settings: TrainingSettings,
    out: str | Path | None = None,
    backend: Backend = "bridge",
    progress: bool = True,
    **options: Any,
) -> AlignmentBudget:
    """Find the redundant units of an unaligned model, train them alone on alignment data, and compare.

    The arms are ``"full"`` (everything trains), ``"units"`` (all neurons and heads, no embedding or norm), ``"ru"``
    (the redundant units alone) and ``"random"`` (as many units of each site, drawn by seed).

    Args:
        model: a name or folder of an unaligned model, or a hooked model, which is put back.
        refusals, answers: harmful prompts with refusals and normal prompts with answers: what is trained on, and what
            the units are scored on.
        held_out: normal prompts with answers that are not trained on: the task loss.
        malicious, over_rejection, utility: what safety and utility are measured on.
        share: of all units that are redundant (the paper: at least 20 % of a base model).
        method, normalize: as in ``score_units`` and ``classify_units``.
        longer: the epochs of the arms that train units alone are as many times those of full training, as in the paper.
        seeds, settings, out, options: as in ``finetuning_study``.

    Raises:
        ValueError: for a share outside 0..1, and as ``finetuning_study``.

    Examples:
        >>> budget = sc.studies.alignment_budget(  # doctest: +SKIP
        ...     "unaligned", refusals, answers, held_out, malicious=malicious, settings=sc.TrainingSettings(epochs=1)
        ... )
    """
    if not 0 < share < 1:
        raise ValueError(f"share is the redundant part of all units, between 0 and 1, not {share}")
    loaded = load_model(model, backend=backend)
    scores = [score_units(loaded, data, method=method) for data in (refusals, answers)]
    groups = classify_units(*scores, scu=0.0, ucu=0.0, ru=share, normalize=normalize)
    if isinstance(model, str | Path):
        del loaded
        release()
    rest, units = ~groups["RU"], Plain(only_units=True)
    arms = (
        full(),
        Arm("units", "nothing but what is no unit", method=units),
        Arm("ru", f"all but the {100 * share:g} % redundant units", rest, method=units, longer=longer),
        Arm("random", "all but as many random units", rest, draw="units", method=units, longer=longer),
    )
    study = finetuning_study(
        model,
        [Scenario(SCENARIO, refusals + answers, held_out)],
        arms,
        malicious=malicious,
        over_rejection=over_rejection,
        utility=utility,
        seeds=seeds,
        settings=settings,
        out=out,
        backend=backend,
        progress=progress,
        **options,
    )
    how = {"normalize": normalize, "method": method, "longer": longer}
    return AlignmentBudget(study, groups, share, how)
