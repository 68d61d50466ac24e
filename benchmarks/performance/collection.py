"""Last-token residual streams of many short prompts in the Alpaca template."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import torch

import safecircuits as sc
from benchmarks.performance import subjects
from benchmarks.performance.timing import Row, counted_tokens, device, faster, growth, interleaved, within
from safecircuits.hooks.plain import plain_model
from safecircuits.model.sites import resid_post
from safecircuits.prompts.batching import Batch, batches
from safecircuits.prompts.prompt_set import PromptSet, encode

WHAT = "last-token residuals"
ROWS = 64  # prompts to a batch for the peers: what suits them on two cores


def rows(quick: bool) -> list[Row]:
    """Against four ways that people use, all on the same batches of equal lengths."""
    shape, n = ("small", 192) if quick else ("big", 731)
    hf_model = subjects.plain(shape)
    model, prompts = subjects.hooked(hf_model), subjects.prompts(n)
    why = _tokens(hf_model, model, prompts)
    out = [row | {"why": why} for row in compared(f"{n} prompts", hf_model, model, prompts, "alpaca", 2)]
    if device().type == "cpu" and sys.platform == "linux":
        peaks = [_peak(what, shape, n) for what in ("ours", "plain")]
        out.append(within(f"{WHAT}, peak memory in MB", "plain forward, no hidden states", *peaks, 1.05, None))
    sizes = [64, 128, 256] if quick else [91, 182, 365, 731]
    out.append(growth(WHAT, "prompts", sizes, [_seconds(model, k) for k in sizes], 1.1))
    depths = [2, 4, 8]
    deep = [subjects.hooked(subjects.plain("small", num_hidden_layers=k)) for k in depths]
    out.append(growth(WHAT, "layers", depths, [_seconds(m, 128) for m in deep], 1.1))
    return out


def compared(
    of: str,
    hf_model: Any,
    model: Any,
    prompts: PromptSet,
    template: str,
    rounds: int,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-4,
) -> list[Row]:
    """The rows of one model, a row a peer that is installed; values are equal within the tolerances."""
    kept: dict[str, torch.Tensor] = {}

    def asked() -> list[Batch]:
        return in_batches(model.tokenizer, prompts, template)

    ways: dict[str, Any] = {
        "ours": lambda: kept.update(ours=sc.collect_residuals(model, prompts, template=template).values),
        "plain Hugging Face, output_hidden_states": lambda: kept.update(hf=hidden_states(hf_model, asked())),
        "TransformerLens run_with_cache": lambda: kept.update(tl=run_with_cache(model, asked())),
    }
    for name, way in (("nnsight", with_nnsight), ("pyvene", with_pyvene)):
        try:
            __import__(name)
        except ImportError:
            continue
        run = way(copy.deepcopy(hf_model))  # it leaves its traces in the modules
        ways[name] = lambda name=name, run=run: kept.update({name: run(asked())})
    seconds = interleaved(ways, rounds)
    ours = seconds.pop("ours")
    # Hugging Face's last hidden state is behind the final norm, so the last layer is compared with the others only.
    equal = all(torch.allclose(value[:-1], kept["ours"][:-1], rtol=rtol, atol=atol) for value in kept.values())
    return [faster(f"{WHAT}, {of}", peer, ours, theirs, 3.0, equal) for peer, theirs in seconds.items()]


def _tokens(hf_model: Any, model: Any, prompts: PromptSet) -> str:
    """How many tokens enter the first layer in our way and in the peers'."""
    work = {"ours": 0, "theirs": 0}
    plain = plain_model(model)
    assert plain is not None
    with counted_tokens([plain.block(0)], work, "ours"):
        sc.collect_residuals(model, prompts, template="alpaca")
    with counted_tokens([hf_model.model.layers[0]], work, "theirs"):
        hidden_states(hf_model, in_batches(subjects.tokenizer(), prompts, "alpaca"))
    return (
        f"we take {work['ours']:,} tokens through the model, the peer {work['theirs']:,}, "
        f"{work['theirs'] / work['ours']:.2f} times as many: the template's tokens are computed once, the prompt's own "
        "have to be."
    )


