"""The embedded models: small checkpoints with known alignment, their language, and how they were made."""

from safecircuits.organism.catalog import Planted, planted, prompts, stage_path
from safecircuits.organism.recipe import STAGES, Phase, Recipe
from safecircuits.organism.stages import build

__all__ = ["STAGES", "Phase", "Planted", "Recipe", "build", "planted", "prompts", "stage_path"]
