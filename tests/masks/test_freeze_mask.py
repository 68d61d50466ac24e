"""FreezeMask: set algebra, the way to parameters (against slices cut by hand), and the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors.torch import save_file

from conftest import build_tiny_llama, build_tiny_tokenizer, randomised
from safecircuits.base.vocabulary import LayerRange
from safecircuits.masks.file import FORMAT
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.bridge import hf_config_of
from safecircuits.model.hooked import hf_state_from_hooked
from safecircuits.model.load import load_model
from safecircuits.model.modules import meta_model_of
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import ModelShape

SHAPE = ModelShape("LlamaForCausalLM", n_layers=3, d_model=32, d_mlp=48, n_heads=4, n_kv_heads=2)


@st.composite
def masks(draw: Any) -> FreezeMask:
    """Masks of units and whole layers, over all densities."""
    mlp = {layer: draw(st.sets(st.integers(0, 47))) for layer in range(3)}
    attn = {layer: draw(st.sets(st.integers(0, 3))) for layer in range(3)}
    whole = draw(st.sets(st.integers(0, 2)))
    return FreezeMask.of_units({"mlp": mlp, "attn": attn}, SHAPE) | FreezeMask.layers(whole)


layer_sets = st.sets(st.integers(0, 6)).map(FreezeMask.layers)


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (LayerRange(0, 2), (0, 1, 2)),
        ((0, 2), (0, 1, 2)),
        ([0, 2], (0, 1, 2)),
        ({0, 2}, (0, 2)),
        (frozenset({2}), (2,)),
        (range(1, 3), (1, 2)),
        (1, (1,)),
        (set(), ()),
    ],
)
def test_layers_reads_ranges_and_collections(layers: Any, expected: tuple[int, ...]) -> None:
    mask = FreezeMask.layers(layers)
    assert mask.whole_layers == expected
    assert mask.on(SHAPE).whole_layers == expected
    assert bool(mask) == bool(expected)


@pytest.mark.parametrize("layers", [(2, 1), (0, 1, 2), {-1, 2}, (-1, 2), -3])
def test_layers_refuses_what_is_no_range(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"range|counted from 0"):
        FreezeMask.layers(layers)


def test_layers_refuses_the_ends_of_a_range_apart() -> None:
    with pytest.raises(ValueError, match=r"a pair, FreezeMask.layers\(\(2, 4\)\)"):
        FreezeMask.layers(2, 4)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"mlp": {0: [48]}}, "mlp unit 48 of layer 0 does not exist: there are 0 to 47"),
        ({"attn": {0: [-1]}}, "attn unit -1 of layer 0 does not exist"),
        ({"mlp": {3: [0]}}, "layer 3 does not exist: there are 0 to 2"),
        ({"head": {0: [0]}}, "a site is one of mlp, attn, expert, shared, router, not 'head'"),
    ],
)
def test_of_units_refuses_what_does_not_exist(units: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreezeMask.of_units(units, SHAPE)


# --- algebra -----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(a=masks(), b=masks(), c=masks())
def test_masks_are_sets(a: FreezeMask, b: FreezeMask, c: FreezeMask) -> None:
    nothing = FreezeMask.of_units({}, SHAPE)
    assert a | b == b | a
    assert a & (b | c) == (a & b) | (a & c)
    assert ~(a | b) == ~a & ~b
    assert a - b == a & ~b
    assert ~~a == a
    assert (a - b) | (a & b) == a
    assert a & ~a == nothing
    assert not a & ~a
    assert a | ~a == ~nothing == FreezeMask.layers((0, 2)).on(SHAPE)
    assert hash(a | b) == hash(b | a)
    assert a.restrict(sites="mlp") | a.restrict(sites=["attn"]) == a
    assert a.restrict(layers={0}) | a.restrict(layers=(1, 2)) == a
    assert a.share_of_units() + (~a).share_of_units() == pytest.approx(1)


@settings(max_examples=40)
@given(a=layer_sets, b=layer_sets)
def test_masks_of_layers_alone_need_no_shape(a: FreezeMask, b: FreezeMask) -> None:
    mine, theirs = set(a.whole_layers), set(b.whole_layers)
    assert (a | b).whole_layers == tuple(sorted(mine | theirs))
    assert (a & b).whole_layers == tuple(sorted(mine & theirs))
    assert (a - b).whole_layers == tuple(sorted(mine - theirs))
    assert (a - b) | (a & b) == a
    assert a.restrict(sites="mlp") | a.restrict(sites="attn") == a
    assert (a | b).shape is None


def test_a_layer_without_one_unit_is_that_set_and_whole_again_with_it() -> None:
    unit = FreezeMask.of_units({"mlp": {1: [7]}}, SHAPE)
    rest = FreezeMask.layers(1) - unit
    assert rest.whole_layers == ()
    assert rest.n_units("mlp") == 47
    assert (rest | unit).whole_layers == (1,)


def test_masks_of_two_models_do_not_combine() -> None:
    other = ModelShape("LlamaForCausalLM", n_layers=4, d_model=32, d_mlp=48, n_heads=4, n_kv_heads=2)
    with pytest.raises(ValueError, match="second freeze mask belongs to another model: n_layers 4 there, 3 here"):
        FreezeMask.of_units({}, SHAPE) & FreezeMask.of_units({}, other)
    with pytest.raises(ValueError, match="reaches layer 3, but the model's layers are 0 to 2"):
        FreezeMask.of_units({}, SHAPE) | FreezeMask.layers(3)


@pytest.mark.parametrize("call", [lambda m: ~m, lambda m: m.share_of_units(), lambda m: m.members("mlp")])
def test_what_needs_a_shape_says_so(call: Callable[[FreezeMask], Any]) -> None:
    with pytest.raises(ValueError, match="shape"):
        call(FreezeMask.layers((0, 1)))


def test_fingerprint_follows_what_is_frozen_and_not_where_it_comes_from() -> None:
    made = {"mlp": {1: [3, 5]}, "attn": {0: [1]}}
    mask = FreezeMask.of_units(made, SHAPE, {"made": "by hand"})
    assert mask.fingerprint == FreezeMask.of_units(made, SHAPE).fingerprint
    others = [
        mask.restrict(sites="mlp"),
        mask.restrict(sites="attn"),
        FreezeMask.of_units({"mlp": {1: [3]}}, SHAPE),
        ~mask,
    ]
    assert len({m.fingerprint for m in [mask, *others]}) == 5


def test_random_control_has_the_same_size_and_other_places() -> None:
    mask = FreezeMask.of_units({"mlp": {1: range(30)}, "attn": {0: [1, 2, 3]}}, SHAPE)
    control = FreezeMask.random_units(mask, seed=1)
    assert (control.n_units("mlp"), control.n_units("attn")) == (30, 3)
    assert set(control.members("mlp")) == {0, 1, 2}
    assert control == FreezeMask.random_units(mask, seed=1) != FreezeMask.random_units(mask, seed=2)
    assert FreezeMask.random_units(FreezeMask.layers(1), SHAPE).n_units("mlp") == 48


def test_summary_and_repr_say_what_is_frozen(tiny_llama_hf: Any) -> None:
    mask = FreezeMask.layers({0, 1}) | FreezeMask.of_units({"mlp": {2: [1, 2]}}, SHAPE)
    text = mask.summary(tiny_llama_hf)
    assert "whole layers: 0-1" in text
    assert "MLP neurons: 98 of 144 (layers: 0-2)" in text
    assert "share of parameters" in text
    assert repr(FreezeMask.layers((0, 1))) == "FreezeMask(whole layers: 0-1)"
    assert "<th>MLP neurons</th><td>98 of 144 (layers: 0-2)</td>" in mask._repr_html_()


@pytest.mark.parametrize(
    ("mask", "printed"),
    [
        (
            FreezeMask.layers({0, 1}) | FreezeMask.of_units({"mlp": {2: [1]}}, SHAPE),
            ["100", "100", "2.1", "100", "100"],
        ),
        (FreezeMask.layers({1}), ["100", "100"]),
        (FreezeMask.of_units({"mlp": {2: range(47)}}, SHAPE), ["98"]),
        (FreezeMask.of_units({}, SHAPE), []),
    ],
)
def test_the_plot_prints_each_layers_frozen_share(mask: FreezeMask, printed: list[str]) -> None:
    ax = mask.plot(ax=Figure().add_subplot())
    assert [text.get_text() for text in ax.texts] == printed
    assert [label.get_text() for label in ax.get_yticklabels()] == ["MLP", "heads"]
    assert len(ax.patches) == 2 * len(mask.mlp)


def test_a_mask_without_layers_has_no_plot() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        FreezeMask.layers(set()).plot()


# --- parameters --------------------------------------------------------------------------------------------------


def llama_masks_by_hand(mask: FreezeMask) -> dict[str, torch.Tensor]:
    """What a mask freezes of the tiny Llama (8 entries a head, 2 query heads a key/value head), cut by hand."""
    expected: dict[str, torch.Tensor] = {}
    for layer in range(3):
        at = f"model.layers.{layer}"
        neurons, heads = mask.mlp[layer], mask.attn[layer]
        rows, kv_rows = heads.repeat_interleave(8), heads.view(2, 2).all(1).repeat_interleave(8)
        expected[f"{at}.mlp.gate_proj.weight"] = neurons[:, None].expand(48, 32)
        expected[f"{at}.mlp.up_proj.weight"] = neurons[:, None].expand(48, 32)
        expected[f"{at}.mlp.down_proj.weight"] = neurons[None].expand(32, 48)
        expected[f"{at}.self_attn.q_proj.weight"] = rows[:, None].expand(32, 32)
        expected[f"{at}.self_attn.k_proj.weight"] = kv_rows[:, None].expand(16, 32)
        expected[f"{at}.self_attn.v_proj.weight"] = kv_rows[:, None].expand(16, 32)
        expected[f"{at}.self_attn.o_proj.weight"] = rows[None].expand(32, 32)
    return {name: value for name, value in expected.items() if value.any()}


def assert_same_masks(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, mask in found.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected[name]), name


HF = build_tiny_llama()
BRIDGE = load_model(HF, tokenizer=build_tiny_tokenizer())


@cache
def hooked() -> Any:
    return load_model(HF, backend="hooked", tokenizer=build_tiny_tokenizer())


@settings(max_examples=25)
@given(mask=masks())
def test_parameter_masks_are_the_slices_cut_by_hand(mask: FreezeMask) -> None:
    expected = llama_masks_by_hand(mask)
    share = sum(int(m.sum()) for m in expected.values()) / sum(p.numel() for p in HF.parameters())
    for model in (HF, BRIDGE):
        found = mask.parameter_masks(model)
        assert_same_masks(found, expected)
        assert mask.share_of_parameters(model) == share
    assert mask.share_of_parameters(hooked()) == share


def test_a_hooked_transformers_masks_land_on_the_same_entries() -> None:
    mask = FreezeMask.layers(1) | FreezeMask.of_units({"mlp": {0: [3, 40]}, "attn": {0: [0, 1], 2: [2]}}, SHAPE)
    marked = load_model(build_tiny_llama(), backend="hooked", tokenizer=build_tiny_tokenizer())
    frozen = mask.parameter_masks(marked)
    assert {"blocks.0.attn._W_K", "blocks.1.mlp.W_in"} <= set(frozen) <= set(checkpoint_parameters(marked))
    with torch.no_grad():
        for name, parameter in marked.named_parameters():
            parameter.copy_(frozen.get(name, torch.zeros(())).to(parameter.dtype))
    landed = hf_state_from_hooked(marked, meta_model_of(hf_config_of(marked)))
    assert_same_masks({k: v.bool() for k, v in landed.items() if v.any()}, mask.parameter_masks(HF))


def test_norms_and_embeddings_are_never_frozen() -> None:
    everything = FreezeMask.layers((0, 2))
    assert not [name for name in everything.parameter_masks(BRIDGE) if "norm" in name or "embed" in name]
    assert not [name for name in everything.parameter_masks(hooked()) if "ln" in name or "embed" in name]


def tiny_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(build_tiny_tokenizer()), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return randomised(GPT2LMHeadModel(config)).eval()


def tiny_phi3() -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=len(build_tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return randomised(Phi3ForCausalLM(config)).eval()


def tiny_neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=len(build_tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return randomised(GPTNeoXForCausalLM(config)).eval()


@pytest.mark.parametrize("bridged", [False, True])
def test_fused_gpt2_masks(bridged: bool) -> None:
    model = tiny_gpt2()
    if bridged:
        model = load_model(model, tokenizer=build_tiny_tokenizer())
    shape = ModelShape("GPT2LMHeadModel", n_layers=2, d_model=32, d_mlp=128, n_heads=4, n_kv_heads=4)
    found = FreezeMask.of_units({"attn": {0: [1]}, "mlp": {1: [5]}}, shape).parameter_masks(model)
    head = torch.zeros(32, dtype=torch.bool)
    head[8:16] = True
    neuron = torch.zeros(128, dtype=torch.bool)
    neuron[5] = True
    expected = {
        "transformer.h.0.attn.c_attn.weight": head.repeat(3).expand(32, 96),
        "transformer.h.0.attn.c_attn.bias": head.repeat(3),
        "transformer.h.0.attn.c_proj.weight": head[:, None].expand(32, 32),
        "transformer.h.1.mlp.c_fc.weight": neuron.expand(32, 128),
        "transformer.h.1.mlp.c_fc.bias": neuron,
        "transformer.h.1.mlp.c_proj.weight": neuron[:, None].expand(128, 32),
    }
    assert_same_masks(found, expected)


@pytest.mark.parametrize("bridged", [False, True])
def test_fused_phi3_masks(bridged: bool) -> None:
    model = tiny_phi3()
    if bridged:
        model = load_model(model, tokenizer=build_tiny_tokenizer())
    shape = ModelShape("Phi3ForCausalLM", n_layers=2, d_model=32, d_mlp=48, n_heads=4, n_kv_heads=2)
    found = FreezeMask.of_units({"attn": {0: [0, 1]}, "mlp": {1: [5]}}, shape).parameter_masks(model)
    qkv, gate_up, neuron = (torch.zeros(n, dtype=torch.bool) for n in (64, 96, 48))
    qkv[0:16] = qkv[32:40] = qkv[48:56] = True  # heads 0 and 1; key and value head 0
    gate_up[[5, 53]] = neuron[5] = True
    expected = {
        "model.layers.0.self_attn.qkv_proj.weight": qkv[:, None].expand(64, 32),
        "model.layers.0.self_attn.o_proj.weight": (torch.arange(32) < 16).expand(32, 32),
        "model.layers.1.mlp.gate_up_proj.weight": gate_up[:, None].expand(96, 32),
        "model.layers.1.mlp.down_proj.weight": neuron.expand(32, 48),
    }
    assert_same_masks(found, expected)


def test_a_sublayers_bias_is_frozen_with_the_last_of_its_units() -> None:
    model = tiny_gpt2()
    shape = ModelShape("GPT2LMHeadModel", n_layers=2, d_model=32, d_mlp=128, n_heads=4, n_kv_heads=4)
    some = FreezeMask.of_units({"mlp": {0: range(64)}}, shape)
    others = FreezeMask.of_units({"mlp": {0: range(64, 128)}}, shape)
    bias = "transformer.h.0.mlp.c_proj.bias"
    assert bias not in some.parameter_masks(model)
    assert bias not in others.parameter_masks(model)
    assert (some | others).parameter_masks(model)[bias].all()
    assert bias in FreezeMask.layers(0).parameter_masks(model)


def test_fused_neox_masks() -> None:
    """Rows go [head, (q k v), d_head]: a head owns 24 of them in a row; a bridge holds them in three copies."""
    shape = ModelShape("GPTNeoXForCausalLM", n_layers=2, d_model=32, d_mlp=48, n_heads=4, n_kv_heads=4)
    mask = FreezeMask.of_units({"attn": {0: [1]}}, shape)
    head = torch.zeros(96, dtype=torch.bool)
    head[24:48] = True
    at = "gpt_neox.layers.0.attention"
    expected = {
        f"{at}.query_key_value.weight": head[:, None].expand(96, 32),
        f"{at}.query_key_value.bias": head,
        f"{at}.dense.weight": ((torch.arange(32) // 8) == 1).expand(32, 32),
    }
    assert_same_masks(mask.parameter_masks(tiny_neox()), expected)
    assert_same_masks(mask.parameter_masks(load_model(tiny_neox(), tokenizer=build_tiny_tokenizer())), expected)


def test_another_models_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="architecture LlamaForCausalLM there, GPT2LMHeadModel here"):
        FreezeMask.of_units({"mlp": {0: [1]}}, SHAPE).parameter_masks(tiny_gpt2())
    with pytest.raises(ValueError, match="reaches layer 9, but the model's layers are 0 to 2"):
        FreezeMask.layers((0, 9)).on(BRIDGE)


# --- file --------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(mask=masks() | layer_sets)
def test_a_saved_mask_comes_back(mask: FreezeMask, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = mask.save(tmp_path_factory.mktemp("mask") / "freeze.safetensors")
    again = FreezeMask.load(path)
    assert again == mask
    assert again.provenance == json.loads(json.dumps(mask.provenance))
    assert [p.name for p in path.parent.iterdir()] == ["freeze.safetensors"]


def test_load_checks_against_a_model(tmp_path: Path) -> None:
    path = FreezeMask.layers((1, 2), provenance={"from": "sweep"}).save(tmp_path / "m.safetensors")
    loaded = FreezeMask.load(path, BRIDGE)
    assert loaded.shape == SHAPE
    assert loaded.provenance == {"from": "sweep"}
    path = FreezeMask.of_units({"mlp": {0: [1]}}, SHAPE).save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="belongs to another model"):
        FreezeMask.load(path, tiny_gpt2())


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = FreezeMask.of_units({"mlp": {0: [1]}}, SHAPE).save(tmp_path / "m.safetensors")
    content = path.read_bytes()
    for size in [0, 1, 8, 100, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            FreezeMask.load(path)


@pytest.mark.parametrize(
    ("byte", "message"),
    [
        (b"\xff", "is damaged: some of its entries are neither true nor false"),
        (b"\x00", "contradicts itself: its header"),
    ],
)
def test_edited_entries_are_an_error(byte: bytes, message: str, tmp_path: Path) -> None:
    path = FreezeMask.layers((0, SHAPE.n_layers - 1), SHAPE).save(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + byte)
    with pytest.raises(ValueError, match=message):
        FreezeMask.load(path)


def header(**changes: Any) -> dict[str, str]:
    base = {"format": FORMAT, "version": 1, "shape": None, "layers": [], "provenance": {}}
    return {"safecircuits": json.dumps(base | changes)}


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (None, {"w": torch.zeros(2)}, "not a freeze mask"),
        (header(format="else"), {}, "not a freeze mask"),
        ({"safecircuits": "{"}, {}, "not a freeze mask"),
        (header(version=2), {}, "has format version 2, but this version of safecircuits reads 1"),
        (header(), {"mlp": torch.ones(1, 1).bool()}, "not a complete freeze mask: 'attn'"),
        (header(shape={"n_layers": 3}), {}, "not a complete freeze mask"),
        (header(), {"mlp": torch.ones(1, 1).bool(), "attn": torch.ones(2, 1).bool()}, "contradicts itself"),
        (header(), {"mlp": torch.ones(1, 1), "attn": torch.ones(1, 1)}, "contradicts itself"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, metadata: Any, tensors: Any, message: str) -> None:
    save_file(tensors, tmp_path / "f.safetensors", metadata)
    with pytest.raises(ValueError, match=message):
        FreezeMask.load(tmp_path / "f.safetensors")


def test_a_failed_save_keeps_the_file_before(tmp_path: Path) -> None:
    path = FreezeMask.layers(1).save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="must be JSON"):
        FreezeMask.layers(2, provenance={"model": object()}).save(path)
    assert FreezeMask.load(path).whole_layers == (1,)
    with pytest.raises(ValueError, match="there is no freeze mask at"):
        FreezeMask.load(tmp_path / "absent.safetensors")
    (tmp_path / "run").mkdir()
    FreezeMask.layers(1).save(tmp_path / "run" / "freeze.safetensors")
    with pytest.raises(ValueError, match=r"that is a folder, its masks are .*run/freeze\.safetensors"):
        FreezeMask.load(tmp_path / "run")
