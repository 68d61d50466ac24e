"""Phases: each is a run of its own in one, and a checkpoint goes on in the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import DATA, MASK, SETTINGS, CutOffError, With, assert_equal, cut_off_after, trained, weights
from test_freeze_mask import SHAPE

from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.training import Phase, finetune, frozen_digest

SCU = FreezeMask.of_units({"mlp": {0: [1, 5], 2: range(10)}, "attn": {0: [0, 1]}}, SHAPE)
ALL_CU = FreezeMask.of_units({"mlp": {0: range(20), 1: range(48)}, "attn": {1: [0, 2]}}, SHAPE)
TOP_CU = FreezeMask.of_units({"mlp": {0: range(4)}}, SHAPE)
OTHER_CU = FreezeMask.of_units({"mlp": {2: [30]}}, SHAPE)  # which the first phase does not freeze
# Three steps an epoch: one epoch with SCU and all CU frozen, then two with SCU and the top CU.
TWO_PHASES = [Phase(SCU | ALL_CU, epochs=1), Phase(SCU | TOP_CU, epochs=2)]


def in_phases(phases: Any = TWO_PHASES, **changes: Any) -> tuple[dict[str, torch.Tensor], Any]:
    return trained(freeze=phases, steps=None, **changes)


def test_phases_are_runs_one_after_the_other() -> None:
    found, run = in_phases(schedule="constant", warmup_steps=0)
    model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())
    before = weights(model)
    settings = SETTINGS | {"schedule": "constant", "warmup_steps": 0}
    first = finetune(model, DATA, freeze=SCU | ALL_CU, steps=3, **settings)
    between = weights(model)
    # The data of the second phase is that of the epochs after the first.
    from safecircuits.training.order import Order

    order = Order(6, 2, 0)
    later = With(rows=lambda k: order.rows(3 + k))
    second = finetune(model, DATA, freeze=SCU | TOP_CU, method=later, steps=6, **settings)
    assert_equal(found, weights(model))
    assert run.losses == first.losses + second.losses
    assert [phase["steps"] for phase in run.settings["trained_phases"]] == [3, 6]
    assert [phase["n_frozen"] for phase in run.settings["trained_phases"]] == [first.n_frozen, second.n_frozen]
    assert run.n_trainable == second.n_trainable > first.n_trainable
    # Frozen throughout is what both freeze; what the first froze alone has moved in the second only.
    assert run.frozen_bit_identical is True
    assert run.frozen_digest == frozen_digest(model, SCU | TOP_CU)
    moved = 0
    for name, frozen_at in (SCU | ALL_CU).parameter_masks(model).items():
        assert torch.equal(between[name][frozen_at], before[name][frozen_at])
        moved += int((found[name] != before[name])[frozen_at].sum())
    assert moved > 0


# In the first phase, at its end, and within the second.
@pytest.mark.parametrize(
    ("step", "options"),
    [(2, {}), (3, {}), (4, {}), (6, {"grad_accumulation": 2, "batch_size": 1, "mixed_precision": "bf16"})],
)
def test_a_run_cut_off_in_any_phase_ends_with_the_same_bits(tmp_path: Path, step: int, options: Any) -> None:
    expected, whole = in_phases(**options)
    kept = {**options, "checkpoint_dir": tmp_path / "ck", "checkpoint_every": 1, "eval_every": 1}
    with pytest.raises(CutOffError):
        in_phases(callbacks=[cut_off_after(step + 1)], **kept)
    found, run = in_phases(**kept)
    assert_equal(found, expected)
    assert run.losses == whole.losses
    assert run.settings["resumed_from"] == step
    assert sorted(p.name for p in (tmp_path / "ck").iterdir()) == ["phase-2.safetensors", "step-00000009"]


def test_the_rate_spans_the_phases_and_a_phase_may_freeze_nothing(tmp_path: Path) -> None:
    phases = [Phase(MASK, steps=2), Phase(None, steps=2)]
    _, run = in_phases(phases, log=tmp_path / "log", lr=1.0, warmup_steps=0, max_grad_norm=1e-9)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "log").read_text().splitlines()]
    assert rates == [1.0, 0.75, 0.5, 0.25]
    assert (run.frozen_digest, run.frozen_bit_identical) == (None, None)


def test_a_later_phase_of_another_run_is_refused(tmp_path: Path) -> None:
    in_phases(checkpoint_dir=tmp_path)
    for other in (Phase(SCU | TOP_CU | OTHER_CU, epochs=2), Phase(SCU | TOP_CU, epochs=3)):
        with pytest.raises(ValueError, match=r"was made with (phases|steps) = "):
            in_phases([TWO_PHASES[0], other], checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    ("phases", "changes", "message"),
    [
        ([], {}, "freeze is an empty sequence"),
        (TWO_PHASES, {"epochs": 1}, "phases have steps or epochs of their own"),
        ([Phase(MASK, steps=1), Phase(FreezeMask.layers(set()), steps=1)], {}, "freezes nothing"),
        ([Phase(MASK, steps=1), Phase(FreezeMask.layers((1, 3)), steps=1)], {}, "reaches layer 3"),
    ],
)
def test_bad_phases_are_refused_before_the_first_step(phases: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        in_phases(phases, callbacks=[cut_off_after(1)], eval_every=1, **changes)


def test_a_phase_has_one_length() -> None:
    with pytest.raises(ValueError, match="a phase steps or epochs, not both"):
        Phase(MASK, epochs=1, steps=2)
    with pytest.raises(ValueError, match="epochs of a phase must be at least 1, not 0"):
        Phase(MASK, epochs=0)
