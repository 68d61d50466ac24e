"""Whether compiling the model pays for decoding: ``python -m benchmarks.performance.compiled``. It takes minutes.

Eager decoding over the cache that the library uses, and compiled over a static one, as compilation needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.performance import subjects
from benchmarks.performance.timing import device, interleaved

STEPS, PROMPT, ROWS = 15, 30, 8


def decode(forward: Callable[..., Any], cache: Any, rows: int) -> None:
    """A prompt of 30 tokens, and 15 steps of every row."""
    ids = torch.full((rows, PROMPT), 7, device=device())
    with torch.inference_mode():
        for step in range(STEPS + 1):
            positions = torch.arange(ids.shape[1], device=device()) + (PROMPT + step - 1 if step else 0)
            out = forward(input_ids=ids, past_key_values=cache, use_cache=True, position_ids=positions[None])
            ids = out.logits[:, -1].argmax(-1, keepdim=True)


def main() -> None:
    from transformers import DynamicCache, StaticCache

    hf_model = subjects.plain("big")
    compiled = torch.compile(hf_model.forward)
    cache = lambda: StaticCache(config=hf_model.config, max_cache_len=PROMPT + STEPS)  # noqa: E731
    began = time.perf_counter()
    decode(compiled, cache(), ROWS)
    first = time.perf_counter() - began
    ways = {
        "eager": lambda: decode(hf_model, DynamicCache(config=hf_model.config), ROWS),
        "compiled": lambda: decode(compiled, cache(), ROWS),
    }
    took = interleaved(ways, 3)
    print(f"{ROWS} rows: {took['eager'] / took['compiled']:.2f} x faster after {first:.0f} s of compiling")


if __name__ == "__main__":
    main()
