"""What a call costs beside the arithmetic: a tiny model, one small batch after another."""

from __future__ import annotations

import torch

import safecircuits as sc
from benchmarks.performance import subjects
from benchmarks.performance.timing import Row, device, interleaved, within
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import encode

WHAT = "a batch of 2 x 16 tokens, tiny model"


def rows(quick: bool) -> list[Row]:
    """Our whole collection loop, tokenizer and all, against bare forward passes over the same batches."""
    hf_model = subjects.plain("tiny")
    models = {kind: subjects.hooked(hf_model, kind) for kind in ("bridge", *_hooked_too())}
    # Different first words, so that there is no beginning to share.
    prompts = subjects.long_texts(40 if quick else 200, 18)
    examples = encode(subjects.tokenizer(), prompts, template="none")
    width = max(map(len, examples))
    made = [batch.to(device()) for batch in batches(examples, 2 * width)]

    def plain() -> None:
        with torch.inference_mode():
            for batch in made:
                hf_model(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    def forward(kind: str) -> None:
        with torch.inference_mode():
            for batch in made:
                models[kind](batch.input_ids, attention_mask=batch.attention_mask)

    def without_logits(kind: str) -> None:
        with torch.inference_mode():
            for batch in made:
                models[kind](
                    batch.input_ids, attention_mask=batch.attention_mask, stop_at_layer=len(hf_model.model.layers)
                )

    def collect(kind: str) -> None:
        sc.collect_residuals(models[kind], prompts, template="none", max_tokens=2 * width)

    ways = {"plain": plain}
    for kind in models:
        ways |= {f"{kind} forward": lambda k=kind: forward(k), f"{kind} loop": lambda k=kind: collect(k)}
    bare = [kind for kind in models if kind == "hooked"]  # a bridge is run as the plain model
    ways |= {f"{kind} forward without logits": lambda k=kind: without_logits(k) for kind in bare}
    seconds = interleaved(ways, 5)
    plainly = seconds.pop("plain")
    out = []
    for name, took in seconds.items():
        kind, _, what = name.partition(" ")
        row = within(
            f"{WHAT}, {kind}{', our collection loop' if what == 'loop' else f' {what}'}",
            "plain Hugging Face forward",
            took,
            plainly,
            1.3 if what == "loop" else None,
            None,
        )
        if what == "loop":
            least = seconds.get(f"{kind} forward without logits", plainly)
            row["why"] = (
                f"what this loop runs alone, up to the end of the last layer and with no hooks and no tokenizer, takes "
                f"{least / plainly:.2f} times the plain pass with logits; no loop over it can go below that, and ours "
                f"takes {took / least:.2f} times as long."
            )
        out.append(row)
    return out


def _hooked_too() -> list[str]:
    import transformer_lens

    return ["hooked"] if hasattr(transformer_lens, "HookedTransformer") else []
