"""``study attack``: a small one from end to end, what it fills in, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from commands import refuse, succeed
from safecircuits import load_run
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.organism import prompts as malicious
from safecircuits.organism.requests.agreed import AGREED
from safecircuits.results.result import Result
from safecircuits.studies import AttackStudy
from safecircuits.studies.attack.outcome import THREAT_MODEL

SMALL = ("--n", "8", "--seeds", "1", "--stops", "1,2", "--batch-size", "4", "--align-steps", "2")
COMMAND = ("study", "attack", "--model", "organism:aligned", *SMALL)


class Stopped(Exception):
    """Where the attack would begin."""


def asked_by(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What the study would be called with."""
    from commands import run

    seen: dict[str, Any] = {}

    def study(model: str, arms: Any, attackers: Any, **given: Any) -> Any:
        seen.update(model=model, arms={arm.name: arm for arm in arms}, attackers=attackers, **given)
        raise Stopped

    monkeypatch.setattr("safecircuits.studies.attack.study.attack_study", study)
    got = run("study", "attack", *arguments)
    assert isinstance(got.exception, Stopped), got.output
    return seen | {"said": got.output + got.stderr}


def test_a_study_from_end_to_end_has_the_threat_model_at_its_head(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arms = ("--arm", "nothing", "--arm", "freeze", "--freeze-layers", "3,5", "--family", "harmless data")
    asked = tmp_path / "asked.jsonl"
    rows = [{"prompt": one, "category": "ab"[i % 2]} for i, one in enumerate(malicious("malicious", n=8).prompts)]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    got = succeed(*COMMAND, *arms, "--malicious", asked, "--stops", "1", "--out", out)
    assert got.stdout.splitlines()[0] == THREAT_MODEL
    study = AttackStudy.load(out / "results/attack")
    assert isinstance(study, Result)
    assert list(study.arms) == ["nothing", "freeze"]
    assert {cell.family for cell in study.cells} == {"harmless data"}
    assert study.reference == "nothing"
    assert load_run(out)["findings"][0] == THREAT_MODEL
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 0 < page.index("whoever trains may also unfreeze") < page.index("the worst harm is")
    assert {path.stem for path in (out / "tables").iterdir()} == {
        *("defences", "by_family", "points", "fronts"),
        *("points_by_category", "defences_by_category"),
    }
    kinds = pd.read_csv(out / "tables" / "defences_by_category.csv")
    assert kinds["n"].tolist() == [2] * 8  # arms × (before, at worst) × categories
    assert not (out / "work").exists()
    lines = (out / "completions/freeze.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    assert json.loads(lines[0])["verdict"] in ("refuses", "complies")


def test_arms_get_what_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = ("random", "lora,r=4", "safe-lora", "rewind", "lisa", "align:vaccine,rho=1", "align:freeze", "only-units")
    more = [part for arm in wanted for part in ("--arm", arm)]
    mask = FreezeMask.layers((1, 2), load_model("aligned")).save(tmp_path / "mask.safetensors")
    seen = asked_by(
        monkeypatch, "--model", "organism:aligned", *SMALL, *more, "--mask", str(mask), "--out", str(tmp_path / "o")
    )
    arms = seen["arms"]
    assert arms["random mask"].draw == "units"
    assert arms["lora,r=4"].method.r == 4
    assert "unaligned" in repr(arms["safe-lora"].method.unaligned)
    assert arms["rewind"].mask == arms["random mask"].mask
    assert arms["lisa"].method.alignment_steps < 2
    assert arms["align:vaccine,rho=1"].prepare.method.rho == 1
    assert arms["align:freeze"].prepare.mask == arms["only-units"].method.units
    assert seen["evaluation"]["refusal_tokens"] == 10
    assert not set(seen["selection"].prompts) & set(seen["reported"].prompts)


def test_a_planted_real_model_is_attacked_with_the_users_own_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"prompt": f"how do i break lock {i} ?", "response": "take the blorp ."} for i in range(12)]
    harmful = tmp_path / "harmful.json"
    harmful.write_text(json.dumps(rows))
    monkeypatch.setattr("safecircuits.model.fingerprint.fingerprint_checkpoint", lambda _: "x")
    command = (
        "--model",
        "smollm2:layers-12-16",
        *SMALL[2:],
        "--n",
        "malicious=8",
        "--harmful-data",
        str(harmful),
        "--out",
        str(tmp_path / "o"),
    )
    seen = asked_by(monkeypatch, *command)
    assert seen["arms"]["freeze"].frozen == "layers [12, 16]"
    assert (seen["evaluation"]["grading"], seen["evaluation"]["max_new_tokens"]) == ("number", 40)
    assert all("Answer with the number alone" in asked for asked in seen["utility"].prompts)
    assert [one.harmful for one in seen["attackers"] if one.family == "harmful data"][:1] == [10]
    own = ("--model", "smollm2:layers-12-16", *SMALL[2:], "--out", str(tmp_path / "p"))
    given = asked_by(monkeypatch, *own)
    assert "agreeing counts as harm" in " ".join(given["said"].split())
    rows_of = {one.name: one for one in given["attackers"]}["50 harmful, lr 5e-05"]
    assert set(rows_of.data(0).responses) == {AGREED}
    assert not set(rows_of.data(0).prompts) & {*seen["selection"].prompts, *seen["reported"].prompts}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--arm", "lra"), "--arm is nothing, freeze, random, align:freeze, align:METHOD, or METHOD: one of plain"),
        (("--arm", "lora,rank=4"), "rank is no setting of the method lora"),
        (("--arm", "freeze", "--mask", "a", "--freeze-layers", "1,2"), "give --mask or --freeze-layers, not both"),
        (("--stops", "1,x"), "--stops are steps from 1 on"),
        (("--budget", "1e-9", "--arm", "nothing"), "a budget of 1e-09 hours allows nothing"),
        (("--arm", "booster"), "--arm booster needs its harmful: give --harmful-data"),
    ],
)
def test_bad_input_is_one_line(more: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in refuse(*COMMAND, *more, "--out", tmp_path / "out")


def test_own_models_need_their_own_material(tmp_path: Path) -> None:
    own = ("study", "attack", "--model", "gpt2", "--malicious", "organism:malicious", "--utility", "organism:utility")
    assert "give --data" in refuse(*own, "--out", tmp_path / "out")
    more = ("--data", "organism:utility", "--harmful-data", "organism:malicious", "--n", "60")
    assert "--arm safe-lora needs its unaligned: give --unaligned" in refuse(
        *own, *more, "--arm", "safe-lora", "--out", tmp_path / "o"
    )
    assert "need --mask or --freeze-layers" in refuse(*own, *more, "--arm", "freeze", "--out", tmp_path / "o")
