"""What a scenario is trained with, all but the arm: settings as given or by the name of a preset."""

from __future__ import annotations

from safecircuits.studies.scenarios import Scenario
from safecircuits.training.presets import PresetName, preset
from safecircuits.training.settings import TrainingSettings


def settings_for(settings: PresetName | TrainingSettings, model: str, scenario: Scenario) -> TrainingSettings:
    """The training settings of one scenario: as given, or the preset of that name."""
    if isinstance(settings, str):
        return preset(settings, model if settings == "paper" else None, scenario.kind)
    return require_settings(settings)


def require_settings(settings: TrainingSettings) -> TrainingSettings:
    """The settings; a ValueError for anything else, such as a dict of them."""
    if not isinstance(settings, TrainingSettings):
        raise ValueError(f"settings are TrainingSettings(steps=…, lr=…), not {settings!r}")
    return settings
