"""One forward pass and one step of decoding, the same on a HookedTransformer and on a TransformerBridge."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safecircuits.model.cache import layers_of, read_only, take_rows, tensor_names
from safecircuits.model.context import Context
from safecircuits.model.in_use import used_alone
from safecircuits.model.last_positions import only_at_last
from safecircuits.model.sites import HookedModel, is_bridge
from safecircuits.prompts.batching import Batch, position_ids

# Logits held at once where those of many positions are asked for.
_LOGITS = 2**25


def device_of(model: HookedModel) -> torch.device:
    """Where the model takes its input ids."""
    return next(model.parameters()).device


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Every module in evaluation mode inside; each in its own mode again afterwards."""
    with used_alone(model):
        modes = {m: m.training for m in chain(model.modules(), getattr(model, "original_model", model).modules())}
        for module in modes:
            module.training = False
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def evaluating(model: Any) -> AbstractContextManager[None]:
    """``without_dropout`` for a model that a trainer has left in training mode; the others have nothing to change."""
    training = model.training or getattr(model, "original_model", model).training
    return without_dropout(model) if training else used_alone(model)


def require_known(model: Any, input_ids: Int[Tensor, "batch pos"]) -> None:
    """A ValueError for a token that the model has no embedding of: an IndexError later, on a GPU one for good.

    Prompts are looked at while they are on the CPU; what a model has chosen itself it knows.
    """
    if input_ids.device.type != "cpu" or (largest := int(input_ids.max())) < (rows := n_embeddings(model)):
        return
    tokenizer = getattr(model, "tokenizer", None)
    token = "" if tokenizer is None else f" ({tokenizer.convert_ids_to_tokens(largest)!r})"
    raise ValueError(
        f"token {largest}{token} of a prompt or response has no embedding: the model has {rows}, fewer than the "
        "tokenizer has tokens; use the model's own tokenizer, or give the new tokens embeddings that are trained "
        "(resize_token_embeddings)"
    )


def n_embeddings(model: Any) -> int:
    """How many tokens a hooked or plain model can take in."""
    hf = getattr(model, "original_model", model)
    if hasattr(hf, "get_input_embeddings"):
        return len(hf.get_input_embeddings().weight)
    return int(model.cfg.d_vocab)


def run(model: HookedModel, batch: Batch) -> None:
    """One whole forward pass for the sake of the hooks; no logits but the last position's are computed."""
    Decoder(model).step(batch.input_ids, batch.attention_mask)


