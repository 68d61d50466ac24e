"""SNIP scores of all layers in one pass, against one pass a layer as published (Wei et al. 2024, their release)."""

from __future__ import annotations

import time
from typing import Any

import torch

import safecircuits as sc
from safecircuits.hooks.linear_maps import Matrix, components_of
from safecircuits.organism import prompts
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from safecircuits.training.loss import token_loss
from safecircuits.weights.scores import score_weights

AIM_PER_LAYER = 0.8


def layer_by_layer(model: Any, data: sc.PromptSet) -> dict[str, torch.Tensor]:
    """|W| · mean over prompts of |∂L/∂W|: for each layer all prompts again, one at a time, gradients for it alone."""
    examples = encode(model.tokenizer, data, with_responses=True)
    scores: dict[str, torch.Tensor] = {}
    model.requires_grad_(False)
    for layer in range(int(model.cfg.n_layers)):
        matrices = {c: Matrix.of(model, layer, c) for c in components_of(model)}
        total = {c: torch.zeros_like(m.owner) for c, m in matrices.items()}
        for matrix in matrices.values():
            matrix.owner.requires_grad_(True)
        for example in examples:
            loss, n_tokens = token_loss(model, pad_left([example]))
            (loss / n_tokens).backward()
            for c, matrix in matrices.items():
                assert matrix.owner.grad is not None
                total[c] += matrix.owner.grad.abs()
                matrix.owner.grad = None
        for c, matrix in matrices.items():
            matrix.owner.requires_grad_(False)
            scores[f"{layer}.{c}"] = matrix.read().abs() * total[c] / len(examples)
    model.requires_grad_(True)
    return scores


def rows(quick: bool) -> list[dict[str, Any]]:
    """Times on the embedded model, interleaved, the fastest of each; the scores must be equal."""
    model = sc.load_model("aligned")
    data = prompts("malicious", "train", 8 if quick else 32)
    fastest = {"ours": float("inf"), "peer": float("inf")}
    for _ in range(2 if quick else 3):
        start = time.perf_counter()
        ours = score_weights(model, data, method="snip").scores
        middle = time.perf_counter()
        theirs = layer_by_layer(model, data)
        end = time.perf_counter()
        fastest["ours"] = min(fastest["ours"], middle - start)
        fastest["peer"] = min(fastest["peer"], end - middle)
    for key, score in theirs.items():
        torch.testing.assert_close(ours[key], score, rtol=1e-3, atol=1e-4 * float(score.max()))
    ratio, aim = fastest["peer"] / fastest["ours"], AIM_PER_LAYER * int(model.cfg.n_layers)
    return [
        {
            "operation": f"SNIP scores, {int(model.cfg.n_layers)} layers, {len(data)} prompts",
            "peer": "one backward pass a layer and prompt",
            "ratio": ratio,
            "aim": aim,
            "met": ratio >= aim,
            "equal": True,
        }
    ]


if __name__ == "__main__":
    print(rows(quick=False))
