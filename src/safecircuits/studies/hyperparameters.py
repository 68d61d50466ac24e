"""What a scenario is trained with, all but the arm: settings as given or by the name of a preset, and its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safecircuits.studies.scenarios import Scenario
from safecircuits.training.presets import PresetName, preset

Settings = Mapping[str, Any]


def hyperparameters(settings: PresetName | Settings, model: str, scenario: Scenario) -> dict[str, Any]:
    """Arguments of ``finetune`` for one scenario: as given, or the preset of that name."""
    if not isinstance(settings, str):
        return dict(settings)
    return dict(preset(settings, model if settings == "paper" else None, scenario.kind))


def steps_of(scenario: Scenario, settings: Settings) -> int:
    """Optimizer steps of a run, counted as ``finetune`` counts them."""
    if settings.get("steps") is not None:
        return int(settings["steps"])
    per_step = int(settings.get("batch_size", 16) * settings.get("grad_accumulation", 1))
    return int(settings.get("epochs") or 1) * math.ceil(len(scenario.train) / per_step)
