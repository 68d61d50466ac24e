"""Freezing by construction, against full training with gradients zeroed and weights restored, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_freeze_mask import SHAPE, masks, tiny_gpt2, tiny_neox, tiny_phi3
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.bridge import bridge_of
from safecircuits.model.load import load_model, to_hugging_face
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.batching import Batch
from safecircuits.training import frozen, frozen_digest
from safecircuits.training.loss import logits

KINDS = ["hf", "bridge", "hooked"]
UNITS = FreezeMask.of_units({"mlp": {0: [1, 5, 40], 2: range(30)}, "attn": {0: [0, 1], 2: [3]}}, SHAPE)
MIXED = UNITS | FreezeMask.layers(1)

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw-decay": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.3),
    "sgd-momentum-decay": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam-amsgrad": lambda ps: torch.optim.Adam(ps, lr=1e-2, amsgrad=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-3),
}


def batches(n: int, padding: int = 4) -> list[Batch]:
    """Random left-padded batches; the targets are all tokens."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(n):
        ids = torch.randint(4, 45, (3, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, :padding] = 0
        made.append(Batch((0, 1, 2), ids, mask, mask.bool()))
    return made


def loss_of(model: Any, batch: Batch) -> Tensor:
    out, wanted = logits(model, batch)[:, :-1], batch.attention_mask[:, :-1].bool()
    return F.cross_entropy(out[wanted], batch.input_ids[:, 1:][wanted])


def train_reference(
    model: Any,
    parameters: dict[str, nn.Parameter],
    mask: FreezeMask,
    make: Optimizer,
    clip: float | None,
    data: list[Batch],
) -> None:
    """Train everything, zero the frozen gradients, and put frozen entries back after each step."""
    held = {
        name: (frozen_at, parameters[name].detach().clone()) for name, frozen_at in mask.parameter_masks(model).items()
    }
    optimizer = make(parameters.values())
    for batch in data:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        for name, (frozen_at, _) in held.items():
            parameters[name].grad[frozen_at] = 0
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters.values(), clip)
        optimizer.step()
        with torch.no_grad():
            for name, (frozen_at, values) in held.items():
                parameters[name][frozen_at] = values[frozen_at]


def train_frozen(model: Any, mask: FreezeMask, make: Optimizer, clip: float | None, data: list[Batch]) -> None:
    with frozen(model, mask) as handle:
        optimizer = make(handle.trainable_parameters())
        for batch in data:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(handle.trainable_parameters(), clip)
            optimizer.step()


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in to_hugging_face(model).named_parameters()}


def assert_trained_like(model: Any, reference: Any, before: dict[str, Tensor], mask: FreezeMask, atol: float) -> None:
    after, expected = weights(model), weights(reference)
    frozen_at = mask.parameter_masks(to_hugging_face(reference))
    for name, value in after.items():
        at = frozen_at.get(name, torch.zeros(value.shape, dtype=torch.bool))
        assert torch.equal(value[at], before[name][at]), f"{name}: frozen entries moved"
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
        if not at.all():
            assert not torch.equal(value[~at], before[name][~at]), f"{name}: trainable entries did not move"


# --- the mathematics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_equals_the_reference(
    kind: str, clip: float | None, optimizer: str, tiny_tokenizer: Any, make_tiny_model: Callable[..., Any]
) -> None:
    plain, model = build_tiny_llama(dtype=torch.float64), make_tiny_model(kind, dtype=torch.float64)
    before = weights(plain)
    # The same kind of model on both sides, so that only the freezing differs. A bridge shares plain's parameters.
    reference = plain if kind == "hf" else load_model(plain, backend=kind, tokenizer=tiny_tokenizer)
    parameters = dict((reference if kind == "hooked" else plain).named_parameters())
    parameters = {name: p for name, p in parameters.items() if p.requires_grad}
    # In float64 a bridge answers a padded row with NaN, with or without a freeze.
    data = batches(5, padding=0 if kind == "bridge" else 4)
    train_reference(reference, parameters, MIXED, OPTIMIZERS[optimizer], clip, data)
    train_frozen(model, MIXED, OPTIMIZERS[optimizer], clip, data)
    assert_trained_like(model, reference, before, MIXED, atol=1e-9)


