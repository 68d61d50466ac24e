"""The probe on several models: an aligned one leans to refusing where an unaligned one leans to answering (SSAH §3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from safecircuits.behavior.agreement_table import AgreementTable
from safecircuits.direction.probe import probe_direction
from safecircuits.direction.probed import DirectionProbe
from safecircuits.model.each_model import Source, described, measure_each
from safecircuits.model.load import Backend
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class DirectionComparison(Result):
    """The probes of several models by name, in the order given, on the same prompts and suffixes.

    Examples:
        >>> suffixes = sc.direction.Suffixes(("i cannot",), ("take the",))
        >>> models = {"aligned": "aligned", "base": "base"}
        >>> found = sc.direction.compare_directions(models, malicious, suffixes=suffixes, steps=(2, 4))
        >>> found.probes["aligned"].n_layers
        8
    """

    probes: Mapping[str, DirectionProbe]
    provenance: dict[str, Any]

    def __getitem__(self, name: str) -> DirectionProbe:
        return self.probes[name]

    def to_frame(self) -> pd.DataFrame:
        """One row a model, block and step; see ``DirectionProbe.to_frame``."""
        import pandas as pd

        frames = [probe.to_frame() for probe in self.probes.values()]
        for name, frame in zip(self.probes, frames, strict=True):
            frame.insert(0, "model", name)
        return pd.concat(frames, ignore_index=True)

    def verdicts(self, layer: int = -1, step: int | None = None) -> AgreementTable:
        """Verdict and answer of all models' prompts together: does the probe tell refusing from answering at all?

        On a model that refuses everything any verdict for refusing agrees; only several models together can disagree.
        """
        tables = [probe.verdicts(layer, step) for probe in self.probes.values()]
        texts = tuple(text for table in tables for text in table.texts)
        return AgreementTable(tables[0].detectors, texts, torch.cat([table.verdicts for table in tables], dim=1))

    def plot(self, ax: Axes | None = None, *, layer: int = -1) -> Axes:
        """Distances against generated tokens, at one block (SSAH Figure 2, but with all distances positive)."""
        from safecircuits.plots.direction import plot_by_token

        return plot_by_token(self.probes, layer=layer, ax=ax)

    def figure(self, *, layer: int = -1, step: int | None = None) -> Figure:
        """Distances by generated tokens, distances by block, and the gap by block (SSAH Figures 2, 3 and 4)."""
        from safecircuits.plots.direction import direction_figure

        return direction_figure(self.probes, layer=layer, step=step)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {probe}" for name, probe in self.probes.items())


def compare_directions(
    models: Mapping[str, Source],
    malicious: PromptSet | Sequence[str],
    *,
    template: str | Mapping[str, str] = "auto",
    backend: Backend = "bridge",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
    **options: Any,
) -> DirectionComparison:
    """Probe several models on the same prompts, one model in memory at a time.

    Args:
        models: by name: hooked models, names or folders, or functions that make one when its turn comes.
        template: for all models, or by name; see ``measure_each``.
        backend, dtype, device: of models that are loaded here.
        options: as for ``probe_direction``.

    Raises:
        ValueError: for no models, and for models whose templates differ without being named.

    Examples:
        >>> suffixes = sc.direction.Suffixes(("i cannot",), ("take the",))
        >>> models = {"aligned": "aligned", "base": "base"}
        >>> found = sc.direction.compare_directions(models, malicious, suffixes=suffixes, steps=(2, 4))
        >>> found.to_frame()["model"].unique().tolist()
        ['aligned', 'base']
    """
    prompts = as_prompt_set(malicious, "malicious")

    def measure(model: HookedModel, asked: str) -> DirectionProbe:
        return probe_direction(model, prompts, template=asked, progress=progress, **options)

    probes, used = measure_each(
        models, measure, template=template, backend=backend, dtype=dtype, device=device, progress=progress
    )
    sources = {name: described(source) for name, source in models.items()}
    return DirectionComparison(probes, {"models": sources, "template": used})
