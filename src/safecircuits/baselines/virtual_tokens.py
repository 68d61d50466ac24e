"""Prefix tuning and LLaMA-Adapter in the same loop: the other parameter-efficient rows of SSAH's Table 3.

Both add trainable virtual tokens and leave every weight as it is: prefix tuning gives each layer keys and values that
stand before the prompt, LLaMA-Adapter gated attention to them in the upper layers. The modules and their first values
are PEFT's. There is nothing to merge, so the tuned model is a model of its own; ``evaluate``, ``generate``,
``response_loss`` and ``pressure`` take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safecircuits.base.arguments import checked
from safecircuits.behavior.generate import end_tokens
from safecircuits.model.forward import require_known
from safecircuits.model.fused import copies_of_fused
from safecircuits.model.load import to_hugging_face
from safecircuits.model.sites import HookedModel, is_bridge
from safecircuits.prompts.batching import MAX_TOKENS, batches, position_ids
from safecircuits.prompts.prompt_set import Encoded, PromptSet
from safecircuits.training.loop import finetune
from safecircuits.training.run import FinetuneRun


@dataclass(frozen=True)
class PrefixSettings:
    """Prefix tuning as Qi et al. (2023) have it: 30 virtual tokens, no reparametrisation."""

    virtual_tokens: int = 30


@dataclass(frozen=True)
class LlamaAdapterSettings:
    """LLaMA-Adapter as Qi et al. (2023) have it: 10 virtual tokens in the upper 30 layers (all, if there are fewer)."""

    virtual_tokens: int = 10
    layers: int = 30


class TunedModel(nn.Module):
    """A Hugging Face model with PEFT's virtual tokens, which count as positions where they stand before the prompt.

    Attributes:
        peft: PEFT's model; ``peft.save_pretrained(folder)`` writes the adapter.
        tokenizer: that of the model.
    """

    def __init__(self, peft: Any, tokenizer: Any, n_before: int, ends: set[int]) -> None:
        super().__init__()
        self.peft, self.tokenizer = peft, tokenizer
        self.n_before = n_before
        self._ends = ends

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        return_type: str | None = None,
        **_: Any,
    ) -> Any:
        """Hugging Face's output, or the logits alone; padding may be on the left, positions count what is real."""
        out = self._run(input_ids, self._mask(attention_mask), self._cache(len(input_ids)))
        return out.logits if return_type == "logits" else out

    def continuations(
        self, examples: Sequence[Encoded], max_new_tokens: int, *, max_tokens: int | None = None
    ) -> list[str]:
        """What the model writes after each example, greedily, in the order of the examples."""
        tokens = self.continuation_tokens(examples, max_new_tokens, max_tokens=max_tokens)
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    @torch.inference_mode()
    def continuation_tokens(
        self, examples: Sequence[Encoded], max_new_tokens: int, *, max_tokens: int | None = None
    ) -> list[list[int]]:
        """The token ids of ``continuations``, without the one that ends a text."""
        found: list[list[int]] = [[] for _ in examples]
        device = next(self.parameters()).device
        for batch in batches(examples, max_tokens or MAX_TOKENS):
            require_known(self, batch.input_ids)
            new, mask = batch.input_ids.to(device), self._mask(batch.attention_mask.to(device))
            cache = self._cache(len(new), keep=True)
            written: list[list[int]] = [[] for _ in range(len(new))]
            going = [True] * len(new)
            for _ in range(max_new_tokens):
                logits: Float[Tensor, "batch d_vocab"] = self._run(new, mask, cache, logits_to_keep=1).logits[:, -1]
                if not torch.isfinite(logits).all():
                    raise FloatingPointError("the logits of the tuned model are not finite")
                chosen = logits.argmax(-1)
                for row, token in enumerate(chosen.tolist()):
                    going[row] = going[row] and token not in self._ends
                    if going[row]:
                        written[row].append(token)
                if not any(going):
                    break
                new = chosen[:, None]
                mask = torch.cat([mask, torch.ones_like(new)], dim=1)
            for row, tokens in zip(batch.rows, written, strict=True):
                found[row] = tokens
        return found

    def get_input_embeddings(self) -> nn.Module:
        """Of the tokens that a tokenizer makes, as Hugging Face's models call it."""
        embeddings: nn.Module = self.peft.get_base_model().get_input_embeddings()
        return embeddings

    def _run(self, new: Tensor, mask: Tensor, cache: Any, **more: Any) -> Any:
        positions = position_ids(mask)[:, -new.shape[1] :]
        return self.peft.get_base_model()(
            input_ids=new,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **more,
        )

    def _mask(self, mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch before+pos"]:
        return torch.cat([mask.new_ones(len(mask), self.n_before), mask], dim=1)

    def _cache(self, rows: int, keep: bool = False) -> Any:
        if self.n_before:
            return self.peft.get_prompt(rows)
        if not keep:
            return None
        from transformers import DynamicCache

        return DynamicCache()


@checked
def virtual_tokens(
    model: HookedModel,
    data: PromptSet,
    *,
    settings: PrefixSettings | LlamaAdapterSettings,
    seed: int = 0,
    **options: Any,
) -> tuple[TunedModel, FinetuneRun]:
    """Train virtual tokens on ``data``; ``model`` stays as it is, and the tuned model shares its weights.

    Args:
        model: a TransformerBridge.
        seed: of the virtual tokens' start and the order of the data.
        options: as for ``finetune``, but for ``freeze`` and checkpoints; callbacks see the tuned model.

    Raises:
        ImportError: without PEFT.
        ValueError: for a HookedTransformer, a bridge that computes with copies of fused matrices, a freeze mask, and
            an architecture for which PEFT has no LLaMA-Adapter.
    """
    try:
        from peft import AdaptionPromptConfig, PrefixTuningConfig, get_peft_model
        from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG
    except ImportError as error:
        raise ImportError("virtual tokens need PEFT: pip install 'safecircuits[peft]'") from error
    for name in ("freeze", "checkpoint_dir"):
        if options.pop(name, None) is not None:
            raise ValueError(f"virtual tokens do not take {name}: all weights are frozen, and only the tokens train")
    if not is_bridge(model) or copies_of_fused(model):
        raise ValueError(
            "virtual tokens go on Hugging Face's own modules: give a TransformerBridge of an architecture with "
            "separate query, key and value matrices"
        )
    if settings.virtual_tokens < 1:
        raise ValueError(f"virtual_tokens is at least 1, not {settings.virtual_tokens}")
    plain = to_hugging_face(model)
    if isinstance(settings, PrefixSettings):
        before = settings.virtual_tokens
        config: Any = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=before)
    else:
        if plain.config.model_type not in TRANSFORMERS_MODEL_CONFIG:
            known = ", ".join(TRANSFORMERS_MODEL_CONFIG)
            raise ValueError(
                f"PEFT has LLaMA-Adapter for {known}, not for {plain.config.model_type}: use PrefixSettings"
            )
        before = 0
        layers = min(settings.layers, int(model.cfg.n_layers))
        if layers < 1:
            raise ValueError(f"layers is at least 1, not {settings.layers}")
        config = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=settings.virtual_tokens, adapter_layers=layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = TunedModel(get_peft_model(plain, config), model.tokenizer, before, end_tokens(model)).eval()
    run = finetune(tuned, data, seed=seed, tokenizer=model.tokenizer, **options)
    return tuned, run