@settings(max_examples=10)
@given(mask=masks().filter(bool))
def test_any_mask_trains_like_the_reference(mask: FreezeMask) -> None:
    reference, model = build_tiny_llama(dtype=torch.float64), build_tiny_llama(dtype=torch.float64)
    before = weights(reference)
    train_reference(
        reference, dict(reference.named_parameters()), mask, OPTIMIZERS["sgd-momentum-decay"], 1.0, batches(2)
    )
    train_frozen(model, mask, OPTIMIZERS["sgd-momentum-decay"], 1.0, batches(2))
    assert_trained_like(model, reference, before, mask, atol=1e-12)


ARCHITECTURES = {"llama": build_tiny_llama, "gpt2": tiny_gpt2, "phi3": tiny_phi3, "neox": tiny_neox}


@st.composite
def models_and_masks(draw: Any) -> tuple[Callable[[], Any], FreezeMask]:
    """A way to build a model, in float64 and the same each time, and a mask of some of its units."""
    seed, build = draw(st.integers(0, 9)), ARCHITECTURES[draw(st.sampled_from(sorted(ARCHITECTURES)))]

    def made() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build().double()

    shape = ModelShape.of(bridge_of(made()))
    units: Any = {
        site: {layer: draw(st.sets(st.integers(0, shape.n_units(site) - 1))) for layer in range(2)}
        for site in ("mlp", "attn")
    }
    return made, FreezeMask.of_units(units, shape) | FreezeMask.layers(draw(st.sets(st.integers(0, 1))))


@settings(max_examples=12)
@given(case=models_and_masks().filter(lambda case: bool(case[1])), optimizer=st.sampled_from(sorted(OPTIMIZERS)))
def test_any_mask_of_any_architecture_trains_like_the_reference(
    case: tuple[Callable[[], Any], FreezeMask], optimizer: str
) -> None:
    made, mask = case
    reference, model = made(), made()
    before, make = weights(reference), OPTIMIZERS[optimizer]
    train_reference(reference, dict(reference.named_parameters()), mask, make, 1.0, batches(2, padding=0))
    train_frozen(model, mask, make, 1.0, batches(2, padding=0))
    # Adam divides by the gradient's size: of an entry whose true gradient is nothing, it amplifies the rounding.
    assert_trained_like(model, reference, before, mask, atol=1e-12 if optimizer.startswith("sgd") else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "adafactor", "transformers-adafactor"])
def test_frozen_entries_keep_their_bits(
    optimizer: str, dtype: torch.dtype, make_tiny_llama: Callable[..., Any]
) -> None:
    """With decay, momentum, accumulation over two batches, and clipping; compared bit by bit, not by the digest."""
    from transformers.optimization import Adafactor

    others: dict[str, Optimizer] = {
        "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=1e-2, weight_decay=0.1),
        "transformers-adafactor": lambda ps: Adafactor(list(ps), weight_decay=0.1),
    }
    model, before = make_tiny_llama(dtype=dtype), weights(make_tiny_llama(dtype=dtype))
    with frozen(model, MIXED) as handle:
        stepper = (OPTIMIZERS | others)[optimizer](handle.trainable_parameters())
        for i, batch in enumerate(batches(6)):
            (loss_of(model, batch) / 2).backward()
            if i % 2:
                nn.utils.clip_grad_norm_(handle.trainable_parameters(), 0.5)
                stepper.step()
                stepper.zero_grad()
    frozen_at = MIXED.parameter_masks(model)
    for name, value in weights(model).items():
        at = frozen_at.get(name, torch.zeros(value.shape, dtype=torch.bool))
        bits, same = (t.view(torch.int16 if dtype is torch.bfloat16 else torch.int32) for t in (value, before[name]))
        assert torch.equal(bits[at], same[at]), name
        assert at.all() or not torch.equal(bits[~at], same[~at]), f"{name} did not train"


