"""What the SSAH study asks, how it is run, and the parts it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safecircuits.base.vocabulary import LayerRange, Site
from safecircuits.behavior.conditions import Pressure
from safecircuits.behavior.evaluate import Behavior
from safecircuits.direction.compare import DirectionComparison
from safecircuits.direction.variants import Suffixes
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.studies.budget import AlignmentBudget
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.running import Running
from safecircuits.studies.scenarios import Scenario
from safecircuits.units.ablation import AblationTable
from safecircuits.units.comparison import Candidate, ScoreComparison
from safecircuits.units.groups import Normalisation, UnitGroups
from safecircuits.units.overlap import Enrichment, MaskOverlap
from safecircuits.units.resampling import Stability
from safecircuits.units.scores import ATTRIBUTION_METHODS, DEFAULT_TOKENS, Method, TokenChoice
from safecircuits.units.transfer import AttributeTransfer

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

QI_RECIPE: Mapping[str, Any] = {
    "lr": 2e-5,
    "epochs": 1,
    "batch_size": 4,
    "grad_accumulation": 32,
    "weight_decay": 0.0,
    "schedule": "constant",
}
"""Full fine-tuning as in Qi et al. (2023), from whom the paper takes its baselines; it does not state its own."""


@dataclass(frozen=True)
class SsahPrompts:
    """What the study asks. What units are scored on should not be what removal is measured on."""

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
    training: Mapping[str, Any] = field(default_factory=lambda: dict(QI_RECIPE))
    points: int = 8
    curve_prompts: int = 100
    measured: int | None = None
    budget_share: float = 0.2
    budget_rows: int | None = None
    layers: LayerRange | None = None

    @property
    def shares(self) -> dict[str, float]:
        return {"scu": self.scu, "ucu": self.ucu, "ru": self.ru}


REMOVED = ("SCU", "UCU", "RU")
"""The groups whose removal Table 1 measures."""

CONDITIONS: Mapping[str, str] = {
    "zero": "activations set to zero",
    "mean": "activations set to their mean (bias compensation)",
    "system": "activations set to zero, asked with the system prompt",
}
"""How they are removed, in words."""

TUNED = "tuned"
"""The transfer by fine-tuning, among those named after the models beside the studied one."""


@dataclass(frozen=True)
class PrunedGroup(Result):
    """A checkpoint without the units of one group: how large it is, and what it does."""

    n_units: int
    parameters_before: int
    parameters_after: int
    behavior: Behavior


NOT_LOCATED = "which ended within noise of not scaling at all"
"""Said of a block at which a search ended that located nothing."""


@dataclass(frozen=True)
class SafetyBlock(Result):
    """The safety layers that the units are held against, and where they come from."""

    layers: LayerRange
    found_by: str


@dataclass(frozen=True)
class SsahSubject(Result):
    """The model of a study, and those of the settings that its report is about."""

    source: str
    shape: ModelShape
    others: Mapping[str, str]
    seeds: tuple[int, ...]
    cuts: Mapping[str, Cut]
    scu: float
    ucu: float
    ru: float
    suffixes: Suffixes
    readings: tuple[str, ...]
    system: str | None
    prefill: str | None


@dataclass
class SsahResults:
    """All parts of the study of one model; those that were not run are None or empty."""

    source: str
    name: str
    shape: ModelShape
    settings: SsahSettings
    others: Mapping[str, str] = field(default_factory=dict)
    """The models beside it: ``base`` and ``unaligned``, by source."""
    behavior: dict[str, Behavior] = field(default_factory=dict)
    probes: dict[str, DirectionComparison] = field(default_factory=dict)
    """By reading."""
    scores: ScoreComparison | None = None
    groups: dict[str, UnitGroups] = field(default_factory=dict)
    """By cut, as everything below that is a mapping."""
    unit_parameters: Mapping[Site, float] = field(default_factory=dict)
    """Parameters of a neuron and of a head."""
    removals: dict[str, dict[str, AblationTable]] = field(default_factory=dict)
    """By cut and condition: ``zero``, ``mean``, ``system``."""
    pruned: dict[str, dict[str, PrunedGroup]] = field(default_factory=dict)
    pressures: dict[str, Pressure] = field(default_factory=dict)
    """``nothing`` removed, ``random`` units, and the SCU of each cut."""
    stability: dict[str, Stability] = field(default_factory=dict)
    agreement: Stability | None = None
    """The groups of all cuts on the same prompts."""
    finetuning: FinetuningStudy | None = None
    transfers: dict[str, dict[str, AttributeTransfer]] = field(default_factory=dict)
    """By cut and training: ``base → name``, ``unaligned → name``, ``name → fine-tuned on …``."""
    budget: AlignmentBudget | None = None
    block: SafetyBlock | None = None
    enrichments: dict[str, Enrichment] = field(default_factory=dict)
    overlaps: dict[str, MaskOverlap] = field(default_factory=dict)
    equal: FinetuningStudy | None = None
    """Units, layers, both and what they share, frozen at equal budgets; by the last cut."""

    @property
    def best(self) -> str:
        """The last cut: the library's recommended score by default."""
        return list(self.settings.cuts)[-1]

    @property
    def pressed(self) -> tuple[str, ...]:
        """What is removed under pressure, in order."""
        return ("nothing", "random", *(f"SCU by {name}" for name in self.groups))

    def transfer_label(self, kind: str, scenario: str | None = None) -> str:
        """The name of a transfer: from a model beside this one, or by fine-tuning on a scenario."""
        return f"{kind} → {self.name}" if scenario is None else f"{self.name} → fine-tuned on {scenario}"


@dataclass
class SsahStudy(SsahResults):
    """A study that is being run."""

    prompts: SsahPrompts = field(kw_only=True)

    @property
    def subject(self) -> SsahSubject:
        s = self.settings
        return SsahSubject(
            source=self.source,
            shape=self.shape,
            others=dict(self.others),
            seeds=tuple(s.seeds),
            cuts=dict(s.cuts),
            **s.shares,
            suffixes=s.suffixes,
            readings=tuple(s.readings),
            system=s.system,
            prefill=s.prefill,
        )
