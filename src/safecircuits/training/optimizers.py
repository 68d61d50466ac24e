"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math

import torch
from torch import nn

from safecircuits.training.settings import MakeOptimizer, Schedule


def make_optimizer(
    kind: str | MakeOptimizer, parameters: list[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer that ``finetune`` uses; a custom one keeps its own rate and decay."""
    if not isinstance(kind, str):
        return kind(parameters)
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9)
    if kind == "adafactor":
        return torch.optim.Adafactor(parameters, lr=lr, weight_decay=weight_decay)
    raise ValueError(f"optimizer is 'adamw', 'sgd', 'adafactor' or a function that makes one, not {kind!r}")


def rate(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """Share of the peak learning rate at a step (from 0)."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]
