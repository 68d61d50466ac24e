"""Quantised weights, for reading: what runs is what the library runs, what is read is what it multiplies with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.hooks.linear_maps import Matrix
from safecircuits.model.fingerprint import weights_fingerprint
from safecircuits.model.forward import logits
from safecircuits.model.memory import require_room
from safecircuits.model.packed import applied_matrix, packed_maps, packing_of
from safecircuits.model.quantised import least_bits, packed_bytes
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

pytest.importorskip("bitsandbytes", reason="the extra 'quantised' is not installed")

KINDS = ("4bit", "8bit", "codes")
"""Of bitsandbytes, on whatever kernels this processor has; and a kind that no library knows."""


class Codes(nn.Module):
    """A linear map with its weight as bytes and a scale a row, whose names are nobody's."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1) / 127
        self.register_buffer("codes", (linear.weight.detach() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes.to(x) * self.scale[:, None].to(x), self.bias)


def with_codes(hf: Any) -> Any:
    """Every linear map of the blocks as ``Codes``, in place."""
    for layer in hf.model.layers:
        for module in [*layer.modules()]:
            for name, child in [*module.named_children()]:
                if type(child) is nn.Linear:
                    setattr(module, name, Codes(child))
    return hf


def dequantised(hf: Any, kind: str) -> dict[str, Tensor]:
    """``[out in]`` of every packed map, by the library's own unpacking, before anything has run."""
    from bitsandbytes.functional import dequantize_4bit

    found = {}
    for name, module in packed_maps(hf):
        if kind == "4bit":
            found[name] = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        elif kind == "8bit":
            found[name] = module.weight.CB.float() * module.weight.SCB[:, None] / 127
        else:
            found[name] = module.codes.float() * module.scale[:, None]
    return found


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sc.save_pretrained(sc.load_model("aligned"), tmp_path_factory.mktemp("aligned") / "model")


def hugging_face(folder: Path, kind: str) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if kind == "codes":
        return with_codes(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()
    settings = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        if kind == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32).eval()


class Case:
    """A quantised model, Hugging Face's own of it, and a plain one with the weights that the library unpacks."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind, self.hf = kind, hugging_face(folder, kind)
        self.weights = dequantised(self.hf, kind)
        tokenizer = sc.load_model(folder).tokenizer
        self.model = sc.load_model(self.hf, tokenizer=tokenizer)
        self.plain = sc.load_model(folder)
        with torch.no_grad():
            for name, weight in self.weights.items():
                layer = self.plain.original_model.get_submodule(bridged(self.plain, name))
                layer.weight.copy_(weight)


def bridged(model: Any, name: str) -> str:
    """The name in a bridge of a module that Hugging Face calls ``name``."""
    found = (key for key, _ in model.original_model.named_modules() if key.replace("._original_component", "") == name)
    return max(found, key=len)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, aligned: Path) -> Case:
    return Case(aligned, request.param)


def sets() -> dict[str, sc.PromptSet]:
    return {kind: sc.load_prompts(f"organism:{kind}", n=7) for kind in ("normal", "malicious", "utility")}


# bitsandbytes multiplies in 16 bits, whatever the model's precision; the codes above in the model's own.
CLOSE = {"4bit": 0.02, "8bit": 0.03, "codes": 1e-5}


def apart(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def test_its_logits_are_hugging_faces_own(case: Case) -> None:
    """Of each prompt by itself, where the same kernels run: next to nothing apart, whatever the library rounds."""
    for example in encode(case.model.tokenizer, sets()["malicious"]):
        batch = pad_left([example])
        with torch.no_grad():
            want = case.hf(input_ids=batch.input_ids).logits
            assert apart(logits(case.model, batch), want) < (5e-3 if case.kind != "codes" else 1e-5)


def test_a_map_is_read_as_the_matrix_that_the_library_unpacks(case: Case) -> None:
    found = dict(packed_maps(case.hf))
    assert len(found) == 7 * 8
    assert set(found) == set(case.weights)
    for name, module in found.items():
        got = applied_matrix(module, torch.float32, torch.device("cpu")).T
        assert apart(got, case.weights[name]) < (5e-3 if case.kind != "codes" else 1e-6), name
    layer = case.model.blocks[3]
    read = Matrix.of(case.model, 3, "out").read()
    assert apart(read, case.weights["model.layers.3.mlp.down_proj"]) < 5e-3
    assert apart(Matrix.of(case.model, 3, "k").read(), case.weights["model.layers.3.self_attn.k_proj"]) < 5e-3
    assert apart(Matrix.of(case.model, 3, "o").read(), case.weights["model.layers.3.self_attn.o_proj"]) < 5e-3
    assert sc.ModelShape.of(case.model) == sc.ModelShape.of(case.plain)
    assert layer is not None


def test_analyses_find_what_a_plain_model_with_the_unpacked_weights_shows(case: Case) -> None:
    p, close = sets(), CLOSE[case.kind]
    for name in ("normal", "malicious"):
        got, want = (sc.collect_residuals(model, p[name]).values for model in (case.model, case.plain))
        assert apart(got, want) < close
    assert sc.generate(case.model, p["malicious"]).texts == sc.generate(case.plain, p["malicious"]).texts
    for method in ("wifv", "magnitude", "flap_wifv", "removal"):
        got, want = (sc.score_units(model, p["utility"], method=method).scores for model in (case.model, case.plain))
        assert all(apart(got[site], want[site]) < 5 * close for site in want), method
    got, want = (
        sc.weights.score_weights(model, p["utility"], method="wanda", components=["out"]).scores["3.out"]
        for model in (case.model, case.plain)
    )
    assert apart(got, want) < close


def test_scaling_and_ablating_by_hooks_do_what_they_do_to_the_unpacked_weights(case: Case) -> None:
    batch = pad_left(encode(case.model.tokenizer, sets()["malicious"]))
    units = sc.FreezeMask.of_units({"mlp": {3: [1, 5, 9], 5: list(range(200))}, "attn": {4: [2, 5]}}, case.model)

    def changed(model: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows = batch.attention_mask.bool()
        with torch.no_grad():
            before = logits(model, batch)[rows]
            with sc.scaled(model, (2, 5), alpha=1.7):
                scaled = logits(model, batch)[rows]
            with sc.ablated(model, units):
                without = logits(model, batch)[rows]
        return before, scaled, without

    (before, *got), (plain, *want) = changed(case.model), changed(case.plain)
    for mine, theirs in zip(got, want, strict=True):
        assert apart(mine, theirs) < CLOSE[case.kind]
        assert apart(theirs, plain) > 2 * CLOSE[case.kind]  # the change is larger than what is allowed for
    assert apart(before, plain) < CLOSE[case.kind]


def test_gradient_scores_are_the_plain_models_or_refused(case: Case) -> None:
    """Kernels for inference have no gradient: bitsandbytes' in 4 bits on processors with AVX512-BF16."""
    data, maps = sets()["utility"], packed_maps(case.model.original_model)
    if all(has_gradient(module) for _, module in maps):
        got, want = (sc.score_units(model, data, method="snip").scores for model in (case.model, case.plain))
        assert all(apart(got[site], want[site]) < 5 * CLOSE[case.kind] for site in want)
    else:
        assert case.kind == "4bit"
        for method in ("snip", "taylor"):
            with pytest.raises(ValueError, match="passes on no gradient, or another than that"):
                sc.score_units(case.model, data, method=method)


def has_gradient(module: Any) -> bool:
    """Whether a small step of the input moves the output as the gradient says."""
    x = torch.randn(1, module.in_features, generator=torch.Generator().manual_seed(0)).requires_grad_()
    try:
        (slope,) = torch.autograd.grad(module.forward(x + 0).sum(), x)
    except RuntimeError:
        return False
    matrix = applied_matrix(module, torch.float32, torch.device("cpu"))
    return apart(slope[0], matrix.sum(1)) < 0.05


def test_what_needs_the_weights_is_refused_by_name(case: Case, tmp_path: Path) -> None:
    model, data = case.model, sets()["utility"]
    some = sc.FreezeMask.of_units({"mlp": {3: [1, 5]}}, model)
    choice = sc.weights.choose_weights(
        sc.weights.score_weights(model, data, method="magnitude", components=["out"]), n_of_m=(2, 4)
    )
    direction = sc.direction.mean_directions(model, sets()["malicious"], sets()["normal"]).at(layer=5)

    def frozen(mask: sc.FreezeMask) -> None:
        with sc.frozen(model, mask):
            raise AssertionError("nothing can be frozen")

    def without_weights() -> None:
        with sc.weights.without_weights(model, choice):
            raise AssertionError("nothing can be set to zero")

    refused = {
        "layers": lambda: frozen(sc.FreezeMask.layers((2, 3))),
        "units": lambda: frozen(some),
        "masks": lambda: some.masks_on(model),
        "training": lambda: sc.finetune(model, data, steps=1),
        "saving": lambda: sc.save_pretrained(model, tmp_path / "model"),
        "pruning": lambda: sc.units.prune_units(model, some),
        "single weights": without_weights,
        "their mask": lambda: choice.parameter_masks(model),
        "an edit": lambda: sc.direction.orthogonalised(model, direction),
    }
    for what, call in refused.items():
        with pytest.raises(ValueError, match=r"is quantised.*load the unquantised checkpoint"):
            call()
        assert not (tmp_path / "model").exists(), what
    with pytest.raises(ValueError, match="is quantised"):
        sc.load_model(case.hf, backend="hooked", tokenizer=model.tokenizer)


def test_the_callers_model_stays_as_it_is_and_shares_its_weights(case: Case) -> None:
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = case.hf(ids).logits
        sc.load_model(case.hf, tokenizer=case.model.tokenizer)
        assert torch.equal(case.hf(ids).logits, before)
    mine, theirs = (sc.model.estimate_memory(m, tokens=(1, 9)).weights for m in (case.model, case.plain))
    assert mine < 0.5 * theirs
    held = {t.untyped_storage().data_ptr() for t in case.hf.parameters()}
    assert {p.untyped_storage().data_ptr() for p in case.model.original_model.parameters()} >= held


def test_a_fingerprint_is_of_codes_and_scales(case: Case) -> None:
    before = weights_fingerprint(case.model)
    assert before == weights_fingerprint(copy.deepcopy(case.model))
    other = copy.deepcopy(case.model)
    module = next(module for _, module in packed_maps(other.original_model))
    scales = {"4bit": lambda: module.weight.quant_state.absmax, "8bit": lambda: module.state.SCB}
    scales.get(case.kind, lambda: module.scale)()[0] *= 2
    assert weights_fingerprint(other) != before
    assert weights_fingerprint(case.model) == before


def test_a_quantised_checkpoint_loads_by_its_name(aligned: Path, tmp_path: Path) -> None:
    """As it was saved, without being told; and one is not quantised twice."""
    fresh = sc.load_model(aligned, quantization="8bit")
    hf = hugging_face(aligned, "8bit")
    hf.save_pretrained(tmp_path / "m")
    fresh.tokenizer.save_pretrained(tmp_path / "m")
    again, data = sc.load_model(tmp_path / "m"), sets()["malicious"]
    assert packing_of(again) == packing_of(fresh) == "bitsandbytes"
    assert sc.load_model(again) is again
    assert sc.generate(again, data).texts == sc.generate(fresh, data).texts
    with pytest.raises(ValueError, match=r"is quantised \(bitsandbytes\) already"):
        sc.load_model(tmp_path / "m", quantization="4bit")


def test_bad_requests(aligned: Path) -> None:
    with pytest.raises(ValueError, match=r"quantization is '4bit', '8bit' .* not '3bit'"):
        sc.load_model(aligned, quantization="3bit")
    with pytest.raises(ValueError, match="a HookedTransformer computes with copies"):
        sc.load_model(aligned, quantization="4bit", backend="hooked")
    with pytest.raises(ValueError, match="a model object is as it is"):
        sc.load_model(build_tiny_llama(), quantization="4bit", tokenizer=build_tiny_tokenizer())


def test_what_is_lacking_is_named(aligned: Path, tmp_path: Path) -> None:
    """A checkpoint of a method whose library is not here; no weights are read."""
    folder = tmp_path / "m"
    sc.save_pretrained(sc.load_model(aligned), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}))
    with pytest.raises(ValueError, match=r"is quantised \(gptq\), .*not installed here: pip install gptqmodel"):
        sc.load_model(folder)


