"""The steps of a fine-tuning run, phase after phase, from its beginning or from a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from safecircuits.base.progress import track
from safecircuits.model.parameters import live_parameters
from safecircuits.prompts.prompt_set import Encoded
from safecircuits.training import checkpoint
from safecircuits.training.checkpoint import Progress, Saved
from safecircuits.training.computing import gradient_checkpointing
from safecircuits.training.freeze import frozen
from safecircuits.training.halting import Good
from safecircuits.training.log import Log
from safecircuits.training.loss import TrainingLoss
from safecircuits.training.method import HasState, Rows, TrainingJob, point_and_halt
from safecircuits.training.optimizers import make_optimizer, rate
from safecircuits.training.order import n_targets, shares
from safecircuits.training.phases import PhaseSteps
from safecircuits.training.processes import DistributedLoss, Processes
from safecircuits.training.sharding import whole
from safecircuits.training.trackers import Trackers

LOSS_WINDOW = 20
"""Steps over which ``stop_at_loss`` averages the training loss."""


@dataclass
class Session:
    """A run in progress.

    Attributes:
        identity: what a checkpoint must have been made with for this run to go on from it.
        resumed_from: steps that were done already.
    """

    job: TrainingJob
    examples: Sequence[Encoded]
    plan: Sequence[PhaseSteps]
    processes: Processes
    rows: Rows
    identity: Mapping[str, Any]
    done: Progress = field(default_factory=lambda: Progress([], []))
    resumed_from: int = 0

    @property
    def phases(self) -> list[dict[str, Any]]:
        """Of each phase that has been trained: its steps, how much was trained and frozen, and the digest."""
        return self.done.phases

    def run(self) -> None:
        """Train to the end of the plan, or until the loss is low enough."""
        saved = self._newest_checkpoint()
        if saved is not None:
            self.done, self.resumed_from = saved.progress, saved.progress.step
            self._take(saved)
        self._log = Log(self.job.log if self.processes.is_main else None, keep=self.done.step)
        self._trained_before = set() if saved is None else set(saved.start)
        self._began, self._good = time.perf_counter(), Good()
        self._trackers = Trackers()
        self.processes.once(lambda: self._trackers.begin(self.job.report_to, self.job.report_dir, self.identity))
        try:
            for index in range(self.done.phase, len(self.plan)):
                here = saved if saved is not None and saved.progress.phase == index else None
                if here is None and self._is_over():
                    break
                self._phase(index, here)
        finally:
            self._trackers.finish()

    def _phase(self, index: int, saved: Saved | None) -> None:
        """One phase, from its start or from a checkpoint within it."""
        phase = self.plan[index]
        self.done = replace(self.done, phase=index)
        if index and saved is None and self.job.checkpoint_dir is not None:
            folder, live = self.job.checkpoint_dir, live_parameters(self.job.model)
            start = {name: live[name] for name in self._trained_before}
            self.processes.once(lambda: checkpoint.save_start(folder, index, start))
        job, model, settings = self.job, self.job.model, self.job.settings
        checkpointing = gradient_checkpointing(model) if settings.gradient_checkpointing else nullcontext()
        with frozen(model, phase.places) as handle, checkpointing:
            loss = TrainingLoss(model, settings.loss_on, settings.mixed_precision or "no", job.objective)
            with self.processes.distributed(loss, handle.named_trainable()) as distributed:
                self._steps(phase, distributed, saved)
            self._trained_before |= set(handle.named_trainable())
            self.done.phases.append(
                {
                    "steps": phase.stop - phase.start,
                    "n_trainable": handle.n_trainable,
                    "n_frozen": handle.n_frozen,
                    "frozen_digest": None if phase.mask is None else handle.frozen_digest,
                }
            )

    def _steps(self, phase: PhaseSteps, distributed: DistributedLoss, saved: Saved | None) -> None:
        job, settings, total = self.job, self.job.settings, self.plan[-1].stop
        trained = list(distributed.trained.values())
        optimizer = make_optimizer(settings.optimizer, trained, settings.lr, settings.weight_decay)
        peaks = [group["lr"] for group in optimizer.param_groups]
        if saved is not None:
            self._good.restore(saved.progress.good, saved.remembered)
            if job.keeps_good and self._good.step is None:
                raise ValueError(
                    f"the checkpoint {saved.path} was made without a guard that rewinds, and has no weights to go back "
                    "to: use another checkpoint_dir, or the same callbacks"
                )
            saved.restore(distributed.trained, optimizer, job.on_gradients)
        elif job.keeps_good:
            self._good.take(self.done.step, distributed.trained, job.on_gradients)
        if saved is not None and self.done.unmeasured:
            self._evaluate_or_keep(distributed, optimizer, last=False)
            self._save(distributed, optimizer)
        steps = range(max(phase.start, self.done.step), phase.stop)
        for step in track(steps, self._title(), enabled=job.progress and self.processes.is_main):
            if self._is_over():
                break
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate(step, total, settings.warmup_steps, settings.schedule)
            record = self._step(step, distributed, optimizer)
            self.done.losses.append(record["loss"])
            self._tell(record)
            last = step + 1 == total or self._is_low_enough()
            evaluated = bool(job.callbacks) and (last or _is_due(step, job.eval_every))
            kept = job.checkpoint_dir is not None and (last or _is_due(step, job.checkpoint_every))
            if evaluated or kept or last or step + 1 == phase.stop:
                self._require_finite(step, distributed, optimizer)
            if evaluated:
                self._evaluate_or_keep(distributed, optimizer, last=last)
            if kept or (self.done.halted is not None and job.checkpoint_dir is not None):
                self._save(distributed, optimizer)
        optimizer.zero_grad()

    def _step(self, step: int, distributed: DistributedLoss, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """One optimizer step; the line of the log for it."""
        settings = self.job.settings
        loss, tokens = self._backward(step, distributed)
        if self.job.on_gradients is not None:
            self.job.on_gradients(step, distributed.trained)
        limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
        norm = float(whole(nn.utils.clip_grad_norm_(list(distributed.trained.values()), limit)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
            raise FloatingPointError(f"the training {what} at step {step + 1}; try a lower lr than {settings.lr}")
        self._update(step, optimizer)
        optimizer.zero_grad()
        return {
            "step": step + 1,
            "loss": loss,
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            "tokens": tokens,
            "seconds": round(time.perf_counter() - self._began, 3),
        }

    def _update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        try:
            optimizer.step()
        except RuntimeError as error:  # a rate that Python's floats hold and the weights' dtype does not
            if "without overflow" not in str(error):
                raise
            raise self._not_finite("weights", step) from error

    def _require_finite(self, step: int, distributed: DistributedLoss, optimizer: torch.optim.Optimizer) -> None:
        """Raise a FloatingPointError, on every process, if a step has left something that is not a number."""
        state = [value for values in optimizer.state.values() for value in values.values()]
        broken = {
            "weights": sum(not _is_finite(p) for p in distributed.trained.values()),
            "optimizer's averages": sum(not _is_finite(v) for v in state if isinstance(v, torch.Tensor)),
        }
        for what, count in broken.items():
            if self.processes.sum(float(count)):
                raise self._not_finite(what, step)

    def _not_finite(self, what: str, step: int) -> FloatingPointError:
        return FloatingPointError(
            f"the {what} after step {step + 1} are not finite; try a lower lr than {self.job.settings.lr} or a lower "
            f"weight_decay than {self.job.settings.weight_decay}"
        )

    def _backward(self, step: int, distributed: DistributedLoss) -> tuple[float, int]:
        """Gradients of the mean loss over all target tokens of a step; returns that loss and their number."""
        settings, processes = self.job.settings, self.processes
        examples = [self.examples[i] for i in self.rows(step)]
        count = sum(n_targets(example, settings.loss_on) for example in examples)
        if count < 1:
            raise ValueError(f"the {len(examples)} examples of step {step + 1} have no token to train on")
        passes = shares(examples, settings.batch_size, processes.rank, processes.size, settings.batches == "packed")
        loss = 0.0
        for i, share in enumerate(passes):
            with nullcontext() if i + 1 == len(passes) else distributed.without_sync():
                mean = distributed.loss(share.batch) / count
                # The gradients of the processes will be averaged, but the loss is a sum over them.
                (mean * (share.weight * processes.size)).backward()
            loss += mean.item() * share.weight
        return processes.sum(loss), count

    def _evaluate_or_keep(self, distributed: DistributedLoss, optimizer: torch.optim.Optimizer, *, last: bool) -> None:
        """Show the callbacks the model; where one fails, a judge's server say, what was trained is kept before.

        Of several processes one may fail and the others not, so that they cannot save together afterwards: they save
        before the measurement after the last step.
        """
        keeps, alone = self.job.checkpoint_dir is not None, self.processes.size == 1
        self.done = replace(self.done, unmeasured=True)
        if keeps and last and not alone:
            self._save(distributed, optimizer)
        try:
            self._evaluate(self.done.step, distributed)
        except Exception:
            if keeps and alone:
                self._save(distributed, optimizer)
            raise
        self.done = replace(self.done, unmeasured=False)

    def _evaluate(self, step: int, distributed: DistributedLoss) -> None:
        with distributed.whole_model():
            point, halt = point_and_halt(self.job.callbacks, self.job.model, step)
        if point is not None:
            self.done.evaluations.append(point)
            self._log.write(point)
            self._trackers.log(point, step, "eval")
        if not self.processes.sum(float(halt is not None)):  # one process that wants to is enough
            if self.job.keeps_good:
                self._good.take(step, distributed.trained, self.job.on_gradients)
            return
        if halt is not None and halt.rewind and not self.job.keeps_good:
            raise ValueError("a callback asks to rewind, and has no attribute 'rewinds' that said so before training")
        rewound = None
        if self.job.keeps_good and self.processes.sum(float(halt is not None and halt.rewind)):
            self._good.put_back(distributed.trained, self.job.on_gradients)
            rewound = self._good.step
        reason = "another process halted" if halt is None else halt.reason
        self.done = replace(self.done, halted={"reason": reason, "step": step, "rewound_to": rewound})

    def _tell(self, record: dict[str, Any]) -> None:
        """The line of a step, to all who asked for it."""
        self._log.write(record)
        if self.processes.is_main:
            self._trackers.log(record, record["step"], "train")
            for told in self.job.on_step:
                told(dict(record))

    def _save(self, distributed: DistributedLoss, optimizer: torch.optim.Optimizer) -> None:
        assert self.job.checkpoint_dir is not None
        folder, trained = self.job.checkpoint_dir, checkpoint.whole_tensors(distributed.trained)
        state, hook = checkpoint.whole_state(optimizer), self.job.on_gradients
        remembered: dict[str, Tensor] = checkpoint.whole_tensors(hook.state()) if isinstance(hook, HasState) else {}
        remembered |= self._good.state()
        done = replace(self.done, good=self._good.step)
        self.processes.once(lambda: checkpoint.save(folder, done, self.identity, trained, state, remembered))

    def _newest_checkpoint(self) -> Saved | None:
        if self.job.checkpoint_dir is None:
            return None
        saved = checkpoint.newest(self.job.checkpoint_dir, self.identity)
        self.processes.require_same({"checkpoint": None if saved is None else str(saved.path)})
        if self.processes.is_main:
            checkpoint.clear_leftovers(self.job.checkpoint_dir, saved)
        return saved

    @torch.no_grad()
    def _take(self, saved: Saved) -> None:
        """What earlier phases had trained."""
        live = live_parameters(self.job.model)
        for name, value in saved.start.items():
            live[name].copy_(value)

    def _is_over(self) -> bool:
        """Whether there is nothing more to do, before the plan is at its end."""
        return self.done.halted is not None or self._is_low_enough()

    def _is_low_enough(self) -> bool:
        """Whether the mean of the last ``LOSS_WINDOW`` losses is below the target."""
        target, losses = self.job.settings.stop_at_loss, self.done.losses
        return target is not None and len(losses) >= LOSS_WINDOW and sum(losses[-LOSS_WINDOW:]) / LOSS_WINDOW < target

    def _title(self) -> str:
        several = len(self.plan) > 1
        return f"fine-tuning, phase {self.done.phase + 1} of {len(self.plan)}" if several else "fine-tuning"


def _is_finite(values: torch.Tensor) -> bool:
    here = values.to_local() if hasattr(values, "to_local") else values
    return bool(torch.isfinite(here).all())


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and (step + 1) % every == 0
