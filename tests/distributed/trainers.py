"""A Hugging Face Trainer with a FreezeCallback in each process: ``trainers.py FOLDER``; writes what became of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_integrations import MIXED, ROWS, stacked, weights

from conftest import build_tiny_llama
from safecircuits.training import FreezeCallback, frozen_digest


def trained(folder: Path) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    model, callback = build_tiny_llama(), FreezeCallback(MIXED)
    arguments = TrainingArguments(
        str(folder / "run"),
        per_device_train_batch_size=2,
        max_steps=3,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=ROWS, data_collator=stacked, callbacks=[callback])
    trainer.train()
    rank = int(os.environ["RANK"])
    save_file({name: value.contiguous().clone() for name, value in weights(model).items()}, folder / f"ddp {rank}")
    return {"digest": callback.frozen_digest, "now": frozen_digest(model, MIXED), "steps": trainer.state.global_step}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    found = {"ddp": trained(target)}
    (target / f"trainers {os.environ['RANK']}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
