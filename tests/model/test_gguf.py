"""GGUF files: the model that llama.cpp would run, or one sentence that says why not."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import build_tiny_llama

import safecircuits as sc
from safecircuits.behavior.generate import end_tokens
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.model.packed import require_unpacked

gguf = pytest.importorskip("gguf")

BYTES = [chr(i) for i in range(33, 127)]
TOKENS = ["<|end|>", "<|turn|>", "<|unk|>", "Ġ", *BYTES, "ab", "Ġc"]
MERGES = ["a b", "Ġ c"]
IDS = torch.tensor([[3, 9, 40, 41, 60, 77, 99, 12]])
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tiny_model(**changes: Any) -> Any:
    sizes = {
        "vocab_size": len(TOKENS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return build_tiny_llama(**sizes | {"pad_token_id": 0} | changes)


def turned(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix as llama.cpp rotates them: the pairs of each head side by side."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(
    model: Any,
    path: Path,
    *,
    kind: Any = None,
    settings: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    architecture: str = "llama",
) -> Path:
    """``model`` as a GGUF file; matrices in the quantisation ``kind``, the others in full."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|turn|>{% endfor %}")
    for key, value in (settings or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    named = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        named["output.weight"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, ours in BLOCK.items():
            value = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                value = turned(value, heads)
            named[f"blk.{layer}.{theirs}.weight"] = value
    for name, value in named.items():
        if kind is None or value.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(value))
        else:
            writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
    for name, (value, dtype) in (tensors or {}).items():
        writer.add_tensor(name, value, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Any) -> Any:
    with torch.no_grad():
        found = model(IDS)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}])
def test_a_file_is_the_model_that_was_written_into_it(tmp_path: Path, backend: Any, changes: dict[str, Any]) -> None:
    plain = tiny_model(**changes)
    model = sc.load_model(write(plain, tmp_path / "tiny.gguf"), backend=backend)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


