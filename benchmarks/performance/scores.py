"""WIFV scores of every neuron and head on texts of one length."""

from __future__ import annotations

from typing import Any

import torch

import safecircuits as sc
from benchmarks.performance import subjects
from benchmarks.performance.timing import Row, device, faster, growth, interleaved, within
from safecircuits.model.sites import unit_hook
from safecircuits.prompts.batching import MAX_TOKENS, batches
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode

WHAT = "WIFV scores"


def rows(quick: bool) -> list[Row]:
    """Against a plain forward pass, FLAP's per-layer passes, and a cache of all activations."""
    shape, n, width = ("small", 32, 96) if quick else ("big", 128, 256)
    hf_model = subjects.plain(shape)
    model, data = subjects.hooked(hf_model), subjects.long_texts(n, width)
    what = f"{WHAT}, {n} x {width} tokens"
    sizes = [8, 16, 32]
    return [
        *compared(what, hf_model, model, data, 2 if quick else 1),
        growth(WHAT, "texts", sizes, [_seconds(model, subjects.long_texts(k, 96)) for k in sizes], 1.1),
        growth(WHAT, "neurons a layer", [344, 688, 1376], [_wide(k) for k in (344, 688, 1376)], 1.1),
    ]


def compared(what: str, hf_model: Any, model: Any, data: PromptSet, rounds: int) -> list[Row]:
    """The rows of one model: its template is none, so that the texts are all that there is."""
    kept: dict[str, Any] = {}

    def ours() -> None:
        # The peers do not know of positions that every text begins with, so none is left out here.
        kept["ours"] = sc.score_units(model, data, tokens="all", template="none", count_beginning=True).scores

    examples = encode(model.tokenizer, data, template="none", with_responses=True)
    ways = {
        "ours": ours,
        "plain": lambda: forward_only(hf_model, examples),
        "body": lambda: forward_only(hf_model.model, examples),
        "flap": lambda: kept.update(flap=flap(hf_model, examples)),
        "cache": lambda: kept.update(cache=from_cache(model, examples)),
    }
    seconds = interleaved(ways, rounds)
    equal = {
        name: all(torch.allclose(kept["ours"][s], kept[name][s].cpu(), rtol=1e-3) for s in ("mlp", "attn"))
        for name in ("flap", "cache")
    }
    took = seconds["ours"]
    share = _share_of_products(model, data.take(min(32, len(data))))
    limits = {peer: _why(seconds, peer, share) for peer in ("flap", "cache")}
    return [
        within(what, "one plain forward pass", took, seconds["plain"], 1.1, None),
        faster(what, "FLAP's method: stored inputs, a pass a layer and text", took, seconds["flap"], 3.0, equal["flap"])
        | limits["flap"],
        faster(what, "run_with_cache of all, then variance", took, seconds["cache"], 3.0, equal["cache"])
        | limits["cache"],
    ]


def _share_of_products(model: Any, data: PromptSet) -> float:
    """Share of our pass that the forward pass's own matrix products and attention take, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device().type == "cuda"
    for _ in range(2):  # the first has costs of the profiler's own
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
            sc.score_units(model, data, tokens="all", template="none")
    times = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in profiled.key_averages()}
    products = [t for key, t in times.items() if any(part in key for part in ("mm", "attention", "gemm", "flash"))]
    return sum(products) / sum(times.values())


def _why(seconds: dict[str, float], peer: str, share: float) -> Row:
    alone, most = seconds["body"] / seconds["ours"], seconds[peer] / seconds["body"]
    return {
        "why": f"a forward pass without logits and without hooks alone takes {alone:.0%} of the time of ours, and the "
        f"peer's whole work {most:.2f} times that of such a pass, so that no way that runs every token through the "
        f"model once is further ahead than this. By the profiler {share:.0%} of our pass are the model's matrix "
        "products and attention."
    }


def forward_only(hf_model: Any, examples: list[Encoded]) -> None:
    """One pass over all tokens."""
    with torch.inference_mode():
        for batch in _batches(examples):
            hf_model(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def flap(hf_model: Any, examples: list[Encoded]) -> dict[str, torch.Tensor]:
    """The inputs of a layer stored, one text at a time through it, its statistics, its outputs stored; layer by layer.

    With an exact variance in place of FLAP's running one, whose mean is one batch behind.
    """
    inputs: list[torch.Tensor] = []
    scores: dict[str, list[torch.Tensor]] = {"mlp": [], "attn": []}
    body, n_heads = hf_model.model, hf_model.config.num_attention_heads
    with torch.inference_mode():
        for example in examples:
            inputs.append(body.embed_tokens(torch.tensor([example.ids], device=device())))
        for layer in body.layers:
            seen: dict[str, list[torch.Tensor]] = {"mlp": [], "attn": []}
            modules = {"mlp": layer.mlp.down_proj, "attn": layer.self_attn.o_proj}
            handles = [
                module.register_forward_pre_hook(lambda _, args, site=site, seen=seen: seen[site].append(args[0][0]))
                for site, module in modules.items()
            ]
            for i, hidden in enumerate(inputs):
                places = torch.arange(hidden.shape[1], device=hidden.device)[None]
                rotary = body.rotary_emb(hidden, places)
                inputs[i] = layer(hidden, position_embeddings=rotary, position_ids=places)
            for handle in handles:
                handle.remove()
            for site, module in modules.items():
                channel = torch.cat(seen[site]).double().var(0) * module.weight.double().square().sum(0)
                scores[site].append(channel if site == "mlp" else channel.unflatten(0, (n_heads, -1)).sum(-1))
    return {site: torch.stack(values) for site, values in scores.items()}


def from_cache(model: Any, examples: list[Encoded]) -> dict[str, torch.Tensor]:
    """All activations of all texts cached, then their variance."""
    n_layers = model.cfg.n_layers
    names = {(site, layer): unit_hook(site, layer) for site in ("mlp", "attn") for layer in range(n_layers)}
    seen: dict[Any, list[torch.Tensor]] = {key: [] for key in names}
    with torch.inference_mode():
        for batch in _batches(examples):
            _, cache = model.run_with_cache(
                batch.input_ids, attention_mask=batch.attention_mask, names_filter=list(names.values())
            )
            for key, name in names.items():
                seen[key].append(cache[name].flatten(2)[batch.attention_mask.bool()])
        scores: dict[str, list[torch.Tensor]] = {"mlp": [], "attn": []}
        for (site, layer), parts in seen.items():
            out = model.blocks[layer].mlp.W_out if site == "mlp" else model.blocks[layer].attn.W_O.flatten(0, 1)
            channel = torch.cat(parts).double().var(0) * out.double().square().sum(-1)
            scores[site].append(channel if site == "mlp" else channel.unflatten(0, (model.cfg.n_heads, -1)).sum(-1))
    return {site: torch.stack(values) for site, values in scores.items()}


def _batches(examples: list[Encoded]) -> Any:
    return (batch.to(device()) for batch in batches(examples, MAX_TOKENS))


def _seconds(model: Any, data: PromptSet) -> float:
    return interleaved({"ours": lambda: sc.score_units(model, data, template="none")}, 2)["ours"]


def _wide(d_mlp: int) -> float:
    return _seconds(subjects.hooked(subjects.plain("small", intermediate_size=d_mlp)), subjects.long_texts(16, 96))
