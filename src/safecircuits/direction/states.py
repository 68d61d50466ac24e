"""The residual stream while a model generates: after every block, after so many generated tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.behavior.generate import end_tokens
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.forward import Decoder
from safecircuits.model.sites import HookedModel, resid_post
from safecircuits.prompts.batching import Batch

Pool = Literal["last", "mean"]


@dataclass(frozen=True)
class GeneratedStates:
    """Residual stream after each block, float32 on the model's device.

    Attributes:
        start: at the last given token, before anything is generated.
        values: after so many generated tokens, one entry a step asked for.
        generated: tokens that each row generated, up to the last step, its end of sequence not counted.
    """

    start: Float[Tensor, "layer batch d_model"]
    values: Float[Tensor, "step layer batch d_model"]
    generated: Int[Tensor, " batch"]


@torch.inference_mode()
def generated_states(model: HookedModel, batch: Batch, steps: Sequence[int], pool: Pool) -> GeneratedStates:
    """Generate greedily and keep what the blocks write after ``steps`` generated tokens (0: before the first).

    ``"last"`` is the state at the last generated token, ``"mean"`` the mean over all generated ones. A row that has
    ended stays as it was at its last token, as its sequence does; one that generates nothing stays at its start.

    Raises:
        FloatingPointError: if a residual stream is not finite; names the layer.
    """
    now: list[Tensor] = [torch.empty(0)] * int(model.cfg.n_layers)

    def keep(layer: int) -> HookFn:
        def store(resid: Tensor) -> None:
            now[layer] = resid[:, -1].float()  # left padding puts every last token at -1

        return store

    kept: dict[int, Tensor] = {}
    start = last = total = torch.empty(0)
    going = torch.ones(len(batch), 1, dtype=torch.bool)
    generated = torch.zeros(len(batch), dtype=torch.long)
    with attached(model, {resid_post(layer): keep(layer) for layer in range(len(now))}):
        for t, chosen in enumerate(_greedily(model, batch, max(steps) + 1)):
            states = torch.stack([state.to(now[0].device) for state in now])
            _require_finite(states)
            if t == 0:
                start = last = states
                total = torch.zeros_like(states)
                generated = generated.to(states.device)
            else:
                last = torch.where(going, states, last)
                total = total + torch.where(going, states, 0.0)
                generated = generated + going.flatten()
            if t in steps:
                kept[t] = last if pool == "last" else _mean(start, total, generated)
            going = (chosen >= 0).to(states.device)[:, None]
    at_the_end = last if pool == "last" else _mean(start, total, generated)
    return GeneratedStates(start, torch.stack([kept.get(t, at_the_end) for t in steps]), generated.cpu())


def _greedily(model: HookedModel, batch: Batch, n: int) -> Iterator[Int[Tensor, " batch"]]:
    """The next token of each row, up to ``n`` times; −1 once a row has ended, and no more when all have.

    When the token after t generated ones is yielded, the pass over these t is done. Unlike in ``generate`` every row
    stays, so that states of different steps belong together.
    """
    ends = torch.tensor(sorted(end_tokens(model)))
    decoder = Decoder(model)
    ids, mask = batch.input_ids, batch.attention_mask
    finished = torch.zeros(len(batch), dtype=torch.bool)
    for _ in range(n):
        best, chosen = (values.cpu() for values in decoder.step(ids, mask).max(-1))
        if not torch.isfinite(best).all():
            raise FloatingPointError("the logits are not finite; another dtype may help")
        finished |= torch.isin(chosen, ends)
        yield torch.where(finished, -1, chosen)
        if bool(finished.all()):
            return
        ids, mask = chosen[:, None], torch.ones_like(chosen[:, None])


def _mean(start: Tensor, total: Tensor, generated: Tensor) -> Tensor:
    some = (generated > 0)[:, None]
    return torch.where(some, total / generated.clamp(min=1)[:, None], start)


def _require_finite(states: Float[Tensor, "layer batch d_model"]) -> None:
    broken = (~torch.isfinite(states)).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        raise FloatingPointError(f"the residual stream after layer {broken[0]} is not finite")