def test_room_is_asked_for_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """70 billion in 4 bits are 40 GB and not 140."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=128256,
    )  # fmt: skip
    monkeypatch.setattr("safecircuits.model.memory.free_memory", lambda _: 60 * 10**9)
    require_room(config, torch.bfloat16, torch.device("cpu"), bits=4)
    with pytest.raises(torch.OutOfMemoryError, match="141 GB"):
        require_room(config, torch.bfloat16, torch.device("cpu"))


def test_bytes_are_those_of_the_packed_model() -> None:
    hf = build_tiny_llama()
    linear = sum(m.weight.numel() for m in hf.model.modules() if isinstance(m, nn.Linear))
    total = sum(p.numel() for p in hf.parameters())
    assert packed_bytes(hf, 4, 2) == linear // 2 + 2 * (total - linear)


def test_plain_models_are_not_taken_for_packed(tiny_llama_hf: Any) -> None:
    """Nor one whose configuration merely says so: what counts is what its maps hold."""
    assert packing_of(tiny_llama_hf) is None
    tiny_llama_hf.config.quantization_config = {"quant_method": "gptq"}
    assert packing_of(tiny_llama_hf) is None
    assert packing_of(with_codes(build_tiny_llama())) is not None


def test_bits_are_read_from_a_files_settings_and_from_a_librarys() -> None:
    from transformers import BitsAndBytesConfig

    assert least_bits({"quant_method": "gptq", "bits": 3}) == 3
    assert least_bits({"load_in_8bit": True}) == least_bits(BitsAndBytesConfig(load_in_8bit=True)) == 8
    assert least_bits(BitsAndBytesConfig(load_in_4bit=True)) == least_bits({}) == 4
