"""Collect the residual stream after every block, at the last token of each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked, indices
from safecircuits.base.vocabulary import LayerRange
from safecircuits.hooks.passes import running
from safecircuits.model.attach import HookFn
from safecircuits.model.forward import device_of
from safecircuits.model.shares import columns_in_order, spread
from safecircuits.model.sites import HookedModel, require_hooked, resid_post, tokenizer_of
from safecircuits.prompts.batching import Batch
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.results.result import Result


@dataclass(frozen=True)
class Residuals(Result):
    """Residual streams ``values[layer, prompt, d_model]``, float32 on the CPU; ``at(layer)`` and ``prompt(k)`` select.

    Examples:
        >>> resid = sc.collect_residuals(model, malicious)
        >>> resid.values.shape
        torch.Size([8, 8, 128])
        >>> resid.at(3).shape
        torch.Size([8, 128])
    """

    values: Float[Tensor, "layer prompt d_model"]
    """In the order of ``layers``; ``at`` and ``prompt`` pick from it by name."""
    layers: tuple[int, ...]
    prompts: PromptSet

    def at(self, layer: int) -> Float[Tensor, "prompt d_model"]:
        """The residual stream after ``layer``, of shape (prompt, d_model).

        Examples:
            >>> harmful = collect_residuals(model, malicious).at(3)  # doctest: +SKIP
            >>> direction = harmful.mean(0)  # doctest: +SKIP

        Args:
            layer: as the model counts them, from 0, whichever layers were collected.

        Raises:
            ValueError: for a layer that was not collected.
        """
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not collected; there are {', '.join(map(str, self.layers))}")
        return self.values[self.layers.index(layer)]

    def prompt(self, k: int) -> Float[Tensor, "layer d_model"]:
        """The residual streams of the ``k``-th prompt, from 0, of shape (layer, d_model), in the order of ``layers``.

        Raises:
            ValueError: for a prompt that is not there.
        """
        if not 0 <= k < len(self.prompts):
            raise ValueError(f"prompt {k} is not there: the {len(self.prompts)} prompts are counted from 0")
        return self.values[:, k]


@checked
def collect_residuals(
    model: HookedModel,
    prompts: PromptSet | Sequence[str],
    *,
    layers: Sequence[int] | LayerRange | None = None,
    template: str = "auto",
    final_norm: bool = False,
    max_tokens: int | None = None,
    progress: bool = False,
) -> Residuals:
    """Residual stream after each block at the last token of each prompt, where the answer starts (Safety Layers §3.2).

    The prefix that all prompts share is computed once, and nothing after the last of ``layers``; with hooks of your
    own on the model every prompt runs in full.

    Args:
        layers: 0-indexed, one by one, such as ``[0, 3]``, or all of a LayerRange; every layer unless given.
        template: how a prompt is put to the model; see ``safecircuits.prompts.templates.TEMPLATES``.
        final_norm: pass the last layer's value through the model's final norm, as Hugging Face's ``hidden_states``
            and therefore the paper's code have it. It is then not comparable with the other layers.
        max_tokens: tokens in one batch, padding included; 8,192 unless given, or what fits into free memory.

    Raises:
        ValueError: for a layer outside the model, or one that is named twice.
        FloatingPointError: if a residual is not finite; names the layer.

    Examples:
        >>> harmful, harmless = (sc.collect_residuals(model, prompts) for prompts in (malicious, normal))
        >>> harmful.values.shape
        torch.Size([8, 8, 128])
        >>> direction = harmful.at(3).mean(0) - harmless.at(3).mean(0)  # the difference of means of each prompt set
        >>> direction.shape
        torch.Size([128])
    """
    require_hooked(model)
    prompts = as_prompt_set(prompts)
    n_layers = int(model.cfg.n_layers)
    wanted = tuple(range(n_layers)) if layers is None else _wanted(layers, n_layers)
    examples = encode(tokenizer_of(model), prompts, template=template)

    def collected(share: list[int]) -> Float[Tensor, "layer share d_model"]:
        return _collected(model, [examples[row] for row in share], wanted, max_tokens, progress)

    values = torch.empty(0, len(prompts), int(model.cfg.d_model))
    if wanted:
        values = columns_in_order(spread(model, examples, collected, "collect_residuals"), dim=1)
    if final_norm and n_layers - 1 in wanted:
        last = wanted.index(n_layers - 1)
        values[last] = final_normed(model, values[last])
    broken = [layer for slot, layer in enumerate(wanted) if not torch.isfinite(values[slot]).all()]
    if broken:
        raise FloatingPointError(f"the residual stream after layer {broken[0]} is not finite")
    return Residuals(values, wanted, prompts)


def _collected(
    model: HookedModel, examples: Sequence[Encoded], wanted: Sequence[int], max_tokens: int | None, progress: bool
) -> Float[Tensor, "layer prompt d_model"]:
    """The residual stream of each example after each of the ``wanted`` layers, float32 on the CPU."""
    values = torch.empty(len(wanted), len(examples), int(model.cfg.d_model), dtype=torch.float32)
    rows: list[int] = []
    kept: dict[int, Tensor] = {}

    def keep(slot: int) -> HookFn:
        def store(resid: Tensor) -> None:
            kept[slot] = resid[:, -1].clone()  # left padding puts every last token at -1; no view: it would keep all

        return store

    def before(batch: Batch, _copies: int) -> None:
        rows[:] = batch.rows

    def after() -> None:
        if rows:  # not the prefix that all prompts share
            # One transfer from the device, wherever the layers are.
            here = kept[0].device
            values[:, rows] = torch.stack([kept[slot].to(here) for slot in range(len(wanted))]).float().cpu()

    hooks = {resid_post(layer): keep(slot) for slot, layer in enumerate(wanted)}
    with running(model, hooks) as runner:
        runner.watch(
            examples,
            before,
            after,
            last_layer=max(wanted),
            last_position=True,
            max_tokens=max_tokens,
            what="residual streams",
            progress=progress,
        )
    return values


def _wanted(layers: Sequence[int] | LayerRange, n_layers: int) -> tuple[int, ...]:
    wanted = tuple(indices(layers.indices if isinstance(layers, LayerRange) else layers, "layers", least=None))
    outside = [layer for layer in wanted if not 0 <= layer < n_layers]
    if outside:
        raise ValueError(f"layer {outside[0]} is outside the model, whose layers are 0 to {n_layers - 1}")
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"a layer is named twice in {wanted}: name each once")
    return wanted


@torch.inference_mode()
def final_normed(model: HookedModel, resid: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt d_model"]:
    """Behind the model's final norm, float32 on the CPU."""
    norm = model.ln_final  # type: ignore[attr-defined]  # both backends have it
    dtype = next(model.parameters()).dtype
    out: Tensor = norm(resid[:, None].to(device_of(model), dtype))[:, 0]
    return out.float().cpu()
