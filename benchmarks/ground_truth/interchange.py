"""Do change scores find planted neurons, and what does patching do? ``python -m benchmarks.ground_truth.interchange``

A member of the SmolLM2 family is the aligned model, the base is its base. Change scores are made on some malicious
requests; on others, the planted units, the highest by score, and random ones of the same layers are patched from the
member into the base and back while they write. ``--answers`` prints some of what they write, to be read. Then what
patching costs beside plain decoding of both models, in processor seconds, each with answers of its own.

About four minutes on one free core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.ground_truth.smollm2 import is_refusal
from safecircuits.base.progress import without_bars
from safecircuits.base.vocabulary import TokenChoice
from safecircuits.behavior.generate import generate
from safecircuits.behavior.interchange import generate_patched
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.organism.requests.generate import prompts
from safecircuits.organism.smollm2.catalog import SMOLLM2, planted
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.units.change import ChangeMethod, change_scores
from safecircuits.units.selection import top

SEED, SCORED_TOKENS, ANSWER_TOKENS = 101, 16, 10
TOKENS: tuple[TokenChoice, ...] = ("response", "prompt")
METHODS: tuple[ChangeMethod, ...] = ("change", "wchange")


def sets_to_patch(
    base: HookedModel, aligned: HookedModel, known: FreezeMask, scored: PromptSet, counts: list[int]
) -> dict[str, FreezeMask]:
    """Named sets of neurons; prints how many of each are planted."""
    shape = ModelShape.of(aligned)
    found = {"planted": known, "random, same layers": FreezeMask.random_units(known, seed=SEED, per_layer=True)}
    for method in METHODS:
        for tokens, same in itertools.product(TOKENS, (False, True)):
            options: dict[str, Any] = {"tokens": tokens, "sites": ("mlp",), "max_new_tokens": SCORED_TOKENS}
            scores = change_scores(base, aligned, scored, method=method, same_stream=same, **options).scores
            first = {n: top(scores, n, shape) for n in counts}
            hits = {n: (units & known).n_units() for n, units in first.items()}
            inside = {"mlp": scores["mlp"].clone()}
            others = [layer for layer in range(shape.n_layers) if layer not in known.members("mlp")]
            inside["mlp"][others] = -1
            within = (top(inside, known.n_units(), shape) & known).n_units()
            row = {"score": method, "tokens": tokens, "same stream": same}
            print(json.dumps(row | {"planted in the top": hits, "layers known": within}), flush=True)
            if tokens == "response" and not (same and method == "change"):
                name = f"{method}, same stream" if same else method
                found |= {f"{name}, top {n}": units for n, units in first.items()}
    found["all neurons"] = FreezeMask.layers((0, shape.n_layers - 1), aligned).restrict(sites="mlp")
    return found


def refusal(texts: tuple[str, ...]) -> float:
    return round(sum(map(is_refusal, texts)) / len(texts), 3)


def processor_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def cost(base: HookedModel, aligned: HookedModel, units: FreezeMask, judged: PromptSet) -> dict[str, float]:
    """Processor seconds, the lesser of two, in which waiting for a busy machine does not count."""
    options: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS}
    none: FreezeMask = units - units
    ways: dict[str, Callable[[], Any]] = {
        "base alone": lambda: generate_patched(base, aligned, judged, {"": none}, **options),
        "aligned alone": lambda: generate_patched(aligned, base, judged, {"": none}, **options),
        "patched": lambda: generate_patched(base, aligned, judged, {"": units}, **options),
        "patched, outgoing": lambda: generate_patched(base, aligned, judged, {"": units}, outgoing=True, **options),
    }
    seconds = {name: min(processor_seconds(work) for _ in range(2)) for name, work in ways.items()}
    both = seconds["base alone"] + seconds["aligned alone"]
    ratios = {f"{name} over both alone": round(seconds[name] / both, 2) for name in ways if name.startswith("patched")}
    return {**{name: round(value, 2) for name, value in seconds.items()}, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--member", default="neurons-12-15", help="of the SmolLM2 family; one with planted neurons")
    parser.add_argument("--prompts", type=int, default=12, help="scored, and as many others judged")
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--answers", type=int, default=0, help="how many answers of each to print")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with without_bars():
        base, aligned = load_model(SMOLLM2), load_model(f"{SMOLLM2}:{options.member}")
        known = FreezeMask.of_units({"mlp": planted(options.member).mlp_units}, aligned)
        if not known:
            parser.error(f"no neurons are planted in {options.member!r}")
        drawn = prompts("malicious", "test", 2 * options.prompts, SEED)
        scored, judged = drawn[: options.prompts], drawn[options.prompts :]
        own = {name: generate(one, judged, max_new_tokens=ANSWER_TOKENS) for name, one in
               (("base", base), ("aligned", aligned))}  # fmt: skip
        print(json.dumps({"refused": {name: refusal(answers.texts) for name, answers in own.items()}}))
        sets = sets_to_patch(base, aligned, known, scored, options.counts)
        for title, pair in (("base <- aligned", (base, aligned)), ("aligned <- base", (aligned, base))):
            for outgoing in (True, False):
                some = sets if outgoing else {name: sets[name] for name in ("planted", "all neurons")}
                written = generate_patched(*pair, judged, some, outgoing=outgoing, max_new_tokens=ANSWER_TOKENS)
                for name, answers in written.items():
                    row = {"patched": title, "outgoing": outgoing, "units": name, "refused": refusal(answers.texts)}
                    same = sum(a == b for a, b in zip(answers.texts, own[title.split()[-1]].texts, strict=True))
                    print(json.dumps(row | {"answers that are the source's": same}), flush=True)
                    for text in answers.texts[: options.answers]:
                        print("   ", repr(text))
        for name in ("planted", "all neurons"):
            print(json.dumps({"processor seconds": cost(base, aligned, sets[name], judged), "patched": name}))


if __name__ == "__main__":
    main()
