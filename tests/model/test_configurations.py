"""Every configuration that loads computes what Hugging Face does, prompt by prompt; every other one says why not."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

import configurations
import zoo

pytestmark = pytest.mark.usefixtures("narrow_last_layer")  # in every architecture, for the few tokens of a test

# What transformer-lens 3.9 has no bridge of, or makes one that computes something else: what its error says.
REFUSED = {
    "Ministral": "Unsupported architecture",
    "Phi-3.5-MoE": "Unsupported architecture",
    "Helium": "Unsupported architecture",
    "BioGPT": "Unsupported architecture",
    "GPTBigCode, all heads": "cannot make a bridge .* only supports multi_query=True",
    "GPT-NeoX, no attention biases": "cannot make a bridge",
    "Cohere, norms by head": "cannot make a bridge .* did not declare 'q_norm'",
    "Qwen3-Next": r"it does not run \(.*causal_conv1d_fn.*\) \(a prompt alone\)",
    "OPT, norms behind": r"it does not run \(.*final_layer_norm.*\) \(a prompt alone\)",
    "GPT-2, unscaled attention": r"after layer 0 is off by 19?8?\.\d% \(a prompt alone\).* try backend='hooked'",
    "Falcon, alibi": r"after layer 0 is off by 4\.\d% \(a prompt alone\)",
    "MPT": r"after layer 0 is off by 1\d\d\.\d% \(a prompt alone, decoding with a cache\)",
    "Cohere": r"after layer 0 is off by 4\d\.\d% \(a prompt alone\)",
    "Cohere-2": r"after layer 0 is off by 3\d\.\d% \(a prompt alone\)",
    "Hunyuan": r"after layer 0 is off by 2\d\.\d% \(a prompt alone\)",
    "DeepSeek-V2": r"after layer 0 is off by 1\d\d\.\d% \(a prompt alone\)",
    "DeepSeek-V3": r"after layer 0 is off by 1\d\d\.\d% \(a prompt alone\)",
    "RecurrentGemma": r"after layer 0 is off by \d\.\d% \(prompts of 48 and 16 tokens padded in one batch\)",
}
# Of those that there is a HookedTransformer of.
UNHOOKED = {
    "Llama, attention biases": "has no place for model.layers.0.self_attn.q_proj.bias",
    "Llama, MLP biases": "has no place for model.layers.0.mlp.gate_proj.bias",
    "Qwen3, attention biases": "has no place for model.layers.0.self_attn.q_proj.bias",
    "GPT-2, narrow MLP": "do not fit",
    "GPT-NeoX, no attention biases": "cannot convert this GPTNeoXForCausalLM .*lacks something its converter looks for",
    "BLOOM, residual behind the norm": r"after layer 0 is off by 51\.\d% \(a prompt alone\).* try backend='bridge'",
    "OPT": "has no place for model.decoder.embed_positions.weight",
    "OPT, norms behind": "cannot convert this OPTForCausalLM",
    "OPT-350m": "cannot convert this OPTForCausalLM",
    "OPT, no biases": "cannot convert this OPTForCausalLM",
    "Apertus": "cannot be mapped back from a HookedTransformer",
}
NOT_THERE = r"no HookedTransformer exists for|by official name only"
KNOWN_HERE = version("transformer-lens").startswith("3.9")


@pytest.mark.parametrize("name", configurations.CONFIGURATIONS)
def test_a_bridge_is_right_or_refused(name: str) -> None:
    status, note = configurations.examine(name, "bridge")
    assert status != "wrong", note
    if KNOWN_HERE:
        assert status == ("refused" if name in REFUSED else "right"), note
        assert re.search(REFUSED.get(name, ""), note), note


@pytest.mark.skipif("hooked" not in zoo.backends(), reason="transformer-lens 4 has no HookedTransformer")
@pytest.mark.parametrize("name", configurations.CONFIGURATIONS)
def test_a_hooked_transformer_is_right_or_refused(name: str) -> None:
    status, note = configurations.examine(name, "hooked")
    assert status != "wrong", note
    if status == "refused" and not re.search(NOT_THERE, note):
        assert re.search(UNHOOKED[name], note), note
    elif KNOWN_HERE:
        assert name not in UNHOOKED


@pytest.mark.skipif(version("transformer-lens") >= "4", reason="transformer-lens 4 computes Falcon with alibi rightly")
def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library's own comparison the table finds what is wrong."""
    monkeypatch.setattr("safecircuits.model.load.require_equivalent", lambda *args: None)
    status, note = configurations.examine("Falcon, alibi", "bridge")
    assert status == "wrong"
    assert "residuals off by 0.0" in note
    status, note = configurations.examine("MPT", "bridge")
    assert status == "wrong"
    assert "completions differ" in note
