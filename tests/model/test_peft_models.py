"""PEFT's models and adapter folders in: the merged model is analysed, and what PEFT holds stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.base.notices import Notice

peft = pytest.importorskip("peft")

TOKENS = torch.tensor([[7, 9, 12, 8, 15]])
KINDS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "rslora": lambda: peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_rslora=True),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=["o_proj"], init_lora_weights=False, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["up_proj"], init_weights=False),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "a head of its own": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False
    ),
}


def wrapped(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = peft.get_peft_model(build_tiny_llama(dtype=dtype), KINDS[kind]()).eval()
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "ia3" in name:
                parameter.data.mul_(1.3)
        return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_analysed_is_what_runs(kind: str, dtype: torch.dtype) -> None:
    model = wrapped(kind, dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        want = model(TOKENS).logits
    with pytest.warns(Notice, match="merged copy"):
        bridge = sc.load_model(model, tokenizer=build_tiny_tokenizer())
    close: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.5}
    with torch.no_grad():
        torch.testing.assert_close(bridge(TOKENS), want, **close)
        plain = build_tiny_llama(dtype=dtype)(TOKENS).logits
    assert (want - plain).abs().max() > 0.01  # the adapter does something
    magnitude = sc.score_units(bridge, ["find a lamp"], method="magnitude", tokens="prompt").scores["mlp"][0]  # type: ignore[arg-type]
    merged = model.merge_and_unload().model.layers[0].mlp.down_proj.weight.detach().double()
    torch.testing.assert_close(magnitude, merged.square().sum(0), rtol=1e-2, atol=0)
    # The copy is one: training it leaves what PEFT holds where it is.
    fresh = wrapped(kind, dtype)
    loaded = sc.load_model(fresh, tokenizer=build_tiny_tokenizer())
    data = sc.PromptSet("d", ("find a lamp", "make tea"), ("here", "sure"))
    sc.finetune(loaded, data, steps=1, lr=0.1, progress=False)
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())


def test_what_cannot_be_merged_says_so() -> None:
    tokens = peft.get_peft_model(
        build_tiny_llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(ValueError, match="virtual tokens, which no weights can take in"):
        sc.load_model(tokens, tokenizer=build_tiny_tokenizer())
    model = wrapped("lora")
    with (
        model.disable_adapter(),
        pytest.raises(ValueError, match="computes something else with its adapters beside it"),
    ):
        sc.load_model(model, tokenizer=build_tiny_tokenizer())
    with pytest.raises(ValueError, match="comes without a tokenizer"):
        sc.load_model(model)


def test_a_folder_with_an_adapter(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    sc.save_pretrained(sc.load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer()), base)
    model = wrapped("lora")
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(adapter)
    loaded = sc.load_model(adapter)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS), model(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert loaded.tokenizer.chat_template == build_tiny_tokenizer().chat_template
    own = build_tiny_tokenizer()
    own.chat_template = "{{ messages[0]['content'] }}"
    own.save_pretrained(adapter)
    assert sc.load_model(adapter).tokenizer.chat_template == own.chat_template
    assert sc.load_model(str(adapter), tokenizer=build_tiny_tokenizer()).tokenizer.chat_template != own.chat_template


def test_an_adapter_whose_base_is_not_there(tmp_path: Path) -> None:
    model = wrapped("lora")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "gone")
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"the adapter in .* is for .*gone"):
        sc.load_model(tmp_path / "adapter")
    model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(tmp_path / "nameless")
    with pytest.raises(ValueError, match="does not say which model it is for"):
        sc.load_model(tmp_path / "nameless")
    model.peft_config["default"].base_model_name_or_path = "organism:aligned"
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="does not fit 'organism:aligned'"):
        sc.load_model(tmp_path / "other")
