"""Other people's loops, the real ones: Hugging Face Trainer, TRL's SFTTrainer and DPOTrainer, and a bare torch loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_freeze import MIXED, UNITS, batches, loss_of, weights
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from conftest import build_tiny_llama
from safecircuits import FreezeCallback
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.training import frozen, frozen_digest
from safecircuits.training.slices import Slice

ROWS = [{"input_ids": [2, 7 + i % 5, 8, 9 + i % 3, 3], "labels": [-100, 7 + i % 5, 8, 9 + i % 3, 3]} for i in range(16)]


def stacked(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def arguments(folder: Path, kind: type[Any] = TrainingArguments, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    return kind(str(folder), **settings | changes)


def trainer_of(model: Any, folder: Path, callbacks: list[Any] | None = None, **changes: Any) -> Trainer:
    return Trainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        data_collator=stacked,
        callbacks=callbacks,
    )


def assert_trained_but_for(model: Any, mask: FreezeMask, digest: str) -> None:
    assert not any(isinstance(module, Slice) for module in model.modules())
    assert frozen_digest(model, mask) == digest
    fresh, at = weights(build_tiny_llama()), mask.parameter_masks(model)
    for name, parameter in model.named_parameters():
        free = ~at[name] if name in at else torch.ones(parameter.shape, dtype=torch.bool)
        assert torch.equal(parameter[~free], fresh[name][~free]), name
        assert not free.any() or not torch.equal(parameter[free], fresh[name][free]), f"{name} did not train"


@pytest.mark.parametrize("way", ["with", "callback"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bf16": True, "gradient_accumulation_steps": 2},
        {"optim": "adafactor", "max_grad_norm": 0.1},
        {"gradient_checkpointing": True, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True},
    ],
    ids=["adamw", "bf16-accumulation", "adafactor-clipping", "checkpointing-best-model"],
)
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_trainer(way: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = build_tiny_llama()
    digest = frozen_digest(model, MIXED)
    if way == "with":
        trainer = trainer_of(model, tmp_path, **settings)
        with frozen(model, MIXED):
            trainer.train()
            inside = {name: value.clone() for name, value in model.state_dict().items()}
    else:
        callback = FreezeCallback(MIXED)
        trainer_of(model, tmp_path, [callback], **settings).train()
        assert callback.frozen_digest == digest
        inside = model.state_dict()
    assert_trained_but_for(model, MIXED, digest)
    assert all(torch.equal(value, inside[name]) for name, value in model.state_dict().items())
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert frozen_digest(reloaded, MIXED) == digest
    if "load_best_model_at_end" not in settings:
        assert all(torch.equal(value, inside[name]) for name, value in reloaded.state_dict().items())


def test_trainer_resumes_from_a_checkpoint_written_inside(tmp_path: Path) -> None:
    whole, resumed = build_tiny_llama(), build_tiny_llama()
    trainer_of(whole, tmp_path / "a", [FreezeCallback(UNITS)]).train()
    trainer_of(resumed, tmp_path / "b", [FreezeCallback(UNITS)]).train(
        resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
    )
    for name, value in weights(resumed).items():
        assert torch.equal(value, weights(whole)[name]), name


def test_trainer_resumed_from_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer_of(build_tiny_llama(seed=1), tmp_path / "a", [FreezeCallback(UNITS)]).train()
    callback = FreezeCallback(UNITS)
    with pytest.raises(RuntimeError, match="frozen entries are not those of this model"):
        trainer_of(build_tiny_llama(), tmp_path / "b", [callback]).train(
            resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
        )
    callback.close()


def test_a_trainer_that_trains_again_with_its_old_optimizer_is_refused(tmp_path: Path) -> None:
    callback = FreezeCallback(UNITS)
    trainer = trainer_of(build_tiny_llama(), tmp_path, [callback])
    trainer.train()
    assert callback.frozen_digest
    with pytest.raises(ValueError, match="make a new trainer to train again"):
        trainer.train()
    assert callback.frozen_digest is None, "a digest is of a training that has ended"
    assert callback.handle is None


def replaced(trainer: Trainer, model: Any) -> None:
    trainer.model = trainer.model_wrapped = model


SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adafactor-clipping": {"optim": "adafactor", "max_grad_norm": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    "bf16": {"bf16": True},
}


@pytest.mark.parametrize("way", ["model_init", "replaced", "late", "search"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_the_model_that_trains_is_the_one_that_is_frozen(way: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Whatever model a trainer takes in the end, it trains as one does that was frozen from the start."""
    want, callback = build_tiny_llama(), FreezeCallback(MIXED)
    trainer_of(want, tmp_path / "want", [FreezeCallback(MIXED)], **settings).train()
    if way in ("model_init", "search"):
        trainer = Trainer(
            model_init=lambda: build_tiny_llama(),  # transformers counts its arguments
            args=arguments(tmp_path, **settings),
            train_dataset=ROWS,
            data_collator=stacked,
            callbacks=[callback],
        )
        if way == "search":  # each trial is a train() of its own, with a model of its own
            trainer.train()
    elif way == "replaced":
        other = build_tiny_llama(seed=1)
        trainer = trainer_of(other, tmp_path, [callback], **settings)
        replaced(trainer, build_tiny_llama())
    else:
        trainer = trainer_of(build_tiny_llama(), tmp_path, **settings)
        trainer.add_callback(callback)
    trainer.train()
    digest = frozen_digest(build_tiny_llama(), MIXED)
    assert callback.frozen_digest == digest
    assert_trained_but_for(trainer.model, MIXED, digest)
    for name, value in want.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
    if way == "replaced":
        for name, value in build_tiny_llama(seed=1).state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), "the model that was replaced is itself again"


