"""What the SSAH study asks, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safecircuits.base.text import percent
from safecircuits.base.vocabulary import SITES, LayerRange, TokenChoice
from safecircuits.baselines.lora import Lora
from safecircuits.direction.variants import Suffixes
from safecircuits.model.sites import HookedModel
from safecircuits.papers.part import Study
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.running import Running
from safecircuits.studies.scenarios import Scenario
from safecircuits.training.settings import TrainingSettings
from safecircuits.units.answer_tokens import AnswerTokens
from safecircuits.units.candidates import Candidate
from safecircuits.units.groups import Normalisation
from safecircuits.units.score_methods import ATTRIBUTION_METHODS, DEFAULT_TOKENS, Method

PAPER = "SSAH"
"""The paper's name where a conclusion says whose claim it is."""


@dataclass(frozen=True)
class Cut:
    """How groups are cut: by S − U of a score, and on request SCU by another score of refusal alone."""

    score: Candidate
    scu_by: Candidate | None = None

    @property
    def safest(self) -> Candidate:
        """The order whose highest units are the SCU."""
        return self.scu_by or self.score

    def __str__(self) -> str:
        return str(self.score) if self.scu_by is None else f"{self.score}; SCU by {self.scu_by}"


def cut_by(method: Method, tokens: TokenChoice | None = None, normalize: Normalisation = "none") -> Cut:
    """Groups by a score. An attribution says nothing of what utility needs, so it cuts SCU and WIFV the others."""
    tokens = tokens or DEFAULT_TOKENS[method]
    if method not in ATTRIBUTION_METHODS:
        return Cut(Candidate(method, tokens, normalize))
    return Cut(Candidate("wifv", DEFAULT_TOKENS["wifv"], normalize), Candidate(method, tokens, contrast="safety"))


CUTS: Mapping[str, Cut] = {"wifv": cut_by("wifv"), "attribution": cut_by("attribution")}
"""The paper's score, and the one that finds the smallest sufficient sets.

The paper names neither the tokens nor how scores are brought to one scale. WIFV over all tokens and as it is cut the
groups that did most nearly what their names say, on models made to choose by; Wei et al. take response tokens.
"""

READINGS: Mapping[str, Mapping[str, Any]] = {
    "mean": {"pool": "mean"},
    "mean, query subtracted": {"pool": "mean", "baseline": "query"},
    "last token": {"pool": "last"},
}
"""Ways to read the probe, of which the paper names none; the first is what the conclusions are about."""

QI_RECIPE = TrainingSettings(
    epochs=1, batch_size=4, grad_accumulation=32, lr=2e-5, weight_decay=0.0, schedule="constant"
)
"""Full fine-tuning as in Qi et al. (2023), from whom the paper takes its baselines; it does not state its own."""


@dataclass(frozen=True)
class SsahPrompts:
    """What the study asks. What units are scored on should not be what removal is measured on.

    Examples:
        >>> asked = sc.papers.SsahPrompts(safety=malicious, utility=utility, malicious=malicious, normal=normal)
        >>> asked.measured_utility.name
        'utility-test'
    """

    safety: PromptSet
    """Harmful prompts with refusals: S is scored on them."""
    utility: PromptSet
    """Harmless prompts with answers: U is scored on them."""
    malicious: PromptSet
    """Harmful prompts on which refusal is measured (the paper: the first 100 of AdvBench)."""
    known: PromptSet | None = None
    """Prompts with known answers, on which utility is measured; ``utility`` unless given."""
    over_rejection: PromptSet | None = None
    normal: PromptSet | None = None
    """Harmless prompts that an attribution compares with, and for the safety layers."""
    answered: PromptSet | None = None
    """Harmless prompts with answers, the other half of the alignment data; ``utility`` unless given."""
    answered_held_out: PromptSet | None = None
    """More of them that are not trained on; without them a tenth of ``answered`` is held out."""

    @property
    def measured_utility(self) -> PromptSet:
        return self.known or self.utility


