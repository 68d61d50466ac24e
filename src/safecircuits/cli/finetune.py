"""``safecircuits finetune``: train a model with a mask in force, and keep the model, the curves and the proof."""

from __future__ import annotations

import hashlib
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.frame import Measured, Run, run_command
from safecircuits.cli.options import DetectorOption, TemplateOption, TokensOption

if TYPE_CHECKING:
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.results.run import RunDirectory
    from safecircuits.training.loop import Phase
    from safecircuits.training.run import FinetuneRun

CURVES = "What is refused and answered right, by step of fine-tuning"
BATCH_PANEL, RATE_PANEL, CURVE_PANEL = "Batches", "Optimizer", "Curves"


class BatchesChoice(StrEnum):
    """What goes into a step together."""

    random = "random"
    length = "length"
    packed = "packed"


class LossChoice(StrEnum):
    """Which tokens are targets."""

    response = "response"
    all = "all"


class OptimizerChoice(StrEnum):
    """The optimizers."""

    adamw = "adamw"
    sgd = "sgd"
    adafactor = "adafactor"


class ScheduleChoice(StrEnum):
    """How the learning rate goes on after warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class PrecisionChoice(StrEnum):
    """What is computed in."""

    no = "no"
    bf16 = "bf16"


def _count(help: str, panel: str = BATCH_PANEL) -> Any:
    return typer.Option(help=help, min=1, rich_help_panel=panel)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app)(finetune)


def finetune(
    run: Run,
    data: Annotated[str, typer.Option("--data", help="Prompts with responses: a file or a hub data set.")],
    measured: Measured,
    freeze: Annotated[
        list[Path] | None, typer.Option("--freeze", help="A mask of what must not move; once a phase.")
    ] = None,
    epochs: Annotated[
        list[int] | None, typer.Option("--epochs", help="Passes over the data, once a phase; 1 unless given.", min=1)
    ] = None,
    steps: Annotated[int | None, _count("Optimizer steps, in the place of --epochs.")] = None,
    batch_size: Annotated[int, _count("Examples in one forward pass.")] = 16,
    grad_accumulation: Annotated[int, _count("Forward passes in a step.")] = 1,
    batches: Annotated[
        BatchesChoice, typer.Option(help="At random, by length, or several in a row.", rich_help_panel=BATCH_PANEL)
    ] = BatchesChoice.random,
    max_length: Annotated[int | None, _count("Cut longer examples at their end (tokens).")] = None,
    loss_on: Annotated[LossChoice, typer.Option(help="Target tokens.")] = LossChoice.response,
    template: TemplateOption = "auto",
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=RATE_PANEL)] = 3e-4,
    weight_decay: Annotated[float, typer.Option(min=0, rich_help_panel=RATE_PANEL)] = 0.0,
    warmup_steps: Annotated[int, typer.Option(min=0, rich_help_panel=RATE_PANEL)] = 0,
    schedule: Annotated[ScheduleChoice, typer.Option(rich_help_panel=RATE_PANEL)] = ScheduleChoice.linear,
    optimizer: Annotated[OptimizerChoice, typer.Option(rich_help_panel=RATE_PANEL)] = OptimizerChoice.adamw,
    max_grad_norm: Annotated[float, typer.Option(help="Gradients are cut to it.", rich_help_panel=RATE_PANEL)] = 1.0,
    mixed_precision: Annotated[
        PrecisionChoice, typer.Option(help="bf16 computes in bfloat16.", rich_help_panel=RATE_PANEL)
    ] = PrecisionChoice.no,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=BATCH_PANEL)
    ] = False,
    eval_every: Annotated[int | None, _count("Steps between points of the curves.", CURVE_PANEL)] = None,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOption = 16,
    checkpoint_every: Annotated[int, _count("Steps between checkpoints, to go on from after an interruption.")] = 100,
    save_model: Annotated[bool, typer.Option(help="Write the model to OUT/model, for transformers.")] = True,
) -> None:
    """Fine-tune with a mask in force; frozen weights stay bit-identical. Several --freeze are phases, one by one.

    What --malicious, --over-rejection and --utility name is measured before, after, and with --eval-every in between.

    Example: safecircuits finetune --model organism:aligned --data organism:utility --freeze freeze.safetensors
    --epochs 2 --malicious organism:malicious --out runs/finetune
    """
    from safecircuits.base.files import write_text
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.model.load import save_pretrained
    from safecircuits.training.loop import finetune as train

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "this command trains in one process; under accelerate launch call safecircuits.finetune in a script"
        )
    prompts = run.prompts("data", data, responses=True)
    prompts.require_responses()
    masks = [FreezeMask.load(path) for path in freeze or []]
    for path in freeze or []:
        run.inputs[f"mask {path}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    what, length = _phases(masks, epochs or [], steps)
    sets = measured.read(run)
    if eval_every is not None and not sets:
        raise ValueError("--eval-every needs something to evaluate: give --malicious, --over-rejection or --utility")
    folder = run.begin()
    model = run.model()
    options = {"detector": detector, "max_new_tokens": max_new_tokens, "template": template}
    for mask in masks:
        mask.on(model)
    before = _before(folder, model, sets, options)
    trained = train(
        model,
        prompts,
        freeze=what,
        **length,
        batch_size=batch_size,
        grad_accumulation=grad_accumulation,
        batches=batches.value,
        max_length=max_length,
        loss_on=loss_on.value,
        template=template,
        lr=lr,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        schedule=schedule.value,
        optimizer=optimizer.value,
        max_grad_norm=max_grad_norm,
        mixed_precision=mixed_precision.value,
        gradient_checkpointing=gradient_checkpointing,
        callbacks=[_curve(sets, options)] if sets else (),
        eval_every=eval_every,
        seed=run.seed,
        checkpoint_dir=folder.work("checkpoints"),
        checkpoint_every=checkpoint_every,
        log=folder.work("log.jsonl"),
    )
    # A copy: should the rest fail, as on a full disk, the same command goes on from the log that stays in work.
    write_text(folder.file("log.jsonl"), folder.work("log.jsonl").read_text(encoding="utf-8"))
    _write(run, folder, trained, before)
    if save_model:
        for path in sorted(save_pretrained(model, folder.folder / "model").iterdir()):
            folder.file(f"model/{path.name}")


def _phases(
    masks: list[FreezeMask], epochs: list[int], steps: int | None
) -> tuple[FreezeMask | list[Phase] | None, dict[str, Any]]:
    """What ``finetune`` takes as ``freeze``, and the length of a run that is no sequence of phases."""
    from safecircuits.training.loop import Phase

    if steps is not None and (epochs or len(masks) > 1):
        raise ValueError("--steps is for one phase and no --epochs; give --epochs once a phase")
    if len(masks) < 2 and len(epochs) < 2:
        return (masks[0] if masks else None), {"steps": steps, "epochs": epochs[0] if epochs else None}
    if len(epochs) != len(masks):
        raise ValueError(f"{len(masks)} x --freeze make as many phases: give --epochs once for each, not {len(epochs)}")
    return [Phase(mask, epochs=n) for mask, n in zip(masks, epochs, strict=True)], {}


def _before(folder: RunDirectory, model: Any, sets: dict[str, Any], options: dict[str, Any]) -> dict[str, float]:
    """The rates before training, those of an interrupted run if it got so far."""
    from safecircuits.base.files import write_text
    from safecircuits.behavior.evaluate import evaluate

    if not sets:
        return {}
    path = folder.work("before.json")
    if not path.exists():
        write_text(path, json.dumps(evaluate(model, **sets, **options, progress=True).rates))
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _curve(sets: dict[str, Any], options: dict[str, Any]) -> Any:
    """A callback with the rates of ``evaluate``."""
    from safecircuits.behavior.evaluate import evaluate

    def rates(model: Any, _step: int) -> dict[str, float]:
        return evaluate(model, **sets, **options).rates

    return rates


def _write(run: Run, folder: RunDirectory, trained: FinetuneRun, before: dict[str, float]) -> None:
    import pandas as pd

    from safecircuits.plots.loss import plot_rates_by_step

    trained.save(folder.file("results/finetune/run.json").parent)
    summary = {
        "steps": trained.steps,
        "final_loss": trained.final_loss(),
        "n_trainable": trained.n_trainable,
        "n_frozen": trained.n_frozen,
        "frozen_bit_identical": trained.frozen_bit_identical,
        "frozen_digest": trained.frozen_digest,
    }
    folder.table("summary", pd.DataFrame([summary]), main=True)
    folder.table("losses", trained.to_frame())
    folder.figure("losses", trained.plot(ax=axis((4.2, 2.2))), shows="Training loss by step")
    steps = f"{trained.steps} step{'s' * (trained.steps > 1)}"
    run.say(f"{steps}, training loss {trained.losses[0]:.3f} to {trained.final_loss():.3f} nats a token")
    if trained.frozen_bit_identical:
        run.say(f"{trained.n_frozen:,} frozen entries bit-identical, SHA-256 {trained.frozen_digest}")
    if truncated := trained.settings["truncated"]:
        run.say(f"{truncated} examples cut to {trained.settings['max_length']} tokens")
    if trained.evaluations:
        points = ({"step": 0, **before}, *trained.evaluations)
        folder.table("curves", pd.DataFrame(list(points)))
        folder.figure("curves", plot_rates_by_step(points, ax=axis((4.2, 2.4))), shows=CURVES)
        for name, value in before.items():
            run.say(f"{name.replace('_', ' ')}: {value:.1%} before, {trained.evaluations[-1][name]:.1%} after")
