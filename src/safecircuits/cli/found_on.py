"""On which prompts something was found, kept beside it, so that a later command can say if it is judged on the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safecircuits.cli.frame import Run
    from safecircuits.results.run import RunDirectory

FILE = "found_on.json"


def keep_found_on(folder: RunDirectory, **sets: Any) -> None:
    """Write the prompts of each set that is there, without their responses."""
    from safecircuits.base.files import write_text

    kept = {name: list(prompts.prompts) for name, prompts in sets.items() if prompts is not None}
    write_text(folder.file(FILE), json.dumps(kept, ensure_ascii=False, indent=1) + "\n")


def say_overlaps(run: Run, found_on: Mapping[str, Any], judged_on: Mapping[str, Any]) -> None:
    """For each set to judge on that shares prompts with one that was found on, a notice, and a caveat without texts."""
    from safecircuits.prompts.leaks import tell_overlaps

    for shared in tell_overlaps(found_on, judged_on):
        run.caveat(f"found and judged on the same: {shared.counted}")


def say_overlaps_with(run: Run, found_in: Path, judged_on: Mapping[str, Any]) -> None:
    """The same for what an earlier run found; runs of earlier versions did not keep on which prompts."""
    from safecircuits.base.reading import read_json
    from safecircuits.prompts.prompt_set import PromptSet

    path = found_in / FILE
    if not path.is_file():
        return
    kept = read_json(path)
    if not isinstance(kept, dict) or not all(isinstance(one, list) and one for one in kept.values()):
        raise ValueError(f"{str(path)!r} is not what a run writes: prompts by set")
    prompts = {f"{name} of {found_in}": PromptSet(name, tuple(map(str, one))) for name, one in kept.items()}
    say_overlaps(run, prompts, {name: one for name, one in judged_on.items() if isinstance(one, PromptSet)})


def say_overlaps_of_masks(run: Run, judged_on: Mapping[str, Any]) -> None:
    """The same for the masks that the run was given: of those that lie in the folder of the run that found them."""
    for name in run.inputs:
        if name.startswith(MASK):
            say_overlaps_with(run, Path(name.removeprefix(MASK)).parent, judged_on)


MASK = "mask "
"""By what an input that is a mask is called, before its path."""
