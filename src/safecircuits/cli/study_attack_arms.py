"""``--arm``: a defence by its name, with what it needs filled in from the other options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from safecircuits.cli.methods import method_of

if TYPE_CHECKING:
    from safecircuits.cli.frame import Run
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.prompts.prompt_set import PromptSet
    from safecircuits.studies.arms import Arm
    from safecircuits.training.settings import TrainingSettings

ARMS = ("nothing", "freeze", "random", "rewind", "lora")
"""The arms unless any is given."""
ALIGN = "align:"


@dataclass(frozen=True)
class Means:
    """What arms are made of.

    Attributes:
        find_mask: finds the mask, and says what it is.
        unaligned: the model before alignment.
        refused, answered: harmful prompts with refusals and others with answers.
        harmful: harmful instructions with harmful responses.
        steps: of the longest attack.
        align: how an arm aligns anew.
    """

    find_mask: Callable[[], tuple[FreezeMask, str]]
    unaligned: str | None
    refused: PromptSet | None
    answered: PromptSet | None
    harmful: PromptSet | None
    steps: int
    align: TrainingSettings

    @cached_property
    def mask(self) -> tuple[FreezeMask, str]:
        """The mask, which is looked for once, and what it is."""
        return self.find_mask()


def arms_of(run: Run, texts: list[str], means: Means) -> list[Arm]:
    """The arms that ``--arm`` names, in order.

    Raises:
        ValueError: for an arm that there is not, and for one that needs what is not given (says what).
    """
    return [_arm(run, text, means) for text in texts]


def _arm(run: Run, text: str, means: Means) -> Arm:
    from safecircuits.studies.arms import Arm, full

    name, *settings = [part.strip() for part in text.split(",")]
    if name == "nothing":
        return Arm("nothing", full().frozen)
    if name in ("freeze", "random", "rewind"):
        mask, words = means.mask
        if name == "freeze":
            return Arm("freeze", words, mask)
        if name == "random":
            return Arm("random mask", "as many units, drawn by seed", mask, draw="units")
        return Arm("rewind", f"nothing; afterwards put back: {words}", mask, method=_method(run, name, settings, means))
    if name.startswith(ALIGN):
        return _aligned(run, text, name.removeprefix(ALIGN), settings, means)
    return Arm(text, f"nothing ({name})", method=_method(run, name, settings, means))


def _aligned(run: Run, text: str, name: str, settings: list[str], means: Means) -> Arm:
    """``align:METHOD``: the unaligned model is aligned by it; ``align:freeze`` with the mask's units frozen."""
    from safecircuits.studies.arms import Arm
    from safecircuits.studies.preparation import Preparation

    if means.unaligned is None:
        raise ValueError(f"--arm {text} begins at the model before alignment: give --unaligned")
    if means.refused is None or means.answered is None:
        raise ValueError(f"--arm {text} aligns on refusals and answers: give --refused and --answered")
    mask = means.mask[0] if name == "freeze" else None
    method = _method(run, "plain" if name == "freeze" else name, settings, means)
    made = Preparation(
        unaligned=means.unaligned,
        data=means.refused + means.answered,
        settings=means.align,
        method=method,
        mask=mask,
    )
    return Arm(text, f"nothing; aligned anew ({'units frozen' if mask else name})", prepare=made)


def _method(run: Run, name: str, settings: list[str], means: Means) -> Any:
    """A method with what its settings need; those that are given win."""
    from safecircuits.baselines.registered import methods

    kind = methods().get(name)
    if kind is None:
        own = "nothing, freeze, random, align:freeze, align:METHOD"
        raise ValueError(f"--arm is {own}, or METHOD: one of {', '.join(methods())}; not {name!r}")
    needs = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    given = {one.partition("=")[0].strip().replace("-", "_") for one in settings}
    sources: Mapping[str, tuple[str, Callable[[], Any]]] = {
        "unaligned": ("--unaligned", lambda: means.unaligned),
        "alignment": ("--refused", lambda: means.refused),
        "refused": ("--refused", lambda: means.refused),
        "harmful": ("--harmful-data", lambda: means.harmful),
        "units": ("--mask", lambda: means.mask[0]),
        "first": ("--mask", lambda: means.mask[0]),
    }
    usual = {}
    for setting in sorted(needs & set(sources) - given):
        option, value = sources[setting]
        usual[setting] = value()
        if usual[setting] is None:
            raise ValueError(f"--arm {name} needs its {setting}: give {option}")
    found = method_of(run, name, settings, usual)
    scaled = getattr(found, "scaled", None)
    return scaled(means.steps) if scaled is not None and "alignment_steps" not in given else found
