"""Forward passes for the sake of our hooks: no work twice, unless hooks of somebody else's are in force.

The prefix that all prompts share (a template, a system prompt) is computed once (prefix cache); layers after the last
one needed, and the logits, are not computed at all, nor most of the last layer where only the last position is looked
at; a bridge that nobody watches is run as the plain Hugging Face model it wraps. Values are equal to rounding. A hook
of somebody else's may look at whole batches, so with one in force none of this happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from safecircuits.base.progress import track
from safecircuits.hooks.plain import PlainModel, plain_model
from safecircuits.model.attach import HookFn, attached, hooks_in_force
from safecircuits.model.cache import recurrent
from safecircuits.model.forward import Decoder
from safecircuits.model.in_use import used_alone
from safecircuits.model.memory import batch_tokens
from safecircuits.model.sites import HookedModel, is_bridge
from safecircuits.prompts.batching import Batch, common_prefix, each_batch, pad_left, without_prefix
from safecircuits.prompts.prompt_set import Encoded

# Positional schemes of a HookedTransformer that count positions by the attention mask, not by place in the batch.
_BY_MASK = ("rotary", "standard")


@dataclass(frozen=True)
class Runner:
    """What passes run on: the model itself, or its plain stand-in."""

    model: HookedModel
    plain: PlainModel | None
    per_token: bool
    """Whether every hook in force treats each token by itself, so that work may be shared between prompts."""
    other_hooks: bool
    """Whether hooks are in force that the caller of this pass has not placed."""

    def decoder(self) -> Decoder:
        return Decoder(self.model, None if self.plain is None else self.plain.model, self.per_position())

    def per_position(self, layer: int = -1) -> list[nn.Module]:
        """The modules of a layer that may leave positions out: none where somebody else's hook would miss them."""
        if self.other_hooks:
            return []
        if self.plain is not None:
            return self.plain.per_position(layer)
        mlp = None if is_bridge(self.model) else getattr(self.model.blocks[layer], "mlp", None)
        return [] if mlp is None else [mlp]

    def prefix_length(self, examples: Sequence[Encoded], beyond: int = 0) -> int:
        """Tokens of the shared prefix of ``examples``, to be cached; 0 where caching them would change a result.

        Padding then stands between the prefix and the rest of a prompt, so positions must be counted by the mask,
        and a sliding window must not be shorter than prompt and ``beyond`` further tokens together.
        """
        if not self.per_token or not self.counts_by_mask(max(map(len, examples)) + beyond):
            return 0
        return common_prefix(examples)

    def counts_by_mask(self, longest: int) -> bool:
        """Whether masked positions among up to ``longest`` tokens change nothing: positions are counted by the mask."""
        cfg = self.model.cfg
        if is_bridge(self.model):
            config = self.model.original_model.config.get_text_config()
            kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
            window = getattr(config, "sliding_window", None)
            if "local" in (getattr(config, "attention_layers", None) or ()):  # GPT-Neo
                window = config.window_size
            alibi = getattr(config, "alibi", False) or getattr(config, "model_type", "") in ("bloom", "mpt")
            if kinds or alibi or recurrent(self.model):
                return False
        else:
            window = cfg.window_size if cfg.use_local_attn else None
            if cfg.positional_embedding_type not in _BY_MASK:
                return False
        return window is None or window >= longest

    def watch(
        self,
        examples: Sequence[Encoded],
        before: Callable[[Batch, int], None],
        after: Callable[[], None],
        *,
        last_layer: int,
        last_position: bool = False,
        own: int = 1,
        max_tokens: int | None = None,
        what: str = "",
        progress: bool = False,
    ) -> None:
        """Run every example for the sake of hooks up to ``last_layer``.

        Args:
            last_position: whether in that layer the hooks only look at the last position.
            own: how many last tokens of each example no other one's pass may stand for.
            before: called before each pass with its batch, and for how many prompts each row of it stands: all of
                them for their shared prefix (a batch of no rows), else 1.
            after: called when the pass has succeeded; one that ran out of memory is tried again in parts.
        """
        # A hook further up, of whoever, must fire too; which layer it is on is not worth finding out.
        block = None if self.other_hooks else self.block(last_layer)
        ends = self.per_position(last_layer) if last_position else ()
        shared = max(0, min(self.prefix_length(examples), min(map(len, examples)) - own))
        prefix: Decoder | None = None
        if shared:
            # Prompts that share a prefix have as much of it marked: what is marked goes by the tokens alone.
            start = pad_left([Encoded(examples[0].ids[:shared], shared, min(examples[0].beginning, shared))], ())
            before(start, len(examples))
            prefix = self.decoder()
            prefix.feed(start.input_ids, start.attention_mask, block, keep=True, ends=ends)
            after()
            examples = without_prefix(examples, shared)

        def work(batch: Batch) -> None:
            before(batch, 1)
            decoder = self.decoder() if prefix is None else prefix.rows(torch.zeros(len(batch), dtype=torch.long))
            decoder.feed(batch.input_ids, batch.attention_mask, block, ends=ends)
            after()

        budget = batch_tokens(self.model, examples, max_tokens, more=shared)
        steps = each_batch(examples, work, budget, beside=shared, tight=True)
        each_done = (1 for n in steps for _ in range(n))
        for _ in track(each_done, what, total=len(examples), enabled=progress):
            pass

    @property
    def drops_finished(self) -> bool:
        """Whether a finished prompt may leave its batch."""
        wrapped = getattr(self.model, "original_model", None)
        # RecurrentGemma keeps the states of a batch in its modules, where no cache can choose rows.
        return self.per_token and getattr(getattr(wrapped, "config", None), "model_type", "") != "recurrent_gemma"

    @property
    def can_branch(self) -> bool:
        """Whether a pass may gain rows on its way through the blocks (``Branches``)."""
        return not self.other_hooks and (self.plain is not None or not is_bridge(self.model))

    def blocks(self) -> list[nn.Module]:
        """The decoder layers."""
        return [self.block(layer) for layer in range(int(self.model.cfg.n_layers))]

    def block(self, layer: int) -> nn.Module:
        """The decoder layer, whose end ends a pass that needs nothing after it."""
        block: nn.Module = self.model.blocks[layer] if self.plain is None else self.plain.block(layer)
        return block


@contextmanager
def running(model: HookedModel, hooks: Mapping[str, HookFn] | None = None) -> Iterator[Runner]:
    """Attach ``hooks``, each of which treats every token by itself, and give what to run passes on.

    Raises:
        ValueError, RuntimeError: as ``attached`` does.
    """
    hooks = hooks or {}
    with used_alone(model):
        any_hook, per_token = hooks_in_force(model)
        plain = None if any_hook else plain_model(model)
        with torch.inference_mode():
            if plain is not None and plain.has(hooks):
                with plain.attached(hooks):
                    yield Runner(model, plain, True, False)
            else:
                with attached(model, hooks, per_token=True):
                    yield Runner(model, None, per_token, any_hook)
