"""Difference-in-means directions: what harmful prompts have in the residual stream and harmless ones have not.

One pass over all prompts gives the residual stream after every layer at the post-instruction tokens and at the last
token of the instruction itself (Arditi et al. 2024, §2.3; Zhao et al. 2025 find harmfulness at the one, t_inst, and
refusal at the last of the others, t_post).

How sure a direction is, is asked of the prompts: resampled ones point the same way (a cosine), and sets whose labels
are drawn at random differ by less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.resamples import multiplicities
from safecircuits.direction.prompt_states import PromptStates, prompt_states
from safecircuits.direction.vector import Direction, unit_of
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

DRAWS = 200
LEAST = 4
"""Prompts of each kind: of three and three, no relabelling is rarer than one in ten."""


@dataclass(frozen=True)
class MeanDirections(Result):
    """Of each layer and position the mean of the harmful prompts minus that of the harmless ones.

    Attributes:
        difference, harmless: the residual stream's difference of means after each layer, and the harmless mean.
        places: the harmless mean at every place of the residual stream, for the affine ablation (``residual_places``).
        positions: counted from the prompt's end; the first is the last token of the instruction (t_inst), the others
            are the post-instruction tokens, with -1 the last (t_post).
        cosine: 95 % of directions from resampled prompts are at least this near, as a cosine.
        chance: 95 % of differences under shuffled labels are at most this long.
        p: how many of the shuffled labellings differ as much as the true one, over all layers and positions at once.

    Examples:
        >>> directions = sc.direction.mean_directions(model, malicious, normal)
        >>> directions.difference.shape[0], directions.positions[-1]
        (8, -1)
    """

    difference: Float[Tensor, "layer position d_model"]
    harmless: Float[Tensor, "layer position d_model"]
    places: Float[Tensor, "place position d_model"]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    cosine: Float[Tensor, "layer position"]
    chance: Float[Tensor, "layer position"]
    p: float
    shape: ModelShape
    provenance: dict[str, Any]
    interval: Float[Tensor, "layer position two"] | None = None
    """95 % of resampled prompts' differences reach so far along the direction; None in results of earlier versions."""

    def at(self, layer: int, position: int = -1) -> Direction:
        """The direction after ``layer`` at ``position``, with the harmless level at every place.

        Raises:
            ValueError: for a layer or position that was not measured, and where the prompts do not differ at all.
        """
        row = self._layer(layer)
        column = self.column(position)
        vector = self.difference[row, column].clone()
        if not bool(vector.any()):
            raise ValueError(f"after layer {layer} at token {position} harmful and harmless prompts do not differ")
        levels = self.places[:, column].double() @ unit_of(vector)
        return Direction(vector, row, position, levels, self.shape, dict(self.provenance))

    def random(self, like: Direction, seed: int = 0) -> Direction:
        """A direction that knows nothing, as long as ``like`` and at its place: the control of what is done to it.

        Examples:
            >>> directions = sc.direction.mean_directions(model, malicious, normal)
            >>> control = directions.random(directions.at(layer=5), seed=1)
            >>> control.layer, bool(torch.isclose(control.vector.norm(), directions.at(layer=5).vector.norm()))
            (5, True)
        """
        generator = torch.Generator().manual_seed(seed)
        unit = unit_of(torch.randn(len(like.vector), generator=generator, dtype=torch.float64))
        levels = self.places[:, self.column(like.position)].double() @ unit
        vector = (unit * float(like.vector.norm())).float()
        return replace(like, vector=vector, levels=levels, provenance={**like.provenance, "random": seed})

    @property
    def clearest(self) -> int:
        """The layer after which the difference at the last token is longest beside that of shuffled labels."""
        return int(self.difference[:, -1].norm(dim=-1).div(self.chance[:, -1].clamp(min=1e-30)).argmax())

    @property
    def t_inst(self) -> int:
        """The position of the instruction's last token, where harmfulness is."""
        return self.positions[0]

    def harmfulness(self, layer: int) -> Direction:
        """The direction at the instruction's last token."""
        return self.at(layer, self.t_inst)

    def refusal(self, layer: int) -> Direction:
        """The direction at the last token, where the answer is about to start."""
        return self.at(layer, -1)

    def column(self, position: int) -> int:
        """Where a position is among those measured."""
        if position not in self.positions:
            raise ValueError(f"position {position} was not measured; there are {', '.join(map(str, self.positions))}")
        return self.positions.index(position)

    def _layer(self, layer: int) -> int:
        if not -len(self.difference) <= layer < len(self.difference):
            raise ValueError(f"layer {layer} is outside the model, whose layers are 0 to {len(self.difference) - 1}")
        return layer % len(self.difference)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and position: the difference's ``length``, what chance has, ``cosine_low``, and how near the
        direction is to that of the last token (``with_refusal``) and of the instruction's last (``with_harmfulness``).
        """
        import pandas as pd

        rows = []
        for layer, by_position in enumerate(self.difference):
            for column, vector in enumerate(by_position):
                rows.append(
                    {
                        "layer": layer,
                        "position": self.positions[column],
                        "token": self.tokens[column],
                        "length": float(vector.norm()),
                        "chance": float(self.chance[layer, column]),
                        "cosine_low": float(self.cosine[layer, column]),
                        "with_refusal": _cosine(vector, by_position[-1]),
                        "with_harmfulness": _cosine(vector, by_position[0]),
                    }
                )
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """``length``, its ``interval``, ``chance`` and ``cosine_low`` by layer and position, and the ``p`` of all."""
        return {
            "positions": self.positions,
            "tokens": self.tokens,
            "length": self.difference.norm(dim=-1).numpy(),
            "chance": self.chance.numpy(),
            "cosine_low": self.cosine.numpy(),
            "harmfulness_with_refusal": [_cosine(by[0], by[-1]) for by in self.difference],
            "p": self.p,
        } | ({} if self.interval is None else {"interval": self.interval.numpy()})

    def plot(self, ax: Axes | None = None) -> Axes:
        """The length of the difference by layer, one line a position, and what chance has at the last."""
        from safecircuits.plots.refusal_direction import plot_lengths

        return plot_lengths(self, ax=ax)

    def __str__(self) -> str:
        layer = self.clearest
        last = self.difference[layer, -1]
        return (
            f"{len(self.difference)} layers at {len(self.positions)} positions; harmful and harmless prompts differ "
            f"(p = {self.p:.3f}); at the last token most over chance after layer {layer}, cosine of resamples at least "
            f"{float(self.cosine[layer, -1]):.2f}, with harmfulness at the instruction's last token "
            f"{_cosine(last, self.difference[layer, 0]):.2f}"
        )


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@checked
def mean_directions(
    model: HookedModel,
    harmful: PromptSet | Sequence[str],
    harmless: PromptSet | Sequence[str],
    *,
    template: str = "auto",
    system: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    max_tokens: int | None = None,
    progress: bool = False,
) -> MeanDirections:
    """Difference-in-means directions of every layer and post-instruction position, in one pass over the prompts.

    Args:
        draws, seed: resamples of the prompts, and as many shuffles of their labels.
        template, system, max_tokens: as in ``collect_residuals``.

    Raises:
        ValueError: for fewer than four prompts of a kind, a prompt that is in both sets, or sets that differ no more
            than shuffled ones do.
        FloatingPointError: if a residual stream is not finite; names the layer.

    Examples:
        >>> directions = sc.direction.mean_directions(model, malicious, normal)
        >>> directions.refusal(layer=5).vector.shape
        torch.Size([128])
    """
    a, b = require_apart(harmful, harmless)
    states = prompt_states(model, a, b, template=template, system=system, max_tokens=max_tokens, progress=progress)
    return directions_of(states, draws=draws, seed=seed)


def require_apart(
    harmful: PromptSet | Sequence[str], harmless: PromptSet | Sequence[str], least: int = LEAST
) -> tuple[PromptSet, PromptSet]:
    """Both as sets of enough prompts, none of which is in both; a ValueError otherwise."""
    a, b = as_prompt_set(harmful, "harmful"), as_prompt_set(harmless, "harmless")
    for prompts, kind in ((a, "harmful"), (b, "harmless")):
        if len(prompts) < least:
            raise ValueError(
                f"{len(prompts)} {kind} prompts ({prompts.name!r}) tell a direction from noise no more: give at least "
                f"{least}; the published number is 128"
            )
    if both := set(a) & set(b):
        raise ValueError(f"{len(both)} prompts are in both sets, such as {sorted(both)[0][:60]!r}: they do not differ")
    return a, b


def directions_of(states: PromptStates, *, draws: int = DRAWS, seed: int = 0) -> MeanDirections:
    """The directions of residual streams that are there already.

    Raises:
        ValueError: if the two sets differ no more than shuffled ones do.
    """
    n = states.n_harmful
    harmful, harmless = states.values[:, :, :n], states.values[:, :, n:]
    difference = states.difference()
    generator = torch.Generator().manual_seed(seed)
    cosine, interval, chance, p = _sureness(harmful, harmless, difference, draws, generator)
    if p > 0.05:
        raise ValueError(
            f"the {n} harmful and {harmless.shape[2]} harmless prompts differ in the residual stream no more than sets "
            f"with shuffled labels do (p = {p:.2f}), so there is no direction to find: give more prompts, or sets that "
            "differ"
        )
    return MeanDirections(
        difference.float(),
        harmless.double().mean(2).float(),
        states.places,
        states.positions,
        states.tokens,
        cosine,
        chance,
        p,
        states.shape,
        states.provenance,
        interval,
    )


def _sureness(
    harmful: Tensor, harmless: Tensor, difference: Tensor, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, float]:
    """The cosine that 95 % of resamples reach, how far along the direction they reach, the length that 95 % of shuffled
    labels reach, and one p of all.

    Lengths of resampled differences are too long, since noise adds to them; their parts along the direction are not.
    """
    n, m = harmful.shape[2], harmless.shape[2]
    of = [multiplicities(size, draws, generator).float() / size for size in (n, m)]
    labels = torch.stack([torch.randperm(n + m, generator=generator) < n for _ in range(draws)])
    shuffled = torch.where(labels, 1 / n, -1 / m)  # draw prompt
    cosine, chance = (torch.empty(difference.shape[:2]) for _ in range(2))
    interval = torch.empty((*difference.shape[:2], 2))
    ends, beyond, observed = torch.tensor([0.025, 0.975]), torch.zeros(draws), 0.0
    for layer in range(difference.shape[0]):
        for column in range(difference.shape[1]):
            here = difference[layer, column].float()
            a, b = harmful[layer, column], harmless[layer, column]
            resampled = of[0] @ a - of[1] @ b  # draw d_model
            near = torch.nn.functional.cosine_similarity(resampled, here[None], dim=1)
            cosine[layer, column] = torch.quantile(near, 0.05)
            interval[layer, column] = torch.quantile(resampled @ here / here.norm().clamp(min=1e-30), ends)
            lengths = (shuffled @ torch.cat([a, b])).norm(dim=1)
            chance[layer, column] = torch.quantile(lengths, 0.95)
            usual = float(lengths.mean())
            if usual > 0:
                beyond = torch.maximum(beyond, lengths / usual)
                observed = max(observed, float(here.norm()) / usual)
    p = (1 + int((beyond >= observed).sum())) / (1 + draws) if observed > 0 else 1.0
    return cosine, interval, chance, p
