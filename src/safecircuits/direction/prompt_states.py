"""The residual stream of two sets of prompts at their last tokens, after every layer, in one pass over both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.direction.vector import residual_places
from safecircuits.hooks.passes import running
from safecircuits.hooks.patching import count_post_instruction_tokens
from safecircuits.model.attach import HookFn
from safecircuits.model.sites import HookedModel, ModelShape, require_hooked, tokenizer_of
from safecircuits.prompts.batching import Batch
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode
from safecircuits.prompts.templates import resolve_template


@dataclass(frozen=True)
class PromptStates:
    """Harmful prompts first, then harmless ones; float32 on the CPU.

    Attributes:
        places: the harmless mean at every place of the residual stream (``residual_places``), NaN where there is none.
        positions: counted from the end; the first is the instruction's last token.
        tokens: the token at each position, ``"…"`` where prompts differ.
    """

    values: Float[Tensor, "layer position prompt d_model"]
    places: Float[Tensor, "place position d_model"]
    n_harmful: int
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    shape: ModelShape
    provenance: dict[str, Any]

    def difference(self, of: Bool[Tensor, " prompt"] | None = None) -> Float[Tensor, "layer position d_model"]:
        """Mean of the harmful minus mean of the harmless prompts, float64; of some prompts alone if given."""
        kept = torch.ones(self.values.shape[2], dtype=torch.bool) if of is None else of
        first = torch.arange(len(kept)) < self.n_harmful
        return self._mean(kept & first) - self._mean(kept & ~first)

    def _mean(self, chosen: Tensor) -> Tensor:
        return self.values[:, :, chosen].double().mean(2)

    def relabelled(self, generator: torch.Generator) -> PromptStates:
        """The same prompts, as many of them called harmful, at random."""
        order = torch.randperm(self.values.shape[2], generator=generator)
        return replace(self, values=self.values[:, :, order])


def prompt_states(
    model: HookedModel,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
) -> PromptStates:
    """Run both sets once.

    Raises:
        ValueError: for a prompt that has nothing but the template's tokens.
        FloatingPointError: if a residual stream is not finite; names the layer.
    """
    require_hooked(model)
    tokenizer = tokenizer_of(model)
    template = resolve_template(tokenizer, template)
    examples = [
        example
        for prompts in (harmful, harmless)
        for example in encode(tokenizer, prompts, template=template, system=system)
    ]
    n = count_post_instruction_tokens(tokenizer, examples, template) + 1
    short = min(map(len, examples))
    if short < n:
        raise ValueError(f"a prompt of {short} tokens has no token before the {n - 1} that the template closes it with")
    n_layers, width = int(model.cfg.n_layers), int(model.cfg.d_model)
    values = torch.empty(n_layers, n, len(examples), width)
    places = torch.zeros(2 * n_layers + 1, n, width, dtype=torch.float64)
    rows: list[int] = []
    kept: dict[int, Tensor] = {}

    def keep(place: int) -> HookFn:
        def store(resid: Tensor) -> None:
            kept[place] = resid[:, -n:].clone()  # no view: it would keep all

        return store

    def before(batch: Batch, _copies: int) -> None:
        rows[:] = batch.rows

    def after() -> None:
        if not rows:  # the prefix that all prompts share
            return
        ours = torch.tensor([row >= len(harmful) for row in rows])
        for place, found in kept.items():
            here = found.float().cpu()
            places[place] += here[ours].double().sum(0)
            if place and place % 2 == 0:
                values[place // 2 - 1][:, rows] = here.transpose(0, 1)

    hooks = {name: keep(place) for place, name in residual_places(model).items()}
    with running(model, hooks) as runner:
        runner.watch(
            examples,
            before,
            after,
            last_layer=n_layers - 1,
            own=n,
            max_tokens=max_tokens,
            what="residual streams",
            progress=progress,
        )
    broken = [layer for layer in range(n_layers) if not torch.isfinite(values[layer]).all()]
    if broken:
        raise FloatingPointError(f"the residual stream after layer {broken[0]} is not finite")
    places /= len(harmless)
    places[[place for place in range(len(places)) if place not in kept]] = torch.nan
    provenance = {
        "harmful": harmful.identity,
        "harmless": harmless.identity,
        "template": str(template),
        "system": system,
    }
    positions = tuple(range(-n, 0))
    tokens = _tokens(tokenizer, examples, positions)
    return PromptStates(values, places.float(), len(harmful), positions, tokens, ModelShape.of(model), provenance)


def _tokens(tokenizer: Any, examples: list[Encoded], positions: tuple[int, ...]) -> tuple[str, ...]:
    there = [{example.ids[position] for example in examples} for position in positions]
    return tuple(tokenizer.decode([*ids]) if len(ids) == 1 else "…" for ids in there)
