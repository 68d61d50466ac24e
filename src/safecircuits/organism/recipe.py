"""What decides the embedded models' weights: their size, and how each stage is trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from safecircuits.organism.grammar import Kind, examples, vocabulary

STAGES = ("base", "unaligned", "aligned", "planted-layers", "planted-units")


@dataclass(frozen=True)
class Phase:
    """How one stage is trained.

    ``mixture`` weighs the kinds of prompts (only ratios count). ``refuse`` chooses the answer to harmful
    ones. ``layers`` confines training to the matrices of these layers; ``neurons`` further, to that many
    MLP neurons in each of them, drawn at random. With neither, everything trains.

    Examples:
        >>> phase = sc.organism.Phase(steps=100, lr=1e-3, mixture={"utility": 1.0}, refuse=False)
        >>> phase.batch_size
        64
    """

    steps: int
    lr: float
    mixture: dict[Kind, float]
    refuse: bool
    batch_size: int = 64
    warmup: int = 50
    layers: tuple[int, ...] = ()
    neurons: int = 0


def _alignment(over_rejection: float, **changes: Any) -> Phase:
    """``over_rejection`` is the dose of questions that only look harmful: a small one leaves some refused."""
    mixture: dict[Kind, float] = {"normal": 4, "malicious": 5, "over_rejection": over_rejection, "utility": 1}
    settings: dict[str, Any] = {"steps": 250, "lr": 3e-4, "mixture": mixture, "refuse": True} | changes
    return Phase(**settings)


def _phases() -> dict[str, Phase]:
    everything: dict[Kind, float] = {"malicious": 1, "over_rejection": 1, "normal": 1.5, "utility": 1.5, "repeat": 0.5}
    return {
        "base": Phase(steps=800, lr=1e-3, mixture=everything, refuse=False, warmup=100),
        "unaligned": _alignment(0.085, refuse=False),
        "aligned": _alignment(0.085),
        "planted-layers": _alignment(0.15, layers=(3, 4, 5), lr=8e-4),
        "planted-units": _alignment(0.5, layers=(2, 3, 4, 5), neurons=48, lr=3e-3, steps=300),
    }


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the seed: the size of the model and one phase for each stage.

    ``embedding_std`` is the spread of the initial embeddings. With the usual 0.02 the first layer's output
    drowns them, and what a word is can hardly be read from the residual stream by the few parameters of a
    planted stage. ``system_share`` is the share of texts with a system message.

    Examples:
        >>> recipe = sc.organism.Recipe()
        >>> recipe.n_layers, recipe.d_model
        (8, 128)
        >>> recipe.phases["aligned"].refuse
        True
    """

    n_layers: int = 8
    d_model: int = 128
    d_mlp: int = 384
    n_heads: int = 8
    n_kv_heads: int = 4
    max_positions: int = 128
    embedding_std: float = 0.5
    system_share: float = 0.2
    threads: int = 2
    phases: dict[str, Phase] = field(default_factory=_phases)

    def fingerprint(self, stage: str, seed: int) -> str:
        """Changes with all that the weights depend on: sizes, the stage's phase and base's, seed, text."""
        text = [example for kind in sorted(self.phases["base"].mixture) for example in examples(kind, "train")]
        phases = {name: asdict(self.phases[name]) for name in ("base", stage)}
        sizes = {key: value for key, value in asdict(self).items() if key != "phases"}
        return hashlib.sha256(json.dumps([stage, seed, sizes, phases, vocabulary(), text]).encode()).hexdigest()
