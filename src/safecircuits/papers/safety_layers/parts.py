"""What the Safety Layers study asks, how it is run, and the parts it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.lisa import LisaSettings
from safecircuits.behavior.agreement_table import AgreementTable
from safecircuits.behavior.evaluate import Behavior
from safecircuits.hooks.scale import ComponentSet
from safecircuits.layers.attention import AttentionMap
from safecircuits.layers.comparison import GapComparison
from safecircuits.layers.decision import DecisionLayers
from safecircuits.layers.localization import Direction, Localization
from safecircuits.layers.malicious_check import MaliciousCheck
from safecircuits.layers.transplanting import TransplantTable
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.run import RunDirectory
from safecircuits.studies.hyperparameters import Settings
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.running import Running
from safecircuits.studies.scenarios import Scenario
from safecircuits.training.presets import PresetName

SEARCHES: dict[str, tuple[ComponentSet, Direction]] = {
    "all matrices, up": ("all", "up"),
    "all matrices, down": ("all", "down"),
    "without the output projection, up": ("qkv+mlp", "up"),
}
"""Localizations: the method as written, its other direction, and what the published table was probably made with."""


@dataclass(frozen=True)
class StudyPrompts:
    """What the study asks; the paper has 100 normal, 100 malicious and 721 over-rejection prompts."""

    normal: PromptSet
    malicious: PromptSet
    over_rejection: PromptSet
    evaluation: PromptSet | None = None
    """Malicious prompts on which refusal is measured (the paper: AdvBench's 520); ``malicious`` unless given."""
    utility: PromptSet | None = None
    """Prompts with known answers."""
    questions: tuple[str, ...] = ()
    """Questions for attention maps: one harmful, one harmless, as in the paper's figures."""
    refused: PromptSet | None = None
    """Malicious prompts with refusals as responses, for NFFT's scores and Lisa's alignment data."""

    @property
    def measured(self) -> PromptSet:
        return self.evaluation or self.malicious


@dataclass(frozen=True)
class StudySettings(Running):
    """What the study measures, beside how it runs models. Scenarios left empty leave the fine-tuning out."""

    seeds: tuple[int, ...] = (0, 1, 2)
    alpha: float | str = "search"
    reach: int = 2
    too_far: float = 1.5
    """α of the demonstration that a block can be scaled too far (A.3.4)."""
    attention_template: str = "alpaca-short"
    scenarios: tuple[Scenario, ...] = ()
    training: PresetName | Settings = "paper"
    lisa: LisaSettings | None = None
    """Lisa's own settings; unless given its published ones, in proportion where a run is too short for these."""
    points: int = 8
    """Measurements along each fine-tuning run."""
    curve_prompts: int = 100
    """Malicious prompts of each of them."""
    finetuning_prompts: int | None = None
    """Prompts of each set on which a finished fine-tuning run is measured; all unless given."""


@dataclass
class SafetyLayersStudy:
    """All parts of the study of one model; those that were not run are None or empty."""

    source: str
    name: str
    shape: ModelShape
    planted: LayerRange | None = None
    """The block in which refusal is known to be, for models that were made so."""
    behavior: dict[str, Behavior] = field(default_factory=dict)
    detectors: AgreementTable | None = None
    gaps: GapComparison | None = None
    searches: dict[str, Localization] = field(default_factory=dict)
    decision: DecisionLayers | None = None
    check: MaliciousCheck | None = None
    too_far: MaliciousCheck | None = None
    attention: list[AttentionMap] = field(default_factory=list)
    transplant: TransplantTable | None = None
    finetuning: FinetuningStudy | None = None

    @property
    def located(self) -> Localization:
        """The paper's own localization."""
        return self.searches["all matrices, up"]

    @property
    def block(self) -> LayerRange:
        """The located safety layers."""
        return self.located.layers


@dataclass(frozen=True)
class Work:
    """What the parts share while they run."""

    study: SafetyLayersStudy
    run: RunDirectory
    prompts: StudyPrompts
    settings: StudySettings
