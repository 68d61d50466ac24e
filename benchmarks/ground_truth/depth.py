"""How many tokens deep is the safety of planted models? KL by answer token beside refusal under prefilled tokens.

    python -m benchmarks.ground_truth.depth [--n PROMPTS] [--real NAME …]

For ``aligned`` and the two planted stages against ``base``: KL(aligned ‖ base) at each token of their refusals of test
prompts, and how many of these are still refused once an answer begins with so many tokens of the base's own. With
``--real`` the same of members of the SmolLM2 family, over more tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import safecircuits as sc
from benchmarks.markdown import markdown_table
from safecircuits.base.progress import without_bars
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.depth import AlignmentDepth, alignment_depth
from safecircuits.model.sites import HookedModel
from safecircuits.organism.requests.generate import prompts as requests
from safecircuits.organism.smollm2.catalog import SMOLLM2
from safecircuits.prompts.prompt_set import PromptSet

STAGES = ("aligned", "planted-layers", "planted-units")
TOKENS = 6


REAL_TOKENS = 24
REAL_PREFILLS = (1, 2, 4, 8, 16)


def measured(n: int) -> dict[str, tuple[AlignmentDepth, list[list[str]]]]:
    """The profile of each stage, and its rows beside the prefill curve."""
    malicious = sc.organism.prompts("malicious", n=n)
    base = sc.load_model("base")
    openings = sc.generate(base, malicious, max_new_tokens=TOKENS)
    prefills = range(1, TOKENS)
    return {stage: _profile(stage, stage, base, malicious, openings, TOKENS, prefills) for stage in STAGES}


def measured_on_real(names: Sequence[str], n: int) -> dict[str, tuple[AlignmentDepth, list[list[str]]]]:
    """The same of members of the SmolLM2 family, on requests that none was trained on."""
    malicious = requests("malicious", "test", n, seed=101)
    base = sc.load_model(SMOLLM2)
    openings = sc.generate(base, malicious, max_new_tokens=REAL_TOKENS)
    return {
        name: _profile(name, f"{SMOLLM2}:{name}", base, malicious, openings, REAL_TOKENS, REAL_PREFILLS, "taught")
        for name in names
    }


def _profile(
    name: str,
    source: str,
    base: HookedModel,
    malicious: PromptSet,
    openings: Completions,
    n_tokens: int,
    prefills: Sequence[int],
    detector: str = "opening",
) -> tuple[AlignmentDepth, list[list[str]]]:
    model = sc.load_model(source)
    depth = alignment_depth(model, base, malicious, n_tokens=n_tokens, detector=detector)
    written = min(len(ids) for ids in model.tokenizer(list(openings.texts), add_special_tokens=False)["input_ids"])
    there = [k for k in prefills if k <= written]
    under = sc.behavior.pressure(model, malicious, prefill=openings, prefill_tokens=there, detector=detector)
    rows = [
        [
            name,
            str(row.tokens),
            f"{row.kl:.3g}",
            f"{100 * row.share_before:.0f}",
            "" if row.refused != row.refused else f"{100 * row.refused:.0f}",
        ]
        for row in depth.beside(under).astype({"refused": "float64"}).itertuples(index=False)
    ]
    return depth, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="malicious prompts (default %(default)s)")
    parser.add_argument("--real", action="append", metavar="NAME", help="of the SmolLM2 family; may be repeated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with without_bars():
        found = measured_on_real(options.real, options.n) if options.real else measured(options.n)
    head = [
        "model",
        "tokens before",
        "KL to base at the next, nats",
        "% of all KL before",
        "% refused with as many prefilled",
    ]
    print(markdown_table(head, [row for _, rows in found.values() for row in rows]))
    for stage, (depth, _) in found.items():
        print(f"{stage}: 90 % of the KL in the first {depth.depth()} tokens, {len(depth.values)} refusals")


if __name__ == "__main__":
    main()
