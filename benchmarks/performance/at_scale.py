"""Each analysis once at the size of a real model: seconds and peak memory, on random weights of Llama-3-8B's shape.

    python -m benchmarks.performance.at_scale --scale full     # bfloat16, on a GPU of 80 GB
    python -m benchmarks.performance.at_scale --scale tiny     # the same in small, on any machine

Each writes its own column of docs/at_scale.json and the page made from it; the other column stays as it is. A scale
that was not run has no table.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import safecircuits as sc
from benchmarks.models.llama3_8b_instruct import MODEL
from benchmarks.performance import subjects
from benchmarks.performance.results import ROOT, describe_machine
from benchmarks.performance.timing import device
from safecircuits.base.files import write_text
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.counting import RefusalCounter
from safecircuits.prompts.prompt_set import PromptSet

ROWS, PAGE = "docs/at_scale.json", "docs/at_scale.md"
OPERATIONS = {
    "gap": "angle gap of {gap} normal and {gap} malicious prompts, Alpaca template",
    "localization": "refusals counted in {blocks} configurations × {prompts} prompts × 16 tokens",
    "scores": "WIFV scores of {texts} × {text_tokens} tokens",
    "finetune": "{steps} steps of fine-tuning on {batch} × {text_tokens} tokens, a quarter of the layers frozen",
}


@dataclass(frozen=True)
class Scale:
    """A model's size and how much is asked of it."""

    config: dict[str, Any]
    dtype: torch.dtype
    gap: int
    blocks: int
    prompts: int
    texts: int
    text_tokens: int
    steps: int
    batch: int


SCALES = {
    "full": Scale({}, torch.bfloat16, 100, 10, 731, 128, 512, 10, 1),
    "tiny": Scale(
        {
            "vocab_size": 8192,
            "hidden_size": 256,
            "intermediate_size": 896,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
        },
        torch.float32,
        32,
        4,
        64,
        16,
        128,
        3,
        2,
    ),
}


