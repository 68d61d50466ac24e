"""A decoder that TransformerLens does not know, and what makes a bridge of it: the example of the how-to page."""

from __future__ import annotations

from typing import Any

# --8<-- [start:model]
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


class SquaredReluMlp(nn.Module):
    """No gate, and squares of what is positive."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(torch.relu(self.expand(x)).square())


class QuillConfig(LlamaConfig):
    model_type = "quill"


class QuillForCausalLM(LlamaForCausalLM):
    """Llama's attention with another MLP: an architecture of its own, as Hugging Face sees it."""

    config_class = QuillConfig

    def __init__(self, config: QuillConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = SquaredReluMlp(config)
        self.post_init()


AutoConfig.register("quill", QuillConfig)
AutoModelForCausalLM.register(QuillConfig, QuillForCausalLM)
# --8<-- [end:model]

# --8<-- [start:adapter]
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory  # noqa: E402
from transformer_lens.model_bridge.generalized_components import LinearBridge, MLPBridge  # noqa: E402
from transformer_lens.model_bridge.supported_architectures import LlamaArchitectureAdapter  # noqa: E402


class QuillAdapter(LlamaArchitectureAdapter):
    """Which module plays which part. Only the MLP differs from Llama's, so only that is said."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.gated_mlp = False
        self.component_mapping["blocks"].submodules["mlp"] = MLPBridge(
            name="mlp",
            config=self.cfg,
            submodules={"in": LinearBridge(name="expand"), "out": LinearBridge(name="contract")},
        )


ArchitectureAdapterFactory.register_adapter("QuillForCausalLM", QuillAdapter)
# --8<-- [end:adapter]
