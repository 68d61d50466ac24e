"""Collection, unit scores and localization on a planted real model (SmolLM2-135M-Instruct), beside the same peers."""

from __future__ import annotations

import sys
from typing import Any

import safecircuits as sc
from benchmarks.performance.collection import compared as collection
from benchmarks.performance.localization import compared as localization
from benchmarks.performance.scores import compared as scoring
from benchmarks.performance.timing import Row, device
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.generate import generate
from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.organism.requests.generate import prompts as requests
from safecircuits.prompts.prompt_set import PromptSet

MEMBER = "smollm2:layers-12-16"
BLOCKS = (*(LayerRange(12, last) for last in range(12, 18)), *(LayerRange(first, 15) for first in (10, 11, 13, 14)))
"""As the search of the bounds asks for them: one bound moves, then the other."""


def rows(quick: bool) -> list[Row]:
    """Against what people would use; none, with a line that says so, where the model cannot be had."""
    try:
        hf_model, tokenizer = load_checkpoint(MEMBER, None, device(), None)
    except ValueError as missing:
        print(f"real_model: not measured, {missing}", file=sys.stderr)
        return []
    asked = requests("over_rejection", "test", 16 if quick else 200, 101)
    # One round each: a run takes minutes, beside which what is done once is nothing.
    few = 1 if quick else 4
    blocks = BLOCKS[:2] if quick else BLOCKS
    of = f"{len(asked)} prompts, SmolLM2-135M"
    model = sc.load_model(hf_model, tokenizer=tokenizer)
    texts = _texts(model, 8 if quick else 64)
    return [
        *collection(of, hf_model, model, asked, "auto", 1, rtol=1e-3, atol=1e-3),
        *scoring(f"WIFV scores, {len(texts)} requests with answers, SmolLM2-135M", hf_model, model, texts, 1),
        *localization(of, hf_model, tokenizer, asked, blocks, "auto", few, rounds=0),
    ]


def _texts(model: Any, n: int) -> PromptSet:
    """Ordinary requests with the model's own answers."""
    asked = requests("normal", "test", n, 101)
    answers = generate(model, PromptSet("ordinary", asked.prompts), max_new_tokens=48)
    return PromptSet("ordinary", asked.prompts, answers.texts)
