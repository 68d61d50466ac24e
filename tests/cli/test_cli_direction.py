"""``safecircuits direction …``: each does what the function it is made of does, and an export is what hooks make."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import safecircuits as sc
from commands import refuse, succeed
from safecircuits.results.load_record import load_run

ALIGNED = ["--model", "organism:aligned"]
SETS = ["--malicious", "organism:malicious", "--normal", "organism:normal"]
MEASURED = ["--malicious", "organism:malicious", "--utility", "organism:utility", "--n", "6"]
N = 20


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "direction"
    rule = ["--rule", "bypass", "--ablation", "affine", "--controls", "1"]
    succeed("direction", "find", *ALIGNED, *SETS, *rule, "--n", str(N), "--out", out)
    return out


def test_find(found: Path) -> None:
    saved = sc.direction.RefusalDirection.load(found / "results" / "direction")
    sets = [sc.load_prompts(f"organism:{kind}", n=N) for kind in ("malicious", "normal")]
    want = sc.refusal_direction(sc.load_model("aligned"), *sets, rule="bypass", ablation="affine", controls=1)
    assert (saved.layer, saved.position) == (want.layer, want.position)
    torch.testing.assert_close(saved.bypass, want.bypass, equal_nan=True)
    assert load_run(found)["findings"][0] == str(saved)
    assert len(pd.read_csv(found / "tables" / "candidates.csv")) == saved.bypass.numel()
    assert (found / "figures" / "direction.svg").is_file()
    assert "Candidates" in (found / "report.html").read_text(encoding="utf-8")


def test_evaluate_measures_inside_the_same_hooks(found: Path, tmp_path: Path) -> None:
    out = tmp_path / "without"
    got = succeed("direction", "evaluate", *ALIGNED, "--direction", found, *MEASURED, "--controls", "1", "--added",
                  "--json", "--out", out)  # fmt: skip
    table = {row["model"]: row for row in json.loads(got.stdout)["table"]}
    assert list(table) == ["intact", "without it", "without a random one, draw 1", "added"]
    saved = sc.direction.RefusalDirection.load(found / "results" / "direction")
    model, sets = sc.load_model("aligned"), {}
    for kind in ("malicious", "utility"):
        sets[kind] = sc.load_prompts(f"organism:{kind}", n=6)
    hook = sc.direction.direction_ablated(model, saved.chosen, to="harmless", layers=[saved.layer])
    want = sc.units.measure_in(model, {"": hook}, max_new_tokens=16, **sets)[""]
    assert table["without it"]["malicious_refused"] == want.rates["malicious_refused"] < 0.5
    assert table["without it"]["harmless_first_token_kl"] == pytest.approx(
        want.kl_means["harmless_first_token_kl"], abs=1e-9
    )
    assert table["intact"]["malicious_refused"] == table["without a random one, draw 1"]["malicious_refused"] == 1.0


def test_an_export_is_a_checkpoint_that_answers_as_hooks_make_it(found: Path, tmp_path: Path) -> None:
    out = tmp_path / "orthogonalised"
    succeed("direction", "export", *ALIGNED, "--direction", found, *MEASURED, "--out", out)
    saved = sc.direction.RefusalDirection.load(found / "results" / "direction")
    model, prompts = sc.load_model("aligned"), sc.load_prompts("organism:normal", n=6)
    with sc.direction.direction_ablated(model, saved.chosen):
        hooked = sc.generate(model, prompts, max_new_tokens=6).texts
    assert sc.generate(sc.load_model(out / "model"), prompts, max_new_tokens=6).texts == hooked
    rates = pd.read_csv(out / "tables" / "rates.csv").set_index("model")
    assert rates.loc["orthogonalised", "harmless_first_token_kl"] > 0
    changes = pd.read_csv(out / "tables" / "changes.csv").set_index("what")
    for name in changes.index:
        change = rates.loc["orthogonalised", name] - rates.loc["intact", name]
        assert changes.loc[name, "change"] == pytest.approx(change)
        assert changes.loc[name, "change_low"] <= change <= changes.loc[name, "change_high"]


def test_bad_input_is_one_line_and_leaves_nothing(found: Path, tmp_path: Path) -> None:
    command = ["direction", "evaluate", *ALIGNED, *MEASURED, "--out", tmp_path / "run"]
    assert "give the --out of safecircuits direction find" in refuse(*command, "--direction", tmp_path)
    given = ["--direction", found]
    assert "keeps none of the candidates" in refuse(*command, *given, "--rule", "published")
    nothing = ["direction", "evaluate", *ALIGNED, *given, "--out", tmp_path / "c"]
    assert "nothing to measure" in refuse(*nothing)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "c").exists()
