"""Prefix tuning and LLaMA-Adapter in the same loop: the other parameter-efficient rows of SSAH's Table 3.

Both add trainable virtual tokens and leave every weight as it is: prefix tuning gives each layer keys and values that
stand before the prompt, LLaMA-Adapter gated attention to them in the upper layers. The modules and their first values
are PEFT's. There is nothing to merge, so the tuned model is a model of its own; ``evaluate``, ``generate``,
``response_loss`` and ``pressure`` take it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safecircuits.baselines.hf_modules import hugging_face_model
from safecircuits.model.forward import require_known
from safecircuits.prompts.batching import position_ids
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import train_weights
from safecircuits.training.run import FinetuneRun


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


_REFUSES = {"freeze": "all weights are frozen, and only the tokens train"}


@register("prefix")
@dataclass(frozen=True)
class PrefixTuning(Method):
    """Keys and values that stand before the prompt in each layer train (Li and Liang 2021); needs a bridge.

    As Qi et al. (2023) have it: no reparametrisation. The tuned model is the run's ``tuned``.

    Attributes:
        virtual_tokens: how many positions stand before the prompt.

    Raises:
        ImportError: without PEFT.
        ValueError: for a HookedTransformer, a bridge that computes with copies of fused matrices, a freeze mask, and
            gradient checkpointing.

    Examples:
        >>> sc.baselines.PrefixTuning(5).record()
        {'name': 'prefix', 'virtual_tokens': 5}
    """

    virtual_tokens: int = 30

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Li and Liang 2021, as Qi et al. 2023 have it; PEFT's"
    trains_beside: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = _REFUSES | {
        "gradient_checkpointing": "it keeps its virtual tokens in the key/value cache, which a layer that is computed "
        "again would fill twice"
    }

    def train(self, job: TrainingJob) -> FinetuneRun:
        from_peft = _peft()
        config = from_peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.virtual_tokens)
        return _train(job, config, hugging_face_model(job.model, _WHAT), self.virtual_tokens)


@register("llama-adapter")
@dataclass(frozen=True)
class LlamaAdapter(Method):
    """Gated attention to virtual tokens in the upper layers trains (Zhang et al. 2023); needs a bridge.

    As Qi et al. (2023) have it; of Llama, Mistral and GPT-2 alone. The tuned model is the run's ``tuned``.

    Attributes:
        virtual_tokens: how many of them each layer has.
        layers: how many of the upper layers; all, if there are fewer.

    Raises:
        ImportError: without PEFT.
        ValueError: for a HookedTransformer, a bridge that computes with copies of fused matrices, a freeze mask, and
            an architecture for which PEFT has no LLaMA-Adapter.

    Examples:
        >>> sc.baselines.LlamaAdapter(layers=4).record()
        {'name': 'llama-adapter', 'virtual_tokens': 10, 'layers': 4}
    """

    virtual_tokens: int = 10
    layers: int = 30

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Zhang et al. 2023, as Qi et al. 2023 have it; PEFT's"
    trains_beside: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = _REFUSES

    def train(self, job: TrainingJob) -> FinetuneRun:
        from_peft, plain = _peft(), hugging_face_model(job.model, _WHAT)
        known = from_peft.tuners.adaption_prompt.config.TRANSFORMERS_MODEL_CONFIG
        if plain.config.model_type not in known:
            raise ValueError(
                f"PEFT has LLaMA-Adapter for {', '.join(known)}, not for {plain.config.model_type}: use PrefixTuning"
            )
        layers = min(self.layers, int(job.model.cfg.n_layers))
        config = from_peft.AdaptionPromptConfig(
            task_type="CAUSAL_LM", adapter_len=self.virtual_tokens, adapter_layers=layers
        )
        return _train(job, config, plain, 0)


_WHAT = "virtual tokens go"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("virtual tokens need PEFT: pip install 'safecircuits[peft]'") from error
    return peft


def _train(job: TrainingJob, config: Any, plain: Any, n_before: int) -> FinetuneRun:
    """Train what PEFT adds to the model; ``n_before`` of the tokens stand before the prompt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        tuned = TunedModel(_peft().get_peft_model(plain, config), job.model.tokenizer, n_before).eval()
    return replace(train_weights(replace(job, model=tuned)), tuned=tuned)
