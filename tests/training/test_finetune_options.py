"""Batches by length and packed, precision, gradient checkpointing, optimizers, cutting, and a disk that fills up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_finetune import DATA, MASK, With, assert_equal, trained
from test_freeze_mask import tiny_gpt2

from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode
from safecircuits.training import finetune
from safecircuits.training.loss import require_separable, token_loss
from safecircuits.training.order import Order, shares
from safecircuits.training.packing import in_rows, pack

UNEVEN = PromptSet("uneven", DATA.prompts, ("tea", "salt water . " * 9, "help", "it is", "tea . " * 4, "a lamp"))


def uneven(tokenizer: Any) -> list[Encoded]:
    return encode(tokenizer, UNEVEN, with_responses=True)


# --- packing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.parametrize("kind", ["hf", "bridge", "gpt2"])
def test_packed_loss_and_gradients_are_those_of_the_examples_alone(
    kind: str, loss_on: Any, make_tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    model = tiny_gpt2() if kind == "gpt2" else make_tiny_model(kind)
    examples = uneven(tiny_tokenizer)
    packed = pack(examples)
    assert len(packed.input_ids) < len(examples)
    together, n = token_loss(model, packed, loss_on)
    gradients = torch.autograd.grad(together, list(model.parameters()), allow_unused=True)
    parts = [token_loss(model, pad_left([example]), loss_on) for example in examples]
    alone = sum(loss for loss, _ in parts)
    assert n == sum(count for _, count in parts)
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in parts), rel=1e-5)
    for found, expected in zip(
        gradients, torch.autograd.grad(alone, list(model.parameters()), allow_unused=True), strict=True
    ):
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@given(st.lists(st.tuples(st.integers(2, 20), st.integers(1, 19)), min_size=1, max_size=12))
def test_every_example_is_packed_once_and_whole(sizes: list[tuple[int, int]]) -> None:
    examples = [
        Encoded(tuple(range(100 * i, 100 * i + n)), min(start, n - 1)) for i, (n, start) in enumerate(sizes, start=1)
    ]
    batch = pack(examples)
    assert batch.input_ids.shape[1] == max(len(e) for e in examples)
    found: Counter[tuple[Any, ...]] = Counter()
    for ids, positions, response in zip(batch.input_ids, batch.position_ids, batch.is_response, strict=True):
        starts = [i for i, p in enumerate(positions.tolist()) if p == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            segment = tuple(ids[start:end].tolist())
            assert positions[start:end].tolist() == list(range(end - start))
            if segment != (0,):  # padding
                found[segment, tuple(response[start:end].tolist())] += 1
    assert found == Counter((e.ids, tuple(i >= e.response_start for i in range(len(e)))) for e in examples)


def test_a_model_that_mixes_packed_examples_is_refused(tiny_hooked: Any, tiny_tokenizer: Any) -> None:
    examples = uneven(tiny_tokenizer)
    leaky = build_tiny_llama()
    attend = leaky.model.forward
    leaky.model.forward = lambda position_ids, **kwargs: attend(
        position_ids=torch.arange(position_ids.shape[1])[None].expand_as(position_ids), **kwargs
    )
    with pytest.raises(ValueError, match="does not keep packed examples apart"):
        require_separable(leaky, examples)
    require_separable(build_tiny_llama(dtype=torch.bfloat16), examples)
    with pytest.raises(ValueError, match="a HookedTransformer cannot keep packed examples apart"):
        finetune(tiny_hooked, UNEVEN, batches="packed", steps=1, progress=False)


def test_rows_are_built_as_they_are_given() -> None:
    batch = in_rows([[Encoded((5, 6, 7), 1), Encoded((8, 9), 1)], [Encoded((4,), 1)]])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    assert batch.is_response.tolist() == [[False, True, True, False, True], [False] * 5]


# --- order and shares --------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 7), st.integers(0, 3))
def test_steps_by_length_see_every_example_once_and_waste_little(lengths: list[int], per_step: int, seed: int) -> None:
    order = Order(len(lengths), per_step, seed, lengths)
    steps = [order.rows(k) for k in range(order.steps_per_epoch)]
    assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
    assert [Order(len(lengths), per_step, seed, lengths).rows(k) for k in range(order.steps_per_epoch)] == steps
    # Within one window all examples of a step lie side by side in the order of lengths.
    by_length = sorted(lengths)
    if len(lengths) <= 50 * per_step:
        for step in steps:
            found = sorted(lengths[row] for row in step)
            assert any(by_length[i : i + len(step)] == found for i in range(len(lengths)))


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_processes_share_a_step_without_rest(n: int, batch_size: int, size: int, packed: bool) -> None:
    examples = [Encoded((i, 99), 1) for i in range(1, n + 1)]
    of_each = [shares(examples, batch_size, rank, size, packed) for rank in range(size)]
    assert len({len(passes) for passes in of_each}) == 1
    seen = [
        int(ids)
        for passes in of_each
        for share in passes
        if share.weight
        for ids in share.batch.input_ids[:, 0::2].flatten()
    ]
    assert sorted(i for i in seen if i) == list(range(1, n + 1))
    if size == 1:
        assert all(share.weight == 1 for share in of_each[0])


# --- precision, gradient checkpointing, optimizers -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hf", "bridge", "hooked"])
def test_gradient_checkpointing_gives_the_same_bits(
    kind: str, make_tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    def outcome(recompute: bool) -> tuple[Any, Any, int]:
        model = make_tiny_model(kind)
        layer = model.blocks[0] if kind != "hf" else model.model.layers[0]
        calls: list[int] = []
        (layer.attn if kind != "hf" else layer.self_attn).register_forward_hook(lambda *_: calls.append(1))
        run = finetune(
            model,
            DATA,
            freeze=MASK,
            steps=3,
            gradient_checkpointing=recompute,
            tokenizer=tiny_tokenizer,
            progress=False,
        )
        assert "forward" not in vars(layer)
        return run.losses, {n: p.detach().clone() for n, p in model.named_parameters()}, len(calls)

    losses, kept, n_forward = outcome(False)
    again, recomputed, n_twice = outcome(True)
    assert losses == again
    assert_equal(kept, recomputed)
    assert n_twice == 2 * n_forward


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("changes", [{}, {"grad_accumulation": 2, "batch_size": 1}, {"batches": "length"}])
def test_frozen_entries_keep_their_bits_in_bfloat16(optimizer: str, changes: dict[str, Any]) -> None:
    before = {n: p.detach() for n, p in build_tiny_llama().named_parameters()}
    after, run = trained(mixed_precision="bf16", optimizer=optimizer, max_grad_norm=0.1, **changes)
    exact, _ = trained(optimizer=optimizer, max_grad_norm=0.1, **changes)
    assert run.settings["mixed_precision"] == "bf16"
    assert after["lm_head.weight"].dtype == torch.float32
    assert not torch.equal(after["lm_head.weight"], exact["lm_head.weight"])
    torch.testing.assert_close(after["lm_head.weight"], exact["lm_head.weight"], rtol=0, atol=0.15)
    masks = MASK.parameter_masks(build_tiny_llama())
    for name, value in after.items():
        frozen_at = masks.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[frozen_at], before[name][frozen_at])
        assert frozen_at.all() or not torch.equal(value, before[name])


@pytest.mark.parametrize("changes", [{"batches": "packed", "batch_size": 6}, {"optimizer": "adafactor"}])
def test_other_ways_to_train_learn_too(changes: dict[str, Any]) -> None:
    _, run = trained(**{"steps": 60, "lr": 3e-2 if "optimizer" in changes else 1e-2, **changes})
    assert run.final_loss(5) < 0.6 * run.losses[0]


# --- length ------------------------------------------------------------------------------------------------------


def test_long_examples_are_cut_and_reported(tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
    lengths = [len(example) for example in uneven(tiny_tokenizer)]
    limit = sorted(lengths)[-2]
    with pytest.warns(UserWarning, match=f"1 of 6 examples were cut to max_length={limit} tokens"):
        run = finetune(
            tiny_llama_hf, UNEVEN, steps=1, max_length=limit, tokenizer=tiny_tokenizer, progress=False, batch_size=6
        )
    assert run.settings["truncated"] == 1
    cut = [Encoded(e.ids[:limit], e.response_start) for e in uneven(tiny_tokenizer)]
    loss, n = token_loss(build_tiny_llama(), pad_left(cut))
    assert run.losses[0] == pytest.approx(loss.item() / n, rel=1e-5)


def test_no_response_token_left_is_one_error(tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="max_length=3 leaves 6 of 6 examples without a response token"):
        finetune(tiny_llama_hf, DATA, max_length=3, tokenizer=tiny_tokenizer, progress=False)
    with pytest.warns(UserWarning, match="6 of 6 examples were cut"):
        finetune(tiny_llama_hf, DATA, max_length=3, loss_on="all", steps=1, tokenizer=tiny_tokenizer, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": "sorted"}, "batches is one of random, length, packed, not 'sorted'"),
        ({"mixed_precision": "fp16"}, "mixed_precision is 'no' or 'bf16', not 'fp16'"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"lr": 0.0}, r"lr must be above 0, not 0\.0: nothing would be learnt"),
        ({"lr": float("nan")}, "lr must be a finite number, not nan"),
        ({"max_grad_norm": 0}, "max_grad_norm must be above 0, not 0"),
        ({"weight_decay": -0.1}, r"weight_decay must be at least 0, not -0\.1"),
        ({"method": With(rows=lambda _: []), "steps": 1}, "the 0 examples of step 1 have no token to train on"),
        ({"freeze": FreezeMask.layers((0, 2)), "only": "layers"}, "nothing is left to train"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], message: str) -> None:
    model = build_tiny_llama()
    if changes.pop("only", None):
        for name, p in model.named_parameters():
            p.requires_grad_("layers" in name and "norm" not in name)
    with pytest.raises(ValueError, match=message):
        finetune(model, DATA, tokenizer=build_tiny_tokenizer(), progress=False, **changes)


def test_a_warm_up_without_end_is_told() -> None:
    with pytest.warns(UserWarning, match=r"warmup_steps is 4 and the run has 3 steps: .* never reaches 0\.01"):
        finetune(
            build_tiny_llama(), DATA, steps=3, warmup_steps=4, lr=1e-2, tokenizer=build_tiny_tokenizer(), progress=False
        )


# --- a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 2_000, 60_000])  # fails in the tensors, and in the optimizer's file
def test_a_full_disk_is_one_error_and_the_checkpoint_before_survives(tmp_path: Path, room: int) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_model: Any, step: int) -> None:
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

    expected, whole = trained()
    try:
        with pytest.raises(OSError, match=r"the checkpoint of step 4 could not be written .*step-00000002, is kept"):
            trained(callbacks=[fill], eval_every=1, checkpoint_dir=tmp_path, checkpoint_every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    found, run = trained(checkpoint_dir=tmp_path, checkpoint_every=2)
    assert run.settings["resumed_from"] == 2
    assert run.losses == whole.losses
    assert_equal(found, expected)
