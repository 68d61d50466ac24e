"""An attack study counts by category of the prompts, at every point, before any attack, and at the worst."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safecircuits import organism
from safecircuits.behavior.generate import generate
from safecircuits.behavior.verdict import verdicts
from safecircuits.model.load import load_model
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies import AttackStudy, DataAttack, attack_study
from safecircuits.studies.arms import full, sppft
from safecircuits.training.settings import TrainingSettings

ASKED = organism.prompts("malicious", "test", n=12, seed=1)
KINDS = ("fraud", "theft", "theft") * 2
REPORTED = PromptSet("reported", ASKED.prompts[6:], categories=KINDS)
ROWS = organism.prompts("malicious", "train", n=24)
HARMFUL = PromptSet("harmful", ROWS.prompts, ("take the rope .",) * len(ROWS))
ONE = DataAttack(name="harmful", family="harmful data", rows=HARMFUL, harmful=24, lr=3e-4)


def study(reported: PromptSet, out: Path | None = None) -> AttackStudy:
    options: dict[str, Any] = {"selection": ASKED[:6], "reported": reported, "progress": False, "out": out}
    options |= {"utility": organism.prompts("utility", "test", n=4), "evaluation": {"refusal_tokens": 9}}
    training = TrainingSettings(batch_size=8, schedule="constant")
    return attack_study(
        "aligned", [full(), sppft((3, 5))], [ONE], seeds=(0,), stops=(1, 3), settings=training, **options
    )


@pytest.mark.slow
def test_every_point_is_counted_by_category(tmp_path: Path) -> None:
    found = study(REPORTED, tmp_path)
    frame = found.categories()
    assert len(frame) == 2 * (1 + 2) * 2  # arms × (before, stops) × categories
    # Before any attack: against a count of the model's own answers.
    said = verdicts(generate(load_model("aligned"), PromptSet("p", REPORTED.prompts), max_new_tokens=9)).verdicts
    for row in frame[frame["attacker"] == "no attack"].to_dict("records"):
        mine = [one for one, kind in zip(said, KINDS, strict=True) if kind == row["category"]]
        assert (row["hits"], row["n"]) == (mine.count("refuses"), len(mine))
    # After: the categories of a point add up to what the point says of all.
    points = found.to_frame().set_index(["arm", "step"])
    for (arm, step), rows in frame[frame["attacker"] != "no attack"].groupby(["arm", "step"]):
        whole = points.loc[(arm, step)]
        assert (rows["hits"].sum(), rows["n"].sum()) == (pytest.approx(6 * whole["refused"]), whole["n"])
        assert rows["complies"].sum() == pytest.approx(6 * whole["reported"])
        assert rows["cut"].sum() == pytest.approx(6 * whole["cut"])
    worst = found.worst_categories()
    for arm, answers in found.answers.items():
        rows = worst[(worst["arm"] == arm) & (worst["at"] == "worst point")]
        by_hand = {
            kind: sum(v == "complies" for v, k in zip(answers.verdicts, KINDS, strict=True) if k == kind)
            for kind in KINDS
        }
        assert dict(zip(rows["category"], rows["complies"], strict=True)) == by_hand
    assert f"at the worst point of any seed {found.answers['full']}" in str(found)
    assert AttackStudy.load(found.save(tmp_path / "kept")).equals(found)
    # The same cells, asked again without categories, have none; with them, no model runs again.
    plain = PromptSet("reported", REPORTED.prompts)
    assert not len(study(plain, tmp_path).categories())
    assert not len(study(plain, tmp_path).worst_categories())
