"""Plain fine-tuning: the weights themselves train, but for what is frozen. Most other methods build on its loop."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from safecircuits.base.notices import notify
from safecircuits.model.fingerprint import weights_fingerprint
from safecircuits.model.forward import without_dropout
from safecircuits.model.load import require_exportable
from safecircuits.prompts.chat_tokens import encode_training
from safecircuits.prompts.prompt_set import Encoded
from safecircuits.prompts.templates import resolve_template
from safecircuits.training.freeze import Places, frozen
from safecircuits.training.loss import require_separable
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.only_units import only_units
from safecircuits.training.order import Order, truncate
from safecircuits.training.phases import PhaseSteps, frozen_throughout, phase_steps
from safecircuits.training.processes import Processes
from safecircuits.training.run import FinetuneRun
from safecircuits.training.session import Session


@register("plain")
@dataclass(frozen=True)
class Plain(Method):
    """Fine-tuning of all weights, but for what ``freeze`` names (Safety Layers §4.1 SPPFT, SSAH §4.2).

    Attributes:
        only_units: train nothing but neurons and heads: no embedding, norm or unembedding (SSAH §4.3).

    Examples:
        >>> sc.training.Plain(only_units=True).record()
        {'name': 'plain', 'only_units': True}
    """

    only_units: bool = False

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Safety Layers §4.1 (SPPFT), SSAH §4.2 and §4.3"

    def train(self, job: TrainingJob) -> FinetuneRun:
        with only_units(job.model) if self.only_units else nullcontext():
            return train_weights(job)


def train_weights(job: TrainingJob) -> FinetuneRun:
    """Train what of ``job.model`` requires a gradient and is not frozen, in the usual loop.

    Examples:
        >>> settings, plain = sc.TrainingSettings(steps=1, batch_size=2), sc.training.Plain()
        >>> tuned = sc.load_model("aligned")
        >>> job = sc.training.TrainingJob(tuned, utility, None, settings, plain, tuned.tokenizer, progress=False)
        >>> sc.training.train_weights(job).steps
        1
    """
    model, settings = job.model, job.settings
    processes = Processes(job.shard)
    settings = replace(settings, mixed_precision=processes.precision(settings.mixed_precision))
    job = replace(job, settings=settings)
    if processes.shard and settings.optimizer == "adafactor":
        raise ValueError("Adafactor's statistics are of whole rows and columns, which sharding cuts: use 'adamw'")
    last_only = settings.loss_on == "last"
    encoded = encode_training(job.tokenizer, job.data, template=settings.template, last_only=last_only)
    examples, truncated = truncate(encoded, settings.max_length, settings.loss_on)
    lengths = [len(example) for example in examples] if settings.batches == "length" else None
    order = Order(len(examples), settings.per_step, job.seed, lengths)
    plan = phase_steps(job.freeze, settings.steps, settings.epochs, order.steps_per_epoch)
    if job.keeps_good and len(plan) > 1:
        raise ValueError("a callback that rewinds is for a run of one phase: let it stop (then='stop')")
    if settings.warmup_steps > plan[-1].stop:
        steps_in_all = f"warmup_steps is {settings.warmup_steps} and the run has {plan[-1].stop} steps"
        notify(f"{steps_in_all}: the learning rate never reaches {settings.lr:g}")
    began = time.perf_counter()
    processes.place(model)
    _require_usable(model)
    plan = [replace(p, places=None if p.mask is None else Places.of(model, p.mask)) for p in plan]
    for phase in plan[1:]:  # now, and not when its turn comes, it says if nothing would be left to train
        with frozen(model, phase.places):
            pass
    always = frozen_throughout(plan)
    kept = plan[0].places if len(plan) == 1 else None if always is None else Places.of(model, always)
    digest = None if kept is None else kept.digest(model)
    identity = _identity(job, examples, plan, digest, processes)
    processes.require_same(identity)
    session = Session(job, examples, plan, processes, job.rows or order.rows, identity)
    with without_dropout(model):
        if settings.batches == "packed":
            require_separable(model, examples)
        session.run()
    # Leaving a phase has merged the weights and compared its frozen entries: to get here is to have passed.
    if kept is not None and len(plan) > 1 and kept.digest(model) != digest:
        raise RuntimeError("entries that are frozen in all phases have changed between two of them")
    losses = tuple(session.done.losses)
    return FinetuneRun(
        losses=losses,
        steps=len(losses),
        seconds=time.perf_counter() - began,
        stopped_early=len(losses) < plan[-1].stop,
        frozen_bit_identical=None if kept is None else True,
        frozen_digest=digest,
        n_trainable=session.phases[-1]["n_trainable"],
        n_frozen=session.phases[-1]["n_frozen"],
        evaluations=tuple(session.done.evaluations),
        halted=session.done.halted,
        settings={
            **identity,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": processes.size,
            "sharded": processes.shard,
            "gradient_checkpointing": settings.gradient_checkpointing,
            "truncated": truncated,
            "resumed_from": session.resumed_from,
            "freeze": _provenance(plan),
            "trained_phases": session.phases,
        },
    )


def _identity(
    job: TrainingJob, examples: Sequence[Encoded], plan: Sequence[PhaseSteps], digest: str | None, processes: Processes
) -> dict[str, Any]:
    """All that decides the weights that a run ends with: a checkpoint goes on only in a run that has the same."""
    settings = job.settings.record()
    for name in ("epochs", "gradient_checkpointing"):  # steps count, and computing again gives the same bits
        del settings[name]
    masks = [None if phase.mask is None else phase.mask.on(job.model).fingerprint for phase in plan]
    phases = [[phase.stop - phase.start, mask] for phase, mask in zip(plan, masks, strict=True)]
    return {
        "method": job.method.record(),
        **job.decides,
        "data": job.data.fingerprint,
        "tokens": _tokens_fingerprint(examples),
        **settings,
        "steps": plan[-1].stop,
        "seed": job.seed,
        "template": resolve_template(job.tokenizer, job.settings.template),
        "model": type(job.model).__name__,
        "frozen": digest,
        "phases": phases if len(plan) > 1 else None,
        "weights": weights_fingerprint(job.model) if processes.size > 1 or job.checkpoint_dir is not None else None,
    }


def _tokens_fingerprint(examples: Sequence[Encoded]) -> str:
    """Sixteen hex digits of what is trained on: another tokenizer, or another template in it, is other data."""
    seen = hashlib.sha256()
    for example in examples:
        seen.update(json.dumps([example.ids, example.response_start, *example.answers]).encode())
    return seen.hexdigest()[:16]


def _require_usable(model: Any) -> None:
    """Raise a ValueError for weights that training cannot use."""
    require_exportable(model)
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ValueError(
            "the weights are float16, in which AdamW's epsilon is zero and the first step gives no finite numbers; "
            "load the model with dtype=torch.float32 or torch.bfloat16"
        )


def _provenance(plan: Sequence[PhaseSteps]) -> Any:
    found = [None if phase.mask is None else dict(phase.mask.provenance) for phase in plan]
    return found[0] if len(found) == 1 else found
