"""What the reasoning-direction probe says on the embedded models, under every reading that the paper leaves open.

python -m benchmarks.ground_truth.direction            prints a Markdown table
python -m benchmarks.ground_truth.direction --n 24     on fewer prompts
"""

from __future__ import annotations

import argparse
import itertools
from typing import get_args

import pandas as pd

import safecircuits as sc
from benchmarks.markdown import markdown_table
from safecircuits.direction.probed import Baseline
from safecircuits.direction.states import Pool
from safecircuits.direction.variants import Where

STAGES = ("aligned", "unaligned")
BENIGN, MALICIOUS = ("i cannot", "i am sorry , but"), ("take the",)
STEPS = (2, 4, 6, 8, 10)


def table(n: int) -> pd.DataFrame:
    """One row a reading and number of tokens: blocks that lean as the model answers, and Cohen's kappa of verdicts."""
    malicious = sc.load_prompts("organism:malicious", n=n)
    rows = []
    for where, pool, baseline in itertools.product(get_args(Where), get_args(Pool), get_args(Baseline)):
        found = sc.direction.compare_directions(
            {stage: stage for stage in STAGES},
            malicious,
            suffixes=sc.direction.Suffixes(BENIGN, MALICIOUS, where),
            pool=pool,
            baseline=baseline,
            steps=STEPS,
        )
        for step in STEPS:
            aligned, unaligned = (found[stage].gap(step).leaning for stage in STAGES)
            table = found.verdicts(step=step)
            rows.append(
                {
                    "suffix in": where,
                    "state": pool,
                    "baseline": baseline,
                    "tokens": step,
                    "aligned blocks to refusing": aligned.count(1),
                    "to answering": aligned.count(-1),
                    "unaligned blocks to refusing": unaligned.count(1),
                    "to answering ": unaligned.count(-1),
                    "agreement": float(table.agreement[0, 1]),
                    "kappa": float(table.kappa[0, 1]),
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="malicious prompts")
    found = table(parser.parse_args().n)
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row] for row in found.itertuples(index=False)]
    print(markdown_table(list(found.columns), cells))


if __name__ == "__main__":
    main()
