"""The models that localizers are run on, with the prompts they see, the prompts that judge, and what was planted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ground_truth.leaderboard.passes import Shared
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.generate import generate
from safecircuits.direction.prompt_states import PromptStates, prompt_states
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.organism import catalog
from safecircuits.organism.family import LAYERS_FAMILY, UNITS_FAMILY, read_family
from safecircuits.organism.grammar import Split
from safecircuits.organism.places import Planted
from safecircuits.organism.requests.generate import Kind
from safecircuits.organism.requests.generate import prompts as requests
from safecircuits.organism.smollm2.catalog import SMOLLM2, member
from safecircuits.prompts.prompt_set import PromptSet

SHIPPED = ("planted-layers", "planted-units")
"""Development members that every installation has."""

SEEN, JUDGED, OVER_REJECTION = 64, 50, 60
"""Prompts of each kind that localizers see, that judge, and whose refusals scaling counts."""

REAL_SEEN, REAL_JUDGED, REAL_OVER_REJECTION = 16, 12, 40
"""The same on a real model."""

SPLITS: tuple[tuple[Split, int], ...] = (("train", SEEN), ("test", JUDGED))
KINDS: tuple[Kind, Kind] = ("malicious", "normal")

RESPONSE_TOKENS = 16
TOP = 64
"""How many units are looked at where whole layers are planted."""


@dataclass(frozen=True)
class Prompts:
    """One use of prompts; malicious ones and utility's have responses where the set is seen."""

    malicious: PromptSet
    normal: PromptSet
    utility: PromptSet | None


@dataclass(frozen=True)
class Measured:
    """What is tried of everything that is found, and how a refusal is known.

    Attributes:
        counts, ranks: how many units, and how many directions, are taken out.
        draws: random sets of units, and random directions, beside them.
        blocks: of a length at most, evenly spread, that stand for any block.
        detector: what says that an answer refuses.
        tokens: of answers where there are no known ones.
    """

    counts: tuple[int, ...] = (1, 4, 8, 16, 32, 64, 192)
    ranks: tuple[int, ...] = (1, 4)
    draws: int = 2
    blocks: int = 4
    detector: str = "opening"
    tokens: int = 24


REAL = Measured(counts=(16, 256), ranks=(1,), draws=1, blocks=2, detector="taught", tokens=8)
"""On a real model, where each point is sets of answers of a model with 30 layers."""


@dataclass
class Subject:
    """One planted model.

    Attributes:
        role: ``"development"`` (a method may be chosen on it) or ``"judged"``.
        kind: whether ``"layers"`` or ``"units"`` were planted.
        base_source: the checkpoint from which it was planted.
        seen, judged: prompts of disjoint splits.
    """

    name: str
    role: str
    kind: str
    source: str
    base_source: str
    place: Planted
    seen: Prompts
    judged: Prompts
    over_rejection: PromptSet
    measured: Measured = Measured()

    @cached_property
    def shared(self) -> Shared:
        """What several methods need, computed once."""
        return Shared(lambda: self.model)

    @cached_property
    def model(self) -> HookedModel:
        """The model in which refusal was planted."""
        return load_model(self.source)

    @cached_property
    def base(self) -> HookedModel:
        """The same before it was planted."""
        return load_model(self.base_source)

    @property
    def shape(self) -> ModelShape:
        return ModelShape.of(self.model)

    @property
    def block(self) -> LayerRange:
        """The layers that hold all that was planted."""
        return LayerRange(self.place.layers[0], self.place.layers[-1])

    @cached_property
    def planted(self) -> FreezeMask:
        """The planted units; all of their layers where whole layers were planted."""
        units: dict[Any, Any] = {"mlp": self.place.mlp_units, "attn": self.place.heads}
        if any(units.values()):
            return FreezeMask.of_units({site: by_layer for site, by_layer in units.items() if by_layer}, self.model)
        return FreezeMask.layers(self.block, self.model)

    @property
    def k(self) -> int:
        """How many of an order's first units are looked at: as many as were planted."""
        return self.planted.n_units() if self.kind == "units" else TOP

    @cached_property
    def answered(self) -> PromptSet:
        """The normal prompts with the model's own answers."""
        texts = generate(self.model, self.seen.normal, max_new_tokens=RESPONSE_TOKENS).texts
        return PromptSet(f"{self.seen.normal.name}-answered", self.seen.normal.prompts, texts)

    @property
    def utility(self) -> PromptSet:
        """What units are scored on as useful: utility prompts with answers, or normal ones with the model's own."""
        return self.answered if self.seen.utility is None else self.seen.utility

    def states(self, *, base: bool = False) -> PromptStates:
        """The residual streams on the prompts that are seen; of the base, too, if asked."""

        def make() -> PromptStates:
            return prompt_states(self.base if base else self.model, self.seen.malicious, self.seen.normal)

        return self.shared.get(("states", base), make)

    @cached_property
    def planted_change(self) -> tuple[tuple[int, ...], Tensor]:
        """Positions, and ``[layer, position, d_model]``: what planting has added to what harmful prompts differ by.

        The difference of means in the planted model minus that in its base, on the same prompts: the direction that was
        planted, known because the base is. Zero before the planted layers.
        """
        ours, theirs = self.states(), self.states(base=True)
        return ours.positions, ours.difference() - theirs.difference()