def random_llama(scale: Scale) -> Any:
    """Weights drawn on the device itself: nothing is read from a disk."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    assert MODEL.config is not None
    settings = {**MODEL.config[1], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **scale.config}
    torch.manual_seed(0)
    with torch.device(device()):
        return AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=scale.dtype).eval()


def measure(scale: Scale) -> Iterator[tuple[str, dict[str, float]]]:
    """Of each operation, as soon as it is done, seconds and peak memory (weights included; GB)."""
    model = subjects.hooked(random_llama(scale))
    n_layers = int(model.cfg.n_layers)
    pool = subjects.prompts(2 * scale.gap)
    normal, malicious = (PromptSet("questions", part) for part in (pool.prompts[::2], pool.prompts[1::2]))
    asked, texts = subjects.prompts(scale.prompts), subjects.long_texts(scale.texts, scale.text_tokens)
    lines = subjects.long_texts(scale.steps * scale.batch, scale.text_tokens)
    blocks = [(LayerRange(n_layers // 4, n_layers // 4 + i), 1.2) for i in range(scale.blocks)]
    frozen = sc.FreezeMask.layers((n_layers // 4, n_layers // 2 - 1))
    ways: dict[str, Callable[[], Any]] = {
        "gap": lambda: sc.layer_gap(model, normal, malicious, template="alpaca"),
        "localization": lambda: RefusalCounter(model, asked, max_new_tokens=16, template="alpaca").count_all(blocks),
        "scores": lambda: sc.score_units(model, texts, template="{instruction} "),
        "finetune": lambda: sc.finetune(
            model, lines, freeze=frozen, steps=scale.steps, batch_size=scale.batch, template="{instruction} "
        ),
    }
    for name, way in ways.items():
        gc.collect()
        peak = Peak()
        start = time.perf_counter()
        way()
        seconds, memory = time.perf_counter() - start, peak.gigabytes()
        print(f"{name}: {seconds:.1f} s, {memory:.2f} GB", flush=True)
        yield name, {"seconds": round(seconds, 2), "gigabytes": round(memory, 2)}


class Peak:
    """The most memory that is held from here on: the device's, or the process's own."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark

    def gigabytes(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 1e9
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


def render(columns: dict[str, Any]) -> str:
    """The page, from what the runs wrote; of a scale that was not run it says so, and what would be measured."""
    names = {"tiny": "tiny: 8 layers of width 256, float32", "full": "full: Llama-3-8B's shape, bfloat16"}
    lines = [
        "# At real scale",
        "",
        "Each analysis once, on random weights of Llama-3-8B's architecture: seconds, and peak memory including the",
        "weights.",
        "",
        "```",
        "python -m benchmarks.performance.at_scale --scale full     # a GPU of 80 GB",
        "python -m benchmarks.performance.at_scale --scale tiny",
        "```",
    ]
    for name, title in names.items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        column = columns.get(name)
        asked = {key: text.format(**vars(SCALES[name])) for key, text in OPERATIONS.items()}
        if not column:
            lines += ["Not run. It would measure:", "", *(f"- {text}" for text in asked.values())]
            continue
        lines += ["| operation | seconds | GB |", "|---|---|---|"]
        rows = {text: column["rows"][key] for key, text in asked.items() if key in column["rows"]}
        lines += [f"| {text} | {row['seconds']:g} | {row['gigabytes']:g} |" for text, row in rows.items()]
        lines += ["", ", ".join(f"{what} {value}" for what, value in column["machine"].items())]
    lines += plan(columns.get("full"))
    return "\n".join(lines) + "\n"


BILLIONS = {"8B": 8.03, "70B": 70.55}
"""Parameters of Llama-3's two sizes."""
EMBEDDINGS = 2 * 128_256 * 8192 / 1e9
"""Billions of them that 70B has in its embedding and unembedding, which are not quantised."""
CARDS, CARD_GB = 8, 80


def plan(full: dict[str, Any] | None) -> list[str]:
    """What 70B on eight cards would take, on paper: computed from the parameters and from the full column."""
    larger = BILLIONS["70B"] / BILLIONS["8B"]
    weights = 2 * BILLIONS["70B"]
    lines = [
        "",
        f"## On paper: Llama-3-70B's shape on {CARDS} cards of {CARD_GB} GB",
        "",
        f"Not run. In bfloat16 the weights take {weights:.0f} GB. No card holds them, so several processes with a "
        "whole",
        'model each are impossible, and `device_map="auto"` in one process puts',
        f"{weights / CARDS:.1f} GB on each of {CARDS} cards. One card computes at a time, so the time is that of 8B on",
        f"one card times {larger:.1f} (the ratio of parameters), however many cards there are.",
        "Prompts, tokens and configurations are those above.",
        "",
        "| operation | tokens | seconds |",
        "|---|---|---|",
    ]
    scale = SCALES["full"]
    tokens = {
        "gap": f"{2 * scale.gap} prompts",
        "localization": f"{scale.blocks * scale.prompts * 16:,} new ones",
        "scores": f"{scale.texts * scale.text_tokens:,}",
        "finetune": f"{scale.steps * scale.batch * scale.text_tokens:,}",
    }
    for key, text in OPERATIONS.items():
        row = full["rows"].get(key) if full else None
        expected = f"about {row['seconds'] * larger:,.0f}" if row else f"{larger:.1f} × the full column's"
        lines.append(f"| {text.format(**vars(scale))} | {tokens[key]} | {expected} |")
    quarter = weights / 4
    packed = (BILLIONS["70B"] - EMBEDDINGS) / 2 + 2 * EMBEDDINGS
    lines += [
        "",
        f'With `quantization="4bit"` the weights take about {packed:.0f} GB, so that each card holds all of them: then '
        f"{CARDS} processes share",
        f"the prompts, and everything but fine-tuning takes about 1/{CARDS} of this time, if the 4-bit kernels are as",
        "fast.",
        "",
        "The first thing that does not fit is fine-tuning: gradients and two moments of the three quarters that train "
        "are "
        f"{3 * (weights - quarter):.0f} GB in bfloat16 beside",
        f"the weights, {(weights + 3 * (weights - quarter)) / CARDS:.0f} GB a card of {CARD_GB} before activations; "
        "with a float32 copy of them it does not fit.",
        "Next is the summed XXᵀ of `sparsegpt` and ActSVD: 28,672² float64 numbers for one layer's down projection, "
        "6.6 GB.",
        "Everything else holds statistics per unit or per prompt.",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=sorted(SCALES), required=True)
    chosen = parser.parse_args()
    path = ROOT / ROWS
    columns: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows: dict[str, dict[str, float]] = {}
    for name, row in measure(SCALES[chosen.scale]):  # a machine that is only lent may be taken back in between
        rows[name] = row
        columns[chosen.scale] = {"rows": rows, "machine": describe_machine() | {"clock": "wall clock"}}
        write_text(path, json.dumps(columns, indent=1) + "\n")
        write_text(ROOT / PAGE, render(columns))
    print(path, ROOT / PAGE, sep="\n")


if __name__ == "__main__":
    main()
