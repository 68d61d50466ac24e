"""``safecircuits units sweep``, ``compare`` and ``prune``: each does what the function it is made of does."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_cli import ALIGNED, refuse, succeed, table
from transformers import AutoModelForCausalLM

import safecircuits as sc
from safecircuits.behavior.divergence import divergences, references_of

N = 12
SETS = ["--malicious", "organism:malicious", "--utility", "organism:utility", "--max-new-tokens", "8", "--n", str(N)]


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "units"
    sets = ["--safety", "organism:malicious", "--utility", "organism:utility", "--n", str(N)]
    succeed("units", "classify", *ALIGNED, *sets, "--out", out)
    return out


def sets() -> dict[str, sc.PromptSet]:
    return {name: sc.load_prompts(f"organism:{name}", n=N) for name in ("malicious", "utility")}


def test_sweep(classified: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    got = succeed(
        "units", "sweep", *ALIGNED, "--groups", classified, *SETS, "--shares", "0.05,0.1", "--json", "--out", out
    )
    scores = [sc.score_units(sc.load_model("aligned"), one) for one in sets().values()]
    own = sc.units.sweep_shares(sc.load_model("aligned"), *scores, shares=(0.05, 0.1), max_new_tokens=8, **sets())
    assert json.loads(got.stdout)["answer"]["shares"] == dict(own.shares)
    assert table(out, "sweep")["accepted"].tolist() == own.to_frame()["accepted"].tolist()
    if own.groups["SCU"]:
        assert sc.FreezeMask.load(out / "freeze.safetensors").fingerprint == own.groups["SCU"].fingerprint


def test_compare(tmp_path: Path) -> None:
    out, planted = tmp_path / "scores", ["--model", "organism:planted-units"]
    scored = ["--safety", "organism:malicious", "--utility", "organism:utility", "--reference", "organism:normal"]
    judged = [
        "--malicious",
        "organism:malicious",
        "--known",
        "organism:utility",
        "--n",
        str(N),
        "--max-new-tokens",
        "8",
    ]
    chosen = ["--score", "wifv:response:log", "--score", "attribution", "--counts", "4,64"]
    succeed("units", "compare", *planted, *scored, *judged, *chosen, "--out", out)
    candidates = [
        sc.units.Candidate("wifv", "response", "log"),
        sc.units.Candidate("attribution", "prompt", "none", "safety"),
    ]
    given = sets()
    own = sc.score_comparison(
        sc.load_model("planted-units"),
        given["malicious"],
        given["utility"],
        sc.load_prompts("organism:normal", n=N),
        candidates=candidates,
        counts=(4, 64),
        max_new_tokens=8,
        **given,
    )
    assert table(out, "scores")["area"].tolist() == pytest.approx(own.to_frame()["area"].tolist())
    assert table(out, "scores")["score"].tolist() == own.to_frame()["score"].tolist()


@pytest.mark.parametrize("way", ["a mask", "a group", "so many a layer"])
def test_prune(classified: Path, tmp_path: Path, way: str) -> None:
    groups = sc.UnitGroups.load(classified / "results" / "groups")
    if way == "a mask":
        units = groups["UCU"]
        given: list[object] = ["--mask", units.save(tmp_path / "mask.safetensors")]
    elif way == "a group":
        units = groups["SCU"] | groups["RU"]
        given = ["--groups", classified, "--group", "SCU", "--group", "RU"]
    else:
        units = sc.units.lowest_even(groups.total, groups.shape, neurons=32)
        given = ["--groups", classified, "--neurons", "32"]
    out = tmp_path / "smaller"
    got = succeed("units", "prune", *ALIGNED, *map(str, given), *SETS, "--json", "--out", out)
    answer = json.loads(got.stdout)["answer"]
    smaller, model = AutoModelForCausalLM.from_pretrained(out / "model"), sc.load_model("aligned")
    assert answer["units"] == units.n_units()
    assert answer["after"]["parameters"] == sum(p.numel() for p in smaller.parameters())
    tokens, references = torch.tensor([[5, 6, 7, 8]]), references_of(model, sets())
    with sc.ablated(model, units), torch.no_grad():
        torch.testing.assert_close(smaller(tokens).logits, model(tokens), atol=1e-4, rtol=1e-4)
        assert answer["after"]["utility"] == sc.evaluate(model, max_new_tokens=8, **sets()).rates["utility"]
        far = divergences(references, model)
    changes = pd.read_csv(out / "tables" / "changes.csv").set_index("what")
    assert changes.loc["utility", "after"] == answer["after"]["utility"]
    assert "(McNemar's exact test)" in (out / "run.json").read_text(encoding="utf-8")
    for kind in ("malicious", "harmless"):
        assert answer["after"][f"{kind}_first_token_kl"] == pytest.approx(float(far[kind].first.mean()), rel=1e-3)


def test_bad_input(classified: Path, tmp_path: Path) -> None:
    def said(*command: object) -> str:
        return refuse("units", *map(str, command), *ALIGNED, "--out", str(tmp_path / "x"))

    assert "give --utility" in said("sweep", "--groups", classified, "--malicious", "organism:malicious")
    assert "holds no scores" in said("sweep", "--groups", tmp_path, *SETS)
    assert "not 'many'" in said("sweep", "--groups", classified, *SETS, "--shares", "many")
    assert "between 0 and 1" in said("sweep", "--groups", classified, *SETS, "--shares", "2")
    assert "which units go?" in said("prune")
    assert "give --groups" in said("prune", "--mask", classified / "freeze.safetensors", "--neurons", "3")
    assert "not both" in said("prune", "--groups", classified, "--group", "RU", "--neurons", "3")
    assert "cannot take 9999" in said("prune", "--groups", classified, "--neurons", "9999")
    scored = ["--safety", "organism:malicious", "--utility", "organism:utility", "--reference", "organism:normal"]
    compare = ["compare", *scored, "--malicious", "organism:malicious", "--known", "organism:utility"]
    assert "not 'wiv'" in said(*compare, "--score", "wiv")
    assert "normalize of a candidate" in said(*compare, "--score", "wifv:all:logs")
    assert "as 1,2,4" in said(*compare, "--counts", "1;2")
    assert "twice" in said(*compare, "--score", "wifv", "--score", "wifv:all")
    assert not (tmp_path / "x").exists()
