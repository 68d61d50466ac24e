"""What finding and proving directions, heads and units costs, in passes and beside plain decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import safecircuits as sc
from benchmarks.ground_truth.leaderboard.passes import counted
from benchmarks.performance.subjects import hooked, plain, prompts
from benchmarks.performance.timing import Row, interleaved, within
from safecircuits.behavior.generate import generate
from safecircuits.behavior.interchange import generate_patched
from safecircuits.organism import catalog
from safecircuits.prompts.prompt_set import PromptSet, encode


def rows(quick: bool) -> list[Row]:
    """Directions of 30 layers in one pass; heads in as many passes as layers; patching beside decoding."""
    return [*_direction(quick), *_heads(quick), *_patching(quick)]


def _work(model: Any, run: Callable[[], Any]) -> int:
    """Tokens through layers that a run takes."""
    with counted(model) as count:
        run()
    return count.forward


def _direction(quick: bool) -> list[Row]:
    n = 16 if quick else 128
    model, pool = hooked(plain("tiny", num_hidden_layers=8 if quick else 30)), prompts(2 * n)
    # Words that one set alone has, so that random weights tell the two apart.
    harmful = PromptSet("a", tuple(f"{p} bomb bomb" for p in pool.prompts[:n]))
    harmless = PromptSet("b", pool.prompts[n:])
    examples = [e for data in (harmful, harmless) for e in encode(model.tokenizer, data, template="alpaca")]
    once = sum(map(len, examples)) * int(model.cfg.n_layers)
    took = _work(model, lambda: sc.direction.mean_directions(model, harmful, harmless, template="alpaca"))
    what = f"directions of {model.cfg.n_layers} layers, {n} + {n} prompts: tokens through layers"
    return [within(what, "one pass over all prompts", took, once, 1.0, None)]


def _heads(quick: bool) -> list[Row]:
    model, data = hooked(plain("tiny", num_hidden_layers=4 if quick else 8)), prompts(8 if quick else 32)
    n_layers, n_heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    examples = encode(model.tokenizer, data, template="alpaca")
    batch = sum(map(len, examples)) * n_layers * n_heads  # all prompts, each with every head of a layer
    took = _work(model, lambda: sc.units.head_scores(model, data, template="alpaca"))
    return [
        within(f"KL of all heads, {n_layers} layers: tokens through layers",
               "one pass over prompts x heads of a layer", took, batch, float(n_layers), None)
    ]  # fmt: skip


def _patching(quick: bool) -> list[Row]:
    base, aligned = (sc.load_model(name) for name in ("base", "aligned"))
    data = catalog.prompts("malicious", n=8 if quick else 64)
    units = sc.FreezeMask.of_units({"mlp": dict.fromkeys(range(8), range(24))}, aligned)
    options: dict[str, Any] = {"max_new_tokens": 8}
    ways: dict[str, Callable[[], Any]] = {
        "patched": lambda: generate_patched(base, aligned, data, {"": units}, **options),
        "plain": lambda: [generate(one, data, **options) for one in (base, aligned)],
    }
    torch.manual_seed(0)
    seconds = interleaved(ways, 1 if quick else 3)
    what = f"192 neurons patched while {len(data)} answers are written"
    return [within(what, "both models decode them plainly", seconds["patched"], seconds["plain"], 1.3, None)]
