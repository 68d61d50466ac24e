"""The training loop: its loss, its determinism, the record it leaves, and what happens when it is cut off."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_freeze_mask import SHAPE, tiny_gpt2
from torch import Tensor

from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model, to_hugging_face
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.training import FinetuneRun, Plain, TrainingJob, finetune, frozen_digest, train_weights
from safecircuits.training.loss import token_loss

DATA = PromptSet(
    "recipes",
    tuple(f"how do i make {thing}" for thing in ("a cake", "tea", "the lamp", "a road", "a house and a dog", "salt")),
    (
        "take some water .",
        "sure take the tea",
        "wood .",
        "the road is here",
        "you take wood and help .",
        "it is salt",
    ),
)
MASK = FreezeMask.layers(1) | FreezeMask.of_units({"mlp": {0: [1, 5], 2: range(40)}, "attn": {0: [0, 1]}}, SHAPE)
SETTINGS: dict[str, Any] = {
    "batch_size": 2,
    "lr": 1e-2,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "progress": False,
}


class With(Plain):
    """Plain fine-tuning with hooks of a method, such as ``rows`` or ``on_gradients``."""

    def __init__(self, **hooks: Any) -> None:
        super().__init__()
        object.__setattr__(self, "hooks", hooks)

    def train(self, job: TrainingJob) -> FinetuneRun:
        return train_weights(replace(job, **vars(self)["hooks"]))


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in to_hugging_face(model).named_parameters()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert all(torch.equal(a[name], b[name]) for name in a), [n for n in a if not torch.equal(a[n], b[n])]


def trained(freeze: FreezeMask | None = MASK, seed: int = 0, **changes: Any) -> tuple[dict[str, Tensor], FinetuneRun]:
    """A fresh tiny model after fine-tuning, and the run."""
    model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())
    run = finetune(model, DATA, freeze=freeze, seed=seed, **{"steps": 8, **SETTINGS, **changes})
    return weights(model), run


# --- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.parametrize("kind", ["hf", "bridge", "hooked"])
def test_the_loss_is_hugging_faces_over_unpadded_examples(
    kind: str, loss_on: Any, tiny_tokenizer: Any, tiny_llama_hf: Any, make_tiny_model: Callable[..., Any]
) -> None:
    examples = encode(tiny_tokenizer, DATA, with_responses=True)
    summed, count = token_loss(make_tiny_model(kind), pad_left(examples), loss_on)
    expected, targets = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.ids])
        labels = ids.clone()
        labels[0, : example.response_start if loss_on == "response" else 1] = -100
        n = int((labels[:, 1:] != -100).sum())
        expected, targets = expected + n * tiny_llama_hf(ids, labels=labels).loss.item(), targets + n
    assert count == targets
    assert summed.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_accumulation_gives_the_gradient_of_the_large_batch(loss_on: Any) -> None:
    at_once, run = trained(steps=3, batch_size=6, loss_on=loss_on, optimizer="sgd")
    in_parts, same = trained(steps=3, batch_size=2, grad_accumulation=3, loss_on=loss_on, optimizer="sgd")
    assert run.losses == pytest.approx(same.losses, rel=1e-5)
    for name, value in at_once.items():
        torch.testing.assert_close(value, in_parts[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("freeze", [None, MASK])
def test_every_kind_of_model_trains_to_the_same_weights(
    freeze: FreezeMask | None, make_tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    results, runs = {}, {}
    for kind in ("hf", "bridge", "hooked"):
        model = make_tiny_model(kind)
        changes = {"optimizer": "sgd", "steps": 6, "tokenizer": tiny_tokenizer}
        runs[kind] = finetune(model, DATA, freeze=freeze, **SETTINGS | changes)
        results[kind] = weights(model)
    for kind in ("bridge", "hooked"):
        assert runs[kind].losses == pytest.approx(runs["hf"].losses, rel=1e-5)
        assert (runs[kind].n_trainable, runs[kind].n_frozen) == (runs["hf"].n_trainable, runs["hf"].n_frozen)
        for name, value in results["hf"].items():  # float32 rounding over six steps; weights are of order 0.1 to 1
            torch.testing.assert_close(results[kind][name], value, rtol=0, atol=1e-5)


# --- the run -----------------------------------------------------------------------------------------------------


def test_training_learns_and_keeps_what_is_frozen(tiny_bridge: Any) -> None:
    before, digest = weights(tiny_bridge), frozen_digest(tiny_bridge, MASK)
    run = finetune(tiny_bridge, DATA, freeze=MASK, epochs=30, **SETTINGS)
    assert run.final_loss() < 0.5 < run.losses[0]
    assert run.steps == 90
    assert run.frozen_bit_identical is True
    assert run.frozen_digest == digest == frozen_digest(tiny_bridge, MASK)
    after = weights(tiny_bridge)
    for name, frozen_at in MASK.parameter_masks(tiny_bridge).items():
        assert torch.equal(after[name][frozen_at], before[name][frozen_at])
    free = finetune(tiny_bridge, DATA, steps=1, **SETTINGS)
    assert (free.frozen_bit_identical, free.frozen_digest, free.n_frozen) == (None, None, 0)


def test_the_seed_decides_the_run_to_the_bit() -> None:
    (first, run), (again, _), (other, _) = trained(), trained(), trained(seed=1)
    assert_equal(first, again)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert run.settings["data"] == DATA.fingerprint


def test_the_callers_random_state_is_left_alone(tiny_bridge: Any) -> None:
    state = torch.random.get_rng_state()
    finetune(tiny_bridge, DATA, freeze=MASK, steps=2, **SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_epoch_sees_every_example_once() -> None:
    from safecircuits.training.order import Order

    order = Order(n=7, per_step=3, seed=0)
    epochs = [[row for k in range(3) for row in order.rows(3 * epoch + k)] for epoch in range(2)]
    assert [sorted(rows) for rows in epochs] == [list(range(7))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("cosine", [0.5, 1, 1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_log_has_a_line_a_step_and_the_rate_follows_the_schedule(
    schedule: str, expected: list[float], tmp_path: Path
) -> None:
    _, run = trained(steps=6, lr=1e-3, schedule=schedule, log=tmp_path / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == list(run.losses)
    assert [line["lr"] for line in lines] == pytest.approx([1e-3 * share for share in expected])


def test_callbacks_see_the_model_and_their_figures_are_kept(tiny_bridge: Any) -> None:
    tiny_bridge.train()
    tokenizer = build_tiny_tokenizer()
    prompt = tokenizer("how do i make tea", return_tensors="pt").input_ids

    def look(model: Any, step: int) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        assert not model.blocks[0].training
        return {"top": model(prompt)[0, -1].max().item(), "at": step}

    run = finetune(tiny_bridge, DATA, freeze=MASK, steps=5, callbacks=[look], eval_every=2, **SETTINGS)
    assert [record["step"] for record in run.evaluations] == [2, 4, 5]
    assert run.evaluations[-1]["top"] == tiny_bridge(prompt)[0, -1].max().item()
    assert tiny_bridge.training
    assert tiny_bridge.blocks[0].training


def test_stop_at_loss_stops_at_a_running_mean() -> None:
    _, full = trained(steps=60, schedule="constant")
    target = sum(full.losses[15:35]) / 20 + 1e-6
    _, run = trained(steps=60, schedule="constant", stop_at_loss=target)
    assert run.stopped_early
    assert run.losses == full.losses[: run.steps]
    assert 20 <= run.steps <= 35
    assert run.final_loss() < target


def test_a_function_can_make_the_optimizer() -> None:
    changed, _ = trained(optimizer=lambda ps: torch.optim.Adagrad(ps, lr=0.1), max_grad_norm=None)
    usual, _ = trained()
    assert not torch.equal(changed["lm_head.weight"], usual["lm_head.weight"])


def test_a_run_can_be_saved_and_looked_at(tmp_path: Path) -> None:
    _, run = trained(steps=3, callbacks=[lambda _model, step: {"x": step}])
    run.save(tmp_path)
    assert FinetuneRun.load(tmp_path) == run
    assert run.to_frame()["loss"].tolist() == list(run.losses)


# --- cut off -----------------------------------------------------------------------------------------------------


class CutOffError(BaseException):
    pass


def cut_off_after(n: int, error: type[BaseException] = CutOffError) -> Callable[[Any, int], None]:
    def callback(_model: Any, step: int) -> None:
        if step == n:
            raise error

    return callback


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("step", [2, 5, 6])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, step: int, optimizer: str) -> None:
    expected, whole = trained(optimizer=optimizer)
    options = {
        "optimizer": optimizer,
        "checkpoint_dir": tmp_path / "ck",
        "checkpoint_every": 2,
        "eval_every": 1,
    }
    with pytest.raises(CutOffError):
        trained(callbacks=[cut_off_after(step)], log=tmp_path / "log.jsonl", **options)
    found, run = trained(log=tmp_path / "log.jsonl", **options)
    assert_equal(found, expected)
    assert run.losses == whole.losses
    assert run.settings["resumed_from"] == (step - 1) // 2 * 2
    logged = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 9))
    assert [p.name for p in (tmp_path / "ck").iterdir()] == ["step-00000008"]
    again, done = trained(**options)  # nothing is left to do
    assert_equal(again, expected)
    assert done.losses == whole.losses


KILLED = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
from test_finetune import trained
torch.set_num_threads(1)
trained(**json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "settings",
    [{"steps": 150}, {"steps": 100, "batch_size": 3, "grad_accumulation": 2, "batches": "packed", "max_length": 16}],
)
def test_a_process_killed_at_any_step_can_be_resumed_to_the_same_bits(tmp_path: Path, settings: dict[str, Any]) -> None:
    log, folder = tmp_path / "log.jsonl", tmp_path / "ck"
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent / "src"), *sys.path])}
    given = settings | {"checkpoint_dir": str(folder), "checkpoint_every": 1, "log": str(log)}
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(here), json.dumps(given)]
    expected, whole = trained(**settings)
    killed_at = random.randint(1, 60)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600  # only against a hang: beside other work an import alone takes minutes
    while not (log.exists() and len(log.read_text().splitlines()) >= killed_at):
        assert process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline, "the process did not train"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found, run = trained(**settings, checkpoint_dir=folder, checkpoint_every=1000, log=log)
    assert killed_at - 1 <= run.settings["resumed_from"] < settings["steps"]
    assert run.losses == whole.losses
    assert_equal(found, expected)
    assert [path.name for path in folder.iterdir()] == [f"step-{settings['steps']:08d}"]


def test_a_keyboard_interrupt_leaves_a_whole_model(tiny_bridge: Any) -> None:
    names = [(name, p.shape, p.requires_grad) for name, p in tiny_bridge.named_parameters()]
    before = weights(tiny_bridge)
    with pytest.raises(KeyboardInterrupt):
        finetune(
            tiny_bridge,
            DATA,
            freeze=MASK,
            steps=8,
            callbacks=[cut_off_after(3, KeyboardInterrupt)],
            eval_every=1,
            **SETTINGS,
        )
    assert [(name, p.shape, p.requires_grad) for name, p in tiny_bridge.named_parameters()] == names
    after = weights(tiny_bridge)
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    for name, frozen_at in MASK.parameter_masks(tiny_bridge).items():
        assert torch.equal(after[name][frozen_at], before[name][frozen_at])


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trained(checkpoint_dir=tmp_path)
    for changes, what in [({"lr": 1e-3}, "lr = 0.01, this run has 0.001"), ({"freeze": None}, "frozen = '")]:
        with pytest.raises(ValueError, match=what):
            trained(checkpoint_dir=tmp_path, **changes)


@pytest.mark.parametrize("name", ["state.json", "trained.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path, name: str, share: float) -> None:
    trained(steps=2, checkpoint_dir=tmp_path)
    file = tmp_path / "step-00000002" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="is damaged; delete it"):
        trained(steps=2, checkpoint_dir=tmp_path)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tiny_bridge: Any) -> None:
    def poison(model: Any, step: int) -> None:
        if step == 3:
            next(iter(model.parameters())).fill_(float("nan"))

    before = weights(tiny_bridge)
    with pytest.raises(FloatingPointError, match="loss is nan at step 4"):
        finetune(tiny_bridge, DATA, freeze=MASK, steps=8, callbacks=[poison], eval_every=1, **SETTINGS)
    after = weights(tiny_bridge)
    for name, frozen_at in MASK.parameter_masks(tiny_bridge).items():
        assert torch.equal(after[name][frozen_at], before[name][frozen_at])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": FreezeMask.layers(set())}, "freezes nothing"),
        ({"freeze": FreezeMask.layers((2, 5))}, "reaches layer 5"),
        ({"steps": 3, "epochs": 1}, "steps or epochs, not both"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"schedule": "step"}, "schedule is one of linear, constant, cosine, not 'step'"),
        ({"loss_on": "prompt"}, "loss_on is one of response, last, all, not 'prompt'"),
        ({"optimizer": "lion"}, "optimizer is 'adamw', 'sgd', 'adafactor' or a function that makes one, not 'lion'"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(**changes)


def test_bad_data_and_models_are_refused(tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="has no responses"):
        finetune(tiny_llama_hf, PromptSet("p", ("how do i",)), tokenizer=tiny_tokenizer)
    with pytest.raises(ValueError, match="has no tokenizer: pass tokenizer="):
        finetune(tiny_llama_hf, DATA)
    with pytest.raises(ValueError, match="belongs to another model"):
        finetune(tiny_gpt2(), DATA, freeze=MASK, tokenizer=tiny_tokenizer)
    with pytest.raises(ValueError, match=r"float16.*torch\.bfloat16"):
        finetune(copy.deepcopy(tiny_llama_hf).half(), DATA, tokenizer=tiny_tokenizer)
