from .catalog import planted as planted
from .catalog import prompts as prompts
from .catalog import stage_path as stage_path
from .places import Planted as Planted
from .recipe import STAGES as STAGES
from .recipe import Phase as Phase
from .recipe import Recipe as Recipe
from .stages import build as build
