"""``finetune``: one call for every method, in one process or in many, in one phase or in several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from safecircuits.base.arguments import checked
from safecircuits.prompts.chat_set import ChatSet, TrainingData
from safecircuits.training.halting import keeps_good, may_halt
from safecircuits.training.method import Callback, Method, OnStep, TrainingJob
from safecircuits.training.phases import Freeze
from safecircuits.training.plain import Plain
from safecircuits.training.run import FinetuneRun
from safecircuits.training.settings import TrainingOptions, TrainingSettings
from safecircuits.training.trackers import require_trackers


@checked
def finetune(
    model: Any,
    data: TrainingData,
    freeze: Freeze = None,
    settings: TrainingSettings | None = None,
    *,
    method: Method | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    on_step: Sequence[OnStep] = (),
    report_to: Any = None,
    report_dir: str | Path = "runs",
    eval_every: int | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 100,
    log: str | Path | None = None,
    shard: bool | None = None,
    tokenizer: Any = None,
    progress: bool = True,
    **changes: Unpack[TrainingOptions],
) -> FinetuneRun:
    """Fine-tune ``model`` in place on prompts with responses; what ``freeze`` names stays bit-identical.

    The seed decides the order of the data (and the first values of what a method adds), and nothing else is random:
    dropout is off, so that every model trains in evaluation mode (its own mode is put back afterwards). On a CPU the
    same seed gives the same bits.

    Runs unchanged under ``accelerate launch`` and ``torchrun``: every process loads the model and calls this with the
    same arguments. A step sees the same examples whatever the number of processes, each of which takes its share, so
    that losses and weights are those of one process to rounding. Checkpoints and log are the main process's.

    Args:
        model: a TransformerBridge, a HookedTransformer, or a plain Hugging Face model (which needs ``tokenizer``).
        data: prompts with responses; every response is closed by the end-of-sequence token. Or chats (a ``ChatSet``, or
            a table with a column of messages), with the loss on what the assistant says.
        freeze: what must not move: a mask, or phases one after the other, ``[Phase(scu | cu, epochs=1),
            Phase(scu | top_cu, epochs=2)]``. Each phase starts with a fresh optimizer; the schedule of the learning
            rate spans them all. Parameters that require no gradient are not trained either.
        settings: how to optimise, such as a ``preset``; the method's own defaults unless given.
        method: the way to fine-tune, such as ``Lora(r=16)`` (``safecircuits.baselines``): all weights unless given.
        callbacks: called without gradients every ``eval_every`` steps and after the last one, on every process; what
            they return on the main process, numbers by name or what ``evaluate`` returns, is kept: for example
            ``lambda model, step: evaluate(model, malicious=…, utility=…)`` for curves of safety and utility. One that
            returns a ``Halt``, such as a ``SafetyGuard``, ends the run.
        on_step: called after each step with ``step, loss, lr, grad_norm, tokens, seconds`` by name, on the main
            process.
        report_to: ``"tensorboard"``, ``"wandb"``, ``"trackio"`` or another of Accelerate's trackers, by name or as an
            object, or several in a list; None or ``"none"`` for none. They get what ``on_step`` gets as ``train/loss``
            and so on, and what callbacks return as ``eval/…``.
        report_dir: where trackers that write files, such as TensorBoard's, put them.
        checkpoint_dir: where a checkpoint is kept, every ``checkpoint_every`` steps and at the end. The same call with
            the same model, loaded anew, goes on from it, to the weights that an uninterrupted run reaches: to the bit
            on a CPU, to rounding with another number of processes. All processes must see the folder.
        log: a file of JSON lines: ``step, loss, lr, grad_norm, tokens, seconds`` for each step (tokens are targets,
            seconds since this call began to train), and a line for what callbacks return.
        shard: shard weights, gradients and optimizer state over the processes (FSDP2). None for what was launched
            (``--use_fsdp --fsdp_version 2``). The model stays whole where it was loaded, for callbacks and for the
            end, and so does the frozen rest of partly frozen tensors; load it on the CPU to have shards alone on
            the device.
        changes: fields of ``TrainingSettings`` by name, in place of those of ``settings``.

    Raises:
        ValueError: for data without responses, a mask of another model, one that freezes nothing or everything, a
            checkpoint of another run, of other starting weights or of other tokens, a model that could not be saved
            afterwards, processes that do not agree, and what the method does not take.
        OSError: if a checkpoint cannot be written; the one before is kept.
        FloatingPointError: if loss or gradient is not finite, when the weights are those of the step before; or if the
            last step, or one that is to be kept or evaluated, left weights or optimizer that are not. The last good
            checkpoint stays.

    Examples:
        >>> tuned = sc.load_model("aligned")
        >>> mask = sc.FreezeMask.layers((3, 5))
        >>> run = sc.finetune(tuned, utility, freeze=mask, steps=2, batch_size=4, progress=False)
        >>> run.frozen_bit_identical, len(run.losses)
        (True, 2)
        >>> settings = sc.training.preset("paper", "Llama-2").changed(template="auto")
        >>> run = sc.finetune(tuned, utility, mask, settings, steps=1, warmup_steps=0, progress=False)
        >>> run.settings["lr"], run.settings["method"]["name"]
        (0.0003, 'plain')
    """
    method = Plain() if method is None else method
    if not isinstance(method, Method):
        raise ValueError(f"method is the settings of a way to fine-tune, such as Lora(r=8), not {method!r}")
    if not isinstance(settings, TrainingSettings | None):
        raise ValueError(f"settings are a TrainingSettings, such as preset('code'), not {settings!r}")
    settings = (method.starts_from if settings is None else settings).changed(**changes)
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"a plain {type(model).__name__} has no tokenizer: pass tokenizer=")
    method.require(
        settings,
        freeze=freeze,
        eval_every=eval_every,
        checkpoint_dir=checkpoint_dir,
        log=log,
        shard=shard or None,
        on_step=on_step or None,
        report_to=require_trackers(report_to) or None,
        guard=may_halt(callbacks),
        chats=isinstance(data, ChatSet) or None,
    )
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    return method.train(
        TrainingJob(
            model,
            data,
            freeze,
            settings,
            method,
            tokenizer,
            seed=seed,
            callbacks=callbacks,
            on_step=on_step,
            report_to=report_to,
            report_dir=report_dir,
            keeps_good=keeps_good(callbacks),
            eval_every=eval_every,
            checkpoint_dir=folder,
            checkpoint_every=checkpoint_every,
            log=log,
            shard=shard,
            progress=progress,
        )
    )