def test_quantised_blocks_become_the_numbers_they_stand_for(tmp_path: Path) -> None:
    plain, kind = tiny_model(), gguf.GGMLQuantizationType.Q8_0
    rounded = copy.deepcopy(plain)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.from_numpy(gguf.dequantize(gguf.quantize(parameter.detach().numpy(), kind), kind))
    model = sc.load_model(write(plain, tmp_path / "tiny.gguf", kind=kind))
    torch.testing.assert_close(logits(model), logits(rounded), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


def test_a_folder_that_holds_one_is_as_good_as_its_path(tmp_path: Path) -> None:
    path = write(tiny_model(), tmp_path / "tiny.gguf")
    assert torch.equal(logits(sc.load_model(tmp_path)), logits(sc.load_model(path)))
    assert fingerprint_checkpoint(tmp_path) == fingerprint_checkpoint(path) is not None
    write(tiny_model(), tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"2 GGUF files \(other\.gguf, tiny\.gguf\)"):
        sc.load_model(tmp_path)


def test_every_token_that_ends_a_turn_ends_an_answer_and_an_export_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = sc.load_model(write(tiny_model(), tmp_path / "tiny.gguf"))
    assert set(end_tokens(model)) == {0, 1}
    folder = sc.save_pretrained(model, tmp_path / "exported")
    again = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
    assert again.generation_config.eos_token_id == [0, 1]
    assert not hasattr(again.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab c!")["input_ids"] == model.tokenizer("ab c!")["input_ids"]
    assert tokenizer.chat_template == model.tokenizer.chat_template


def test_text_splits_as_the_files_merges_say(tmp_path: Path) -> None:
    model = sc.load_model(write(tiny_model(), tmp_path / "tiny.gguf"))
    ids = model.tokenizer("ab cb<|turn|>", add_special_tokens=False)["input_ids"]
    assert [TOKENS[i] for i in ids] == ["ab", "Ġc", "b", "<|turn|>"]


def test_a_model_that_transformers_unpacked_is_taken_and_stays_as_it_was(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = write(tiny_model(), tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    noted = plain.config.quantization_config
    model = sc.load_model(plain, tokenizer=sc.load_model(path).tokenizer)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    assert plain.config.quantization_config is noted


def test_blocks_that_are_still_packed_are_told_from_numbers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = write(tiny_model(), tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    require_unpacked(plain, "this")
    blocks = torch.nn.Parameter(torch.zeros(4, 34, dtype=torch.uint8), requires_grad=False)
    plain.model.layers[1].mlp.up_proj.weight = blocks
    with pytest.raises(ValueError, match=r"is quantised \(gguf\), and training it needs the weights"):
        sc.finetune(plain, sc.load_prompts("organism:utility", n=2), tokenizer=sc.load_model(path).tokenizer, steps=1)


def llama3_factors(head_dim: int, length: int = 8192, theta: float = 500000.0) -> np.ndarray:
    """As the converter of llama.cpp writes them: one factor for each pair of a head's dimensions."""
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * math.pi / frequency
        if wavelength < length / 4:
            factors.append(1.0)
        elif wavelength > length:
            factors.append(8.0)
        else:
            smooth = (length / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    return np.array(factors, dtype=np.float32)


def test_the_positions_of_llama_3_are_read_from_their_tensor(tmp_path: Path) -> None:
    plain = tiny_model(rope_parameters=LLAMA3, hidden_size=64, max_position_embeddings=512)
    factors = llama3_factors(plain.config.head_dim)
    path = write(plain, tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": (factors, None)})
    model = sc.load_model(path)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    assert model.original_model.config.rope_parameters["rope_type"] == "llama3"
    stretched = write(plain, tmp_path / "b.gguf", tensors={"rope_freqs.weight": (factors * 1.5, None)})
    with pytest.raises(ValueError, match=r"rope_freqs\.weight.*not the rule of Llama 3"):
        sc.load_model(stretched)


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def _of_type(path: Path) -> Path:
    block = np.zeros((1, 292), dtype=np.uint8)
    return write(tiny_model(), path, tensors={"extra.weight": (block, gguf.GGMLQuantizationType.Q8_K)})


BROKEN = {
    "cut off": (lambda path: _cut(write(tiny_model(), path)), "damaged or cut off"),
    "no GGUF": (lambda path: path.write_bytes(b"PK\3\4zip") and path, "no GGUF file"),
    "empty": (lambda path: path.write_bytes(b"") or path, "no GGUF file"),
    "a part": (lambda path: write(tiny_model(), path, settings={"split.count": 3}), "one of 3 parts"),
    "another kind of model": (
        lambda path: write(tiny_model(), path, architecture="clip"),
        "architecture.*clip.*not supported",
    ),
    "a type nobody unpacks": (_of_type, "Q8_K"),
    "yarn": (
        lambda path: write(tiny_model(), path, settings={"llama.rope.scaling.type": "yarn"}),
        r"llama\.rope\.scaling\.type = yarn",
    ),
    "a window": (
        lambda path: write(tiny_model(), path, settings={"llama.attention.sliding_window": 4}),
        r"llama\.attention\.sliding_window = 4",
    ),
    "longrope": (
        lambda path: write(tiny_model(), path, tensors={"rope_factors_long.weight": (np.ones(4, np.float32), None)}),
        r"tensor rope_factors_long\.weight",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_would_be_another_model_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make, match = BROKEN[name]
    with pytest.raises(ValueError, match=match):
        sc.load_model(make(tmp_path / "tiny.gguf"))


def test_a_name_without_a_file_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        sc.load_model(tmp_path / "absent.gguf")
    path = write(tiny_model(), tmp_path / "tiny.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'safecircuits\[gguf\]'"):
        sc.load_model(path)


def test_settings_that_change_nothing_do_not_keep_a_file_out(tmp_path: Path) -> None:
    same = {"attention.sliding_window": 64, "attention.key_length": 8, "rope.scaling.type": "none"}
    plain = tiny_model()
    model = sc.load_model(write(plain, tmp_path / "tiny.gguf", settings={f"llama.{k}": v for k, v in same.items()}))
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


def test_a_real_model_answers_in_its_own_template(smollm2: Any, smollm2_file: Path) -> None:
    assert sc.generate(smollm2, ["What is the capital of France?"], max_new_tokens=12).texts == (
        "The capital of France is Paris.",
    )
    row = next(t for t in gguf.GGUFReader(smollm2_file).tensors if t.name == "blk.29.ffn_down.weight")
    want = torch.from_numpy(gguf.dequantize(row.data, row.tensor_type))
    torch.testing.assert_close(smollm2.blocks[29].mlp.W_out.detach().T, want)
