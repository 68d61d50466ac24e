"""What the Safety Layers study asks, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.lisa import Lisa
from safecircuits.papers.part import Study
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.running import Running
from safecircuits.studies.scenarios import Scenario
from safecircuits.training.presets import PresetName
from safecircuits.training.settings import TrainingSettings

PAPER = "Safety Layers"
"""The paper's name where a conclusion says whose claim it is."""


@dataclass(frozen=True)
class StudyPrompts:
    """What the study asks; the paper has 100 normal, 100 malicious and 721 over-rejection prompts.

    Examples:
        >>> asked = sc.papers.StudyPrompts(normal, malicious, over_rejection, utility=utility)
        >>> asked.measured.name
        'malicious-test'
    """

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
    """What the study measures, beside how it runs models. Scenarios left empty leave the fine-tuning out.

    Examples:
        >>> settings = sc.papers.StudySettings(backend="hooked")
        >>> settings.max_new_tokens
        8
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    alpha: float | str = "search"
    reach: int = 2
    too_far: float = 1.5
    """α of the demonstration that a block can be scaled too far (A.3.4)."""
    attention_template: str = "alpaca-short"
    scenarios: tuple[Scenario, ...] = ()
    training: PresetName | TrainingSettings = "paper"
    lisa: Lisa | None = None
    """Unless given Lisa on the refused prompts, as published or in proportion where a run is too short for that."""
    points: int = 8
    """Measurements along each fine-tuning run."""
    curve_prompts: int = 100
    """Malicious prompts of each of them."""
    finetuning_prompts: int | None = None
    """Prompts of each set on which a finished fine-tuning run is measured; all unless given."""


@dataclass(kw_only=True)
class SafetyLayers(Study):
    """The study of one model: what it is about, without its parts."""

    settings: StudySettings = field(default_factory=StudySettings)
    prompts: StudyPrompts | None = None
    """Of a study that runs."""
    planted: LayerRange | None = None
    """The block in which refusal is known to be, for models that were made so."""
    n_questions: int = 0
    """How many attention maps there are."""

    @property
    def asked(self) -> StudyPrompts:
        assert self.prompts is not None
        return self.prompts

    @property
    def title(self) -> str:
        return f"Safety layers of “{self.name}”"

    @property
    def facts(self) -> dict[str, Any]:
        shape = self.shape
        facts = {"architecture": shape.architecture, "layers": shape.n_layers, "d_model": shape.d_model}
        return facts | ({} if self.planted is None else {"refusal planted in": f"layers {self.planted}"})