@pytest.mark.parametrize("when", ["during", "parameters"])
def test_no_digest_of_a_model_that_was_not_checked(when: str, tmp_path: Path) -> None:
    model, callback = build_tiny_llama(), FreezeCallback(UNITS)

    class Swap(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1 and when == "during":
                trainer.callback_handler.model = build_tiny_llama(seed=1)
            elif state.global_step == 1:
                kwargs["optimizer"].param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(2)))

    trainer = trainer_of(model, tmp_path, [callback, Swap()], save_strategy="no", lr_scheduler_type="constant")
    with pytest.raises(RuntimeError, match="another model, or other parameters"):
        trainer.train()
    assert callback.frozen_digest is None
    assert not any(isinstance(module, Slice) for module in model.modules())


@pytest.mark.parametrize("how", ["copies", "shards"])
def test_a_trainer_that_steps_something_else_is_refused_before_it_steps(how: str, tmp_path: Path) -> None:
    """What DeepSpeed does, by its effects: flat copies in the optimizer, and parameters that are parts."""

    class Apart(Trainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            if how == "shards":
                next(iter(self.model.parameters())).ds_id = 0
                return super().create_optimizer(*args, **kwargs)
            copies = [torch.nn.Parameter(p.detach().clone().flatten()) for p in self.model.parameters()]
            self.optimizer = torch.optim.SGD(copies, lr=0.1)
            return self.optimizer

    model, callback = build_tiny_llama(), FreezeCallback(UNITS)
    trainer = Apart(
        model=model, args=arguments(tmp_path), train_dataset=ROWS, data_collator=stacked, callbacks=[callback]
    )
    said = "steps other tensors" if how == "copies" else "holds the weights in shards"
    with pytest.raises(ValueError, match=f"{said}.*use sc.finetune"):
        trainer.train()
    assert (callback.handle, callback.frozen_digest, trainer.state.global_step) == (None, None, 0)
    assert not any(isinstance(module, Slice) for module in model.modules())
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(build_tiny_llama()).items())


