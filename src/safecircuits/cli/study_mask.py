"""The units that a study is about: those given, the planted ones, or SSAH's of a model that brings its prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safecircuits.cli.methods import mask_of
from safecircuits.cli.options import layer_range
from safecircuits.cli.study_inputs import EMBEDDED, planted_layers, study_prompts
from safecircuits.cli.study_real import REAL

if TYPE_CHECKING:
    from safecircuits.cli.frame import Run
    from safecircuits.masks.freeze_mask import FreezeMask


def study_mask(run: Run, path: str | None, layers: str | None, needed_by: str) -> tuple[FreezeMask, str]:
    """The mask, and what it is in words.

    Args:
        needed_by: what cannot do without, for the error where there is none.
    """
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.studies.ssah import scu_top_cu
    from safecircuits.units.groups import classify_units
    from safecircuits.units.importance import score_units

    if path is not None and layers is not None:
        raise ValueError("give --mask or --freeze-layers, not both")
    if path is not None:
        return mask_of(run, path), f"the units of {path}"
    block = planted_layers(run.source) if layers is None else layer_range(layers)
    if block is not None:
        return FreezeMask.layers(block), f"layers {block}"
    if not run.source.startswith((EMBEDDED, REAL)):
        raise ValueError(f"{needed_by} --mask or --freeze-layers")
    model = run.model()
    safety, useful = (study_prompts(run, name, None, responses=True) for name in ("refused", "answered"))
    groups = classify_units(score_units(model, safety), score_units(model, useful), scu=0.013, ucu=0.133, ru=0.148)
    arm = scu_top_cu(groups)
    assert arm.mask is not None
    return arm.mask, arm.frozen
