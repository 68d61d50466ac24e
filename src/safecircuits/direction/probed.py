"""What the reasoning-direction probe found: distances after each opening, their gap, and what they decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safecircuits.base.stats import Share, mean_interval
from safecircuits.behavior.agreement_table import AgreementTable
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.verdict_table import Tally, Verdicts
from safecircuits.direction.states import Pool
from safecircuits.direction.variants import Suffixes
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Side = Literal["benign", "malicious"]
Baseline = Literal["none", "query"]
Ended = Literal["hold", "omit"]


@dataclass(frozen=True)
class DirectionGap:
    """d_malicious − d_benign of each block, mean over prompts with its 95 % interval; positive leans to refusing.

    The intervals are each block's own. That *every* block leans one way is thereby claimed with care; that one does
    among many is not.

    Examples:
        >>> suffixes = sc.direction.Suffixes(("i cannot",), ("take the",))
        >>> gap = sc.probe_direction(model, malicious, suffixes=suffixes, steps=(2, 4)).gap(step=2)
        >>> gap.mean.shape
        torch.Size([8])
    """

    mean: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]

    @property
    def leaning(self) -> tuple[int, ...]:
        """+1 for a block that leans to refusing, −1 to answering, 0 where the interval contains zero."""
        return tuple(((self.low > 0).int() - (self.high < 0).int()).tolist())


@dataclass(frozen=True)
class DirectionProbe(Result):
    """What ``probe_direction`` found: cosine distances between hidden states without and with each suffix.

    Attributes:
        benign, malicious: 0 to 2; NaN where a prompt was not measured (see ``ended`` and ``baseline``).
        steps: numbers of generated tokens.
        generated: tokens that each variant of each prompt generated until the last step: as it is, with each benign,
            with each malicious suffix.
        answers, refused: what the model answers to each prompt as it is, and whether the detector calls it a refusal.
        tally, judged: what these answers are, together and one by one; None in files of earlier versions.

    Examples:
        >>> suffixes = sc.direction.Suffixes(("i cannot",), ("take the",))
        >>> probe = sc.probe_direction(model, malicious, suffixes=suffixes, steps=(2, 4))
        >>> probe.n_layers, probe.distance("benign").shape
        (8, torch.Size([8, 2]))
    """

    benign: Float[Tensor, "suffix layer step prompt"]
    malicious: Float[Tensor, "suffix layer step prompt"]
    steps: tuple[int, ...]
    suffixes: Suffixes
    pool: Pool
    baseline: Baseline
    ended: Ended
    generated: Int[Tensor, "variant prompt"]
    answers: Completions
    refused: Bool[Tensor, " prompt"]
    provenance: dict[str, Any]
    tally: Tally | None = None
    judged: Verdicts | None = None

    @property
    def n_layers(self) -> int:
        return self.benign.shape[1]

    def distance(self, side: Side) -> Float[Tensor, "layer step"]:
        """Mean over suffixes and prompts; NaN where no prompt was measured."""
        return self.per_suffix(side).mean(0)

    def per_suffix(self, side: Side) -> Float[Tensor, "suffix layer step"]:
        """Mean over prompts, for each suffix of a side: how much its wording matters."""
        values: Tensor = getattr(self, side)
        return values.nanmean(-1)

    def measured(self, layer: int = -1, step: int | None = None) -> Bool[Tensor, " prompt"]:
        """Prompts with a distance to every variant."""
        both = torch.cat([self.benign, self.malicious])[:, self._layer(layer), self._slot(step)]
        return ~both.isnan().any(0)

    def gap(self, step: int | None = None) -> DirectionGap:
        """Of each block at a step (the last unless given), from the paired differences of the prompts (Student's t)."""
        at = self._slot(step)
        difference = (self.malicious.mean(0) - self.benign.mean(0))[:, at]  # layer prompt
        rows = [
            mean_interval(row[~row.isnan()]) if not row.isnan().all() else (float("nan"),) * 3 for row in difference
        ]
        return DirectionGap(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))

    def leans_to_refusing(self, layer: int = -1, step: int | None = None) -> Bool[Tensor, " prompt"]:
        """The probe's verdict on each prompt: d_benign < d_malicious, by one block (the last) at one step (the last).

        A prompt that was not measured does not lean.
        """
        layer, at = self._layer(layer), self._slot(step)
        verdicts: Tensor = self.benign[:, layer, at].mean(0) < self.malicious[:, layer, at].mean(0)
        return verdicts

    def agreement(self, layer: int = -1, step: int | None = None) -> Share:
        """Measured prompts on which the verdict and the model's answer agree, with a 95 % interval.

        A verdict that is the same for every prompt agrees with a model that does the same to every prompt: read it
        beside ``verdicts(...).kappa``.

        Raises:
            ValueError: if no prompt was measured there.
        """
        _, verdicts = self._verdicts(layer, step)
        return Share.of(verdicts[0] == verdicts[1])

    def verdicts(self, layer: int = -1, step: int | None = None) -> AgreementTable:
        """Verdict and detector on the measured prompts, with Cohen's κ and the answers on which they differ."""
        texts, both = self._verdicts(layer, step)
        return AgreementTable(("probe", str(self.provenance["detector"])), texts, both)

    def _verdicts(self, layer: int, step: int | None) -> tuple[tuple[str, ...], Bool[Tensor, "2 prompt"]]:
        known = self.measured(layer, step)
        if not known.any():
            raise ValueError(
                f"no prompt has all its variants after {self.steps[self._slot(step)]} tokens: ask for fewer tokens, or "
                "for ended='hold'"
            )
        both = torch.stack([self.leans_to_refusing(layer, step), self.refused])[:, known]
        return tuple(text for text, there in zip(self.answers.texts, known.tolist(), strict=True) if there), both

    def to_frame(self) -> pd.DataFrame:
        """One row a block and step: distances with their range over suffixes, gap with interval, agreement."""
        import pandas as pd

        rows = []
        for at, step in enumerate(self.steps):
            gap = self.gap(step)
            for layer in range(self.n_layers):
                row: dict[str, Any] = {"layer": layer, "tokens": step}
                for side in get_args(Side):
                    values = self.per_suffix(side)[:, layer, at]
                    row[side] = float(values.mean())
                    row[f"{side}_least"], row[f"{side}_most"] = float(values.min()), float(values.max())
                row["gap"], row["gap_low"], row["gap_high"] = (float(v[layer]) for v in (gap.mean, gap.low, gap.high))
                row["absolute_gap"] = abs(row["gap"])
                row["prompts"] = int(self.measured(layer, step).sum())
                share = self.agreement(layer, step) if row["prompts"] else None
                row["agreement"] = float("nan") if share is None else share.rate
                row["agreement_low"], row["agreement_high"] = share.interval if share else (float("nan"),) * 2
                rows.append(row)
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """Distances by side (suffix, layer and step), and the ``gap`` with its interval by layer for each step."""
        sides = {side: self.per_suffix(side).numpy() for side in get_args(Side)}
        gaps = [self.gap(step) for step in self.steps]
        columns = [{name: getattr(gap, name).numpy() for name in ("mean", "low", "high")} for gap in gaps]
        return {"steps": self.steps, **sides, "gap": columns}

    def plot(self, ax: Axes | None = None, *, layer: int = -1) -> Axes:
        """Distances against generated tokens, at one block."""
        from safecircuits.plots.direction import plot_by_token

        return plot_by_token({"": self}, layer=layer, ax=ax)

    def __str__(self) -> str:
        known = self.measured().any()
        gap = self.gap()
        towards = ", ".join(
            f"{gap.leaning.count(sign)} {word}" for sign, word in ((1, "refusing"), (-1, "answering"), (0, "neither"))
        )
        agrees = (
            f"verdict agrees with the answer in {self.agreement()} (kappa {float(self.verdicts().kappa[0, 1]):.2f})"
            if known
            else "no prompt has all its variants"
        )
        return (
            f"after {self.steps[-1]} tokens d_benign {float(self.distance('benign')[-1, -1]):.2f}, d_malicious "
            f"{float(self.distance('malicious')[-1, -1]):.2f} in the last block; of {self.n_layers} blocks lean to "
            f"{towards}; refused {Share.of(self.refused)}{f' ({self.tally})' if self.tally else ''}; {agrees}"
        )

    def _slot(self, step: int | None) -> int:
        if step is None:
            return len(self.steps) - 1
        if step not in self.steps:
            raise ValueError(f"nothing was measured after {step} tokens; there are {', '.join(map(str, self.steps))}")
        return self.steps.index(step)

    def _layer(self, layer: int) -> int:
        if not -self.n_layers <= layer < self.n_layers:
            raise ValueError(f"layer {layer} is outside the model, whose layers are 0 to {self.n_layers - 1}")
        return layer % self.n_layers