def organisms(family: Path | None) -> Iterator[Subject]:
    """The shipped planted models and the members of the family that are built, development first."""
    found = [(name, "development", str(catalog.stage_path(name)), catalog.planted(name)) for name in SHIPPED]
    if family is not None:
        for built in read_family(family, (*LAYERS_FAMILY, *UNITS_FAMILY)).values():
            if built.learned and built.planted is not None:
                found.append((built.member.name, built.member.role or "development", str(built.folder), built.planted))
    sets = {
        split: Prompts(
            catalog.prompts("malicious", split, n),
            catalog.prompts("normal", split, n),
            catalog.prompts("utility", split, n),
        )
        for split, n in SPLITS
    }
    over = catalog.prompts("over_rejection", n=OVER_REJECTION)
    for name, role, source, place in sorted(found, key=lambda one: one[1] != "development"):
        kind = "units" if place.mlp_units else "layers"
        base = str(catalog.stage_path("base"))
        yield Subject(name, role, kind, source, base, place, sets["train"], sets["test"], over)


def real(names: list[str], n: int | None = None) -> Iterator[Subject]:
    """Members of the SmolLM2 family; ``n`` prompts of each kind instead of the usual numbers.

    Raises:
        ValueError: for an unknown member, and one in which nothing is planted in a part.
    """
    seen, judged, over = (n or usual for usual in (REAL_SEEN, REAL_JUDGED, REAL_OVER_REJECTION))
    for name in names:
        one = member(name)
        place = catalog.planted(f"{SMOLLM2}:{one.name}")
        malicious, normal = (requests(of, "test", seen + judged, seed=101) for of in KINDS)
        first, rest = (Prompts(malicious[part], normal[part], None) for part in (slice(0, seen), slice(seen, None)))
        kind = "layers" if one.kind == "layers" else "units"
        borderline = requests("over_rejection", "test", over, seed=101)
        yield Subject(one.name, one.role, kind, f"{SMOLLM2}:{one.name}", SMOLLM2, place, first, rest, borderline, REAL)


def mean_prompt_tokens(subject: Subject) -> float:
    """Of the prompts that are seen."""
    from safecircuits.model.sites import tokenizer_of
    from safecircuits.prompts.prompt_set import encode

    examples = [
        example
        for prompts in (subject.seen.malicious, subject.seen.normal)
        for example in encode(tokenizer_of(subject.model), prompts)
    ]
    return float(torch.tensor([float(len(example)) for example in examples]).mean())
