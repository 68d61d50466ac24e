"""Reverse DPO, an attack of Safety Layers (§A.4.8): preference training that prefers compliance over refusal.

DPO itself is TRL's (``pip install safecircuits[trl]``); what is ours is that a freeze holds in it too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import override

from safecircuits.base.progress import without_bars
from safecircuits.baselines.hf_modules import hugging_face_model
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.parameters import checkpoint_parameters, is_plain
from safecircuits.prompts.prompt_set import PromptSet, encode, require_answered
from safecircuits.prompts.rendering import render
from safecircuits.training.freeze import frozen
from safecircuits.training.method import Badge, Method, TrainingJob, point_of, register
from safecircuits.training.optimizers import make_optimizer
from safecircuits.training.run import FinetuneRun
from safecircuits.training.settings import TrainingSettings

_TRL = "TRL trains in a loop of its own"


@register("reverse-dpo")
@dataclass(frozen=True)
class ReverseDPO(Method):
    """Preference training towards the answers of ``data`` and away from refusals (Safety Layers A.4.8); needs TRL.

    The reference log-probabilities are those of the model as it comes, computed before training, so that no second
    copy of it is needed. Losses are DPO's (nats); ``by_step["prefers_data"]`` is the share of a step's pairs that
    prefer the answer of the data. An answer is closed as the chat template closes it.

    Attributes:
        refused: the same prompts as the data's, with the answers that are dispreferred; the user's own, as are the
            others, for none come with the package.
        beta: DPO's; the paper gives no hyper-parameters for this experiment, so all defaults are TRL's.

    Raises:
        ImportError: without TRL.
        ValueError: for a HookedTransformer, a bridge that computes with copies of fused matrices, and prompts that
            differ.

    Examples:
        >>> attack = sc.baselines.ReverseDPO(utility)
        >>> attack.beta, attack.starts_from.lr
        (0.1, 1e-06)
    """

    refused: PromptSet
    beta: float = 0.1

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Safety Layers A.4.8, which gives no hyper-parameters; DPO is TRL's"
    own_loop: ClassVar[bool] = True

    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            *("loss_on", "batches", "mixed_precision", "stop_at_loss", "checkpoint_dir", "log", "shard"),
            *("on_step", "report_to", "guard", "chats"),
        ),
        _TRL,
    )
    starts_from: ClassVar[TrainingSettings] = TrainingSettings(steps=100, batch_size=4, lr=1e-6, max_length=512)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, not {self.beta}: nothing would be preferred")
        require_answered(self.refused, "refused")

    def train(self, job: TrainingJob) -> FinetuneRun:
        data = require_answered(job.data, "data")
        if data.prompts != self.refused.prompts:
            raise ValueError(
                f"sets {data.name!r} and {self.refused.name!r} hold different prompts; reverse DPO needs one "
                "preferred and one dispreferred answer to each"
            )
        if not isinstance(job.freeze, FreezeMask | None):
            raise ValueError(f"reverse-dpo does not take phases: {_TRL}")
        return _dpo(self, job, job.freeze)


def _dpo(method: ReverseDPO, job: TrainingJob, freeze: FreezeMask | None) -> FinetuneRun:
    try:
        from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]
    except ImportError as error:
        raise ImportError("reverse DPO needs TRL: pip install 'safecircuits[trl]'") from error
    from datasets import Dataset
    from transformers import PrinterCallback

    settings, tokenizer, refused = job.settings, job.tokenizer, method.refused
    data = require_answered(job.data, "data")
    model = job.model if is_plain(job.model) else hugging_face_model(job.model, "TRL trains")
    ids = _encoded(tokenizer, data, refused, settings.template)

    class Pairs(DPOTrainer):
        """TRL's trainer on the tokens that the template gives: TRL itself would end every answer by EOS."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return _with_ids(super()._prepare_dataset(dataset, *args, **kwargs), ids)

    pairs = Dataset.from_dict(
        {
            "prompt": [render(tokenizer, prompt, settings.template) for prompt in data],
            "chosen": list(data.require_responses()),
            "rejected": list(refused.require_responses()),
            _PAIR: list(range(len(data))),
        }
    )
    points: list[dict[str, Any]] = []
    steps = settings.steps_on(len(data))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, frozen(model, freeze) as handle, _quiet():
        arguments = DPOConfig(
            output_dir=str(Path(folder)),
            max_steps=steps,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.grad_accumulation,
            learning_rate=settings.lr,
            weight_decay=settings.weight_decay,
            warmup_steps=settings.warmup_steps,
            lr_scheduler_type={"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule),
            max_grad_norm=settings.max_grad_norm or 0.0,  # TRL clips nothing at 0
            gradient_checkpointing=settings.gradient_checkpointing,
            beta=method.beta,
            seed=job.seed,
            max_length=settings.max_length,
            precompute_ref_log_probs=True,
            bf16=False,  # TRL's default is mixed precision; the model's own precision is for whoever loads it to choose
            use_cpu=next(model.parameters()).device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Pairs(
            model=model,
            args=arguments,
            train_dataset=pairs,
            processing_class=tokenizer,
            optimizers=(_own_optimizer(settings, handle.trainable_parameters()), None),
            callbacks=[_points(job, model, steps, points)],
        )
        trainer.remove_callback(PrinterCallback)
        with torch.random.fork_rng():
            trainer.train()
        history = [row for row in trainer.state.log_history if "loss" in row]
    model.eval()
    _write_back(job.model, model)
    return FinetuneRun(
        losses=tuple(row["loss"] for row in history),
        steps=trainer.state.global_step,
        seconds=time.perf_counter() - began,
        stopped_early=False,
        frozen_bit_identical=None if freeze is None else True,
        frozen_digest=None if freeze is None else handle.frozen_digest,
        n_trainable=handle.n_trainable,
        n_frozen=handle.n_frozen,
        evaluations=tuple(points),
        settings={
            "method": method.record(),
            "data": data.fingerprint,
            **settings.record(),
            "steps": steps,
            "seed": job.seed,
            "model": type(job.model).__name__,
            "frozen": None if freeze is None else handle.frozen_digest,
            "freeze": None if freeze is None else dict(freeze.provenance),
            "truncated": 0 if settings.max_length is None else _n_longer(ids, settings.max_length),
        },
        by_step={"prefers_data": tuple(row["rewards/accuracies"] for row in history)},
    )


def _own_optimizer(settings: TrainingSettings, parameters: list[Any]) -> torch.optim.Optimizer | None:
    """None for AdamW, of which TRL takes its own."""
    if settings.optimizer == "adamw":
        return None
    return make_optimizer(settings.optimizer, parameters, settings.lr, settings.weight_decay)


def _points(job: TrainingJob, plain: Any, steps: int, points: list[dict[str, Any]]) -> Any:
    """What the job's callbacks say along TRL's loop, kept in ``points``."""
    from transformers import TrainerCallback

    class Points(TrainerCallback):  # type: ignore[misc]
        @override
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if step != steps and (job.eval_every is None or step % job.eval_every):
                return
            plain.eval()
            _write_back(job.model, plain)
            point = point_of(job.callbacks, job.model, step)
            points.extend([] if point is None else [point])
            plain.train()

    return Points()


@torch.no_grad()
def _write_back(model: Any, plain: Any) -> None:
    """Give a bridge what its Hugging Face model has learnt."""
    if model is not plain:
        learnt = plain.state_dict()
        for name, parameter in checkpoint_parameters(model).items():
            parameter.copy_(learnt[name])


def _n_longer(ids: list[tuple[list[int], ...]], length: int) -> int:
    """Pairs of which an answer goes beyond ``length`` tokens."""
    return sum(len(prompt) + max(len(good), len(bad)) > length for prompt, good, bad in ids)


_PARTS = ("prompt", "chosen", "rejected")
_PAIR = "pair"


def _encoded(tokenizer: Any, complied: PromptSet, refused: PromptSet, template: str) -> list[tuple[list[int], ...]]:
    """Ids of the prompt and of both answers of each pair, closed as the template closes an answer."""
    both = (encode(tokenizer, prompts, template=template, with_responses=True) for prompts in (complied, refused))
    made: list[tuple[list[int], ...]] = []
    for good, bad in zip(*both, strict=True):
        start = min(good.response_start, bad.response_start)
        made.append((list(good.ids[:start]), list(good.ids[start:]), list(bad.ids[start:])))
    return made


def _with_ids(prepared: Any, ids: list[tuple[list[int], ...]]) -> Any:
    """TRL's table with these ids in the place of its own.

    Raises:
        ImportError: for a version of TRL whose table has other columns than those that are known.
    """
    known = [[part + end for part in _PARTS] for end in ("_ids", "_input_ids")]
    columns = next((columns for columns in known if set(columns) <= set(prepared.column_names)), None)
    if columns is None:
        raise ImportError(f"this version of TRL keeps tokens in other columns ({', '.join(prepared.column_names)})")
    return prepared.map(lambda row: dict(zip(columns, ids[row[_PAIR]], strict=True)))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers and datasets inside."""
    import datasets

    shown = datasets.utils.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        with without_bars():
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
