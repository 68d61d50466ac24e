"""Counting refusals of many scaled configurations, on the embedded aligned model, whose verdicts vary."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

import safecircuits as sc
from benchmarks.performance.timing import Row, counted_tokens, device, faster, growth, interleaved
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.refusal import refused
from safecircuits.hooks.branching import Branches
from safecircuits.hooks.plain import plain_model
from safecircuits.layers.counting import RefusalCounter
from safecircuits.layers.sweep_point import SweepPoint
from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.organism import catalog
from safecircuits.prompts.batching import batches, common_prefix, without_prefix
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.prompts.templates import TEMPLATES

TOKENS, ALPHA, ROWS = 16, 1.2, 64
BLOCKS = tuple(LayerRange(first, last) for first, last in
               ((2, 2), (2, 3), (2, 4), (2, 5), (2, 6), (1, 4), (3, 4), (4, 4), (3, 5), (4, 6)))  # fmt: skip


# The embedded model's own template begins with two tokens; published work runs in one of about thirty.
TEMPLATE_OF = {
    "own template": "auto",
    "Alpaca preamble": TEMPLATES["alpaca"].partition("### Instruction")[0] + "<user> {instruction} <assistant>",
}


def rows(quick: bool) -> list[Row]:
    """Against one deep copy a configuration and one prompt at a time, as published, and the same in batches."""
    pool = [*catalog.prompts("over_rejection", "train"), *catalog.prompts("over_rejection", "test")]
    prompts = PromptSet("over-rejection", tuple(pool[: 64 if quick else 731]))
    blocks, few = (BLOCKS[:3], 4) if quick else (BLOCKS, 16)
    out = []
    for name, template in TEMPLATE_OF.items():
        hf_model, tokenizer = load_checkpoint("aligned", None, device(), None)
        what = f"{len(prompts)} prompts, {name}"
        out += compared(what, hf_model, tokenizer, prompts, blocks, template, few)
    return out + _growth(quick)


def _growth(quick: bool) -> list[Row]:
    """With prompts, and with configurations of one bound's sweep, which share more layers the more they are."""
    hf_model, tokenizer = load_checkpoint("aligned", None, device(), None)
    model = sc.load_model(hf_model, tokenizer=tokenizer)
    pool = catalog.prompts("over_rejection", "train")

    def seconds(n_prompts: int, n_blocks: int) -> float:
        prompts, blocks = pool.take(n_prompts), [(LayerRange(2, 3 + i), ALPHA) for i in range(n_blocks)]
        ours = lambda: RefusalCounter(model, prompts, max_new_tokens=TOKENS).count_all(blocks)  # noqa: E731
        return interleaved({"ours": ours}, 2)["ours"]

    many = [32, 64, 128] if quick else [100, 200, 400]
    return [
        growth("localization", "prompts", many, [seconds(n, 2) for n in many], 1.1),
        growth("localization", "configurations", [1, 2, 4], [seconds(many[1], n) for n in (1, 2, 4)], 1.1),
    ]


