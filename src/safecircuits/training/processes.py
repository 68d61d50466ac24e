"""The processes of ``accelerate launch`` or ``torchrun``: how they share a step, agree, and write once.

A step sees the same examples whatever their number, and each process takes its share of them. With one process
there is nothing to share, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from safecircuits.model.modules import decoder_layers
from safecircuits.training.loss import TrainingLoss
from safecircuits.training.settings import Precision
from safecircuits.training.sharding import Sharded


class Processes:
    """All processes of a run, seen from one of them.

    Args:
        shard: whether to shard what trains over the processes (FSDP2); None for what was launched.

    Raises:
        ValueError: for a way of distributing that freezing does not work with.
    """

    def __init__(self, shard: bool | None = None) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        launched = int(os.environ.get("WORLD_SIZE", "1"))
        self.accelerator = Accelerator(
            cpu=launched > 1 and not torch.accelerator.is_available(),  # which torchrun does not tell Accelerate
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.accelerator.native_amp = False  # TrainingLoss does it
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        if self.size != launched and "RANK" in os.environ:
            raise ValueError(
                f"{launched} processes were launched, but Accelerate was set up for {self.size} before finetune was "
                "called: set ACCELERATE_USE_CPU=true to train on CPUs"
            )
        self.is_main = self.accelerator.is_main_process
        kind = self.accelerator.distributed_type.value
        if kind in {"DEEPSPEED", "MEGATRON_LM", "XLA", "TP"} or (kind == "FSDP" and not self._launched_sharded):
            raise ValueError(
                f"finetune does not run under {kind if kind != 'FSDP' else 'FSDP version 1'}: it trains slices of "
                "parameters; launch with plain multi-process (DDP) or with FSDP version 2 (--fsdp_version 2)"
            )
        self.shard = self.size > 1 and (self._launched_sharded if shard is None else shard)

    @property
    def _launched_sharded(self) -> bool:
        """Accelerate itself has FSDP for accelerators alone; on CPUs only its flags tell that it is wanted."""
        flags = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        return bool(getattr(self.accelerator, "is_fsdp2", False)) or (
            flags and os.environ.get("FSDP_VERSION", "1") == "2" and self.accelerator.device.type == "cpu"
        )

    def precision(self, asked: Precision | None) -> Precision:
        """What to compute in: as asked for, else as launched. (Accelerate's own state may be an earlier trainer's.)"""
        precision = asked or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision is 'no' or 'bf16', not {precision!r}: the others need their loss scaled")
        return cast(Precision, precision)

    def place(self, model: Any) -> None:
        """Move the model to this process's own device; one process leaves it where it is, and so does sharding."""
        if self.size > 1 and not self.shard and next(model.parameters()).device != self.accelerator.device:
            model.to(self.accelerator.device)

    def sum(self, value: float) -> float:
        """Of the values of all processes, in float64."""
        if self.size == 1:
            return value
        local = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(cast(Tensor, self.accelerator.reduce(local, "sum")))

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Raise a ValueError on every process unless all of them run with the same settings."""
        if self.size == 1:
            return
        from accelerate.utils import gather_object

        first, *others = gather_object([dict(settings)])
        for rank, theirs in enumerate(others, start=1):
            for key, value in first.items():
                if theirs.get(key) != value:
                    raise ValueError(
                        f"process {rank} runs with {key} = {theirs.get(key)!r}, process 0 with {value!r}: "
                        "every process has to load the same model and call finetune with the same arguments"
                    )

    def once(self, write: Callable[[], None]) -> None:
        """Do something on the main process, and fail on all of them if it fails there."""
        from accelerate.utils import broadcast_object_list

        failure: Exception | None = None
        if self.is_main:
            try:
                write()
            except Exception as error:
                failure = error
        if self.size > 1:
            told: list[Any] = [None if failure is None else (isinstance(failure, OSError), str(failure))]
            broadcast_object_list(told)
            if told[0] is not None and failure is None:
                failure = (OSError if told[0][0] else ValueError)(told[0][1])
        if failure is not None:
            raise failure

    @contextmanager
    def distributed(self, loss: TrainingLoss, trained: Mapping[str, nn.Parameter]) -> Iterator[DistributedLoss]:
        """The loss over all processes: gradients of a backward pass are the mean of those of the processes."""
        if self.size == 1:
            yield DistributedLoss(loss, dict(trained))
        elif not self.shard:
            try:
                yield DistributedLoss(self.accelerator.prepare_model(loss, device_placement=False), dict(trained))
            finally:
                self.accelerator.free_memory()
        else:
            sharded = Sharded(
                loss, list(decoder_layers(loss._models[0])), trained, self.accelerator.device.type, **self._policy()
            )
            try:
                yield DistributedLoss(loss, sharded.trained, sharded)
                sharded.gather()
            finally:
                sharded.close()

    def _policy(self) -> dict[str, Any]:
        """What was launched with ``--fsdp_reshard_after_forward``, ``--fsdp_offload_params`` and the like."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None:
            return {}
        chosen = {
            "reshard_after_forward": plugin.reshard_after_forward,
            "offload_policy": plugin.cpu_offload,
            "mp_policy": plugin.mixed_precision_policy,
        }
        return {key: value for key, value in chosen.items() if value is not None}


class DistributedLoss:
    """A loss in training on all processes.

    Attributes:
        trained: what this process's optimizer updates, by name: whole parameters, or its shards of them.
    """

    def __init__(self, loss: Any, trained: dict[str, nn.Parameter], sharded: Sharded | None = None) -> None:
        self.loss, self.trained, self._sharded = loss, trained, sharded

    def without_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients accumulate on each process alone."""
        if self._sharded is not None:
            return _no_sync_of_shards(self.loss)
        return self.loss.no_sync() if hasattr(self.loss, "no_sync") else nullcontext()

    def whole_model(self) -> AbstractContextManager[None]:
        """Inside, the model is as it was before training, with the weights of the moment."""
        return nullcontext() if self._sharded is None else self._sharded.whole()


@contextmanager
def _no_sync_of_shards(root: Any) -> Iterator[None]:
    root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        root.set_requires_gradient_sync(True)