@dataclass(frozen=True)
class SsahSettings(Running):
    """What the study measures, beside how it runs models. Scenarios left empty leave the fine-tuning out.

    Attributes:
        cuts: ways to cut groups, by name; the paper's first, the best last.
        scu, ucu, ru: shares of all units (Llama-2-7b-chat in the paper).
        counts: how many units the ablation curves remove; as many as are SCU besides.
        controls: random draws beside each group whose activations are set to zero.
        prune: also cut each group out of the weights and measure the smaller model (another two copies in memory).
        system: a system prompt that asks for care.
        prefill, prefill_tokens: a compliant opening, and how many of its tokens answers are made to start with.
        draws: calibration subsets of half the prompts.
        freeze_layers: freeze units in these layers alone, as the paper does in Llama-3.
        longer: times the epochs of the arms that follow the paper's schedule.
        measured: prompts of each set on which a finished fine-tuning run is measured; all unless given.
        budget_share: redundant share of the base model's units.
        budget_rows: prompts of each half of the alignment data; all unless given.
        layers: the safety layers; located by scaling unless given.

    Examples:
        >>> settings = sc.papers.SsahSettings(scu=0.01, draws=3)
        >>> settings.scu, settings.draws
        (0.01, 3)
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    cuts: Mapping[str, Cut] = field(default_factory=lambda: dict(CUTS))
    scu: float = 0.013
    ucu: float = 0.133
    ru: float = 0.148
    suffixes: Suffixes = field(default_factory=Suffixes)
    readings: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: dict(READINGS))
    probe_prompts: int = 100
    counts: tuple[int, ...] | None = None
    controls: int = 5
    prune: bool = False
    system: str | None = None
    prefill: str | None = None
    prefill_tokens: tuple[int, ...] | None = None
    draws: int = 5
    freeze_layers: LayerRange | None = None
    longer: int = 2
    scenarios: tuple[Scenario, ...] = ()
    training: TrainingSettings = QI_RECIPE
    points: int = 8
    curve_prompts: int = 100
    measured: int | None = None
    budget_share: float = 0.2
    budget_rows: int | None = None
    layers: LayerRange | None = None

    @property
    def shares(self) -> dict[str, float]:
        return {"scu": self.scu, "ucu": self.ucu, "ru": self.ru}


@dataclass(kw_only=True)
class Ssah(Study):
    """The study of one model: what it is about, without its parts."""

    settings: SsahSettings = field(default_factory=SsahSettings)
    prompts: SsahPrompts | None = None
    """Of a study that runs, as everything below."""
    lora: Lora | None = None
    answers: AnswerTokens | None = None
    """What refuses and what answers, read off the studied model for all models; None where no cut asks for it."""
    beside: tuple[str, HookedModel] | None = None
    """The model that is held against the studied one just now."""

    @property
    def asked(self) -> SsahPrompts:
        assert self.prompts is not None
        return self.prompts

    @property
    def best(self) -> str:
        """The last cut: the library's recommended score by default."""
        return list(self.settings.cuts)[-1]

    @property
    def title(self) -> str:
        return f"Superficial safety alignment of “{self.name}”"

    @property
    def facts(self) -> dict[str, Any]:
        shape, s = self.shape, self.settings
        return {
            "architecture": shape.architecture,
            "layers": shape.n_layers,
            "units": shape.n_layers * sum(map(shape.n_units, SITES)),
            "groups": f"SCU {percent(s.scu)}, UCU {percent(s.ucu)}, RU {percent(s.ru)}",
            "scores": "; ".join(f"{name}: {cut}" for name, cut in s.cuts.items()),
            "seeds": len(s.seeds),
        }

    def by_cut(self, name: str) -> dict[str, str]:
        """Names of results, one a cut: ``name_0``, ``name_1``, …"""
        return {cut: f"{name}_{number}" for number, cut in enumerate(self.settings.cuts)}
