"""Can the redundant fifth of the embedded base model be aligned alone? SSAH §4.3 with the safety figures it lacks.

python -m benchmarks.ground_truth.alignment_budget --out runs/budget      prints a Markdown table; resumes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from safecircuits import organism
from safecircuits.studies.budget import alignment_budget
from safecircuits.training.settings import TrainingSettings

RATES = (3e-4, 1e-3, 3e-3)


def table(out: Path, seeds: int, n: int) -> pd.DataFrame:
    """One row a learning rate and arm."""
    frames = []
    for lr in RATES:
        found = alignment_budget(
            "base",
            organism.prompts("malicious", "train", n=200),
            organism.prompts("normal", "train", n=200),
            organism.prompts("normal", n=n),
            malicious=organism.prompts("malicious", n=n),
            over_rejection=organism.prompts("over_rejection", n=n),
            utility=organism.prompts("utility", n=n),
            seeds=range(seeds),
            settings=TrainingSettings(epochs=4, batch_size=32, lr=lr),
            points=1,
            out=out,
        )
        frame = found.to_frame()
        frame.insert(0, "lr", lr)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where finished runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=60, help="prompts of each kind to measure on")
    arguments = parser.parse_args()
    found = table(arguments.out, arguments.seeds, arguments.n)
    print("| rate | arm | malicious refused | over-rejected | utility | tax | trained parameters | steps |")
    print("|---|---|---|---|---|---|---|---|")
    for row in found.itertuples():
        rates = []
        for name in ("malicious_refused", "over_rejected", "utility"):
            mean, low, high = (100 * getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
            rates.append(f"{mean:.0f} % [{low:.0f}, {high:.0f}]")
        cost = f"{100 * row.tax:+.1f} | {row.n_trainable:,} | {row.steps}"
        print(f"| {row.lr:g} | {row.arm} | {' | '.join(rates)} | {cost} |")


if __name__ == "__main__":
    main()