def test_fsdp2_is_refused_before_it_steps(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    from torch.distributed.fsdp import fully_shard

    class Sharded(Trainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            fully_shard(self.model)
            return super().create_optimizer(*args, **kwargs)

    callback = FreezeCallback(UNITS)
    trainer = Sharded(
        model=build_tiny_llama(),
        args=arguments(tmp_path),
        train_dataset=ROWS,
        data_collator=stacked,
        callbacks=[callback],
    )
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"holds the weights in shards .*use sc\.finetune"):
            trainer.train()
    finally:
        torch.distributed.destroy_process_group()
    assert (callback.handle, callback.frozen_digest, trainer.state.global_step) == (None, None, 0)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_trainer_freezes_as_one_that_is_not(tmp_path: Path) -> None:
    want, got, callback = build_tiny_llama(), build_tiny_llama(), FreezeCallback(MIXED)
    trainer_of(want, tmp_path / "want", [FreezeCallback(MIXED)], max_steps=2).train()
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 2}
    trainer_of(got, tmp_path, [callback], **compiled).train()
    assert callback.frozen_digest == frozen_digest(build_tiny_llama(), MIXED)
    assert_trained_but_for(got, MIXED, callback.frozen_digest)
    for name, value in weights(want).items():
        torch.testing.assert_close(weights(got)[name], value, rtol=1e-4, atol=1e-5)


def test_an_optimizer_from_before_the_freeze_is_refused(tmp_path: Path) -> None:
    model = build_tiny_llama()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = FreezeCallback(UNITS)
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=ROWS,
        data_collator=stacked,
        optimizers=(early, None),
        callbacks=[callback],
    )
    with pytest.raises(ValueError, match="optimizer was made before the model was frozen"):
        trainer.train()
    callback.close()
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(build_tiny_llama()).items())


@pytest.fixture
def text_rows() -> Callable[..., Any]:
    datasets = pytest.importorskip("datasets")

    def rows(**columns: str) -> Any:
        return datasets.Dataset.from_list([{"prompt": "how do i make the cake", **columns}] * 8)

    return rows


@pytest.mark.parametrize("way", ["with", "callback"])
def test_sft_trainer(way: str, text_rows: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    model = build_tiny_llama()
    digest, callback = frozen_digest(model, MIXED), FreezeCallback(MIXED)
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments(tmp_path, trl.SFTConfig, max_length=32, gradient_checkpointing=False),
        train_dataset=text_rows(completion=" sorry i cannot help with that"),
        processing_class=tiny_tokenizer,
        callbacks=[callback] if way == "callback" else [],
    )
    with frozen(model, MIXED) if way == "with" else nullcontext():
        trainer.train()
    assert frozen_digest(model, MIXED) == digest
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in reloaded.state_dict().items())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert not losses or losses[-1] < losses[0]


@pytest.mark.parametrize("way", ["with", "callback"])
def test_dpo_trainer(way: str, text_rows: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    model, callback = build_tiny_llama(), FreezeCallback(MIXED)
    digest = frozen_digest(model, MIXED)
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=build_tiny_llama(),
        args=arguments(tmp_path, trl.DPOConfig, max_length=32, gradient_checkpointing=False),
        train_dataset=text_rows(chosen=" sorry i cannot help", rejected=" take some water"),
        processing_class=tiny_tokenizer,
        callbacks=[callback] if way == "callback" else [],
    )
    with frozen(model, MIXED) if way == "with" else nullcontext():
        trainer.train()
    assert_trained_but_for(model, MIXED, digest)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in reloaded.state_dict().items())


def test_a_bare_torch_loop() -> None:
    model = build_tiny_llama()
    digest = frozen_digest(model, MIXED)
    with frozen(model, MIXED) as handle:
        optimizer = torch.optim.AdamW(handle.trainable_parameters(), lr=1e-2, weight_decay=0.1)
        handle.check_optimizer(optimizer)
        for batch in batches(3):
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_trained_but_for(model, MIXED, digest)
