"""Which unit score finds what carries refusal? Ablation curves and groups of every score where the answer is known.

    python -m benchmarks.ground_truth.units --out units.json [--page units.md] [--quick] [--models FOLDER ...]

Models are stages or folders of family members: aligned and planted-units unless given. Prints one table a model, and
writes all curves and groups. The measurements of a model go to ``FILE.<model>.jsonl`` as they are made, so that an
interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import safecircuits as sc
from benchmarks.ground_truth.groups import removed_groups
from benchmarks.ground_truth.units_page import render
from safecircuits.base.files import write_text
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel
from safecircuits.organism import STAGES, prompts
from safecircuits.organism.catalog import planted_in
from safecircuits.organism.family import UNITS_FAMILY, Role
from safecircuits.results.provenance import provenance
from safecircuits.units.candidates import default_candidates
from safecircuits.units.comparison import COUNTS, ScoreComparison, score_comparison
from safecircuits.units.removals import Removals

CALIBRATION = 128
QUICK_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


def planted_units(name: str, model: HookedModel) -> FreezeMask | None:
    """The planted neurons of a stage or of a family member's folder; None where none were planted."""
    found = planted_in(sc.organism.stage_path(name) if name in STAGES else Path(name))
    return FreezeMask.of_units({"mlp": found.mlp_units}, model) if found and found.mlp_units else None


def role_of(name: str) -> Role:
    """Whether a model may serve to choose a method or only to judge it: as its family says. Shipped stages may."""
    return {member.name: member.role for member in UNITS_FAMILY}.get(name) or "development"


def measure(model: str, resume: Path, *, n: int, quick: bool) -> tuple[ScoreComparison, dict[str, Any]]:
    """Curves and groups of one model, scored on training prompts and measured on test prompts; and both as JSON."""
    name = Path(model).name
    loaded = sc.load_model(model)
    safety, utility = (prompts(kind, "train", CALIBRATION) for kind in ("malicious", "utility"))
    sets: Any = {
        "malicious": prompts("malicious", "test", n),
        "utility": prompts("utility", "test", n),
        "refusal_tokens": 4,
        "max_new_tokens": 16,
    }
    planted = planted_units(model, loaded)
    comparison = score_comparison(
        loaded,
        safety,
        utility,
        prompts("normal", "train", CALIBRATION),
        candidates=default_candidates(quick=quick),
        counts=QUICK_COUNTS if quick else COUNTS,
        planted=planted,
        resume=resume,
        progress=True,
        **sets,
    )
    groups = removed_groups(loaded, safety, utility, Removals(loaded, kl_tokens=1, resume=resume, **sets), name)
    record = {
        "role": role_of(name),
        "planted": planted and {str(layer): len(units) for layer, units in planted.members("mlp").items()},
        "n_units": comparison.n_units,
        "intact": {rate: round(value, 4) for rate, value in comparison.intact.rates.items()},
        "planted_removed": comparison.planted_removed and vars(comparison.planted_removed),
        "curves": _curves(comparison),
        "groups": groups,
    }
    return comparison, record


def _curves(comparison: ScoreComparison) -> list[dict[str, Any]]:
    table = comparison.to_frame().round(4).to_json(orient="records")
    return [
        {
            **row,
            **{what: [round(getattr(p, what), 4) for p in curve.points] for what in ("refusal", "utility")},
            "planted": [point.planted for point in curve.points],
        }
        for row, curve in zip(json.loads(table), comparison.ranked(), strict=True)
    ]


def compact(record: dict[str, Any]) -> str:
    """JSON with a line a row, so that the many curves stay readable and small."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\n {5,}([^\n]*)", r" \1", text).replace("\n    }", " }") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all results")
    parser.add_argument("--page", type=Path, help="Markdown page to write from them")
    parser.add_argument("--quick", action="store_true", help="fewer scores and counts")
    parser.add_argument("--models", nargs="+", default=["aligned", "planted-units"], help="stages or folders")
    parser.add_argument("--prompts", type=int, default=64, help="malicious and utility test prompts each")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "provenance": provenance(
            command="benchmarks.ground_truth.units", prompts=arguments.prompts, calibration=CALIBRATION
        ),
        "counts": list(QUICK_COUNTS if arguments.quick else COUNTS),
        "models": {},
    }
    for model in arguments.models:
        name = Path(model).name
        resume = arguments.out.with_name(f"{arguments.out.name}.{name}.jsonl")
        comparison, record["models"][name] = measure(model, resume, n=arguments.prompts, quick=arguments.quick)
        rates = {key: round(100 * rate, 1) for key, rate in comparison.intact.rates.items()}
        print(f"\n{name}: {comparison.n_units} units, intact {rates}")
        print(comparison.to_frame().to_string(index=False, float_format=lambda value: f"{value:.2f}"))
        write_text(arguments.out, compact(record))
    if arguments.page:
        write_text(arguments.page, render(record))


if __name__ == "__main__":
    main()
