"""Two checkpoints in lockstep: unit activations of the one in a run of the other, pass by pass (interchange).

At every pass, of prompts and of each further token, the source runs first on the very tokens that the model is given,
over a cache of its own, and leaves the activations of the units that are to be patched. Then the model runs with them
in place of its own. So a patched unit says what it would say in the source after what has been written so far: dynamic
activation patching (Chen et al., NeurIPS 2025, arXiv 2406.14144, §3.2). Each row of a batch may have units of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from safecircuits.base.vocabulary import MIXTURE_SITES, SITES, Site
from safecircuits.hooks.passes import Runner, running
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.attach import HookFn, marked
from safecircuits.model.forward import Decoder
from safecircuits.model.pair import require_pair
from safecircuits.model.sites import HookedModel, is_bridge, output_weight, require_units, unit_hook
from safecircuits.prompts.prompt_set import Encoded

Name = TypeVar("Name", bound=Hashable)


class UnitPatching:
    """The hooks that carry units of a source into a model; ``select`` says which of the sets each row is patched by.

    Args:
        sets: the units to patch.
        outgoing: whether a unit brings its outgoing weights along: what it writes in the source replaces what it writes
            here. Otherwise its activation alone is the source's, and goes through the weights that are here.

    Raises:
        ValueError: for two checkpoints whose units do not correspond, or a layer without such units.
    """

    def __init__(
        self, model: HookedModel, source: HookedModel, sets: Sequence[FreezeMask], *, outgoing: bool = False
    ) -> None:
        require_pair(model, source)
        self.model, self.source = model, source
        self.parts: list[_Part] = []
        if any(units.at(site).any() for units in sets for site in MIXTURE_SITES):
            raise ValueError(
                "units of a mixture of experts cannot be patched from one checkpoint into another: each routes its "
                "tokens its own way; remove them (ablated) or freeze them"
            )
        for site in SITES:
            rows = torch.stack([units.at(site) for units in sets])  # [set layer unit]
            layers = rows.any(2).any(0).nonzero().flatten().tolist()
            require_units(model, site, layers)
            for layer in layers:
                written = output_weight(source, site, layer) if outgoing else None
                self.parts.append(_Part(site, layer, rows[:, layer], written))

    @property
    def last_layer(self) -> int:
        """The highest layer with a patched unit; −1 if there is none. The source need not run any further."""
        return max((part.layer for part in self.parts), default=-1)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Patch each row of the next passes by the set of this index."""
        for part in self.parts:
            part.select(rows)

    @contextmanager
    def running(self) -> Iterator[PairRunner]:
        """Attach the hooks of both, and give what to run passes on."""
        taking = {part.hook: part.take for part in self.parts}
        putting: dict[str, HookFn] = {part.hook: part.put for part in self.parts}
        adding = [part for part in self.parts if part.weight is not None]
        if is_bridge(self.model):
            putting |= {part.output: part.add for part in adding}
        with ExitStack() as stack:
            if not is_bridge(self.model):
                for part in adding:
                    stack.enter_context(_after(getattr(self.model.blocks[part.layer], part.site), part))
            source = stack.enter_context(running(self.source, taking))
            target = stack.enter_context(running(self.model, putting))
            yield PairRunner(source, target, self.last_layer)


@dataclass(frozen=True)
class PairRunner:
    """What passes of two models in lockstep run on; like a ``Runner``."""

    source: Runner
    target: Runner
    last_layer: int

    @property
    def model(self) -> HookedModel:
        return self.target.model

    @property
    def drops_finished(self) -> bool:
        return self.source.drops_finished and self.target.drops_finished

    def prefix_length(self, examples: Sequence[Encoded], beyond: int = 0) -> int:
        return min(runner.prefix_length(examples, beyond) for runner in (self.source, self.target))

    def block(self, layer: int) -> nn.Module:
        return self.target.block(layer)

    def decoder(self) -> LockstepDecoder:
        # No part of the last layer is left out: activations of both must be of the same positions.
        source, target = (
            Decoder(runner.model, None if runner.plain is None else runner.plain.model)
            for runner in (self.source, self.target)
        )
        return LockstepDecoder(source, target, self.source.block(self.last_layer) if self.last_layer >= 0 else None)


