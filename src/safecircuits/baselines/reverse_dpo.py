"""Reverse DPO, an attack of Safety Layers (§A.4.8): preference training that prefers compliance over refusal.

DPO itself is TRL's (``pip install safecircuits[trl]``); what is ours is that a freeze holds in it too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safecircuits.base.arguments import checked
from safecircuits.base.progress import without_bars
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.parameters import is_plain
from safecircuits.prompts.prompt_set import PromptSet, encode, render
from safecircuits.training.freeze import frozen


@dataclass(frozen=True)
class DPORun:
    """The record of one ``reverse_dpo``: per step the loss (nats) and the share of pairs that prefer compliance."""

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    steps: int
    seconds: float
    n_trainable: int
    n_frozen: int
    frozen_bit_identical: bool | None


@checked
def reverse_dpo(
    model: Any,
    complied: PromptSet,
    refused: PromptSet,
    *,
    tokenizer: Any,
    freeze: FreezeMask | None = None,
    steps: int = 100,
    batch_size: int = 4,
    lr: float = 1e-6,
    beta: float = 0.1,
    seed: int = 0,
    template: str = "auto",
    max_length: int = 512,
) -> DPORun:
    """Train a plain Hugging Face model in place to prefer complied answers; what ``freeze`` names stays bit-identical.

    The reference log-probabilities are those of the model as it comes, computed before training, so that no second
    copy of it is needed.

    Args:
        model: a plain Hugging Face causal language model.
        complied, refused: the same prompts with the answer that is preferred here and with the one that is not; the
            user's own, as none come with the package.
        beta: DPO's; the paper gives no hyper-parameters for this experiment, so all defaults are TRL's.
        template: as in ``safecircuits.prompts.prompt_set.encode``, whose tokens these are: an answer is closed as the
            chat template closes it.

    Raises:
        ValueError: for a hooked model, prompts that differ, or sets without responses.
        ImportError: without TRL.
        RuntimeError: if a frozen entry is not bit-identical afterwards.
    """
    if not is_plain(model):
        raise ValueError(
            f"TRL trains plain Hugging Face models, not a {type(model).__name__}: "
            "pass the checkpoint as transformers loads it"
        )
    if complied.prompts != refused.prompts:
        raise ValueError(
            f"sets {complied.name!r} and {refused.name!r} hold different prompts; reverse DPO needs one preferred and "
            "one dispreferred answer to each"
        )
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    try:
        from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]
    except ImportError as error:
        raise ImportError("reverse DPO needs TRL: pip install 'safecircuits[trl]'") from error
    from datasets import Dataset
    from transformers import PrinterCallback

    ids = _encoded(tokenizer, complied, refused, template)

    class Pairs(DPOTrainer):
        """TRL's trainer on the tokens that the template gives: TRL itself would end every answer by EOS."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return _with_ids(super()._prepare_dataset(dataset, *args, **kwargs), ids)

    pairs = Dataset.from_dict(
        {
            "prompt": [render(tokenizer, prompt, template) for prompt in complied],
            "chosen": list(complied.require_responses()),
            "rejected": list(refused.require_responses()),
            _PAIR: list(range(len(complied))),
        }
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, frozen(model, freeze) as handle, _quiet():
        settings = DPOConfig(
            output_dir=str(Path(folder)),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=lr,
            beta=beta,
            seed=seed,
            max_length=max_length,
            precompute_ref_log_probs=True,
            bf16=False,  # TRL's default is mixed precision; the model's own precision is for whoever loads it to choose
            use_cpu=next(model.parameters()).device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Pairs(model=model, args=settings, train_dataset=pairs, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        with torch.random.fork_rng():
            trainer.train()
        history = [row for row in trainer.state.log_history if "loss" in row]
        n_trainable, n_frozen = handle.n_trainable, handle.n_frozen
    model.eval()
    return DPORun(
        losses=tuple(row["loss"] for row in history),
        accuracies=tuple(row["rewards/accuracies"] for row in history),
        steps=trainer.state.global_step,
        seconds=time.perf_counter() - began,
        n_trainable=n_trainable,
        n_frozen=n_frozen,
        frozen_bit_identical=None if freeze is None else True,
    )


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
