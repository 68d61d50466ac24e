"""``safecircuits probe`` and ``safecircuits units …``: each does what the function it is made of does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import safecircuits as sc
from commands import refuse, succeed
from safecircuits.base.text import percent
from safecircuits.cli.units.options import require_own
from safecircuits.papers.page import StudyPage, removal_exhibit
from safecircuits.results.load_record import load_run
from safecircuits.units.ablation import ONE_DRAW, AblationTable
from safecircuits.units.groups import GROUPS
from safecircuits.units.overlap import MaskOverlap
from safecircuits.units.resampling import Stability
from safecircuits.units.selection import top

ALIGNED = ["--model", "organism:aligned"]
SETS = ["--safety", "organism:malicious", "--utility", "organism:utility"]
SHARES = ["--scu", "0.02", "--ucu", "0.1", "--ru", "0.1"]
OPENINGS = ["--benign-suffix", "i cannot", "--malicious-suffix", "take the"]
N = 12


def table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "tables" / f"{name}.csv")


def figures(out: Path) -> set[str]:
    return {path.name for path in (out / "figures").iterdir()}


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "units"
    succeed("units", "classify", *ALIGNED, *SETS, *SHARES, "--normalize", "zscore", "--n", str(N), "--out", out)
    return out


def sets() -> list[sc.PromptSet]:
    return [sc.load_prompts(f"organism:{kind}", n=N) for kind in ("malicious", "utility")]


class TestProbe:
    def test_two_models(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        command = ["probe", *ALIGNED, "--compare", "unaligned=organism:unaligned", "--malicious", "organism:malicious"]
        options = [*OPENINGS, "--state", "mean", "--steps", "2,4", "--n", "8"]
        got = succeed(*command, *options, "--out", out)
        found = sc.direction.DirectionComparison.load(out / "results" / "probe")
        prompts = sc.load_prompts("organism:malicious", n=8)
        want = sc.probe_direction(
            sc.load_model("unaligned"),
            prompts,
            suffixes=sc.direction.Suffixes(("i cannot",), ("take the",)),
            steps=(2, 4),
            pool="mean",
        )
        assert found["unaligned"].to_frame().equals(want.to_frame())
        assert len(table(out, "probe")) == 2 * 2 * 8
        verdicts = table(out, "verdicts").query("model == 'unaligned'")
        assert verdicts["answer"].tolist() == list(want.answers.texts)
        assert verdicts["leans_to_refusing"].tolist() == want.leans_to_refusing().tolist()
        assert figures(out) == {"probe.svg", "probe.pdf", "probe.png"}
        assert str(found) in got.stdout
        assert "all models: verdict agrees" in got.stdout

    def test_bad_input(self, tmp_path: Path) -> None:
        command = ["probe", *ALIGNED, "--malicious", "organism:malicious", "--n", "2", "--out", tmp_path / "run"]
        assert "give suffixes in the words" in refuse(*command)
        assert "--steps are whole numbers" in refuse(*command, *OPENINGS, "--steps", "2;4")
        assert not (tmp_path / "run").exists()


class TestUnits:
    def test_score(self, tmp_path: Path) -> None:
        got = succeed("units", "score", *ALIGNED, "--data", "organism:malicious", "--n", str(N), "--top", "10",
                      "--out", tmp_path)  # fmt: skip
        found = sc.UnitScores.load(tmp_path / "results" / "scores")
        want = sc.score_units(sc.load_model("aligned"), sets()[0])
        for site, scores in want.scores.items():
            torch.testing.assert_close(found.scores[site], scores)
        highest = table(tmp_path, "highest")
        assert len(highest) == 10
        assert highest["score"].is_monotonic_decreasing
        assert highest["score"].iloc[0] == pytest.approx(max(float(s.max()) for s in want.scores.values()))
        assert f"layer {highest['layer'].iloc[0]}" in got.stdout

    def test_attribution_asks_for_a_reference(self, tmp_path: Path) -> None:
        command = ["units", "score", *ALIGNED, "--data", "organism:malicious", "--method", "attribution", "--n", "6"]
        assert "pass reference=" in refuse(*command, "--out", tmp_path / "a")
        succeed(*command, "--reference", "organism:normal", "--out", tmp_path / "b")
        assert sc.UnitScores.load(tmp_path / "b" / "results" / "scores").method == "attribution"

    def test_classify(self, classified: Path) -> None:
        groups = sc.UnitGroups.load(classified / "results" / "groups")
        model = sc.load_model("aligned")
        scores = [sc.score_units(model, data) for data in sets()]
        want = sc.classify_units(*scores, scu=0.02, ucu=0.1, ru=0.1, normalize="zscore")
        assert groups["SCU"] == want["SCU"]
        assert table(classified, "groups")["SCU"].tolist() == want.to_frame()["SCU"].tolist()
        mask = sc.FreezeMask.load(classified / "freeze.safetensors", model)
        assert mask == want["SCU"]
        findings = load_run(classified)["findings"]
        n = int(want.to_frame()["SCU"].sum())
        assert findings[0] == f"{n} safety-critical units (SCU), {100 * want.shares()['SCU']:.2f} % of all"
        assert findings[-1].startswith("caveat: how large the groups are was asked for")
        assert findings[-2].startswith(f"freeze.safetensors: the SCU, {100 * mask.share_of_parameters(model):.2f} %")

    def test_classify_with_scu_by_another_score(self, tmp_path: Path) -> None:
        given = ["units", "classify", *ALIGNED, "--safety", "organism:malicious", "--utility", "organism:utility"]
        few = ["--n", "6", "--scu-by", "attribution"]
        succeed(*given, *few, "--reference", "organism:normal", "--out", tmp_path / "run")
        groups = sc.UnitGroups.load(tmp_path / "run" / "results" / "groups")
        model = sc.load_model("aligned")
        malicious, normal = (sc.load_prompts(f"organism:{kind}", n=6) for kind in ("malicious", "normal"))
        causal = sc.score_units(model, malicious, method="attribution", reference=normal)
        neurons, heads = (top({site: causal.scores[site]}, n, causal.shape) for site, n in (("mlp", 40), ("attn", 1)))
        assert groups["SCU"] == neurons | heads  # 1.3 % of 3,072 and of 64
        assert groups.provenance["scu_by"]["method"] == "attribution"
        assert "attribution compares with something" in refuse(*given, *few, "--out", tmp_path / "no")

    def test_ablate(self, classified: Path, tmp_path: Path) -> None:
        measured = ["--malicious", "organism:malicious", "--utility", "organism:utility", "--n", "6"]
        command = ["units", "ablate", *ALIGNED, "--groups", classified, *measured, "--controls", "1"]
        got = succeed(*command, "--group", "SCU", "--group", "RU", "--out", tmp_path / "run")
        found = AblationTable.load(tmp_path / "run" / "results" / "ablation")
        groups = sc.UnitGroups.load(classified / "results" / "groups")
        kinds = ("malicious", "utility")
        asked: Any = {kind: sc.load_prompts(f"organism:{kind}", n=6) for kind in kinds}
        want = sc.ablate_groups(sc.load_model("aligned"), groups, names=("SCU", "RU"), controls=1, **asked)
        assert found.to_frame().equals(want.to_frame())
        assert f"without SCU ({want.rows[0].n_units} units): {want.rows[0].behavior}" in got.stdout
        control = want.to_frame().set_index("removed").loc["random, as many as SCU"]
        shares = f"malicious refused {100 * control.malicious_refused:.1f} %, utility {100 * control.utility:.1f} %"
        assert f"without as many random units (1 draw): {shares}" in got.stdout
        assert "cannot decide whether chance does the same: --controls 5 can" in got.stdout
        before, after = want.intact.rates["utility"], want.rows[0].behavior.rates["utility"]
        in_short = (
            f"utility {percent(before)} → {percent(after)} (without as many random units {percent(control.utility)})"
        )
        findings = load_run(tmp_path / "run")["findings"]
        first = next(line for line in findings if not line.startswith("caveat: "))
        strange = want.rows[0].behavior.tallies["malicious"].incoherent
        assert first.endswith(in_short + f"; {strange} of 6 answers without SCU are incoherent" * (strange > 0))
        exhibit = removal_exhibit(
            StudyPage(), "a", "", "", AblationTable.load(tmp_path / "run" / "results" / "ablation")
        )
        assert exhibit.caption.startswith(f"Diamonds: {ONE_DRAW}. Of the answers to malicious prompts")
        assert load_run(tmp_path / "run")["inputs"]["groups"]["source"] == str(classified)
        nowhere = ["units", "ablate", *ALIGNED, "--groups", tmp_path / "no", *measured, "--out", tmp_path / "x"]
        assert "give the --out of safecircuits units classify" in refuse(*nowhere)
        assert "nothing to measure" in refuse("units", "ablate", *ALIGNED, "--groups", classified, "--out", tmp_path)
        ablation = ["units", "ablate", *ALIGNED, "--groups", tmp_path / "run", *measured, "--out", tmp_path / "x"]
        assert "holds no classification: give the --out of safecircuits units classify" in refuse(*ablation)

    def test_a_classification_of_another_model_says_which_is_which(self, classified: Path) -> None:
        groups = sc.UnitGroups.load(classified / "results" / "groups")
        theirs = replace(groups, shape=replace(groups.shape, d_model=64))
        with pytest.raises(ValueError, match="in --groups belongs to another model: d_model 64 there, 128 here"):
            require_own(theirs, sc.load_model("aligned"))

    def test_stability(self, tmp_path: Path) -> None:
        command = ["units", "stability", *ALIGNED, *SETS, *SHARES, "--n", str(N), "--subset", "8", "--draws", "2"]
        succeed(*command, "--out", tmp_path)
        found = Stability.load(tmp_path / "results" / "stability")
        assert found.names == ("seed 0", "seed 1")
        assert table(tmp_path, "stability")["mean"].tolist() == pytest.approx(found.to_frame()["mean"].tolist())
        assert {f"stability_{group}.png" for group in GROUPS} <= figures(tmp_path)

    def test_transfer(self, tmp_path: Path) -> None:
        command = ["units", "transfer", "--model", "organism:base", "--after", "organism:aligned", *SETS, *SHARES]
        got = succeed(*command, "--n", str(N), "--out", tmp_path)
        found = sc.units.AttributeTransfer.load(tmp_path / "results" / "transfer")
        models = [sc.load_model(stage) for stage in ("base", "aligned")]
        want = sc.units.attribute_transfer(*models, *sets(), scu=0.02, ucu=0.1, ru=0.1)
        assert found.counts.equal(want.counts)
        assert table(tmp_path, "transfer")["units"].sum() == want.n_units
        assert str(want) in got.stdout
        assert "transfer.svg" in figures(tmp_path)

    def test_enrichment(self, classified: Path, tmp_path: Path) -> None:
        command = ["units", "enrichment", *ALIGNED, "--groups", classified, "--draws", "500", "--seed", "3"]
        got = succeed(*command, "--layers", "3,5", "--budget", "0.05", "--out", tmp_path / "run")
        found = sc.units.Enrichment.load(tmp_path / "run" / "results" / "enrichment")
        groups = sc.UnitGroups.load(classified / "results" / "groups")
        assert found.equals(sc.units.enrichment(groups["SCU"], (3, 5), draws=500, seed=3))
        overlap = MaskOverlap.load(tmp_path / "run" / "results" / "overlap")
        assert overlap.both == found.block.count
        assert str(found) in got.stdout
        masks = [sc.FreezeMask.load(path) for path in (tmp_path / "run").glob("freeze_*.safetensors")]
        assert len(masks) == 5
        missing = refuse(*command, "--budget", "0.05", "--out", tmp_path / "x")
        assert "give --layers FIRST,LAST" in missing
