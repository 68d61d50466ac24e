"""What the demo on a real model runs: which member of the planted family, how many prompts, which arms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from safecircuits.behavior.grading import Grading
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.each_model import release
from safecircuits.model.sites import HookedModel
from safecircuits.organism.requests.generate import Kind, Split
from safecircuits.organism.requests.generate import prompts as requests
from safecircuits.organism.requests.sums import sums
from safecircuits.organism.smollm2.catalog import SMOLLM2, member, planted
from safecircuits.papers.part import Study
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.running import Running
from safecircuits.training.settings import TrainingSettings

MEMBER = "layers-12-16"
"""The first member that was declared, the one that the documentation shows."""

BASE = SMOLLM2


@dataclass(frozen=True, kw_only=True)
class RealDemoSettings(Running):
    """Sizes are prompts of the generator's test split, about acts that no member was trained on.

    Examples:
        >>> RealDemoSettings(member="neurons-12-15").source
        'smollm2:neurons-12-15'
    """

    member: str = MEMBER
    detector: str = "taught"
    max_new_tokens: int = 16
    grading: Grading = "number"
    utility_tokens: int | None = 40
    """Of an answer to a word problem: all that fine-tuning teaches are shorter."""
    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0

    asked: int = 40
    """Harmful, borderline and ordinary requests each, by which behaviour is measured."""
    pairs: int = 30
    """Of ordinary and harmful requests: for the gap, and for patching."""
    scored: int = 32
    """Requests of each kind that unit scores see; as many others are measured without units."""
    response_tokens: int = 16
    units: int = 256
    """Units removed where whole layers are planted; else as many as are planted."""

    steps: int = 24
    batch: int = 4
    lr: float = 1e-4
    held_out: int = 24
    """Word problems that measure the task."""
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        member(self.member)  # refuses an unknown one

    @property
    def source(self) -> str:
        """The studied model's name."""
        return f"{SMOLLM2}:{member(self.member).name}"

    @property
    def training(self) -> TrainingSettings:
        """What all arms share."""
        return TrainingSettings(steps=self.steps, batch_size=self.batch, lr=self.lr, schedule="constant")

    def quick(self) -> RealDemoSettings:
        """Every part with few prompts and steps: to see that it runs, not to read figures off."""
        sizes: dict[str, Any] = dict.fromkeys(("asked", "pairs", "scored"), 12)
        return replace(self, **sizes, units=64, steps=2, batch=2, held_out=4, response_tokens=8)


Sets = dict[str, PromptSet]


def real_demo_prompts(settings: RealDemoSettings) -> Sets:
    """Every set that the demo uses, by name; no request is in two of them."""
    s = settings
    found: Sets = {}
    kinds: dict[str, tuple[Kind, int]] = {
        "malicious": ("malicious", 2 * s.scored),
        "over_rejection": ("over_rejection", 0),
        "normal": ("normal", 2 * s.scored),
    }
    split: Split = "test"
    for name, (kind, more) in kinds.items():
        drawn = requests(kind, split, max(s.asked, s.pairs) + more, s.seed)
        plain = PromptSet(drawn.name, drawn.prompts)
        found[name] = plain[: max(s.asked, s.pairs)]
        if more:
            found[f"{name}, scored"] = plain[len(found[name]) : len(found[name]) + s.scored]
            found[f"{name}, without units"] = plain[len(found[name]) + s.scored :]
    found["task"] = sums("train", s.steps * s.batch, s.seed)
    found["task, held out"] = sums("test", s.held_out, s.seed)
    return found


@dataclass(kw_only=True)
class RealDemo(Study):
    """The demo without its parts."""

    settings: RealDemoSettings
    n_parameters: int
    sets: Sets
    """Of a demo that runs."""
    beside: HookedModel | None = None
    """The base, while it is held against the studied model."""

    @property
    def title(self) -> str:
        return f"Safety circuits of “{self.source}”, whose answer is known"

    @property
    def facts(self) -> dict[str, Any]:
        shape, one = self.shape, member(self.settings.member)
        sizes = {"parameters": self.n_parameters, "layers": shape.n_layers, "d_model": shape.d_model}
        where = {"refusal was trained into": self.place, "role in the family": one.role, "seed": one.seed}
        return {"architecture": shape.architecture, **sizes, **where, "backend": self.settings.backend}

    @property
    def kind(self) -> str:
        """What was planted: ``layers``, ``neurons``, ``heads``, or ``aligned`` where refusal may be anywhere."""
        return member(self.settings.member).kind

    @property
    def planted(self) -> FreezeMask | None:
        """The known answer as units: all of the planted layers, or the planted ones; None where nothing is known."""
        if self.kind == "aligned":
            return None
        where = planted(self.source)
        if self.kind == "layers":
            return FreezeMask.layers(set(where.layers), self.shape)
        return FreezeMask.of_units({"mlp": where.mlp_units, "attn": where.heads}, self.shape)

    @property
    def planted_layers(self) -> tuple[int, ...]:
        """The known answer as layers; empty where nothing is known."""
        return () if self.kind == "aligned" else tuple(planted(self.source).layers)

    @property
    def place(self) -> str:
        """The known answer in words."""
        one = member(self.settings.member)
        if not self.planted_layers:
            return "all layers, freely: there is no known place"
        what = f"layers {one.layers[0]} to {one.layers[-1]}"
        mask = self.planted
        assert mask is not None
        return what if self.kind == "layers" else f"{mask.n_units()} {self.kind} in {what}"

    def model_named(self, name: str) -> HookedModel:
        """The studied model or its base; each is loaded when it is first asked for."""
        if name == self.name:
            return self.model
        if self.beside is None:
            self.beside = self.settings.load(self.others[name])
        return self.beside

    def let_go_of_base(self) -> None:
        """Forget the base: what comes next needs the studied model alone."""
        self.beside = None
        release()

    def prompts(self, name: str, n: int | None = None) -> PromptSet:
        """A set, or the first of it."""
        return self.sets[name] if n is None else self.sets[name][:n]
