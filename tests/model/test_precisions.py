"""Dtypes: a model's own, PyTorch's default, and as a name; padded batches against Hugging Face one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import zoo
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits import PromptSet, generate, load_model, response_loss, save_pretrained, score_units
from safecircuits.base.dtypes import torch_dtype
from safecircuits.direction import Suffixes, probe_direction
from safecircuits.hooks import collect_residuals
from safecircuits.layers import attention_map, decision_layers, layer_gap
from safecircuits.model.forward import logits
from safecircuits.model.memory import estimate_memory
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from safecircuits.weights import head_probe, score_weights

PROMPTS = ["how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "a dog"]
HARMLESS = ["how do i make tea", "find the dog", "how do i fix the lamp and the road with some wood", "a cake"]
DATA = PromptSet("data", tuple(PROMPTS), ("sorry", "here is the lamp", "you take some wood", "that is a dog"))


@pytest.mark.parametrize(
    ("name", "backend"), [pair for pair in zoo.pairs() if pair[1] == "bridge" or zoo.ZOO[pair[0]].hooked]
)
def test_padded_rows_of_a_float64_model(name: str, backend: str) -> None:
    hf = zoo.ZOO[name].build().double()
    model = load_model(hf, tokenizer=zoo.tokenizer(), backend=backend)
    examples = encode(model.tokenizer, PROMPTS)
    with torch.no_grad():
        want = torch.stack([hf(torch.tensor([e.ids])).logits[0, -1] for e in examples])
        got = logits(model, pad_left(examples))[:, -1]
    # Some architectures take the softmax or the norms in float32, on one side or both.
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    # Analyses may run Hugging Face's own modules in a bridge's place, whose padded rows are NaN for some in float64.
    alone = torch.cat([collect_residuals(model, [prompt]).values for prompt in PROMPTS], dim=1)
    torch.testing.assert_close(collect_residuals(model, PROMPTS).values, alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_the_loss_of_a_float64_model(backend: Any) -> None:
    hf = build_tiny_llama(dtype=torch.float64)
    model = load_model(hf, tokenizer=build_tiny_tokenizer(), backend=backend)
    got = response_loss(model, DATA)
    for row, example in enumerate(encode(model.tokenizer, DATA, with_responses=True)):
        start = example.response_start
        with torch.no_grad():
            predicted = hf(torch.tensor([example.ids])).logits[0, start - 1 : -1]
        want = F.cross_entropy(predicted, torch.tensor(example.ids[start:]), reduction="sum")
        torch.testing.assert_close(got.nats[row], want, atol=0, rtol=1e-5)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SUFFIXES = Suffixes(("here is",), ("sorry cannot help",))
ANALYSES: dict[str, Callable[[Any], Any]] = {
    "residuals": lambda m: collect_residuals(m, PROMPTS).values,
    "angle gap": lambda m: layer_gap(m, PROMPTS, HARMLESS).gap_deg,
    "attention": lambda m: attention_map(m, PROMPTS[0]).values,
    "head probe": lambda m: head_probe(m, PROMPTS, HARMLESS, folds=2).accuracy,
    "decision": lambda m: decision_layers(m, PROMPTS, HARMLESS).effect,
    "direction": lambda m: probe_direction(m, PROMPTS, suffixes=SUFFIXES, steps=(0, 1)).benign,
    "wifv": lambda m: score_units(m, DATA, method="wifv").scores["mlp"],
    "snip": lambda m: score_units(m, DATA, method="snip").scores["attn"],
    "taylor": lambda m: score_units(m, DATA, method="taylor").scores["mlp"],
    "weights": lambda m: score_weights(m, DATA, method="magnitude").scores["0.out"],
    "texts": lambda m: generate(m, PROMPTS, max_new_tokens=3).texts,
    "loss": lambda m: response_loss(m, DATA).nats,
}


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype, backend: Any) -> None:
    hf, tokenizer = build_tiny_llama(), build_tiny_tokenizer()
    want = {name: analysis(load_model(hf, tokenizer=tokenizer, backend=backend)) for name, analysis in ANALYSES.items()}
    with default(dtype):
        model = load_model(hf, tokenizer=tokenizer, backend=backend)
        got = {name: analysis(model) for name, analysis in ANALYSES.items()}
    for name, value in want.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-5, equal_nan=True, msg=name)
        else:
            assert got[name] == value, name


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_by_name(dtype: Any, tmp_path: Path) -> None:
    checkpoint = save_pretrained(load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer()), tmp_path / "m")
    model = load_model(checkpoint, dtype=dtype, device="cpu")
    assert next(iter(model.parameters())).dtype == torch.bfloat16
    assert estimate_memory(model, PROMPTS, dtype=dtype) == estimate_memory(model, PROMPTS)


@pytest.mark.parametrize("dtype", ["bf16", "int8", torch.int32, "load", 16, "float8_e4m3fn"])
def test_no_dtype(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is one of float32, bfloat16, float16 and float64"):
        torch_dtype(dtype)
    with pytest.raises(ValueError, match="dtype is one of"):
        load_model(tmp_path, dtype=dtype)


def test_a_model_object_keeps_its_dtype() -> None:
    hf = build_tiny_llama()
    with pytest.raises(ValueError, match=r"this model object is in torch.float32; use .to\(torch.bfloat16\)"):
        load_model(hf, tokenizer=build_tiny_tokenizer(), dtype="bfloat16")
    load_model(hf, tokenizer=build_tiny_tokenizer(), dtype="float32")


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_a_token_without_an_embedding(backend: Any) -> None:
    tokenizer = build_tiny_tokenizer()
    model = load_model(build_tiny_llama(), tokenizer=tokenizer, backend=backend)
    tokenizer.add_tokens(["<new>"])
    prompts = ["how do i <new> the cake", "find a lamp"]
    data = PromptSet("data", tuple(prompts), ("sorry", "here"))
    said = r"token \d+ \('<new>'\) of a prompt or response has no embedding"
    for analysis in (
        lambda: collect_residuals(model, prompts),
        lambda: generate(model, prompts, max_new_tokens=2),
        lambda: response_loss(model, data),
        lambda: score_units(model, data),
        lambda: score_units(model, data, method="snip"),
        lambda: attention_map(model, prompts[0]),
    ):
        with pytest.raises(ValueError, match=said):
            analysis()
    assert len(generate(model, prompts[1:], max_new_tokens=2).texts) == 1, "a token that no prompt has does no harm"