@dataclass(frozen=True)
class LockstepDecoder:
    """Feeds the source and then the model, each over its own cache; the source up to ``last``, its last block needed.

    Without one (no unit is patched) the source does not run.
    """

    source: Decoder
    target: Decoder
    last: nn.Module | None

    def step(
        self, input_ids: Int[Tensor, "batch new"], attention_mask: Int[Tensor, "batch new"], /
    ) -> Float[Tensor, "batch d_vocab"]:
        """Feed both; the model's logits after the last position."""
        self._lead(input_ids, attention_mask, keep=True)
        return self.target.step(input_ids, attention_mask)

    def feed(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch new"],
        block: nn.Module | None,
        *,
        keep: bool = False,
    ) -> None:
        """Feed both, the model up to ``block``."""
        self._lead(input_ids, attention_mask, keep=keep)
        self.target.feed(input_ids, attention_mask, block, keep=keep)

    def rows(self, index: Int[Tensor, " row"], /) -> LockstepDecoder:
        """What goes on from some of the rows."""
        source = self.source if self.last is None else self.source.rows(index)
        return LockstepDecoder(source, self.target.rows(index), self.last)

    def _lead(self, input_ids: Tensor, attention_mask: Tensor, *, keep: bool) -> None:
        if self.last is not None:
            self.source.feed(input_ids, attention_mask, self.last, keep=keep)


class _Part:
    """The patched units of one sublayer: those of any set, and of which rows each is patched."""

    def __init__(
        self,
        site: Site,
        layer: int,
        sets: Bool[Tensor, "set unit"],
        written: Float[Tensor, "channel d_model"] | None,
    ) -> None:
        self.site, self.layer, self.hook = site, layer, unit_hook(site, layer)
        self.output = f"blocks.{layer}.{'mlp.out' if site == 'mlp' else 'attn.o'}.hook_out"
        self.units = sets.any(0).nonzero().flatten()
        self.sets = sets[:, self.units]
        self.whole = len(self.units) == sets.shape[1]
        self.weight: Tensor | None = None
        if written is not None:
            by_unit = written.reshape(sets.shape[1], -1, written.shape[1])
            self.weight = by_unit[self.units.to(written.device)].flatten(0, 1)
        self.dim = 2  # [batch pos d_mlp] or [batch pos head d_head]
        self.chosen: Tensor | None = None
        """Of each row and unit of ``units`` whether it is patched; None where all of them are, in every row."""
        self.taken: Tensor | None = None
        self.select(torch.zeros(1, dtype=torch.long))

    def select(self, rows: Int[Tensor, " row"]) -> None:
        chosen = self.sets[rows.cpu()]
        self.chosen = None if bool(chosen.all()) else chosen

    def take(self, activation: Tensor) -> None:
        """Of the source."""
        self.taken = activation if self.whole else activation.index_select(self.dim, self.units.to(activation.device))

    def put(self, activation: Tensor) -> Tensor:
        """The source's activation in the model; zero where what the unit writes is added behind its weights."""
        taken = self._taken(activation)
        new = torch.zeros_like(taken) if self.weight is not None else taken
        if self.chosen is None and self.whole:
            return new
        at = self.units.to(activation.device)
        if self.chosen is not None:
            own = activation if self.whole else activation.index_select(self.dim, at)
            new = torch.where(self._by_row(activation), new, own)
        return new if self.whole else activation.index_copy(self.dim, at, new)

    def add(self, output: Tensor) -> Tensor:
        """What the units write in the source, behind the model's own output projection."""
        assert self.taken is not None
        assert self.weight is not None
        taken = self.taken.to(output)
        if self.chosen is not None:
            taken = torch.where(self._by_row(taken), taken, torch.zeros_like(taken))
        written = taken.flatten(2) @ self.weight.to(output)
        return output + written.reshape(output.shape)

    def _taken(self, activation: Tensor) -> Tensor:
        if self.taken is None or self.taken.shape[:2] != activation.shape[:2]:
            there = "none" if self.taken is None else list(self.taken.shape[:2])
            raise RuntimeError(
                f"the source left activations of {there} rows and positions at {self.hook}, and the model has "
                f"{list(activation.shape[:2])}: the two must run in lockstep, and no hook may change one's batch alone"
            )
        return self.taken.to(activation)

    def _by_row(self, activation: Tensor) -> Tensor:
        assert self.chosen is not None
        chosen = self.chosen.to(activation.device)
        return chosen.view(len(chosen), 1, -1, *(1,) * (activation.ndim - 3))


@contextmanager
def _after(module: nn.Module, part: _Part) -> Iterator[None]:
    """Add what the units write to the output of a HookedTransformer's sublayer, which has no hook point of its own."""

    def run(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return part.add(output)

    handle = module.register_forward_hook(marked(run, "per_token"))
    try:
        yield
    finally:
        handle.remove()


def as_sets(model: HookedModel, sets: Mapping[Name, FreezeMask]) -> dict[Name, FreezeMask]:
    """Named sets of units of this model; a ValueError for anything else."""
    if not isinstance(sets, Mapping) or not sets:
        raise ValueError(f"units to patch are given by name, such as {{'top': scores.top(64)}}, not as {sets!r:.60}")
    return {name: units_of(model, units, f"the units of {name!r}") for name, units in sets.items()}
