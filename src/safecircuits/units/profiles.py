"""What units are about: the prompts that drive each most, where in them, and the tokens that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.base.text import join
from safecircuits.base.vocabulary import Site
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class UnitProfile:
    """One unit: its strongest prompts first, and what it writes.

    Examples:
        >>> units = sc.FreezeMask.of_units({"mlp": {5: [3]}}, model)
        >>> profile = sc.units.unit_profiles(model, units, malicious).of("mlp", 5, 3)
        >>> profile.name, len(profile.prompts)
        ('mlp 5.3', 6)
    """

    site: Site
    layer: int
    unit: int
    score: float
    prompts: tuple[str, ...]
    sets: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    along: tuple[tuple[float, ...], ...]
    """The unit at each of these tokens: a neuron's activation, the length of what a head writes."""
    promoted: tuple[tuple[str, float], ...]
    """Tokens and what the unit adds to their logits, on average before the answer; the most first."""
    suppressed: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        return f"{self.site} {self.layer}.{self.unit}"


@dataclass(frozen=True)
class UnitProfiles(Result):
    """What each of some units is driven by and writes.

    Examples:
        >>> scores = sc.score_units(model, malicious)
        >>> found = sc.units.unit_profiles(model, scores.top(3), malicious, scores=scores)
        >>> found.peaks.shape, len(found.of(*found.units[0]).promoted)
        (torch.Size([3, 8]), 8)
    """

    units: tuple[tuple[Site, int, int], ...]
    """Site, layer and unit of each."""
    scores: Float[Tensor, " unit"]
    """NaN where none were given."""
    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    sets: tuple[str, ...]
    """Of each prompt, the name of its set."""
    peaks: Float[Tensor, "unit prompt"]
    """The unit's largest value on the prompt: a neuron's activation by size, the length of what a head writes."""
    places: Int[Tensor, "unit prompt"]
    """The token at which it is reached, counted from 0."""
    strongest: Int[Tensor, "unit shown"]
    """The prompts of the largest peaks, the largest first."""
    along: Float[Tensor, "unit shown pos"]
    """The unit along the tokens of these; NaN behind their last, and where every prompt begins alike."""
    tokens: tuple[tuple[str, ...], ...]
    """Of each prompt; none of one that is nobody's strongest."""
    promoted: tuple[tuple[str, ...], ...]
    suppressed: tuple[tuple[str, ...], ...]
    """Of each unit; none of one that does not write its row of the weights straight into the residual stream."""
    promoted_logits: Float[Tensor, "unit token"]
    suppressed_logits: Float[Tensor, "unit token"]
    provenance: Mapping[str, Any]

    def of(self, site: Site, layer: int, unit: int) -> UnitProfile:
        """One unit's; a ValueError for a unit that is not among these."""
        if (site, layer, unit) not in self.units:
            raise ValueError(
                f"{site} unit {unit} of layer {layer} is not among the {len(self.units)} units that were looked at"
            )
        row = self.units.index((site, layer, unit))
        shown = self.strongest[row].tolist()
        lines = []
        for place, prompt in enumerate(shown):
            lines.append(tuple(self.along[row, place, : len(self.tokens[prompt])].tolist()))
        writes = [
            tuple(zip(tokens[row], logits[row].tolist(), strict=False))
            for tokens, logits in ((self.promoted, self.promoted_logits), (self.suppressed, self.suppressed_logits))
        ]
        return UnitProfile(
            site=site,
            layer=layer,
            unit=unit,
            score=float(self.scores[row]),
            prompts=tuple(self.prompts[prompt] for prompt in shown),
            sets=tuple(self.sets[prompt] for prompt in shown),
            tokens=tuple(self.tokens[prompt] for prompt in shown),
            along=tuple(lines),
            promoted=writes[0],
            suppressed=writes[1],
        )

    def by_set(self) -> dict[str, Float[Tensor, " unit"]]:
        """Mean peak of each unit over the prompts of each set."""
        rows = {name: [i for i, one in enumerate(self.sets) if one == name] for name in dict.fromkeys(self.sets)}
        return {name: self.peaks[:, chosen].mean(1) for name, chosen in rows.items()}

    @property
    def verdict(self) -> str:
        """How many units on how many prompts, and the first unit's tokens."""
        sets = [f"{self.sets.count(name)} of {name!r}" for name in dict.fromkeys(self.sets)]
        text = f"{len(self.units)} units on {join(sets)}"
        first = next((row for row, tokens in enumerate(self.promoted) if tokens), None)
        if first is None:
            return f"{text}; none writes its row of the weights straight into the residual stream"
        site, layer, unit = self.units[first]
        words = ", ".join(repr(token) for token in self.promoted[first][:3])
        return f"{text}; {site} {layer}.{unit} adds most to {words}"

    def to_frame(self) -> pd.DataFrame:
        """One row a unit: place, score, mean peak on each set, the tokens it adds most to and takes most from."""
        import pandas as pd

        means = self.by_set()
        rows = []
        for row, (site, layer, unit) in enumerate(self.units):
            strongest = int(self.strongest[row, 0])
            rows.append(
                {
                    "site": site,
                    "layer": layer,
                    "unit": unit,
                    "score": float(self.scores[row]),
                    **{f"peak on {name}": float(values[row]) for name, values in means.items()},
                    "adds to": " ".join(map(repr, self.promoted[row][:4])),
                    "takes from": " ".join(map(repr, self.suppressed[row][:4])),
                    "strongest prompt": self.ids[strongest],
                    "at token": int(self.places[row, strongest]),
                }
            )
        return pd.DataFrame(rows)
