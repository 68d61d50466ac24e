"""Runs that one process and two must agree on; also the program that two processes start with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_finetune import DATA, MASK, With, weights
from test_freeze_mask import SHAPE

from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.training import finetune, frozen_digest
from safecircuits.training.phases import Phase
from zoo import backends

# Six examples in steps of four: the second step of each epoch has two, and with three in a forward pass process 1
# has nothing to do in it, so that uneven and empty shares both occur.
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "grad_accumulation": 2,
    "lr": 1e-2,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "progress": False,
}
# A bridge of transformer-lens 3.9 has no float64 for padded batches. Float32 is for an optimizer that does not divide
# by the size of a gradient, which may be rounding alone.
SINGLE = {"dtype": torch.float32, "optimizer": "sgd"}
UNEVEN = PromptSet("uneven", DATA.prompts, ("tea", "salt water . " * 9, "help", "it is", "tea . " * 4, "a lamp"))
LAYERS = FreezeMask.layers(1)
PHASES = [Phase(MASK, epochs=1), Phase(FreezeMask.of_units({"mlp": {0: [1]}}, SHAPE), steps=4)]
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one example a step": {"batch_size": 1, "grad_accumulation": 1},
    "packed": {"batches": "packed", "gradient_checkpointing": True, "data": UNEVEN, "batch_size": 6},
    "bridge": {"kind": "bridge", **SINGLE},
    "phases": {"kind": "hooked", "freeze": PHASES, "steps": None},
    "bf16": {"mixed_precision": "bf16", **SINGLE},
    "sharded": {"shard": True, "gradient_checkpointing": True},
    "sharded bridge": {"kind": "bridge", "shard": True, **SINGLE},
    "sharded phases": {"shard": True, "freeze": PHASES, "steps": None},
    "sharded hooked, by layers": {"kind": "hooked", "shard": True, "freeze": LAYERS},
    "sharded and tied": {"shard": True, "tied": True},
}


def run(
    kind: str = "hf",
    dtype: torch.dtype = torch.float64,
    tied: bool = False,
    data: PromptSet = DATA,
    **changes: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and facts of a run of a fresh model: in float64, so that only the order of sums differs."""
    model = build_tiny_llama(dtype=dtype, tie_word_embeddings=tied)
    tokenizer = build_tiny_tokenizer()
    if kind != "hf":
        model = load_model(model, backend=kind, tokenizer=tokenizer)
    prompt = tokenizer("how do i make tea", return_tensors="pt").input_ids

    def top_logit(model: Any, _step: int) -> dict[str, float]:
        out = model(prompt)
        return {"top": getattr(out, "logits", out)[0, -1].max().item()}

    held: set[int] = set()

    def count(_step: int, trained: Any) -> None:
        held.add(sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in trained.values()))

    settings = {
        "freeze": MASK,
        "callbacks": [top_logit],
        "eval_every": 3,
        "method": With(on_gradients=count),
        **SETTINGS,
        **changes,
    }
    result = finetune(model, data, tokenizer=tokenizer, **settings)
    mask = settings["freeze"] if isinstance(settings["freeze"], FreezeMask) else PHASES[1].mask
    assert mask is not None
    facts = {
        "losses": result.losses,
        "evaluations": result.evaluations,
        "digest": result.frozen_digest,
        "digest_now": frozen_digest(model, mask),
        "processes": result.settings["processes"],
        "sharded": result.settings["sharded"],
        "held": min(held, default=0),
        "n_trainable": result.settings["trained_phases"][0]["n_trainable"],
        "resumed_from": result.settings["resumed_from"],
        "requires_grad": all(p.requires_grad for p in model.parameters()) or kind != "hf",
    }
    return weights(model), facts


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _all_in_two_processes(folder: Path) -> None:
    """What each of the two processes does; process 0 leaves the outcomes in ``folder``."""
    from safecircuits.training import checkpoint

    rank = int(os.environ["RANK"])
    facts: dict[str, Any] = {}
    for name, changes in SCENARIOS.items():
        if changes.get("kind") == "hooked" and "hooked" not in backends():
            continue  # transformer-lens 4
        tensors, facts[name] = run(**changes)
        if rank == 0:
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    for name, shard in (("resumed", False), ("resumed sharded", True)):
        tensors, facts[name] = run(shard=shard, checkpoint_dir=folder / f"{name} from one", log=folder / f"{name}.log")
        if rank == 0:
            save_file(tensors, folder / f"{name}.safetensors")
        run(shard=shard, checkpoint_dir=folder / f"{name} by two", checkpoint_every=4)
    errors = {"disagreement": error_of(lambda: run(lr=0.1 if rank else 0.01))}
    errors["adafactor"] = error_of(lambda: run(optimizer="adafactor", shard=True))
    save, checkpoint.save = checkpoint.save, _full_disk
    errors["full disk"] = error_of(lambda: run(checkpoint_dir=folder / "full", checkpoint_every=2))
    checkpoint.save = save
    (folder / f"facts {rank}.json").write_text(json.dumps({**facts, "errors": errors}), encoding="utf-8")
    torch.distributed.destroy_process_group()


def _full_disk(*_: Any) -> None:
    raise OSError("No space left on device")


if __name__ == "__main__":
    torch.set_num_threads(1)
    _all_in_two_processes(Path(sys.argv[1]))
