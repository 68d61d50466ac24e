"""Compare rules that read a range off the curve of decision shares, on development members of both families.

``python -m benchmarks.ground_truth.decision_rules [--role judged]`` prints the mean overlap of each rule with the
planted layers: on the embedded family (8 layers) and on the real one (30 layers), from the curves in the two result
files. The rule of the library was chosen by the development members' table, before the judged one was printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ground_truth.scoring import overlap
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.decision import DecisionRule

ROOT = Path(__file__).parents[2]
EMBEDDED, REAL = ROOT / "docs" / "ground_truth_layers.json", ROOT / "docs" / "ground_truth_real_layers.json"

Curve = list[float]
Rule = Callable[[Curve], LayerRange]


def thresholds(appear: float, complete: float) -> Rule:
    """From the first layer whose share reaches ``appear`` to the first from which on it stays at ``complete``."""

    def read(share: Curve) -> LayerRange:
        last = len(share) - 1
        while last > 0 and share[last - 1] >= complete:
            last -= 1
        return LayerRange(next((k for k in range(last) if share[k] >= appear), last), last)

    return read


def rules() -> dict[str, Rule]:
    """The candidates, and the rule that the library has."""
    found: dict[str, Rule] = {
        f"thresholds {100 * a:.0f} % and {100 * c:.0f} %": thresholds(a, c)
        for a in (0.05, 0.1, 0.15, 0.2)
        for c in (0.8, 0.85, 0.9, 0.95)
    }
    found |= {f"growth above {nu:g} of even": DecisionRule(nu).range for nu in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5)}
    return found


def curves(role: str) -> dict[str, list[tuple[Curve, list[int]]]]:
    """Share by layer and planted block of each member of a role, by family; blocks of layers alone."""
    embedded = json.loads(EMBEDDED.read_text(encoding="utf-8"))["members"].values()
    found = {
        "embedded": [(m["decision_share"], m["block"]) for m in embedded if m["role"] == role and m["learned"]],
        "real": [],
    }
    if REAL.exists():
        members: Any = json.loads(REAL.read_text(encoding="utf-8"))["members"].values()
        found["real"] = [
            (m["methods"]["decision"]["share"], m["block"])
            for m in members
            if m["role"] == role and m["block"] and m["methods"].get("decision", {}).get("layers")
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=("development", "judged"), default="development", help="of the members")
    families = curves(parser.parse_args().role)
    print("| rule | " + " | ".join(f"{name} ({len(of)})" for name, of in families.items()) + " |")
    print("|---|" + "---|" * len(families))
    for name, rule in rules().items():
        means = [
            np.mean([overlap(list(rule(share)), block) for share, block in of]) if of else float("nan")
            for of in families.values()
        ]
        print(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
