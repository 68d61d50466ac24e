"""Find the part of a language model that makes it refuse, prove it is that part, and keep it intact in fine-tuning.

The public names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from safecircuits.base.version import __version__ as __version__

if TYPE_CHECKING:
    from safecircuits import organism
    from safecircuits.base.errors import JudgingError as JudgingError
    from safecircuits.base.vocabulary import LayerRange as LayerRange
    from safecircuits.baselines.lisa import LisaSettings as LisaSettings
    from safecircuits.baselines.lisa import lisa as lisa
    from safecircuits.baselines.lora import LoraSettings as LoraSettings
    from safecircuits.baselines.lora import lora as lora
    from safecircuits.baselines.reverse_dpo import reverse_dpo as reverse_dpo
    from safecircuits.baselines.rewind import rewind as rewind
    from safecircuits.baselines.rewind import rewound as rewound
    from safecircuits.baselines.virtual_tokens import virtual_tokens as virtual_tokens
    from safecircuits.behavior.agreement import AgreementTable as AgreementTable
    from safecircuits.behavior.agreement import agreement as agreement
    from safecircuits.behavior.evaluate import Behavior as Behavior
    from safecircuits.behavior.evaluate import evaluate as evaluate
    from safecircuits.behavior.generate import Completions as Completions
    from safecircuits.behavior.generate import generate as generate
    from safecircuits.behavior.harmfulness import Harmfulness as Harmfulness
    from safecircuits.behavior.harmfulness import harmful_rate as harmful_rate
    from safecircuits.behavior.harmfulness import harmfulness as harmfulness
    from safecircuits.behavior.harness import TaskScores as TaskScores
    from safecircuits.behavior.harness import run_tasks as run_tasks
    from safecircuits.behavior.harness_model import harness_model as harness_model
    from safecircuits.behavior.judge import JudgeDetector as JudgeDetector
    from safecircuits.behavior.judge import JudgeVerdicts as JudgeVerdicts
    from safecircuits.behavior.pressure import Condition as Condition
    from safecircuits.behavior.pressure import Pressure as Pressure
    from safecircuits.behavior.pressure import pressure as pressure
    from safecircuits.behavior.reference import ResponseLoss as ResponseLoss
    from safecircuits.behavior.reference import RougeScores as RougeScores
    from safecircuits.behavior.reference import response_loss as response_loss
    from safecircuits.behavior.reference import rouge_l as rouge_l
    from safecircuits.behavior.refusal import DETECTORS as DETECTORS
    from safecircuits.behavior.refusal import PhraseDetector as PhraseDetector
    from safecircuits.behavior.refusal import refused as refused
    from safecircuits.behavior.sampling import SampledRefusals as SampledRefusals
    from safecircuits.behavior.sampling import sampled_refusals as sampled_refusals
    from safecircuits.data.sources import load_prompts as load_prompts
    from safecircuits.direction.compare import DirectionComparison as DirectionComparison
    from safecircuits.direction.compare import compare_directions as compare_directions
    from safecircuits.direction.probe import DirectionProbe as DirectionProbe
    from safecircuits.direction.probe import probe_direction as probe_direction
    from safecircuits.direction.variants import Suffixes as Suffixes
    from safecircuits.hooks.ablate import ablated as ablated
    from safecircuits.hooks.collect import Residuals as Residuals
    from safecircuits.hooks.collect import collect_residuals as collect_residuals
    from safecircuits.hooks.scale import scaled as scaled
    from safecircuits.layers.attention import AttentionMap as AttentionMap
    from safecircuits.layers.attention import attention_map as attention_map
    from safecircuits.layers.comparison import GapComparison as GapComparison
    from safecircuits.layers.comparison import compare_gaps as compare_gaps
    from safecircuits.layers.decision import DecisionLayers as DecisionLayers
    from safecircuits.layers.decision import DecisionRule as DecisionRule
    from safecircuits.layers.decision import decision_layers as decision_layers
    from safecircuits.layers.grid import ScalingGrid as ScalingGrid
    from safecircuits.layers.grid import scaling_grid as scaling_grid
    from safecircuits.layers.interval import GapInterval as GapInterval
    from safecircuits.layers.interval import gap_interval as gap_interval
    from safecircuits.layers.localization import Localization as Localization
    from safecircuits.layers.localization import localize as localize
    from safecircuits.layers.malicious_check import MaliciousCheck as MaliciousCheck
    from safecircuits.layers.malicious_check import answered_malicious as answered_malicious
    from safecircuits.layers.onset import Onset as Onset
    from safecircuits.layers.onset import OnsetRule as OnsetRule
    from safecircuits.layers.similarity import LayerGap as LayerGap
    from safecircuits.layers.similarity import layer_gap as layer_gap
    from safecircuits.layers.transplant import TransplantTable as TransplantTable
    from safecircuits.layers.transplant import transplant as transplant
    from safecircuits.layers.transplant import transplant_study as transplant_study
    from safecircuits.masks.freeze_mask import FreezeMask as FreezeMask
    from safecircuits.model.attach import attached as attached
    from safecircuits.model.load import load_model as load_model
    from safecircuits.model.load import save_pretrained as save_pretrained
    from safecircuits.model.memory import MemoryEstimate as MemoryEstimate
    from safecircuits.model.memory import estimate_memory as estimate_memory
    from safecircuits.model.sites import ModelShape as ModelShape
    from safecircuits.prompts.prompt_set import PromptSet as PromptSet
    from safecircuits.prompts.templates import Template as Template
    from safecircuits.studies.alignment_budget import AlignmentBudget as AlignmentBudget
    from safecircuits.studies.alignment_budget import alignment_budget as alignment_budget
    from safecircuits.studies.arms import Arm as Arm
    from safecircuits.studies.arms import paper_arms as paper_arms
    from safecircuits.studies.finetuning import finetuning_study as finetuning_study
    from safecircuits.studies.grid import FreezingGrid as FreezingGrid
    from safecircuits.studies.grid import freezing_grid as freezing_grid
    from safecircuits.studies.outcome import FinetuningStudy as FinetuningStudy
    from safecircuits.studies.scenarios import Scenario as Scenario
    from safecircuits.studies.scenarios import paper_scenarios as paper_scenarios
    from safecircuits.studies.ssah_arms import ssah_arms as ssah_arms
    from safecircuits.training.data import backdoor_attack as backdoor_attack
    from safecircuits.training.data import harmful_mix as harmful_mix
    from safecircuits.training.data import identity_shift as identity_shift
    from safecircuits.training.data import implicit_attack as implicit_attack
    from safecircuits.training.data import normal_data as normal_data
    from safecircuits.training.freeze import frozen as frozen
    from safecircuits.training.integrations import FreezeCallback as FreezeCallback
    from safecircuits.training.loop import FinetuneRun as FinetuneRun
    from safecircuits.training.loop import Phase as Phase
    from safecircuits.training.loop import finetune as finetune
    from safecircuits.training.presets import preset as preset
    from safecircuits.training.safety_filter import FilteredData as FilteredData
    from safecircuits.training.safety_filter import without_safety_rows as without_safety_rows
    from safecircuits.units.ablation import AblationTable as AblationTable
    from safecircuits.units.ablation import ablate_groups as ablate_groups
    from safecircuits.units.ablation import ablate_units as ablate_units
    from safecircuits.units.ablation import ablation_curve as ablation_curve
    from safecircuits.units.answer_tokens import AnswerTokens as AnswerTokens
    from safecircuits.units.comparison import Candidate as Candidate
    from safecircuits.units.comparison import ScoreComparison as ScoreComparison
    from safecircuits.units.comparison import score_comparison as score_comparison
    from safecircuits.units.coupled import CoupledScores as CoupledScores
    from safecircuits.units.coupled import coupled_scores as coupled_scores
    from safecircuits.units.enrichment import Enrichment as Enrichment
    from safecircuits.units.enrichment import MaskOverlap as MaskOverlap
    from safecircuits.units.enrichment import enrichment as enrichment
    from safecircuits.units.enrichment import mask_overlap as mask_overlap
    from safecircuits.units.equal_budget import equal_budget_masks as equal_budget_masks
    from safecircuits.units.groups import UnitGroups as UnitGroups
    from safecircuits.units.groups import classify_units as classify_units
    from safecircuits.units.groups import set_difference as set_difference
    from safecircuits.units.importance import UnitScores as UnitScores
    from safecircuits.units.importance import score_units as score_units
    from safecircuits.units.prune import prune_units as prune_units
    from safecircuits.units.stability import Stability as Stability
    from safecircuits.units.stability import calibration_subsets as calibration_subsets
    from safecircuits.units.stability import stability as stability
    from safecircuits.units.sweep import ShareSweep as ShareSweep
    from safecircuits.units.sweep import sweep_shares as sweep_shares
    from safecircuits.units.transfer import AttributeTransfer as AttributeTransfer
    from safecircuits.units.transfer import attribute_transfer as attribute_transfer
    from safecircuits.units.transfer import transfer_of as transfer_of
    from safecircuits.weights.head_probe import HeadProbe as HeadProbe
    from safecircuits.weights.head_probe import head_probe as head_probe

_HOME = {
    "base.errors": ("JudgingError",),
    "base.vocabulary": ("LayerRange",),
    "baselines.lisa": ("LisaSettings", "lisa"),
    "baselines.lora": ("LoraSettings", "lora"),
    "baselines.reverse_dpo": ("reverse_dpo",),
    "baselines.rewind": ("rewind", "rewound"),
    "baselines.virtual_tokens": ("virtual_tokens",),
    "behavior.agreement": ("AgreementTable", "agreement"),
    "behavior.evaluate": ("Behavior", "evaluate"),
    "behavior.generate": ("Completions", "generate"),
    "behavior.harmfulness": ("Harmfulness", "harmful_rate", "harmfulness"),
    "behavior.harness": ("TaskScores", "run_tasks"),
    "behavior.harness_model": ("harness_model",),
    "behavior.judge": ("JudgeDetector", "JudgeVerdicts"),
    "behavior.pressure": ("Condition", "Pressure", "pressure"),
    "behavior.reference": ("ResponseLoss", "RougeScores", "response_loss", "rouge_l"),
    "behavior.refusal": ("DETECTORS", "PhraseDetector", "refused"),
    "behavior.sampling": ("SampledRefusals", "sampled_refusals"),
    "data.sources": ("load_prompts",),
    "direction.compare": ("DirectionComparison", "compare_directions"),
    "direction.probe": ("DirectionProbe", "probe_direction"),
    "direction.variants": ("Suffixes",),
    "hooks.ablate": ("ablated",),
    "hooks.collect": ("Residuals", "collect_residuals"),
    "hooks.scale": ("scaled",),
    "layers.attention": ("AttentionMap", "attention_map"),
    "layers.comparison": ("GapComparison", "compare_gaps"),
    "layers.decision": ("DecisionLayers", "DecisionRule", "decision_layers"),
    "layers.grid": ("ScalingGrid", "scaling_grid"),
    "layers.interval": ("GapInterval", "gap_interval"),
    "layers.localization": ("Localization", "localize"),
    "layers.malicious_check": ("MaliciousCheck", "answered_malicious"),
    "layers.onset": ("Onset", "OnsetRule"),
    "layers.similarity": ("LayerGap", "layer_gap"),
    "layers.transplant": ("TransplantTable", "transplant", "transplant_study"),
    "masks.freeze_mask": ("FreezeMask",),
    "model.attach": ("attached",),
    "model.load": ("load_model", "save_pretrained"),
    "model.memory": ("MemoryEstimate", "estimate_memory"),
    "model.sites": ("ModelShape",),
    "prompts.prompt_set": ("PromptSet",),
    "prompts.templates": ("Template",),
    "studies.alignment_budget": ("AlignmentBudget", "alignment_budget"),
    "studies.arms": ("Arm", "paper_arms"),
    "studies.finetuning": ("finetuning_study",),
    "studies.grid": ("FreezingGrid", "freezing_grid"),
    "studies.outcome": ("FinetuningStudy",),
    "studies.scenarios": ("Scenario", "paper_scenarios"),
    "studies.ssah_arms": ("ssah_arms",),
    "training.data": ("backdoor_attack", "harmful_mix", "identity_shift", "implicit_attack", "normal_data"),
    "training.freeze": ("frozen",),
    "training.integrations": ("FreezeCallback",),
    "training.loop": ("FinetuneRun", "Phase", "finetune"),
    "training.presets": ("preset",),
    "training.safety_filter": ("FilteredData", "without_safety_rows"),
    "units.ablation": ("AblationTable", "ablate_groups", "ablate_units", "ablation_curve"),
    "units.answer_tokens": ("AnswerTokens",),
    "units.comparison": ("Candidate", "ScoreComparison", "score_comparison"),
    "units.coupled": ("CoupledScores", "coupled_scores"),
    "units.enrichment": ("Enrichment", "MaskOverlap", "enrichment", "mask_overlap"),
    "units.equal_budget": ("equal_budget_masks",),
    "units.groups": ("UnitGroups", "classify_units", "set_difference"),
    "units.importance": ("UnitScores", "score_units"),
    "units.prune": ("prune_units",),
    "units.stability": ("Stability", "calibration_subsets", "stability"),
    "units.sweep": ("ShareSweep", "sweep_shares"),
    "units.transfer": ("AttributeTransfer", "attribute_transfer", "transfer_of"),
    "weights.head_probe": ("HeadProbe", "head_probe"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

# Rooms whose functions are used as sc.units.x; the names above are what most people compose.
_ROOMS = frozenset(
    {
        *("baselines", "behavior", "data", "direction", "hooks", "layers", "masks", "model", "organism", "papers"),
        *("plots", "prompts", "report", "results", "studies", "training", "units", "weights"),
    }
)

__all__ = ["__version__", "organism", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"safecircuits.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'safecircuits' has no attribute {name!r}")
    return getattr(importlib.import_module(f"safecircuits.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
