"""Prefix tuning and LLaMA-Adapter in the same loop: the other parameter-efficient rows of SSAH's Table 3.

Both add trainable virtual tokens and leave every weight as it is: prefix tuning gives each layer keys and values that
stand before the prompt, LLaMA-Adapter gated attention to them in the upper layers. The modules and their first values
are PEFT's. There is nothing to merge, so the tuned model is a model of its own; ``evaluate``, ``generate``,
``response_loss`` and ``pressure`` take it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safecircuits.base.arguments import checked
from safecircuits.model.forward import require_known
from safecircuits.model.fused import copies_of_fused
from safecircuits.model.load import to_hugging_face
from safecircuits.model.sites import HookedModel, is_bridge
from safecircuits.prompts.batching import position_ids
from safecircuits.prompts.prompt_set import PromptSet
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

    def __init__(self, peft: Any, tokenizer: Any, n_before: int) -> None:
        super().__init__()
        self.peft, self.tokenizer = peft, tokenizer
        self.n_before = n_before

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

    def greedy_decoder(self) -> TunedDecoder:
        """What ``generate`` decodes a batch with."""
        return TunedDecoder(self)

    @property
    def config(self) -> Any:
        """The base model's."""
        return self.peft.get_base_model().config

    @property
    def generation_config(self) -> Any:
        """The base model's, which says what ends a text."""
        return self.peft.get_base_model().generation_config

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


class TunedDecoder:
    """Feeds tokens to a tuned model step by step over a key/value cache."""

    def __init__(self, model: TunedModel) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.cache: Any = None
        self.mask: Int[Tensor, "batch before+pos"] | None = None

    def step(
        self, input_ids: Int[Tensor, "batch new"], attention_mask: Int[Tensor, "batch new"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Feed ``new`` further positions of each row; the logits after the last of them."""
        require_known(self.model, input_ids)
        new, mask = input_ids.to(self.device), attention_mask.to(self.device)
        if self.mask is None:
            self.mask, self.cache = self.model._mask(mask), self.model._cache(len(new), keep=True)
        else:
            self.mask = torch.cat([self.mask, mask], dim=1)
        logits: Tensor = self.model._run(new, self.mask, self.cache, logits_to_keep=1).logits[:, -1]
        return logits

    def rows(self, index: Int[Tensor, " row"]) -> TunedDecoder:
        """Go on with some of the rows alone."""
        assert self.mask is not None
        index = index.to(self.device)
        self.mask = self.mask[index]
        self.cache.batch_select_indices(index)
        return self


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
        ValueError: for a HookedTransformer, a bridge that computes with copies of fused matrices, a freeze mask, prefix
            tuning with gradient checkpointing, and an architecture for which PEFT has no LLaMA-Adapter.
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
    if isinstance(settings, PrefixSettings) and options.get("gradient_checkpointing"):
        raise ValueError(
            "prefix tuning keeps its virtual tokens in the key/value cache, which a layer that is computed again would "
            "fill twice: leave out gradient_checkpointing"
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
        tuned = TunedModel(get_peft_model(plain, config), model.tokenizer, before).eval()
    run = finetune(tuned, data, seed=seed, tokenizer=model.tokenizer, **options)
    return tuned, run
