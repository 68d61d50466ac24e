"""WiSE-FT: the straight line between the model before and after fine-tuning (Wortsman et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from safecircuits.base.arguments import share
from safecircuits.baselines.repair import Edit, Repair
from safecircuits.model.parameters import live_parameters
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import Plain


@register("wise-ft")
@dataclass(frozen=True)
class WiseFt(Repair):
    """Every weight goes back a part of the way that training took it (Wortsman et al. 2022): (1 − α) θ₀ + α θ.

    Attributes:
        alpha: the share of the way that is kept; 1 is the trained model to the bit, and 0 the one before.
        training: how it trains before.

    Examples:
        >>> before, tuned = sc.load_model("aligned"), sc.load_model("aligned")
        >>> method = sc.baselines.WiseFt(alpha=0.0)
        >>> run = sc.finetune(tuned, utility, method=method, steps=1, batch_size=2, progress=False)
        >>> all(a.equal(b) for a, b in zip(tuned.parameters(), before.parameters()))
        True
    """

    alpha: float = 0.5
    training: Method = field(default_factory=Plain)

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Wortsman et al. 2022, equation 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self.alpha, "alpha")

    def edit(self, job: TrainingJob) -> Edit:
        live = live_parameters(job.model)
        start = {name: parameter.detach().clone() for name, parameter in live.items()}

        def interpolate() -> None:
            for name, parameter in live.items():
                parameter.copy_(start[name].lerp(parameter, self.alpha))

        return interpolate