@pytest.mark.parametrize("kind", ["hf", "bridge"])
@pytest.mark.parametrize("build", [tiny_gpt2, tiny_phi3])
def test_fused_models_train_like_the_reference(kind: str, build: Callable[[], Any]) -> None:
    reference, model = build().double(), build().double()
    with torch.no_grad():
        for theirs, mine in zip(reference.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
    parameters, shape = dict(reference.named_parameters()), ModelShape.of(bridge_of(reference))
    if kind == "bridge":
        model = load_model(model, tokenizer=build_tiny_tokenizer())
    mask = FreezeMask.of_units({"mlp": {0: [1, 5, 40]}, "attn": {0: [0, 1]}}, shape) | FreezeMask.layers(1)
    before = weights(reference)
    train_reference(reference, parameters, mask, OPTIMIZERS["sgd-momentum-decay"], 1.0, batches(5))
    train_frozen(model, mask, OPTIMIZERS["sgd-momentum-decay"], 1.0, batches(5))
    # Norms are computed in float32, by other kernels in a bridge than in the Hugging Face model.
    assert_trained_like(model, reference, before, mask, atol=1e-12 if kind == "hf" else 1e-6)
    if kind == "bridge":
        batch = batches(1)[0]
        real = batch.attention_mask.bool()
        torch.testing.assert_close(logits(to_hugging_face(model), batch)[real], logits(model, batch)[real])


# --- by construction ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [UNITS, MIXED, FreezeMask.layers((0, 2))], ids=["units", "mixed", "layers"])
def test_the_forward_pass_is_bitwise_the_same_inside(
    kind: str, mask: FreezeMask, make_tiny_model: Callable[..., Any]
) -> None:
    model, batch = make_tiny_model(kind), batches(1)[0]
    outside = logits(model, batch)
    with frozen(model, mask):
        assert torch.equal(logits(model, batch), outside)
    assert torch.equal(logits(model, batch), outside)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_trains_has_gradients_and_optimizer_state(kind: str, make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model(kind)
    reference = build_tiny_llama()
    n_all = sum(p.numel() for p in reference.parameters())
    n_frozen = sum(int(m.sum()) for m in MIXED.parameter_masks(reference).values())
    with frozen(model, MIXED) as handle:
        assert (handle.n_frozen, handle.n_trainable) == (n_frozen, n_all - n_frozen)
        optimizer = torch.optim.AdamW(handle.trainable_parameters())
        loss_of(model, batches(1)[0]).backward()
        trainable = {id(p) for p in handle.trainable_parameters()}
        root = getattr(model, "original_model", model)
        assert {id(p) for p in root.parameters() if p.requires_grad} == trainable
        assert all((p.grad is not None) == (id(p) in trainable) for p in root.parameters())
        optimizer.step()
        state = [t for s in optimizer.state.values() for t in s.values() if t.ndim]
        assert sum(t.numel() for t in state) == 2 * (n_all - n_frozen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", ["normally", "by exception"])
def test_leaving_restores_the_model(kind: str, leave: str, make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model(kind)
    root = getattr(model, "original_model", model)
    next(iter(root.parameters())).requires_grad_(False)
    before = [(name, id(p), p.requires_grad) for name, p in root.named_parameters()]
    modules = [(name, type(m), list(m._modules)) for name, m in root.named_modules()]
    value = next(iter(root.parameters())).detach().clone()
    try:
        with frozen(model, MIXED) as handle:
            for parameter in handle.trainable_parameters():
                parameter.data.add_(1)
            trained = logits(model, batches(1)[0])
            if leave == "by exception":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [(name, id(p), p.requires_grad) for name, p in root.named_parameters()] == before
    assert [(name, type(m), list(m._modules)) for name, m in root.named_modules()] == modules
    assert torch.equal(next(iter(root.parameters())), value), "a parameter without requires_grad was trained"
    assert torch.equal(logits(model, batches(1)[0]), trained)


def test_a_bridge_trains_the_users_own_parameters(tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
    bridge = load_model(tiny_llama_hf, tokenizer=tiny_tokenizer)
    owned = dict(tiny_llama_hf.named_parameters())
    train_frozen(bridge, MIXED, OPTIMIZERS["adamw-decay"], None, batches(5))
    assert all(p is owned[name] for name, p in tiny_llama_hf.named_parameters())
    batch = batches(1)[0]
    real = batch.attention_mask.bool()
    torch.testing.assert_close(logits(tiny_llama_hf, batch)[real], logits(bridge, batch)[real])


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
@pytest.mark.parametrize("mask", [None, UNITS])
def test_stand_in_parameters_are_not_trained(
    kind: str, mask: FreezeMask | None, make_tiny_model: Callable[..., Any]
) -> None:
    """A bridge gives every unembedding a bias, and a HookedTransformer every map: the checkpoint has none of them."""
    model = make_tiny_model(kind)
    with frozen(model, mask) as handle:
        optimizer = torch.optim.SGD(handle.trainable_parameters(), lr=0.1)
        loss_of(model, batches(1)[0]).backward()
        optimizer.step()
    assert not torch.any(model.unembed.b_U != 0)
    batch = batches(1)[0]
    real = batch.attention_mask.bool()
    exported = logits(to_hugging_face(model), batch)[real]
    torch.testing.assert_close(exported, logits(model, batch)[real], rtol=1e-4, atol=1e-4)


def test_key_value_heads_freeze_with_the_last_of_their_query_heads(tiny_llama_hf: Any) -> None:
    for heads, kv_frozen in [([0], []), ([0, 1], range(8)), ([1, 2], []), ([0, 1, 3], range(8))]:
        mask = FreezeMask.of_units({"attn": {1: heads}}, SHAPE)
        with frozen(tiny_llama_hf, mask) as handle:
            named = handle.named_trainable()
            assert named["model.layers.1.self_attn.q_proj.weight"].shape == (32 - 8 * len(heads), 32)
            assert named["model.layers.1.self_attn.o_proj.weight"].shape == (32, 32 - 8 * len(heads))
            for leaf in ("k_proj", "v_proj"):
                assert named[f"model.layers.1.self_attn.{leaf}.weight"].shape == (16 - len(kv_frozen), 32)


def test_weights_read_inside_are_the_merged_ones(tiny_hooked: Any, tiny_bridge: Any) -> None:
    for model in (tiny_hooked, tiny_bridge):
        with frozen(model, UNITS) as handle:
            for parameter in handle.trainable_parameters():
                parameter.data.add_(1)
            inside = model.blocks[0].mlp.W_in.detach().clone()
        assert torch.equal(model.blocks[0].mlp.W_in, inside)
        moved = [i for i in range(48) if i not in (1, 5, 40)]
        assert inside[:, moved].mean() > 0.5 > inside[:, [1, 5, 40]].mean()


def test_one_digest_for_every_way_of_holding_the_weights(tiny_llama_hf: Any, tiny_bridge: Any) -> None:
    digest = frozen_digest(tiny_llama_hf, MIXED)
    assert frozen_digest(tiny_bridge, MIXED) == digest
    with frozen(tiny_bridge, MIXED) as handle:
        assert handle.frozen_digest == digest
    with torch.no_grad():
        tiny_llama_hf.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    assert frozen_digest(tiny_llama_hf, MIXED) != digest


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 1])
def test_whoever_writes_to_frozen_entries_is_found_out(tiny_llama_hf: Any, where: int) -> None:
    def tamper() -> None:
        with frozen(tiny_llama_hf, MIXED), torch.no_grad():
            tiny_llama_hf.model.layers[where].mlp.up_proj.weight_slice.rest.add_(1) if where == 0 else (
                tiny_llama_hf.model.layers[where].mlp.up_proj.weight.add_(1)
            )

    with pytest.raises(RuntimeError, match="frozen entries have changed"):
        tamper()


def enter(model: Any, mask: FreezeMask) -> None:
    with frozen(model, mask):
        pass


def test_bad_masks_are_refused(tiny_llama_hf: Any) -> None:
    with pytest.raises(ValueError, match="freezes nothing"):
        enter(tiny_llama_hf, FreezeMask.of_units({}, SHAPE))
    with pytest.raises(ValueError, match="reaches layer 3"):
        enter(tiny_llama_hf, FreezeMask.layers((1, 3)))
    with pytest.raises(ValueError, match="belongs to another model"):
        enter(tiny_gpt2(), UNITS)
    for name, parameter in tiny_llama_hf.named_parameters():
        parameter.requires_grad_("layers" in name and "norm" not in name)
    with pytest.raises(ValueError, match="nothing is left to train"):
        enter(tiny_llama_hf, FreezeMask.layers((0, 2)))
    assert all(p.requires_grad for n, p in tiny_llama_hf.named_parameters() if "mlp" in n)


def test_freezing_twice_is_refused(tiny_llama_hf: Any) -> None:
    with frozen(tiny_llama_hf, UNITS), pytest.raises(ValueError, match="already inside frozen"):
        enter(tiny_llama_hf, FreezeMask.layers(1))


def test_a_mask_that_leaves_a_matrix_in_a_pattern_is_refused(
    tiny_llama_hf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagonal = {"model.layers.0.mlp.up_proj.weight": torch.eye(48, 32).bool()}
    monkeypatch.setattr(FreezeMask, "masks_on", lambda self, model: (diagonal, diagonal))
    with pytest.raises(ValueError, match=r"up_proj.weight are not whole rows, columns or slices"):
        enter(tiny_llama_hf, UNITS)
    assert all(p.requires_grad and p.numel() for p in tiny_llama_hf.parameters()), "the model is itself again"


def test_everything_frozen_leaves_norms_and_embeddings_to_train(tiny_llama_hf: Any) -> None:
    with frozen(tiny_llama_hf, FreezeMask.layers((0, 2))) as handle:
        assert all("norm" in name or "embed" in name or "lm_head" in name for name in handle.named_trainable())