def hidden_states(hf_model: Any, prompts: list[Batch]) -> torch.Tensor:
    """What a user of Hugging Face writes."""
    values = torch.empty(hf_model.config.num_hidden_layers, n_rows(prompts), hf_model.config.hidden_size)
    with torch.inference_mode():
        for batch in prompts:
            out = hf_model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
            for layer, hidden in enumerate(out.hidden_states[1:]):
                values[layer, list(batch.rows)] = hidden[:, -1].float().cpu()
    return values


def run_with_cache(model: Any, prompts: list[Batch]) -> torch.Tensor:
    """What a user of TransformerLens writes, who knows to ask for the residual stream only."""
    n_layers = model.cfg.n_layers
    values = torch.empty(n_layers, n_rows(prompts), model.cfg.d_model)
    names = [resid_post(layer) for layer in range(n_layers)]
    with torch.inference_mode():
        for batch in prompts:
            _, cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask, names_filter=names)
            for layer, name in enumerate(names):
                values[layer, list(batch.rows)] = cache[name][:, -1].float().cpu()
    return values


def with_nnsight(hf_model: Any) -> Any:
    """What a user of nnsight writes."""
    import nnsight

    traced = nnsight.NNsight(hf_model)

    def run(prompts: list[Batch]) -> torch.Tensor:
        values = torch.empty(hf_model.config.num_hidden_layers, n_rows(prompts), hf_model.config.hidden_size)
        for batch in prompts:
            ids, mask = batch.input_ids, batch.attention_mask
            with torch.inference_mode(), traced.trace(input_ids=ids, attention_mask=mask):
                kept = nnsight.save([])
                for layer in traced.model.layers:
                    kept.append(layer.output[:, -1])
            for layer, value in enumerate(kept):
                values[layer, list(batch.rows)] = value.float().cpu()
        return values

    return run


def with_pyvene(hf_model: Any) -> Any:
    """What a user of pyvene writes, with a function for an intervention."""
    import pyvene

    kept: dict[int, torch.Tensor] = {}

    def keeping(layer: int) -> Any:
        def keep(base: torch.Tensor, source: Any = None, subspaces: Any = None, **_: Any) -> torch.Tensor:  # noqa: ARG001
            kept[layer] = base[:, -1].clone()
            return base

        return keep

    n_layers = hf_model.config.num_hidden_layers
    parts = [{"component": f"model.layers[{i}].output", "intervention": keeping(i)} for i in range(n_layers)]
    intervenable = pyvene.IntervenableModel(parts, model=hf_model)

    def run(prompts: list[Batch]) -> torch.Tensor:
        values = torch.empty(n_layers, n_rows(prompts), hf_model.config.hidden_size)
        for batch in prompts:
            with torch.inference_mode():
                intervenable({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
            for layer, value in kept.items():
                values[layer, list(batch.rows)] = value.float().cpu()
        return values

    return run


def in_batches(tokenizer: Any, prompts: PromptSet, template: str) -> list[Batch]:
    """The batches that suit the peers."""
    examples = encode(tokenizer, prompts, template=template)
    return [batch.to(device()) for batch in batches(examples, ROWS * max(map(len, examples)))]


def n_rows(prompts: list[Batch]) -> int:
    """Prompts of all batches."""
    return sum(len(batch.rows) for batch in prompts)


def _seconds(model: Any, n: int) -> float:
    prompts = subjects.prompts(n)
    return interleaved({"ours": lambda: sc.collect_residuals(model, prompts, template="alpaca")}, 2)["ours"]


def _peak(what: str, shape: str, n: int) -> float:
    """Megabytes that a fresh process takes for the weights and the work, at most."""
    call = [sys.executable, "-m", "benchmarks.performance.memory", what, shape, str(n)]
    return float(subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()[-1])
