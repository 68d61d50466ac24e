"""Units of one checkpoint in another's generation, against a slow plain re-implementation on Hugging Face's models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.behavior.interchange import generate_patched
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import encode

PROMPTS = ("how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "bake tea")
N_LAYERS, N_HEADS, D_HEAD, D_MLP, NEW = 3, 4, 8, 48, 6
BACKENDS = ["bridge", "hooked"]
SETS: dict[str, Any] = {
    "none": {},
    "neurons": {"mlp": {0: (3, 40), 2: (7, 8, 9)}},
    "heads": {"attn": {1: (0, 3)}},
    "both": {"mlp": {1: tuple(range(0, 48, 2))}, "attn": {0: (1,), 2: (2, 3)}},
    "all": {"mlp": dict.fromkeys(range(3), range(48)), "attn": dict.fromkeys(range(3), range(4))},
}


def moved(part: str, seed: int = 1) -> Any:
    """A checkpoint that differs from ``build_tiny_llama()`` in every weight whose name holds ``part``."""
    ours, other = build_tiny_llama(), build_tiny_llama(seed)
    there = dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if any(word in name for word in part.split("|")):
                parameter.copy_(there[name])
    return ours


@contextmanager
def reading(target: Any, source: Any, units: Any, *, outgoing: bool) -> Iterator[None]:
    """Inside, a pass of the source leaves what a pass of the target of the same tokens takes."""
    kept: dict[tuple[str, int], Tensor] = {}
    handles = []
    for site, by_layer in units.items():
        for layer, chosen in by_layer.items():
            width = 1 if site == "mlp" else D_HEAD
            at = torch.tensor([u * width + c for u in chosen for c in range(width)])
            there, here = (_projection(model, site, layer) for model in (source, target))

            def keep(_: Any, args: Any, key: Any = (site, layer), at: Tensor = at) -> None:
                kept[key] = args[0][..., at].clone()

            def put(_: Any, args: Any, key: Any = (site, layer), at: Tensor = at) -> Any:
                x = args[0].clone()
                x[..., at] = 0.0 if outgoing else kept[key]
                return (x,)

            def add(
                _: Any, args: Any, out: Tensor, key: Any = (site, layer), at: Tensor = at, there: Any = there
            ) -> Tensor:
                return out + kept[key] @ there.weight[:, at].T

            handles += [there.register_forward_pre_hook(keep), here.register_forward_pre_hook(put)]
            handles += [here.register_forward_hook(add)] if outgoing else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plainly(target: Any, source: Any, ids: list[int], units: Any, *, outgoing: bool) -> list[int]:
    """One prompt, no cache, no batch: at each step both read all tokens so far, the source first."""
    eos = build_tiny_tokenizer().eos_token_id
    tokens, written = list(ids), []
    for _ in range(NEW):
        with reading(target, source, units, outgoing=outgoing), torch.no_grad():
            source(torch.tensor([tokens]))
            token = int(target(torch.tensor([tokens])).logits[0, -1].argmax())
        if token == eos:
            break
        tokens.append(token)
        written.append(token)
    return written


def _projection(model: Any, site: str, layer: int) -> Any:
    block = model.model.layers[layer]
    return block.mlp.down_proj if site == "mlp" else block.self_attn.o_proj


@pytest.mark.parametrize("outgoing", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_completions_are_those_of_the_plain_procedure(backend: Any, outgoing: bool) -> None:
    """Five sets in shared batches, GQA (4 heads over 2), every weight of the source another one."""
    tokenizer = build_tiny_tokenizer()
    target, source = build_tiny_llama(), build_tiny_llama(7)
    model, other = (load_model(m, tokenizer=tokenizer, backend=backend) for m in (target, source))
    sets = {name: sc.FreezeMask.of_units(units, model) for name, units in SETS.items()}
    got = generate_patched(model, other, PROMPTS, sets, outgoing=outgoing, max_new_tokens=NEW, template="chat")
    examples = encode(tokenizer, PROMPTS, template="chat")
    for name, units in SETS.items():
        want = [plainly(target, source, list(e.ids), units, outgoing=outgoing) for e in examples]
        texts = [tokenizer.decode(w, skip_special_tokens=True).strip() for w in want]
        assert list(got[name].texts) == texts, name
    assert len({got[name].texts for name in SETS}) >= 4  # or the sets would not tell one procedure from another


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_unit_changes_nothing(backend: Any) -> None:
    model, other = (load_model(build_tiny_llama(s), tokenizer=build_tiny_tokenizer(), backend=backend) for s in (0, 7))
    none = sc.FreezeMask.of_units({}, model)
    got = generate_patched(model, other, PROMPTS, {"none": none}, max_new_tokens=NEW)
    assert got["none"].texts == sc.generate(model, PROMPTS, max_new_tokens=NEW).texts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("part", "outgoing", "equal"),
    [
        ("q_proj|k_proj|v_proj|gate_proj|up_proj|layernorm", False, True),  # what stands before the units is replaced
        ("o_proj|down_proj", False, False),  # what stands behind them is not,
        ("o_proj|down_proj", True, True),  # unless it comes along
        ("q_proj|o_proj|down_proj|gate_proj|layernorm", True, True),
        ("model.norm", True, False),
        ("embed_tokens", True, False),
        ("lm_head", True, False),
    ],
)
def test_every_unit_gives_the_sources_answers_if_the_rest_is_alike(
    part: str, outgoing: bool, equal: bool, backend: Any
) -> None:
    tokenizer = build_tiny_tokenizer()
    model, source = (load_model(m, tokenizer=tokenizer, backend=backend) for m in (build_tiny_llama(), moved(part)))
    every = {"all": sc.FreezeMask.layers((0, 2), model)}
    got = generate_patched(model, source, PROMPTS, every, outgoing=outgoing, max_new_tokens=NEW)["all"].texts
    want = sc.generate(source, PROMPTS, max_new_tokens=NEW).texts
    assert (got == want) is equal


def test_units_planted_by_hand_carry_the_whole_difference() -> None:
    """Where two checkpoints differ in some units alone, those units, outgoing weights included, are the difference."""
    tokenizer, base, aligned = build_tiny_tokenizer(), build_tiny_llama(), build_tiny_llama()
    planted = {"mlp": {1: (5, 11, 30)}, "attn": {1: (2, 3)}}  # both heads of a key/value head
    with torch.no_grad():
        mlp, attn = aligned.model.layers[1].mlp, aligned.model.layers[1].self_attn
        for weight, at in (
            (mlp.gate_proj.weight, torch.tensor([5, 11, 30])),
            (mlp.up_proj.weight, torch.tensor([5, 11, 30])),
            (mlp.down_proj.weight.T, torch.tensor([5, 11, 30])),
            (attn.q_proj.weight, torch.arange(16, 32)),
            (attn.k_proj.weight, torch.arange(8, 16)),
            (attn.v_proj.weight, torch.arange(8, 16)),
            (attn.o_proj.weight.T, torch.arange(16, 32)),
        ):
            weight[at] = torch.randn(len(at), weight.shape[1], generator=torch.Generator().manual_seed(len(at))) * 2
    model, other = (load_model(m, tokenizer=tokenizer) for m in (base, aligned))
    sets = {"planted": sc.FreezeMask.of_units(planted, model), "others": ~sc.FreezeMask.of_units(planted, model)}
    before, after = (sc.generate(m, PROMPTS, max_new_tokens=NEW).texts for m in (model, other))
    assert before != after
    for a, b, texts in ((model, other, after), (other, model, before)):
        got = generate_patched(a, b, PROMPTS, {"planted": sets["planted"]}, outgoing=True, max_new_tokens=NEW)
        assert got["planted"].texts == texts


def _pair(**changes: Any) -> tuple[Any, Any]:
    return tuple(
        load_model(m, tokenizer=build_tiny_tokenizer()) for m in (build_tiny_llama(), build_tiny_llama(**changes))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "n_layers 3 in the one, 2 in the other"),
        ({"intermediate_size": 32}, "d_mlp 48 in the one, 32 in the other"),
        ({"num_key_value_heads": 4}, "n_kv_heads 2 in the one, 4 in the other"),
        ({"head_dim": 16}, "d_head 8 in the one, 16 in the other"),
    ],
)
def test_checkpoints_of_another_shape_are_refused(changes: Any, message: str) -> None:
    model, other = _pair(**changes)
    with pytest.raises(ValueError, match=message):
        generate_patched(model, other, PROMPTS, {"x": sc.FreezeMask.layers((0, 1), model)})


def test_another_vocabulary_is_refused() -> None:
    model, _ = _pair()
    more = build_tiny_tokenizer()
    more.add_tokens(["newword"])
    other = load_model(build_tiny_llama(vocab_size=len(more)), tokenizer=more)
    with pytest.raises(ValueError, match=r"tokenizers differ \(.*'newword' is not the same"):
        generate_patched(model, other, PROMPTS, {"x": sc.FreezeMask.layers((0, 1), model)})


@pytest.mark.parametrize(
    ("units", "message"),
    [({}, "given by name"), (None, "given by name"), ({"x": [1, 2]}, "the units of 'x' are given as a FreezeMask")],
)
def test_units_are_named_masks(units: Any, message: str) -> None:
    model, other = _pair()
    with pytest.raises(ValueError, match=message):
        generate_patched(model, other, PROMPTS, units)


def test_one_model_twice_is_refused(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    with pytest.raises(ValueError, match="one and the same model"):
        generate_patched(model, model, PROMPTS, {"x": sc.FreezeMask.layers((0, 1), model)})
