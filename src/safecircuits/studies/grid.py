"""When does freezing help? Learning rate × model (dose of alignment) × frozen block, each cell with its verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.base.arguments import checked
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.studies.arms import Block, full, sppft
from safecircuits.studies.comparison import Comparison
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.hyperparameters import require_settings
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.scenarios import Scenario
from safecircuits.training.settings import TrainingSettings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class GridCell(Result):
    """One model at one learning rate: full fine-tuning and every frozen block.

    Examples:
        >>> grid = sc.studies.freezing_grid(models, scenarios, lrs, blocks, **options)  # doctest: +SKIP
        >>> [(cell.model, cell.lr) for cell in grid.cells]  # doctest: +SKIP
    """

    model: str
    lr: float
    study: FinetuningStudy


@dataclass(frozen=True)
class FreezingGrid(Result):
    """All cells; ``comparisons`` says where freezing which block helped, harmed, or made no difference.

    Examples:
        >>> grid = sc.studies.freezing_grid(models, scenarios, lrs, blocks, **options)  # doctest: +SKIP
        >>> grid.to_frame()  # doctest: +SKIP
    """

    cells: tuple[GridCell, ...]

    def comparisons(self) -> tuple[tuple[GridCell, Comparison], ...]:
        """Every frozen block against full fine-tuning in every cell."""
        return tuple((cell, found) for cell in self.cells for found in cell.study.compare())

    def to_frame(self) -> pd.DataFrame:
        """One row a comparison: model, lr, scenario, arm, at, what was kept, the difference, its interval, verdict."""
        import pandas as pd

        return pd.DataFrame(
            {
                "model": cell.model,
                "lr": cell.lr,
                "scenario": found.scenario,
                "arm": found.arm,
                "frozen": cell.study.frozen.get(found.arm, found.arm),
                "at": found.at,
                "level": found.level,
                "before": found.before,
                "full": found.reference_kept,
                "kept": found.kept,
                "difference": found.mean,
                "low": found.low,
                "high": found.high,
                "verdict": found.verdict,
            }
            for cell, found in self.comparisons()
        )

    def plot(self, scenario: str, at: str = "matched loss", *, ax: Axes | None = None) -> Axes:
        """Differences as a map, rows of models and rates, columns of blocks; see ``plots.finetuning``."""
        from safecircuits.plots.finetuning import plot_grid

        return plot_grid(self.to_frame(), scenario, at, ax=ax)


@checked
def freezing_grid(
    models: Mapping[str, Any],
    scenarios: Sequence[Scenario],
    lrs: Sequence[float] | Mapping[str, Sequence[float]],
    blocks: Sequence[Block],
    *,
    malicious: PromptSet,
    seeds: Sequence[int] = (0, 1, 2),
    settings: TrainingSettings,
    out: str | Path,
    **options: Any,
) -> FreezingGrid:
    """Run full fine-tuning and one arm for each frozen block, in every model, scenario, learning rate and seed.

    Args:
        models: sources by name, such as checkpoints of different doses of alignment.
        lrs: peak learning rates, the same for all scenarios or by scenario name.
        blocks: what to freeze, one at a time; blocks of equal size can be compared with each other.
        settings: all but ``lr``. A constant schedule keeps the points of a curve comparable.
        out: where finished runs are kept; the same call goes on where an interrupted one stopped.
        options: as for ``finetuning_study``.

    Raises:
        ValueError: as ``finetuning_study``, and for a scenario without learning rates.

    Examples:
        >>> settings = sc.TrainingSettings(epochs=1, schedule="constant")
        >>> grid = sc.studies.freezing_grid(  # doctest: +SKIP
        ...     {"aligned": "aligned"},
        ...     scenarios,
        ...     lrs=[1e-4, 1e-3],
        ...     blocks=[(3, 5), (0, 2)],
        ...     malicious=malicious,
        ...     settings=settings,
        ...     out="grid",
        ... )
    """
    if require_settings(settings).lr != TrainingSettings().lr:
        raise ValueError(f"settings hold lr={settings.lr}, which is an axis of the grid: pass lrs")
    by_scenario = lrs if isinstance(lrs, Mapping) else {scenario.name: lrs for scenario in scenarios}
    for scenario in scenarios:
        if not by_scenario.get(scenario.name):
            raise ValueError(f"no learning rates for scenario {scenario.name!r}; lrs names {', '.join(by_scenario)}")
    arms = [full(), *(sppft(block, f"layers {'-'.join(map(str, tuple(block)))}") for block in blocks)]
    cells = []
    for name, source in models.items():
        for scenario in scenarios:
            for lr in by_scenario[scenario.name]:
                study = finetuning_study(
                    source,
                    [scenario],
                    arms,
                    malicious=malicious,
                    seeds=seeds,
                    settings=settings.changed(lr=lr),
                    out=out,
                    **options,
                )
                cells.append(GridCell(name, lr, study))
    return FreezingGrid(tuple(cells))