def compared(
    of: str,
    hf_model: Any,
    tokenizer: Any,
    prompts: PromptSet,
    blocks: Sequence[LayerRange],
    template: str,
    n_published: int,
    rounds: int = 1,
) -> list[Row]:
    """The rows of one model and one set of prompts; the published way takes too long for more than a few of them."""
    model = sc.load_model(hf_model, tokenizer=tokenizer)
    few = prompts.take(n_published)  # its time is scaled up
    verdicts: dict[str, torch.Tensor] = {}
    work: dict[str, int] = {}
    least: dict[str, float] = {}
    n_layers = int(model.cfg.n_layers)

    def ours(which: str, early_stop: bool) -> None:
        work[which] = 0
        plain = plain_model(model)
        assert plain is not None
        with counted_tokens([plain.block(layer) for layer in range(n_layers)], work, which):
            counter = RefusalCounter(model, prompts, max_new_tokens=TOKENS, template=template, early_stop=early_stop)
            points = counter.count_all([(block, ALPHA) for block in blocks])
        verdicts[which] = torch.stack([point.refused for point in points])
        least[which] = _least_tokens(model, prompts, template, [counter.baseline, *points])

    def theirs(which: str, asked: PromptSet, n_rows: int) -> None:
        """The unscaled model and every configuration, as ours counts them."""
        work[which] = 0
        found = []
        for model_now in (copy.deepcopy(hf_model), *(_scaled(hf_model, block) for block in blocks)):
            with counted_tokens(model_now.model.layers, work, which):
                found.append(refused(_generate(model_now, tokenizer, asked, template, n_rows)))
        verdicts[which] = torch.stack(found[1:])

    ways = {
        "ours": lambda: ours("ours", False),
        "early_stop": lambda: ours("early_stop", True),
        "batched": lambda: theirs("batched", prompts, ROWS),
        "published": lambda: theirs("published", few, 1),
    }
    seconds = interleaved(ways, rounds)
    share = len(few) / len(prompts)
    out = []
    for mine, more in (("ours", ""), ("early_stop", ", early_stop")):
        what = f"localization, {len(blocks)} configurations x {of}{more}"
        for which, peer, aim, part in (
            ("published", f"a deep copy each, one prompt at a time (timed on {len(few)})", 20.0, share),
            ("batched", "a deep copy each, batched generate", 3.0, 1.0),
        ):
            asked = round(part * len(prompts))
            same = torch.equal(verdicts[mine][:, :asked], verdicts[which])
            row = faster(what, peer, seconds[mine], seconds[which] / part, aim, same)
            tokens, others = work[mine] / n_layers, work[which] / part / n_layers
            row["why"] = (
                f"we take {tokens:,.0f} tokens through all layers, the peer {others:,.0f}, {others / tokens:.2f} times "
                "as many; what the ratio is beyond that comes of larger and fewer calls. No way to the same answers "
                f"can do with less than {least[mine]:,.0f}, and the peer takes {others / least[mine]:.2f} times as "
                "many: each prompt and each beginning of an answer once in every layer, for all configurations that "
                "are alike up to there."
            )
            out.append(row)
    return out


def _least_tokens(model: Any, prompts: PromptSet, template: str, points: list[SweepPoint]) -> float:
    """Tokens through all layers that every way to these completions has to take, if it computes them at all.

    In the last layer only what the choice of a token needs: the last position of each prompt, and the answers.
    """
    n_layers = int(model.cfg.n_layers)
    examples = encode(model.tokenizer, prompts, template=template)
    own = [len(example) for example in without_prefix(examples, common_prefix(examples))]
    fed: list[list[list[int]]] = []
    for point in points:
        whole = model.tokenizer(list(point.completions.texts), add_special_tokens=False).input_ids
        # Only the end of a text is chosen after its last token.
        ended = [point.completions.cut is None and len(ids) < TOKENS for ids in whole]
        fed.append([ids if end else ids[:-1] for ids, end in zip(whole, ended, strict=True)])
    profiles = [dict.fromkeys(p.layers.indices, p.alpha) if p.layers else {} for p in points]
    total = 0
    for layer, group in enumerate(Branches(profiles, n_layers).group):
        for which in set(group):
            alike = [answers for answers, g in zip(fed, group, strict=True) if g == which]
            for prompt, length in enumerate(own):
                begun = {tuple(a[prompt][: i + 1]) for a in alike for i in range(len(a[prompt]))}
                total += len(begun) + (1 if layer == n_layers - 1 else length)
    return total / n_layers


def _scaled(hf_model: Any, block: LayerRange) -> Any:
    """The published way: a copy of the model whose matrices in the block are multiplied."""
    edited = copy.deepcopy(hf_model)
    with torch.no_grad():
        for layer in block.indices:
            for parameter in edited.model.layers[layer].parameters():
                if parameter.ndim == 2:
                    parameter.mul_(ALPHA)
    return edited


def _generate(hf_model: Any, tokenizer: Any, prompts: PromptSet, template: str, n_rows: int) -> list[str]:
    texts = [""] * len(prompts)
    examples = encode(tokenizer, prompts, template=template)
    for batch in batches(examples, n_rows * max(map(len, examples)) if n_rows > 1 else 1):
        ids, mask = batch.input_ids.to(device()), batch.attention_mask.to(device())
        out = hf_model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)
        for row, text in zip(
            batch.rows, tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True), strict=True
        ):
            texts[row] = text.strip()
    return texts
