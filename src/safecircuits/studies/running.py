"""How a study loads its models, asks them and judges what they say: the settings that both papers' studies share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from safecircuits.base.progress import without_bars
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.evaluate import EvaluationOptions
from safecircuits.behavior.grading import Grading
from safecircuits.model.each_model import release
from safecircuits.model.load import Backend, load_model
from safecircuits.model.sites import HookedModel

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Running:
    """What is the same wherever a study runs a model.

    Attributes:
        detector, max_new_tokens: what counts as a refusal, and how many tokens of a completion it looks at.
        template: as in ``evaluate``.
        grading, utility_tokens: when an answer is right, and how long it may be, as ``evaluate`` takes ``grading`` and
            ``max_new_tokens``.
        backend, device, dtype: as in ``load_model``.
    """

    detector: str | RefusalDetector = "opening"
    max_new_tokens: int = 8
    template: str = "auto"
    grading: Grading = "exact"
    utility_tokens: int | None = None
    backend: Backend = "bridge"
    device: Any = None
    dtype: Any = None

    def load(self, source: str) -> HookedModel:
        """A model of the study, without progress bars."""
        with without_bars():
            return load_model(source, **self.placing)

    def on(self, source: str, measure: Callable[[HookedModel], T]) -> T:
        """What ``measure`` finds in a model that is loaded for it alone, and let go before the next one."""
        found = measure(self.load(source))
        release()
        return found

    @property
    def placing(self) -> dict[str, Any]:
        """How models are loaded."""
        return {"backend": self.backend, "device": self.device, "dtype": self.dtype}

    @property
    def asking(self) -> dict[str, Any]:
        """How completions are made and judged by what counts refusals alone."""
        return {"detector": self.detector, "max_new_tokens": self.max_new_tokens, "template": self.template}

    @property
    def judging(self) -> EvaluationOptions:
        """The same, as ``evaluate`` takes it."""
        judging: EvaluationOptions = {
            "detector": self.detector,
            "refusal_tokens": self.max_new_tokens,
            "template": self.template,
        }
        if self.grading != "exact" or self.utility_tokens is not None:
            judging |= {"grading": self.grading, "max_new_tokens": self.utility_tokens}
        return judging
