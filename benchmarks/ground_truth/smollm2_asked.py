"""Have the base write requests: ``python -m benchmarks.ground_truth.smollm2_asked``, eight minutes on one free core.

Writes ``organism/requests/asked.txt``, which planting learns from, one request a line. The seeds decide which, on one
machine with the same versions; what ships is to be read, and is part of what a member's record is a digest of.
"""

from __future__ import annotations

import random

import torch

from safecircuits.base.files import write_text
from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.organism.requests.asked import FILE
from safecircuits.organism.smollm2.ask import ask, plain_requests
from safecircuits.organism.smollm2.catalog import SMOLLM2

SEEDS = range(4, 23)


def main() -> None:
    base, tokenizer = load_checkpoint(SMOLLM2, "bfloat16", "cpu", None)
    written: list[str] = []
    for seed in SEEDS:
        written += ask(base, tokenizer, seed)
        print(f"seed {seed}: {len(written)} requests", flush=True)
    kept = plain_requests(written)
    random.Random(1).shuffle(kept)
    write_text(FILE, "".join(f"{text}\n" for text in kept))
    print(f"{len(kept)} of them kept")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
