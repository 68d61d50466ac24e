"""A direction out of the running model and out of its weights, against plain hooks on Hugging Face's own modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import safecircuits as sc
import zoo
from safecircuits.direction import Direction, direction_ablated, direction_added, orthogonalised
from safecircuits.model.forward import logits
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from support import PROMPTS, plain_logits, relative

MORE = ["Phi-2", "OPT", "Granite", "StarCoder2", "Nemotron"]
PAIRS = [*zoo.pairs(), *((name, "bridge") for name in MORE)]
NOT_BY_WEIGHTS = {"Gemma-2", "Gemma-3", "OLMo-2", "BLOOM"}
"""A norm stands behind what is written: the sublayers' in the first three, the embedding's in the last."""


def unit() -> Tensor:
    vector = torch.randn(zoo.D_MODEL, generator=torch.Generator().manual_seed(3))
    return vector / vector.norm()


def without(x: Tensor) -> Tensor:
    return x - (x @ unit())[..., None] * unit()


@contextmanager
def each_writer_projected(member: zoo.Member, hf: Any) -> Iterator[None]:
    """What enters the first block, and what each sublayer gives to the sum, lose the direction one by one."""

    def given(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (without(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": without(kwargs["hidden_states"])}

    handles = [member.block(hf, 0).register_forward_pre_hook(given, with_kwargs=True)]
    for layer in range(zoo.LAYERS):
        for sublayer, component in (("attn", "o"), ("mlp", "out")):
            norm = sublayer in member.norm_after
            writer = member.norm(hf, layer, sublayer) if norm else member.module(hf, layer, component)
            handles.append(writer.register_forward_hook(lambda module, args, out: without(out)))
    yield
    for handle in handles:
        handle.remove()


def now(model: Any) -> Tensor:
    with torch.no_grad():
        return logits(model, pad_left(encode(zoo.tokenizer(), PROMPTS)))[:, -1]


@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_ablation_and_edited_weights_equal_each_writer_projected(name: str, backend: str) -> None:
    member, model = zoo.ZOO[name], zoo.hooked_model(name, backend)
    hf = copy.deepcopy(zoo.hugging_face(name))
    intact = plain_logits(hf)
    with each_writer_projected(member, hf):
        want = plain_logits(hf)
    assert relative(want, intact) > 1e-3  # the direction is there to be taken out
    with direction_ablated(model, unit() * 5):
        assert relative(now(model), want) < 2e-4
    if name in NOT_BY_WEIGHTS:
        with pytest.raises(ValueError, match="no edit of this"):
            orthogonalised(model, unit())
        return
    edited = orthogonalised(model, unit() * 5)
    assert relative(now(edited), want) < 2e-4
    assert relative(now(model), intact) < 2e-4  # the model itself stays as it is


@pytest.mark.parametrize(("name", "backend"), [("Qwen2", "bridge"), ("Qwen2", "hooked"), ("GPT-2", "bridge")])
def test_an_edited_model_is_an_ordinary_checkpoint(name: str, backend: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = zoo.hooked_model(name, backend)  # all of these tie their embeddings
    edited = orthogonalised(model, unit())
    sc.save_pretrained(edited, tmp_path / "edited")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "edited").eval()
    assert not hf.config.tie_word_embeddings
    with direction_ablated(model, unit()):
        assert relative(plain_logits(hf), now(model)) < 2e-4


@pytest.mark.parametrize("backend", zoo.backends())
def test_addition_is_after_the_layer_at_every_token(backend: str) -> None:
    hf, member = copy.deepcopy(zoo.hugging_face("Llama-3")), zoo.ZOO["Llama-3"]
    handle = member.block(hf, 0).register_forward_hook(
        lambda module, args, out: (out[0] + 3 * unit(), *out[1:]) if isinstance(out, tuple) else out + 3 * unit()
    )
    want = plain_logits(hf)
    handle.remove()
    model = zoo.hooked_model("Llama-3", backend)
    with direction_added(model, unit() * 6, layer=0, scale=0.5):
        assert relative(now(model), want) < 1e-4


def test_the_affine_ablation_puts_the_share_to_its_level() -> None:
    model = zoo.hooked_model("Llama-3", "bridge")
    levels = torch.arange(2.0 * zoo.LAYERS + 1)
    found = Direction(unit() * 2, 0, -1, levels, sc.ModelShape.of(model), {})
    seen: dict[int, Tensor] = {}
    with direction_ablated(model, found, to="harmless"):
        for layer in range(zoo.LAYERS):
            hook = {f"blocks.{layer}.hook_resid_post": lambda x, layer=layer: seen.update({layer: x @ unit()})}
            with sc.attached(model, hook):
                now(model)
    for layer, share in seen.items():
        assert torch.allclose(share, torch.full_like(share, 2.0 * layer + 2), atol=1e-4)


def test_half_precision_is_projected_in_single() -> None:
    model = zoo.load(copy.deepcopy(zoo.hugging_face("Llama-3")).to(torch.bfloat16), "bridge")
    edited = orthogonalised(model, unit())
    with direction_ablated(model, unit()):
        assert relative(now(edited).float(), now(model).float()) < 0.05
    assert next(edited.parameters()).dtype == torch.bfloat16


def test_what_is_no_direction_of_this_model_is_refused() -> None:
    model = zoo.hooked_model("Llama-3", "bridge")
    other = sc.ModelShape.of(zoo.hooked_model("Llama with biases", "bridge"))
    for wrong, said in (
        (torch.ones(7), "d_model 32, not"),
        (torch.zeros(zoo.D_MODEL), "length above zero"),
        (torch.full((zoo.D_MODEL,), torch.nan), "length above zero"),
        ([1.0] * zoo.D_MODEL, "not a list"),
        (Direction(unit(), 0, -1, torch.empty(0), sc.ModelShape("x", *list(vars(other).values())[1:]), {}), "another"),
    ):
        for use in (lambda w: direction_ablated(model, w).__enter__(), lambda w: orthogonalised(model, w)):
            with pytest.raises(ValueError, match=said):
                use(wrong)
    with pytest.raises(ValueError, match="no layer of its own"):
        direction_added(model, unit()).__enter__()
    with pytest.raises(ValueError, match="outside the model"):
        direction_added(model, unit(), layer=2).__enter__()
    with pytest.raises(ValueError, match="zero alone"):
        direction_ablated(model, unit(), to="harmless").__enter__()
