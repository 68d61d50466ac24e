"""The how-to page's architecture, which TransformerLens does not know: the same checks as for those that it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import custom_decoder
import support
import zoo
from conftest import build_tiny_tokenizer
from safecircuits.model.load import load_model

MEMBER = zoo.Member(
    "Quill",
    lambda: custom_decoder.QuillConfig(
        vocab_size=len(build_tiny_tokenizer()),
        hidden_size=zoo.D_MODEL,
        intermediate_size=zoo.D_MLP,
        num_hidden_layers=zoo.LAYERS,
        num_attention_heads=zoo.HEADS,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    ),
    "model.layers",
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "in": "mlp.expand",
        "out": "mlp.contract",
    },
    hooked=False,
)


@pytest.fixture(autouse=True)
def _in_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.ZOO, MEMBER.name, MEMBER)


@pytest.mark.parametrize("capability", support.CAPABILITIES, ids=lambda capability: capability.name)
def test_every_capability(capability: support.Capability) -> None:
    assert capability.error(MEMBER, "bridge") <= capability.tolerance


def test_without_an_adapter_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

    monkeypatch.delitem(ArchitectureAdapterFactory._adapters, "QuillForCausalLM")
    with pytest.raises(ValueError, match="transformer-lens cannot make a bridge of this QuillForCausalLM"):
        load_model(MEMBER.build(), tokenizer=zoo.tokenizer())


def test_a_folder_loads_by_its_path(tmp_path: Path) -> None:
    hf: Any = MEMBER.build()
    hf.save_pretrained(tmp_path / "m")
    zoo.tokenizer().save_pretrained(tmp_path / "m")
    model = load_model(tmp_path / "m")
    assert type(model.original_model).__name__ == "QuillForCausalLM"
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_page_shows_this_very_code() -> None:
    page = (support.REFERENCE.parent / "how-to" / "add-an-architecture.md").read_text(encoding="utf-8")
    source = Path(custom_decoder.__file__).read_text(encoding="utf-8")
    for part in ("model", "adapter"):
        code = source.split(f"# --8<-- [start:{part}]\n")[1].split(f"# --8<-- [end:{part}]")[0]
        shown = "\n".join(line.split("  # noqa")[0].split("  # type: ignore")[0] for line in code.splitlines())
        assert shown.strip() in page
