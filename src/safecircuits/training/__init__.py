"""Fine-tuning that keeps what a FreezeMask names bit-identical."""

from safecircuits.training.freeze import Frozen, frozen, frozen_digest
from safecircuits.training.loop import finetune
from safecircuits.training.run import FinetuneRun

__all__ = ["FinetuneRun", "Frozen", "finetune", "frozen", "frozen_digest"]
