"""Fine-tuning with the frozen part out of its reach: in one process or in many, in one phase or in several."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.notices import notify
from safecircuits.model.fingerprint import weights_fingerprint
from safecircuits.model.forward import without_dropout
from safecircuits.model.load import require_exportable
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode, resolve_template
from safecircuits.training.freeze import frozen, frozen_digest
from safecircuits.training.loss import LossOn, Precision, require_separable
from safecircuits.training.optimizers import MakeOptimizer, OptimizerName, Schedule
from safecircuits.training.optimizers import make_optimizer as make_optimizer
from safecircuits.training.order import Batches, Order, truncate
from safecircuits.training.phases import Freeze, PhaseSteps, frozen_throughout, phase_steps
from safecircuits.training.phases import Phase as Phase
from safecircuits.training.processes import Processes
from safecircuits.training.recipe import Recipe, require_counts
from safecircuits.training.run import FinetuneRun as FinetuneRun
from safecircuits.training.session import Callback, OnGradients, Rows, Session


@checked
def finetune(
    model: Any,
    data: PromptSet,
    *,
    freeze: Freeze = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 16,
    lr: float = 3e-4,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    schedule: Schedule = "linear",
    max_grad_norm: float | None = 1.0,
    grad_accumulation: int = 1,
    seed: int = 0,
    template: str = "auto",
    loss_on: LossOn = "response",
    optimizer: OptimizerName | MakeOptimizer = "adamw",
    batches: Batches = "random",
    max_length: int | None = None,
    mixed_precision: Precision | None = None,
    gradient_checkpointing: bool = False,
    stop_at_loss: float | None = None,
    callbacks: Sequence[Callback] = (),
    eval_every: int | None = None,
    rows: Rows | None = None,
    on_gradients: OnGradients | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 100,
    log: str | Path | None = None,
    shard: bool | None = None,
    tokenizer: Any = None,
    progress: bool = True,
) -> FinetuneRun:
    """Fine-tune ``model`` in place on prompts with responses; what ``freeze`` names stays bit-identical.

    The seed decides the order of the data, and nothing else is random: dropout is off, so that every model trains in
    evaluation mode (its own mode is put back afterwards). On a CPU the same seed gives the same bits.

    Runs unchanged under ``accelerate launch`` and ``torchrun``: every process loads the model and calls this with the
    same arguments. A step sees the same examples whatever the number of processes, each of which takes its share, so
    that losses and weights are those of one process to rounding. Checkpoints and log are the main process's.

    Args:
        model: a TransformerBridge, a HookedTransformer, or a plain Hugging Face model (which needs ``tokenizer``).
        data: prompts with responses; every response is closed by the end-of-sequence token.
        freeze: what must not move: a mask, or phases one after the other, ``[Phase(scu | cu, epochs=1),
            Phase(scu | top_cu, epochs=2)]``. Each phase starts with a fresh optimizer; the schedule of the learning
            rate spans them all. Parameters that require no gradient are not trained either.
        steps, epochs: optimizer steps, or passes over the data; one pass if neither is given. Phases have their own.
        batch_size: examples in one forward pass; a step sees ``batch_size * grad_accumulation`` of them, of all
            processes together. The last step of an epoch sees what is left.
        lr, weight_decay, warmup_steps, schedule: the rate rises linearly during warm-up, then stays or falls to zero
            at the last step. Decay applies to everything that trains. A custom optimizer keeps its own rate and decay.
        max_grad_norm: the gradient of all that trains is clipped to this norm; None for no clipping.
        template: as in ``safecircuits.prompts.prompt_set.encode``.
        loss_on: mean cross-entropy over the ``"response"`` tokens of a step, or over ``"all"`` tokens.
        optimizer: ``"adamw"``, ``"sgd"`` (momentum 0.9), ``"adafactor"`` (PyTorch's, whose rate is a share of each
            tensor's size), or a function that makes one from a list of parameters.
        batches: ``"random"``; ``"length"`` puts examples of similar length into the same step, so that little is
            padded; ``"packed"`` puts several examples into one row, each computed as if it were alone, which is
            checked on this model before the first step.
        max_length: longer examples are cut at their end, with a warning; ``settings["truncated"]`` says how many.
        mixed_precision: ``"bf16"`` computes in bfloat16 and updates in the dtype of the weights; None for what was
            launched.
        gradient_checkpointing: keep only the input of each layer for the backward pass, and compute the rest again:
            the same bits, less memory, more time.
        stop_at_loss: stop once the mean training loss of the last 20 steps is below this, to compare runs at matched
            task loss.
        callbacks: called without gradients every ``eval_every`` steps and after the last one, on every process; what
            they return on the main process, numbers by name or what ``evaluate`` returns, is kept: for example
            ``lambda model, step: evaluate(model, malicious=…, utility=…)`` for curves of safety and utility.
        rows: which rows of ``data`` each step sees, in place of the order that ``batches`` gives.
        on_gradients: may change the gradients of a step, as a penalty on the weights does; it keeps no state across a
            resume.
        checkpoint_dir: where a checkpoint is kept, every ``checkpoint_every`` steps and at the end. The same call with
            the same model, loaded anew, goes on from it, to the weights that an uninterrupted run reaches: to the bit
            on a CPU, to rounding with another number of processes. All processes must see the folder.
        log: a file of JSON lines: ``step, loss, lr, grad_norm, tokens, seconds`` for each step (tokens are targets,
            seconds since this call began to train), and a line for what callbacks return.
        shard: shard weights, gradients and optimizer state over the processes (FSDP2). None for what was launched
            (``--use_fsdp --fsdp_version 2``). The model stays whole where it was loaded, for callbacks and for the
            end, and so does the frozen rest of partly frozen tensors; load it on the CPU to have shards alone on
            the device.

    Raises:
        ValueError: for data without responses, a mask of another model, one that freezes nothing or everything, a
            checkpoint of another run, of other starting weights or of other tokens, a model that could not be saved
            afterwards, and processes that do not agree.
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
    """
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"a plain {type(model).__name__} has no tokenizer: pass tokenizer=")
    if steps is not None and epochs is not None:
        raise ValueError(f"give steps or epochs, not both (steps={steps}, epochs={epochs})")
    require_counts(steps=steps, epochs=epochs, eval_every=eval_every, checkpoint_every=checkpoint_every)
    processes = Processes(shard)
    recipe = Recipe(
        batch_size,
        grad_accumulation,
        lr,
        weight_decay,
        warmup_steps,
        schedule,
        max_grad_norm,
        seed,
        loss_on,
        optimizer,
        stop_at_loss,
        batches,
        max_length,
        processes.precision(mixed_precision),
    )
    if processes.shard and optimizer == "adafactor":
        raise ValueError("Adafactor's statistics are of whole rows and columns, which sharding cuts: use 'adamw'")
    encoded = encode(tokenizer, data, template=template, with_responses=True)
    examples, truncated = truncate(encoded, max_length, loss_on)
    lengths = [len(example) for example in examples] if batches == "length" else None
    order = Order(len(examples), recipe.per_step, seed, lengths)
    plan = phase_steps(freeze, steps, epochs, order.steps_per_epoch)
    if warmup_steps > plan[-1].stop:
        steps_in_all = f"warmup_steps is {warmup_steps} and the run has {plan[-1].stop} steps"
        notify(f"{steps_in_all}: the learning rate never reaches {lr:g}")
    began = time.perf_counter()
    processes.place(model)
    _require_usable(model, plan)
    always = frozen_throughout(plan)
    digest = None if always is None else frozen_digest(model, always)
    masks = [None if phase.mask is None else phase.mask.on(model).fingerprint for phase in plan]
    phases = [[phase.stop - phase.start, mask] for phase, mask in zip(plan, masks, strict=True)]
    identity: dict[str, Any] = {
        "data": data.fingerprint,
        "tokens": _tokens_fingerprint(examples),
        "steps": plan[-1].stop,
        **recipe.settings(),
        "template": resolve_template(tokenizer, template),
        "model": type(model).__name__,
        "frozen": digest,
        "phases": phases if len(plan) > 1 else None,
        "weights": weights_fingerprint(model) if processes.size > 1 or checkpoint_dir is not None else None,
    }
    processes.require_same(identity)
    session = Session(
        model,
        recipe,
        examples,
        plan,
        processes,
        rows or order.rows,
        identity,
        callbacks,
        eval_every,
        on_gradients,
        gradient_checkpointing,
        None if checkpoint_dir is None else Path(checkpoint_dir),
        checkpoint_every,
        log,
        progress,
    )
    with without_dropout(model):
        if batches == "packed":
            require_separable(model, examples)
        session.run()
    # Leaving a phase has merged the weights and compared its frozen entries: to get here is to have passed.
    if always is not None and len(plan) > 1 and frozen_digest(model, always) != digest:
        raise RuntimeError("entries that are frozen in all phases have changed between two of them")
    losses = tuple(session.done.losses)
    return FinetuneRun(
        losses=losses,
        steps=len(losses),
        seconds=time.perf_counter() - began,
        stopped_early=len(losses) < plan[-1].stop,
        frozen_bit_identical=None if always is None else True,
        frozen_digest=digest,
        n_trainable=session.phases[-1]["n_trainable"],
        n_frozen=session.phases[-1]["n_frozen"],
        evaluations=tuple(session.done.evaluations),
        settings={
            **identity,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": processes.size,
            "sharded": processes.shard,
            "gradient_checkpointing": gradient_checkpointing,
            "truncated": truncated,
            "resumed_from": session.resumed_from,
            "freeze": _provenance(plan),
            "trained_phases": session.phases,
        },
    )


def _tokens_fingerprint(examples: Sequence[Encoded]) -> str:
    """Sixteen hex digits of what is trained on: another tokenizer, or another template in it, is other data."""
    seen = hashlib.sha256()
    for example in examples:
        seen.update(json.dumps([example.ids, example.response_start]).encode())
    return seen.hexdigest()[:16]


def _require_usable(model: Any, plan: Sequence[PhaseSteps]) -> None:
    """Raise now, and not when its turn comes, for weights or masks that training cannot use."""
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ValueError(
            "the weights are float16, in which AdamW's epsilon is zero and the first step gives no finite numbers; "
            "load the model with dtype=torch.float32 or torch.bfloat16"
        )
    require_exportable(model)
    for phase in plan:
        if phase.mask is not None and not phase.mask:
            raise ValueError("the freeze mask freezes nothing; pass None to train without one")
    for phase in plan[1:]:
        with frozen(model, phase.mask):
            pass


def _provenance(plan: Sequence[PhaseSteps]) -> Any:
    found = [None if phase.mask is None else dict(phase.mask.provenance) for phase in plan]
    return found[0] if len(found) == 1 else found
