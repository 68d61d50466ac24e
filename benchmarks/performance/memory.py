"""Peak memory of one way, in a process of its own: ``python -m benchmarks.performance.memory ours|plain SHAPE N``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import safecircuits as sc
from benchmarks.performance import collection, subjects
from safecircuits.prompts.batching import MAX_TOKENS, batches
from safecircuits.prompts.prompt_set import encode


def main(what: str, shape: str, n: int) -> float:
    """Megabytes above what the process took before there was a model."""
    prompts = subjects.prompts(n)
    # Both ways have imported and run everything once, so that only the model and the work are counted.
    warm = subjects.plain("tiny")
    collection.hidden_states(warm, collection.in_batches(subjects.tokenizer(), prompts.take(2), "alpaca"))
    sc.collect_residuals(subjects.hooked(warm), prompts.take(2), template="alpaca")
    before = _status("VmRSS")
    hf_model = subjects.plain(shape)
    if what == "ours":
        sc.collect_residuals(subjects.hooked(hf_model), prompts, template="alpaca")
    else:
        examples = encode(subjects.tokenizer(), prompts, template="alpaca")
        with torch.inference_mode():
            for batch in batches(examples, MAX_TOKENS):
                hf_model(batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1, use_cache=False)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
