"""A Safety Layers study beside the published numbers: of its own model, or of the paper's models."""

from __future__ import annotations

from typing import Any

import pandas as pd

from safecircuits.base.text import plain
from safecircuits.papers.page import StudyPage, published_exhibit
from safecircuits.papers.published import published_numbers
from safecircuits.papers.safety_layers.checks import CHECK
from safecircuits.papers.safety_layers.localization import located
from safecircuits.papers.safety_layers.settings import SafetyLayers
from safecircuits.papers.safety_layers.training import FINETUNING
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table


def measured_numbers(study: SafetyLayers) -> dict[tuple[str, str], str]:
    """Measured numbers under the setting and metric by which the published tables have them."""
    search = located(study)
    block = search.layers
    found: dict[tuple[str, str], str] = {
        ("alpha", "alpha"): f"{search.alpha:g}",
        ("unscaled", "over_rejected"): str(search.baseline.count),
        ("safety layers", "first"): str(block.first) if search.located else "none located",
        ("safety layers", "last"): str(block.last) if search.located else "none located",
        ("model", "n_layers"): str(study.shape.n_layers),
    }
    for bound, sweep in (("upper", search.upper), ("lower", search.lower)):
        for point in sweep.points:
            found[f"{bound} {point.layers}", "over_rejected"] = str(point.count)
    answered = study[CHECK].answered
    found["unscaled", "malicious_answered"] = str(answered[0].hits)
    found[f"{block} alpha {search.alpha:g}", "malicious_answered"] = str(answered[1].hits)
    if (tuned := study[FINETUNING]) is not None:
        arms = {"full": "FullFT", "sppft": "SPPFT", "nfft": "NFFT", "lisa": "Lisa"}
        for _, row in tuned.summary().iterrows():
            if row["arm"] in arms:
                setting = f"{row['scenario']} {arms[row['arm']]}"
                found[setting, "harmful_rate_%"] = f"{100 * (1 - row['malicious_refused']):.2f}"
    return found


def add_published(study: SafetyLayers, made: StudyPage) -> None:
    """The paper's numbers of this model, or of its own models where this one is not among them."""
    rows = published_numbers("safety_layers", model=study.source)
    if not rows.empty:
        measured = measured_numbers(study)
        listed = [
            [r["table"], r["setting"], r["metric"], plain(r["value"]), measured.get((r["setting"], r["metric"]), "")]
            for r in rows.to_dict("records")
        ]
        made.add(
            "published",
            "Beside the published numbers",
            "What the paper reports of this model, and what was measured here; empty where it was not run. Counts of "
            "over-rejections are of 721 prompts there, and by an unknown detector.",
            [published_exhibit("Safety Layers", listed)],
        )
        return
    table = published_numbers("safety_layers", table="Table 1")
    ranges = table[table["setting"] == "safety layers"].pivot(index="model", columns="metric", values="value")
    listed = [
        [str(model), f"[{int(row['first'])}, {int(row['last'])}]", "published", f"{_depth(table, model):.0%}"]
        for model, row in ranges.iterrows()
    ]
    n = study.shape.n_layers
    found = located(study)
    if found.located:
        listed.append([study.name, str(found.layers), "measured here", f"{len(found.layers) / n:.0%}"])
    else:
        listed.append([study.name, "none", "measured here: within noise of not scaling at all", "–"])
    made.add(
        "published",
        "Beside the published ranges",
        "The paper’s safety layers of its own four models. This model is none of them, so there is no published number "
        "to hold it against.",
        [
            Exhibit(
                None,
                "Published ranges",
                "Safety layers, and their share of the model’s layers.",
                [Table("Safety layers", ["model", "layers", "source", "share of layers"], listed)],
            )
        ],
    )


def _depth(table: pd.DataFrame, model: Any) -> float:
    value = table[table["model"] == model].set_index(["setting", "metric"])["value"]
    first, last = value["safety layers", "first"], value["safety layers", "last"]
    return float((last - first + 1) / value["model", "n_layers"])
