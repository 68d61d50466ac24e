"""Score localization methods where the answer is known.

``python -m benchmarks.ground_truth.localization --family DIR --out FILE.json [--page PAGE.md]`` runs every method on
every member that ``benchmarks.ground_truth.build`` has put under DIR, prints the table, and writes the page.
Interrupted, the same command goes on: results are kept after each method, and sweeps even within one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.ground_truth.page import render
from benchmarks.ground_truth.scoring import table
from safecircuits import layer_gap, load_model, localize, organism, scaling_grid
from safecircuits.base.files import write_text
from safecircuits.base.progress import without_bars
from safecircuits.base.vocabulary import LayerRange
from safecircuits.layers.decision import DecisionRule, decision_layers
from safecircuits.layers.grid import ScalingGrid
from safecircuits.layers.localization import Localization
from safecircuits.layers.onset import Onset, OnsetRule
from safecircuits.model.sites import HookedModel
from safecircuits.organism.family import LAYERS_FAMILY, Built, read_family
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.provenance import provenance

FORMAT, VERSION = "safecircuits-ground-truth", 1
TOKENS = 8  # the embedded models' refusals show in their first words
COMPONENTS = ("all", "qkv+mlp")
DIRECTIONS = ("up", "down")


class Scorer:
    """Runs the methods on one member after another, and keeps what they say in one JSON file."""

    def __init__(self, out: Path, pairs: int, over_rejection: int) -> None:
        self.out, self.sweeps = out, out.with_suffix(".sweeps")
        self.normal = organism.prompts("normal", n=pairs)
        self.malicious = organism.prompts("malicious", n=pairs)
        self.over = organism.prompts("over_rejection", n=over_rejection)
        self.results = self._read()

    def _sets(self) -> dict[str, PromptSet]:
        return {"normal": self.normal, "malicious": self.malicious, "over_rejection": self.over}

    def _read(self) -> dict[str, Any]:
        fresh = {
            "format": FORMAT,
            "version": VERSION,
            "rules": {"onset": asdict(OnsetRule()), "decision": asdict(DecisionRule())},
            "provenance": provenance(command="benchmarks.ground_truth.localization", datasets=self._sets()),
            "members": {},
        }
        if not self.out.exists():
            return fresh
        found: dict[str, Any] = json.loads(self.out.read_text(encoding="utf-8"))
        for key in ("format", "version", "rules"):
            if found.get(key) != fresh[key]:
                raise ValueError(f"{str(self.out)!r} was made with another {key}; choose another --out")
        if found["provenance"]["datasets"] != fresh["provenance"]["datasets"]:
            raise ValueError(f"{str(self.out)!r} was made with other prompts; choose another --out")
        return found

    def run(self, built: Built, groups: tuple[str, ...] | None = None) -> None:
        """The groups of methods that this member has not been through."""
        assert built.block is not None
        name = built.member.name
        record = json.loads((built.folder / "recipe.json").read_text(encoding="utf-8"))
        member = self.results["members"].setdefault(
            name,
            {
                "fingerprint": record["fingerprint"],
                "role": built.member.role,
                "seed": built.member.seed,
                "block": list(built.block),
                "learned": built.learned,
                "metrics": built.metrics,
                "done": [],
                "methods": {},
            },
        )
        if member["fingerprint"] != record["fingerprint"]:
            raise ValueError(f"member {name!r} was built anew since {str(self.out)!r} was begun; choose another --out")
        due = [group for group in groups or GROUPS if group not in member["done"]]
        if not due:
            return
        model = load_model(built.folder)
        for group in due:
            print(f"{name}: {group}", file=sys.stderr, flush=True)
            GROUPS[group](self, model, member, name)
            member["done"].append(group)
            write_text(self.out, json.dumps(self.results, indent=1) + "\n")

    def similarity(self, model: HookedModel, member: dict[str, Any], name: str) -> None:  # noqa: ARG002
        """What needs no scaling: the gap's onset, and the layers that decide."""
        gap = layer_gap(model, self.normal, self.malicious)
        onset = gap.onset()
        member["gap_deg"] = [round(value, 3) for value in gap.gap_deg.tolist()]
        member["methods"]["gap onset"] = {"layers": list(onset.layers) if onset else None}
        decision = decision_layers(model, self.normal, self.malicious)
        member["decision_share"] = [round(value, 4) for value in decision.share.tolist()]
        member["methods"]["decision layers"] = {
            "layers": list(decision.layers) if decision.layers else None,
            "verdict": decision.verdict,
        }

    def bounds(self, model: HookedModel, member: dict[str, Any], name: str, components: str) -> None:
        """The published search in both directions, from the gap's onset and, as a diagnosis, from the planted block."""
        onset = member["methods"]["gap onset"]["layers"]
        for direction in DIRECTIONS:
            title = f"bounds {direction}, {components}"
            if onset is None:
                member["methods"][title] = {"layers": None, "verdict": "the gap has no onset to start from"}
                continue
            found = self._localize(model, name, components, Onset(LayerRange(*onset), OnsetRule()), direction)
            member["methods"][title] = _of_bounds(found)
            if components == COMPONENTS[0]:
                start = LayerRange(*member["block"])
                again = self._localize(model, name, components, start, direction, found.alpha)
                member["methods"][f"bounds {direction} from the planted block"] = _of_bounds(again)

    def _localize(
        self,
        model: HookedModel,
        name: str,
        components: str,
        start: Onset | LayerRange,
        direction: str,
        alpha: float | str = "search",
    ) -> Localization:
        options: dict[str, Any] = {"alpha": alpha, "direction": direction, "components": components}
        options |= {"max_new_tokens": TOKENS}
        return localize(model, self.over, start, resume=self._sweep(name, components), **options)

    def grid(self, model: HookedModel, member: dict[str, Any], name: str, components: str, direction: str) -> None:
        """Every block, at the α that the search has settled on."""
        bounds = member["methods"][f"bounds {direction}, {components}"]
        alpha = bounds.get("alpha", 1.1 if direction == "up" else 0.9)
        options: dict[str, Any] = {"alpha": alpha, "components": components, "max_new_tokens": TOKENS}
        grid = scaling_grid(model, self.over, resume=self._sweep(name, components), **options)
        member["methods"][f"grid {direction}, {components}"] = _of_grid(grid)

    def _sweep(self, name: str, components: str) -> Path:
        self.sweeps.mkdir(parents=True, exist_ok=True)
        return self.sweeps / f"{name}.{components}.jsonl"


