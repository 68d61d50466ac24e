"""Attention heat map: which words of the question the last token looks at, layer by layer (§3.6, A.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import indices
from safecircuits.base.vocabulary import LayerRange
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.forward import run
from safecircuits.model.in_use import used_alone
from safecircuits.model.kernels import attending
from safecircuits.model.sites import HookedModel, is_bridge, tokenizer_of
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import Encoded, encode
from safecircuits.prompts.rendering import render
from safecircuits.prompts.templates import Template, resolve_template
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Normalize = Literal["minmax", "none"]
Heads = Literal["mean"] | Sequence[int]

# Rendered in the prompt's place to find where a template puts it; no template's own text contains it.
_STAND_IN = "safecircuits-question"


@dataclass(frozen=True)
class AttentionMap(Result):
    """How much the last position attends to each token of the question, one row a layer, float32 on the CPU.

    Examples:
        >>> found = sc.layers.attention_map(model, "how should i move my sailor ?", template="auto")
        >>> found.tokens
        ('how', 'should', 'i', 'move', 'my', 'sailor', '?')
        >>> found.to_frame().shape
        (56, 5)
    """

    values: Float[Tensor, "layer question_token"]
    """Attention probabilities, averaged over heads. A row sums to less than 1: the template has the rest."""
    tokens: tuple[str, ...]
    """The question's tokens as the characters they stand for, without surrounding spaces."""
    layers: tuple[int, ...]
    prompt: str
    template: str
    normalize: Normalize

    @property
    def normalised(self) -> Float[Tensor, "layer question_token"]:
        """What the figure shows: each layer from 0 (its least) to 1 (its most), or the raw values for ``"none"``.

        A layer that attends to all of the question's tokens alike has no most and no least; it is 0 throughout.
        """
        if self.normalize == "none":
            return self.values
        low, high = self.values.amin(1, keepdim=True), self.values.amax(1, keepdim=True)
        spread = high - low
        return (self.values - low) / torch.where(spread > 0, spread, 1.0)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and token, with its position in the question, its raw attention and what the figure shows."""
        import pandas as pd

        raw, shown = self.values.tolist(), self.normalised.tolist()
        rows = [
            {"layer": layer, "position": i, "token": token, "attention": raw[row][i], "normalised": shown[row][i]}
            for row, layer in enumerate(self.layers)
            for i, token in enumerate(self.tokens)
        ]
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """``values`` by layer and token as the figure shows them, ``tokens``, ``prompt`` and ``normalize``."""
        shown = {"values": self.normalised.numpy(), "tokens": self.tokens}
        return {**shown, "prompt": self.prompt, "normalize": self.normalize}

    def plot(self, ax: Axes | None = None, safety_layers: LayerRange | Sequence[int] | None = None) -> Axes:
        """The heat map, with dashed lines at the bounds of ``safety_layers`` (0-indexed, inclusive)."""
        from safecircuits.plots.attention import plot_attention

        return plot_attention(self, safety_layers=safety_layers, ax=ax)


def attention_map(
    model: HookedModel,
    prompt: str,
    *,
    template: str = "alpaca-short",
    system: str | None = None,
    heads: Heads = "mean",
    normalize: Normalize = "minmax",
) -> AttentionMap:
    """The last position's attention to the question's tokens, in every layer; hooks on the model stay in force.

    Args:
        template: how the prompt is put to the model; the paper's is ``"alpaca-short"`` (A.5.1).
        system: a system prompt; its tokens are not the question's.
        heads: ``"mean"`` over all heads, as the paper has it, or over those of the given indices.
        normalize: ``"minmax"`` shows each layer from its least to its most attended token, as the authors' code does;
            ``"none"`` shows probabilities. ``values`` are raw either way.

    Raises:
        ValueError: for a tokenizer that gives no character offsets, a template that does not contain the prompt as it
            is written, heads outside the model, or an unknown ``normalize``.
        RuntimeError: if a layer has a hook point for its attention pattern but never forms one.
        FloatingPointError: if an attention probability is not finite; names the layer.

    Examples:
        >>> found = sc.layers.attention_map(model, "how should i move my sailor ?", template="auto", heads=[0])
        >>> found.values.shape
        torch.Size([8, 7])
    """
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize is 'minmax' or 'none', not {normalize!r}")
    tokenizer_of(model)
    chosen = _checked_heads(heads, int(model.cfg.n_heads))
    asked = resolve_template(model.tokenizer, Template.of(template, system))
    [example] = encode(model.tokenizer, [prompt], template=asked)
    text, offsets = _with_offsets(model.tokenizer, prompt, asked, example)
    first, end = _question_span(model.tokenizer, text, prompt, asked)
    # A tokenizer may join an edge of the question with what stands beside it; such a token counts as the question's.
    columns = [i for i, (a, b) in enumerate(offsets[: len(example)]) if a < b and a < end and b > first]
    if not columns:
        raise ValueError(f"the tokenizer gives the prompt {prompt!r} no token of its own; use another prompt")
    layers = tuple(range(int(model.cfg.n_layers)))
    values = torch.empty(len(layers), len(columns), dtype=torch.float32)

    def keep(layer: int) -> HookFn:
        def store(pattern: Float[Tensor, "batch head query key"]) -> None:
            values[layer] = pattern[0, chosen, -1][:, columns].float().mean(0).cpu()

        return store

    hooks = {f"blocks.{layer}.attn.hook_pattern": keep(layer) for layer in layers}
    with torch.inference_mode(), eager_attention(model), attached(model, hooks):
        run(model, pad_left([example]))
    broken = [layer for layer in layers if not torch.isfinite(values[layer]).all()]
    if broken:
        raise FloatingPointError(f"the attention of layer {broken[0]} is not finite")
    tokens = tuple(text[a:b].strip() or text[a:b] for a, b in (offsets[i] for i in columns))
    return AttentionMap(values, tokens, layers, prompt, asked, normalize)


@contextmanager
def eager_attention(model: HookedModel) -> Iterator[None]:
    """Inside the block a bridge computes attention patterns; afterwards its attention is what it was.

    Some bridges leave attention to the model they wrap, whose fused kernels (SDPA, flash) never form a pattern. A
    HookedTransformer always forms it and is left alone.
    """
    with used_alone(model), attending(model.original_model, "eager") if is_bridge(model) else nullcontext():
        yield


def _checked_heads(heads: str | Sequence[int], n_heads: int) -> list[int]:
    if isinstance(heads, str) and heads == "mean":
        return list(range(n_heads))
    chosen = [] if isinstance(heads, str) else indices(heads, "heads", least=None)
    if not chosen:
        raise ValueError(f"heads is 'mean' or a non-empty list of head indices, not {heads!r}")
    outside = [head for head in chosen if not 0 <= head < n_heads]
    if outside:
        raise ValueError(f"head {outside[0]} is outside the model, whose heads are 0 to {n_heads - 1}")
    return chosen


def _with_offsets(
    tokenizer: Any, prompt: str, template: Template, example: Encoded
) -> tuple[str, Sequence[tuple[int, int]]]:
    """The text put to the model, and the (start, end) characters of each of its tokens as ``encode`` makes them."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets, by which the question's tokens are found; "
            "load the fast tokenizer of this model"
        )
    text = render(tokenizer, prompt, template)
    coded = tokenizer(text, add_special_tokens=template.name != "chat", return_offsets_mapping=True)
    # A beginning of sequence that the text spells is not the tokenizer's to add.
    twice = 0 if tuple(coded["input_ids"][: len(example)]) == example.ids else 1
    return text, coded["offset_mapping"][twice:]


def _question_span(tokenizer: Any, text: str, prompt: str, template: Template) -> tuple[int, int]:
    """Where the question stands in ``text``: first character and one past the last, surrounding spaces left out.

    The same words may stand in the system prompt or the template too, so a search of the text would not do: the place
    is where a stand-in lands when it is rendered instead of the prompt.
    """
    question = prompt.strip()
    slot = render(tokenizer, _STAND_IN, template).find(_STAND_IN)
    first = text.find(question, slot) if slot >= 0 else -1
    if first < 0 or text[slot:first].strip():
        raise ValueError(
            f"the prompt {prompt!r} is not found in the text that template {template!r} makes of it; "
            "use a template that contains the prompt as it is written"
        )
    return first, first + len(question)
