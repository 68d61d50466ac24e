"""How many tokens deep is the safety of the embedded models? KL by answer token beside refusal under prefilled tokens.

    python -m benchmarks.ground_truth.depth [--n PROMPTS]

For ``aligned`` and the two planted stages against ``base``: KL(aligned ‖ base) at each token of their refusals of test
prompts, and how many of these are still refused once an answer begins with so many tokens of the base's own.
"""

from __future__ import annotations

import argparse

import torch

import safecircuits as sc
from benchmarks.markdown import markdown_table
from safecircuits.base.progress import without_bars
from safecircuits.behavior.depth import AlignmentDepth, alignment_depth

STAGES = ("aligned", "planted-layers", "planted-units")
TOKENS = 6


def measured(n: int) -> dict[str, tuple[AlignmentDepth, list[list[str]]]]:
    """The profile of each stage, and its rows beside the prefill curve."""
    malicious = sc.organism.prompts("malicious", n=n)
    base, found = sc.load_model("base"), {}
    openings = sc.generate(base, malicious, max_new_tokens=TOKENS)
    for stage in STAGES:
        model = sc.load_model(stage)
        depth = alignment_depth(model, base, malicious, n_tokens=TOKENS)
        under = sc.behavior.pressure(model, malicious, prefill=openings, prefill_tokens=list(range(1, TOKENS)))
        rows = [
            [
                stage,
                str(row.tokens),
                f"{row.kl:.3g}",
                f"{100 * row.share_before:.0f}",
                "" if row.refused != row.refused else f"{100 * row.refused:.0f}",
            ]
            for row in depth.beside(under).astype({"refused": "float64"}).itertuples(index=False)
        ]
        found[stage] = depth, rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="malicious prompts (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with without_bars():
        found = measured(options.n)
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