def logits(model: HookedModel, batch: Batch) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits at every position, without dropout; those at padding mean nothing."""
    require_known(model, batch.input_ids)
    batch = batch.to(device_of(model))
    context = Context.of(model)
    context.require(batch.attention_mask)
    with evaluating(model), context.explaining(batch.attention_mask):
        if not is_bridge(model):
            out: Tensor = model(batch.input_ids, attention_mask=batch.attention_mask, return_type="logits")
            return out
        answer: Tensor = _wrapped(model)(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=position_ids(batch.attention_mask),
            use_cache=False,
            **_no_router_loss(_wrapped(model)),
        ).logits
        return answer


class Decoder:
    """Feeds tokens to a model step by step over a key/value cache.

    On a bridge the wrapped Hugging Face model is called itself: the hook points live inside it and fire all the same,
    and its cache and last-position head are the cheapest there are. A model in training mode runs without dropout.

    Args:
        plain: a Hugging Face model to call in the bridge's place.
        ends: parts of the last layer that may run at the positions alone whose logits are asked for.
    """

    def __init__(self, model: HookedModel, plain: Any = None, ends: Sequence[nn.Module] = ()) -> None:
        self.model, self.ends = model, ends
        self.device, self.context = device_of(model), Context.of(model)
        self.hf: Any = plain if plain is not None or not is_bridge(model) else _wrapped(model)
        # A model of nothing but states (Mamba) calls its cache otherwise, and takes the mask of what it is fed alone.
        self._states = (
            "cache_params" in inspect.signature(type(self.hf).forward).parameters if self.hf is not None else False
        )
        self.cache: Any = None
        self.mask: Int[Tensor, "batch pos"] | None = None

    def step(
        self, input_ids: Int[Tensor, "batch new"], attention_mask: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Feed ``new`` further positions of each row; the logits after the last of them."""
        input_ids, attention_mask, seen = self._next(input_ids, attention_mask)
        if self.cache is None:
            self.cache = self._empty_cache(len(input_ids))
        with evaluating(self.model), only_at_last(self.ends, 1, input_ids.shape[1]):
            if self.hf is None:
                out = self._hooked_logits(self._hooked_states(input_ids, attention_mask)[:, -1])
            else:
                out = self._hf_pass(self.hf, input_ids, seen, logits_to_keep=1).logits[:, -1]
        self.mask = seen
        return out

    def open(self, rows: Sequence[int]) -> None:
        """Begin with an empty cache that has its own number of rows in each layer, where a pass parts on its way."""
        self.cache = self._empty_cache(rows)

    def steps(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch new"],
        last: int,
        choose: Callable[[Float[Tensor, "some d_vocab"]], Int[Tensor, " some"]],
    ) -> Int[Tensor, "row last"]:
        """Feed positions of each row, and choose by the logits after each of the ``last`` of them.

        Logits are made a few rows at a time: those of all positions may take more memory than the model.
        """
        input_ids, attention_mask, seen = self._next(input_ids, attention_mask)
        if self.hf is None:
            with evaluating(self.model), only_at_last(self.ends, last, input_ids.shape[1]):
                states = self._hooked_states(input_ids, attention_mask)[:, -last:]
            head: Callable[[Tensor], Tensor] = self._hooked_logits
        else:
            kept: list[Tensor] = []

            def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
                kept.append(args[0])
                return (args[0][:, -1:],)

            head = self.hf.get_output_embeddings()
            handle = self.hf.get_output_embeddings().register_forward_pre_hook(keep)
            try:
                with evaluating(self.model), only_at_last(self.ends, last, input_ids.shape[1]):
                    self._hf_pass(self.hf, input_ids, seen, logits_to_keep=last)
            finally:
                handle.remove()
            states = kept[0][:, -last:]
        self.mask = seen
        # A factor or a bound that an architecture puts on its logits does not change which is largest.
        flat = states.flatten(0, 1)
        some = max(1, _LOGITS // int(self.model.cfg.d_vocab))
        return torch.cat([choose(head(part)) for part in torch.split(flat, some)]).view(states.shape[:2])

    def set_mask(self, mask: Int[Tensor, "batch pos"]) -> None:
        """Say anew which of the positions that have been fed may be seen."""
        self.mask = mask
        if hasattr(self.cache, "entries"):
            self.cache.previous_attention_mask = mask

    def feed(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch new"],
        block: nn.Module | None,
        *,
        keep: bool = False,
        ends: Sequence[nn.Module] = (),
    ) -> None:
        """Feed positions for the sake of hooks alone: nothing after ``block`` runs (None: up to the logits).

        Args:
            keep: whether this decoder will be fed further; otherwise no keys and values are kept.
            ends: parts of the last layer that runs which may run at the last position alone.
        """
        input_ids, attention_mask, seen = self._next(input_ids, attention_mask)
        if keep and self.cache is None:
            self.cache = self._empty_cache(len(input_ids))
        elif not keep and self.cache is not None:
            self.cache = read_only(self.cache)
        with evaluating(self.model), _ending_after(block), only_at_last(ends, 1, input_ids.shape[1]):
            if self.hf is not None:
                self._hf_pass(self.hf, input_ids, seen, **({} if block is not None else {"logits_to_keep": 1}))
            else:
                self.model(input_ids, attention_mask=attention_mask, past_kv_cache=self.cache, return_type=None)
        self.mask = seen

    def rows(self, index: Int[Tensor, " row"], by_layer: Sequence[Int[Tensor, " row"]] | None = None) -> Decoder:
        """A decoder that goes on from rows of this one, each as often as ``index`` names it; this one stays.

        Args:
            by_layer: the rows in each layer's cache, where they are not the same in all.
        """
        assert self.mask is not None
        index = index.to(self.device)
        chosen = copy.copy(self)
        chosen.mask = self.mask[index]
        chosen.cache = copy.copy(self.cache)
        parts = [copy.copy(part) for part in layers_of(self.cache)]
        for layer, part in enumerate(parts):
            take_rows(part, index if by_layer is None else by_layer[layer].to(self.device))
        if hasattr(self.cache, "entries"):
            chosen.cache.entries = parts
            chosen.cache.previous_attention_mask = self.cache.previous_attention_mask[index]
        else:
            chosen.cache.layers = parts
        return chosen

    def _next(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is fed, where the model is, and the mask of all that has been fed then."""
        require_known(self.model, input_ids)
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        seen = attention_mask if self.mask is None else torch.cat([self.mask, attention_mask], dim=1)
        self.context.require(seen)
        return input_ids, attention_mask, seen

    def _empty_cache(self, n_rows: int | Sequence[int]) -> Any:
        if self.hf is not None:
            from transformers import DynamicCache

            return DynamicCache(config=self.hf.config)
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        by_layer = [n_rows] if isinstance(n_rows, int) else n_rows
        cache = TransformerLensKeyValueCache.init_cache(self.model.cfg, self.device, by_layer[0])
        for entry, rows in zip(cache.entries, by_layer, strict=False):
            for name in tensor_names(entry):
                empty: Tensor = getattr(entry, name)
                setattr(entry, name, empty.new_empty(rows, *empty.shape[1:]))
        return cache

    def _hf_pass(self, model: Any, input_ids: Tensor, seen: Tensor, **options: Any) -> Any:
        new = input_ids.shape[1]
        with self.context.explaining(seen):
            return model(
                input_ids=input_ids,
                attention_mask=seen[:, -new:] if self._states else seen,
                position_ids=position_ids(seen)[:, -new:],
                use_cache=self.cache is not None,
                **{"cache_params" if self._states else "past_key_values": self.cache},
                **_no_router_loss(model),
                **options,
            )

    def _hooked_states(self, input_ids: Tensor, new_mask: Tensor) -> Tensor:
        model: Any = self.model
        n_layers = int(model.cfg.n_layers)
        states: Tensor = model(input_ids, attention_mask=new_mask, past_kv_cache=self.cache, stop_at_layer=n_layers)
        return states

    def _hooked_logits(self, states: Float[Tensor, "some d_model"]) -> Float[Tensor, "some d_vocab"]:
        model: Any = self.model
        states = states[:, None]
        normed = model.ln_final(states) if model.cfg.normalization_type is not None else states
        out: Tensor = model.unembed(normed)[:, -1]
        cap = float(model.cfg.output_logits_soft_cap or 0)
        return cap * torch.tanh(out / cap) if cap > 0 else out


class _Reached(Exception):
    """The last layer that is needed has run."""


@contextmanager
def _ending_after(block: nn.Module | None) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Reached

    handle = None if block is None else block.register_forward_hook(stop)
    try:
        yield
    except _Reached:
        pass
    finally:
        if handle is not None:
            handle.remove()


def _no_router_loss(model: Any) -> dict[str, bool]:
    """No loss of a mixture of experts, which a checkpoint may ask for: it is made of every token of a whole batch."""
    asked = getattr(model.config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if asked else {}


def _wrapped(model: Any) -> Any:
    return model.original_model
