"""``safecircuits finetune``: train a model by any method, a mask in force, and keep model, curves and proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.canvas import axis
from safecircuits.cli.declared import Of
from safecircuits.cli.finetune_watch import Watch, watching
from safecircuits.cli.found_on import say_overlaps, say_overlaps_of_masks
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.measured import Measured
from safecircuits.cli.methods import mask_of, method_of
from safecircuits.cli.options import DetectorOption, TokensOrNeededOption, named, prompt_option
from safecircuits.cli.signature import Fields
from safecircuits.training.settings import TrainingSettings

if TYPE_CHECKING:
    from safecircuits.masks.freeze_mask import FreezeMask
    from safecircuits.results.run import RunDirectory
    from safecircuits.training.phases import Phase
    from safecircuits.training.run import FinetuneRun

WATCHING = "Watching"
_RATE = ("lr", "weight_decay", "warmup_steps", "schedule", "optimizer", "max_grad_norm", "mixed_precision")
_BATCH = ("batch_size", "grad_accumulation", "batches", "max_length", "gradient_checkpointing")
SETTINGS = Fields(
    without=("epochs",),  # which may be given once a phase
    panels={**dict.fromkeys(_RATE, "Optimizer"), **dict.fromkeys(_BATCH, "Batches")},
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app, trains=True)(finetune)


def finetune(
    run: Run,
    data: Annotated[str, prompt_option("--data", "Prompts with responses, or whole chats, to train on.")],
    measured: Measured,
    judging: JudgeOptions,
    settings: Annotated[TrainingSettings, SETTINGS],
    method: Annotated[
        str, typer.Option(help="The way to fine-tune, such as lora or lisa; a name that is none lists them all.")
    ] = "plain",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, NAME=VALUE; may be repeated.")
    ] = None,
    freeze: Annotated[
        list[Path] | None, typer.Option("--freeze", help="A mask of what must not move; once a phase.")
    ] = None,
    epochs: Annotated[
        list[int] | None, typer.Option("--epochs", help="Passes over the data, once a phase; 1 unless given.", min=1)
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorboard, wandb, trackio or another tracker of Accelerate; none; may be repeated.",
            rich_help_panel=WATCHING,
        ),
    ] = None,
    tolerate: Annotated[
        list[str] | None,
        typer.Option(
            help="RATE=SHARE, as malicious-refused=0.05: how much worse a rate may get before training ends; may be "
            "repeated. Measured with --eval-every and at the end.",
            rich_help_panel=WATCHING,
        ),
    ] = None,
    then: Annotated[
        Any,
        Of("training.guard:Then", "What then: the weights stay, or go back to the last good ones.", panel=WATCHING),
    ] = "rewind",
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between points of the curves.", min=1, rich_help_panel=WATCHING)
    ] = None,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOrNeededOption = None,
    checkpoint_every: Annotated[
        int,
        typer.Option(
            help="Steps between checkpoints, to go on from after an interruption.", min=1, rich_help_panel=WATCHING
        ),
    ] = 100,
    save_model: Annotated[bool, typer.Option(help="Write the model to OUT/model, for transformers.")] = True,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            help="OWNER/NAME on the Hugging Face hub to upload the model to, with its card; private where it is made.",
            metavar="REPO",
        ),
    ] = None,
) -> None:
    """Fine-tune with a mask; frozen weights stay bit-identical. Several --freeze are phases, one after the other.

    A column of messages may hold chats of any length: the loss is on every answer, or with --loss-on last on the last.
    --method trains in another way: --method lora --set r=16, --method lisa --set alignment=refusals.json --steps 500.
    What --malicious, --over-rejection and --utility name is measured before, after, and with --eval-every in between:
    before and after are compared prompt by prompt (McNemar's exact test), all answers are kept, and how far the model's
    next tokens have moved from what they were is given as a KL divergence.

    Example: safecircuits finetune --model organism:aligned --data organism:utility --freeze freeze.safetensors
    --epochs 2 --malicious organism:malicious --out runs/finetune
    """
    from safecircuits.base.files import write_text
    from safecircuits.prompts.chat_set import ChatSet
    from safecircuits.prompts.prompt_set import require_answered
    from safecircuits.training.guard import SafetyGuard
    from safecircuits.training.loop import finetune as train
    from safecircuits.training.trackers import require_trackers

    prompts = run.prompts("data", data, responses=True, chats=True)
    asked = prompts.questions() if isinstance(prompts, ChatSet) else require_answered(prompts, "data")
    masks = [mask_of(run, path) for path in freeze or []]
    if settings.steps is not None and (epochs or len(masks) > 1):
        raise ValueError("--steps is for one phase and no --epochs; give --epochs once a phase")
    way = method_of(run, method, set_ or [])
    given: Any = {one: value for one, value in vars(settings).items() if one in run.chosen}
    frozen, settings = _phases(masks, epochs or [], way.starts_from.changed(**given))
    way.require(settings, freeze=frozen)
    sets = measured.read(run)
    if eval_every is not None and not sets:
        raise ValueError("--eval-every needs something to evaluate: give --malicious, --over-rejection or --utility")
    limits = _limits(tolerate or [], sets, then)
    require_trackers(report_to)
    if push_to_hub is not None:
        _require_pushable(push_to_hub, save_model, way)
    judge = judging.made(run, sets)
    how = watching(sets, detector if judge is None else judge, max_new_tokens)
    folder = judging.begin(run, judge)
    say_overlaps(run, {"the rows that are trained on": asked}, sets)
    say_overlaps_of_masks(run, sets)
    model = run.model()
    for mask in masks:
        mask.on(model)
    watch = Watch(folder, sets, {**how, "template": settings.template})
    before = watch.before(model, prompts)
    if limits:
        watch.guard = SafetyGuard(model, limits, then=then, before=before, unchanged=watch.unchanged, **sets)
    kept: dict[str, Any] = {"checkpoint_dir": folder.work("checkpoints"), "log": folder.work("log.jsonl")}
    trained = train(
        model,
        prompts,
        frozen,
        settings,
        method=way,
        callbacks=[watch] if sets else (),
        report_to=report_to,
        report_dir=folder.folder / "trackers",
        eval_every=eval_every,
        seed=run.seed,
        checkpoint_every=checkpoint_every,
        **{name: path for name, path in kept.items() if name not in way.refuses},
    )
    # A copy: should the rest fail, as on a full disk, the same command goes on from the log that stays in work.
    if "log" not in way.refuses:
        write_text(folder.file("log.jsonl"), folder.work("log.jsonl").read_text(encoding="utf-8"))
    _write(run, folder, trained)
    watch.write(run, trained)
    for path in sorted(one for one in (folder.folder / "trackers").rglob("*") if one.is_file()):
        folder.file(path.relative_to(folder.folder).as_posix())
    if save_model:
        _save(run, folder, model, trained, watch, push_to_hub)


def _limits(given: list[str], sets: dict[str, Any], then: Any) -> dict[str, float]:
    """``--tolerate`` as shares by rate."""
    from safecircuits.training.guard import require_measured, require_tolerated

    found = {}
    for name, text in named(given, "--tolerate").items():
        try:
            found[name.replace("-", "_")] = float(text)
        except ValueError:
            raise ValueError(f"--tolerate {name} is a share of prompts such as 0.05, not {text!r}") from None
    if found:
        require_tolerated(found, then)
        require_measured(found, sets)
    return found


def _require_pushable(repo: str, save_model: bool, way: Any) -> None:
    """Raise a ValueError, before anything trains, for what could not be uploaded afterwards."""
    from safecircuits.model.publish import require_pushable

    if not save_model:
        raise ValueError("--push-to-hub uploads OUT/model, which --no-save-model leaves out")
    if way.trains_beside:
        raise ValueError(
            f"--push-to-hub uploads a model, and {way.name} leaves an adapter: upload OUT/adapter yourself"
        )
    require_pushable(repo)


def _save(run: Run, folder: RunDirectory, model: Any, trained: FinetuneRun, watch: Watch, repo: str | None) -> None:
    """The model with its card; of a method that leaves it as it is, what PEFT has put beside it."""
    from safecircuits.gate.card import model_card
    from safecircuits.model.load import save_pretrained

    if trained.tuned is not None:
        trained.tuned.peft.save_pretrained(folder.folder / "adapter")
    else:
        base = Path(run.source).name if Path(run.source).exists() else run.source
        measured = {"before": watch.first, "after": watch.left(trained)}
        card = model_card(folder.folder.name, base, run=trained, **measured)
        to: Any = {} if repo is None else {"push_to_hub": True, "repo_id": repo, "private": True}
        save_pretrained(model, folder.folder / "model", card=card, **to)
        if repo is not None:
            run.say(f"uploaded to {repo}")
    folder.files_in("model" if trained.tuned is None else "adapter")


def _phases(
    masks: list[FreezeMask], epochs: list[int], settings: TrainingSettings
) -> tuple[FreezeMask | list[Phase] | None, TrainingSettings]:
    """What ``finetune`` takes as ``freeze``, and the settings, with the length of a run without phases."""
    from safecircuits.training.phases import Phase

    if len(masks) < 2 and len(epochs) < 2:
        return (masks[0] if masks else None), settings.changed(epochs=epochs[0]) if epochs else settings
    if len(epochs) != len(masks):
        raise ValueError(f"{len(masks)} x --freeze make as many phases: give --epochs once for each, not {len(epochs)}")
    return [Phase(mask, epochs=n) for mask, n in zip(masks, epochs, strict=True)], settings


def _write(run: Run, folder: RunDirectory, trained: FinetuneRun) -> None:
    import pandas as pd

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
    run.answer(**summary, halted=trained.halted)
    if trained.halted is not None:
        to = trained.halted["rewound_to"]
        back = "" if to is None else f"; the weights are those of step {to}"
        run.say(f"halted after step {trained.halted['step']}: {trained.halted['reason']}{back}")
    if trained.frozen_bit_identical:
        run.say(f"{trained.n_frozen:,} frozen entries bit-identical, SHA-256 {trained.frozen_digest}")
    if truncated := trained.settings["truncated"]:
        run.say(f"{truncated} examples cut to {trained.settings['max_length']} tokens")