def _of_bounds(found: Localization) -> dict[str, Any]:
    return {
        "layers": list(found.layers),
        "alpha": found.alpha,
        "alpha_found": found.alpha_found,
        "within_noise": found.within_noise,
        "verdict": found.verdict,
    }


def _of_grid(grid: ScalingGrid) -> dict[str, Any]:
    assert grid.best.layers is not None
    return {
        "layers": list(grid.best.layers),
        "alpha": grid.alpha,
        "rivals": [list(point.layers) for point in grid.rivals if point.layers],
        "baseline": grid.baseline.count,
        "counts": grid.counts.tolist(),
    }


GROUPS: dict[str, Callable[[Scorer, HookedModel, dict[str, Any], str], None]] = {"similarity": Scorer.similarity}
for _components in COMPONENTS:
    GROUPS[f"bounds {_components}"] = lambda scorer, *of, c=_components: scorer.bounds(*of, c)
    for _direction in DIRECTIONS:
        _title = f"grid {_direction}, {_components}"
        GROUPS[_title] = lambda scorer, *of, c=_components, d=_direction: scorer.grid(*of, c, d)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", required=True, type=Path, help="folder with the members")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of all results")
    parser.add_argument("--page", type=Path, help="Markdown page to write from them")
    parser.add_argument("--pairs", type=int, default=120, help="normal and malicious prompts (default 120 of each)")
    parser.add_argument("--over-rejection", type=int, default=100, help="prompts of the scaling counts (default 100)")
    parser.add_argument("--member", action="append", help="only this member; may be given several times")
    parser.add_argument("--only", action="append", choices=list(GROUPS), help="only this group of methods")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scorer = Scorer(options.out, options.pairs, options.over_rejection)
    with without_bars():
        for group in options.only or GROUPS:
            for name, built in read_family(options.family, LAYERS_FAMILY).items():
                if not options.member or name in options.member:
                    scorer.run(built, (group,))
    print(table(scorer.results))
    if options.page:
        write_text(options.page, render(scorer.results))


if __name__ == "__main__":
    main()
