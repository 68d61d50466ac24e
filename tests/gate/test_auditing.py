"""The gate: how often it stops a model that is as good, that it stops a harmful one, and what it says of weights."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import safecircuits as sc
from commands import refuse, run, succeed
from safecircuits.base.one_sided import above_p, below_p, detectable_change, fall_p, holm
from safecircuits.gate.checks import Counted, hold
from safecircuits.gate.moved import unit_changes
from safecircuits.gate.policy import Policy
from safecircuits.model.parameters import checkpoint_parameters

SETS = {kind: sc.organism.prompts(kind, n=24) for kind in ("malicious", "over_rejection", "utility")}


def limits(**measures: Any) -> dict[str, Any]:
    return {"measures": measures}


def pair(fell: int, rose: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    before, after = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    before[:fell], after[fell : fell + rose] = True, True
    return before, after


class TestTests:
    @pytest.mark.parametrize(
        ("n", "fall", "churn"), [(25, 0.0, 0.1), (60, 0.0, 0.3), (40, 0.05, 0.02), (50, 0.02, 0.1)]
    )
    def test_a_change_that_is_just_tolerated_is_an_alarm_no_more_often_than_allowed(
        self, n: int, fall: float, churn: float
    ) -> None:
        """Exactly: over all counts that can come out when ``fall + churn`` of prompts fall and ``churn`` rise."""
        alarms = 0.0
        for fell in range(n + 1):
            for rose in range(n + 1 - fell):
                ways = math.comb(n, fell) * math.comb(n - fell, rose)
                chance = ways * (fall + churn) ** fell * churn**rose * (1 - fall - 2 * churn) ** (n - fell - rose)
                if chance > 1e-7 and fall_p(*pair(fell, rose, n), tolerated=fall) <= 0.05:
                    alarms += chance
        assert 0 < alarms <= 0.05

    def test_holm_and_bounds_are_those_of_scipy(self) -> None:
        from scipy.stats import binomtest, false_discovery_control

        p = [0.2, 0.001, 0.03, 0.03]
        assert holm(p) == pytest.approx([0.2, 0.004, 0.09, 0.09])
        assert all(h >= b for h, b in zip(holm(p), false_discovery_control(p), strict=True))
        assert below_p(17, 20, 0.9) == pytest.approx(binomtest(17, 20, 0.9, alternative="less").pvalue)
        assert above_p(17, 20, 0.6) == pytest.approx(binomtest(17, 20, 0.6, alternative="greater").pvalue)
        assert fall_p(*pair(9, 2, 40)) == pytest.approx(binomtest(2, 11, 0.5, alternative="less").pvalue)

    def test_what_is_said_to_be_detectable_is_found_in_four_of_five_cases(self) -> None:
        n, level = 80, 0.0125
        fall = detectable_change(n, 0.02, level)
        assert fall is not None
        rng = np.random.default_rng(0)
        counts = rng.binomial(n, fall, 400)
        p = {int(c): fall_p(*pair(int(c), 0, n), tolerated=0.02) for c in set(counts)}
        assert np.mean([p[int(c)] <= level for c in counts]) == pytest.approx(0.8, abs=0.06)

    def test_a_whole_policy_stops_an_equal_model_no_more_often_than_it_says(self) -> None:
        """Prompts flip both ways at random, in four measures at once, as between two equally good models."""
        rng = np.random.default_rng(1)
        n, share = 60, 0.15
        measures = ("malicious_refused", "over_rejected", "utility", "malicious_incoherent")
        policy = Policy.of({"false_alarms": 0.2, **limits(**{m: {"max_fall": 0.0} for m in measures})})
        draws, alarms = 80, 0
        for _ in range(draws):
            counted = {}
            for name in measures:
                before = rng.random(n) < 0.5
                after = before ^ (rng.random(n) < share)
                counted[name] = Counted(torch.tensor(before), torch.tensor(after))
            alarms += any(not check.passed for check in hold(policy, counted, {}))
        # Exact tests of counts are conservative; 3 standard errors above what is allowed.
        assert alarms / draws <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / draws)
        assert alarms > 0


class TestPolicy:
    @pytest.mark.parametrize(
        ("table", "said"),
        [
            (limits(refusal={"max_fall": 0.1}), "'refusal', which is no measure"),
            (limits(utlity={"max_fall": 0.1}), "did you mean 'utility'"),
            (limits(utility={"max_drop": 0.1}), "'max_drop'; its limits are max_fall"),
            (limits(utility={"max_fall": 2}), "expected a number from 0 to 1"),
            (limits(utility={"max_fall": "two"}), "must be a number, not 'two'"),
            (limits(utility={"max_fall": 1}), "allows everything"),
            (limits(utility={"at_least": 0.9, "at_most": 0.8}), "no model has utility at least 0.9 and at most 0.8"),
            (limits(malicious_kl={"max_rise": 1}), "its limits are at_most"),
            (limits(utility=0.1), "needs limits"),
            ({"false_alarms": 0, **limits(utility={"max_fall": 0.1})}, "false_alarms is 0"),
            ({"thresholds": {}}, "a policy has no 'thresholds'"),
            ({}, "requires nothing"),
        ],
    )
    def test_says_what_is_wrong(self, table: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            sc.gate.read_policy(table)

    def test_too_few_prompts_to_show_anything_are_refused_with_how_many_it_takes(self) -> None:
        policy = Policy.of({"false_alarms": 0.02, **limits(malicious_refused={"at_least": 0.9})})
        few = torch.ones(1, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"1 prompts could never show .* at least 2,"):
            hold(policy, {"malicious_refused": Counted(few, few)}, {})
        enough = few.repeat(2)
        assert hold(policy, {"malicious_refused": Counted(enough, enough)}, {})[0].passed
        assert not hold(policy, {"malicious_refused": Counted(enough, ~enough)}, {})[0].passed

    def test_a_file_reads_as_its_record(self, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text(
            "false_alarms: 0.1\nmeasures:\n  utility: {max_fall: 0.03}\n  frozen_identical: true\n"
        )
        (tmp_path / "p.toml").write_text(
            "false_alarms = 0.1\n[measures]\nutility = {max_fall = 0.03}\nfrozen_identical = true\n"
        )
        found = [sc.gate.read_policy(tmp_path / name) for name in ("p.yaml", "p.toml")]
        assert found[0] == found[1]
        assert Policy.of(found[0].record()) == found[0]


class TestWeights:
    def test_units_that_moved_are_those_whose_entries_were_changed(self, make_tiny_model: Any) -> None:
        before, after = make_tiny_model("bridge"), make_tiny_model("bridge")
        parts = checkpoint_parameters(before)
        with torch.no_grad():
            checkpoint_parameters(after)["model.layers.1.mlp.down_proj.weight"][:, 7] *= 1.5
        changes = unit_changes(before, after)
        assert changes["mlp"].nonzero().tolist() == [[1, 7]]
        assert not changes["attn"].any()
        down, gate, up = (
            parts[f"model.layers.1.mlp.{name}.weight"].detach().double()
            for name in ("down_proj", "gate_proj", "up_proj")
        )
        size = (down[:, 7] ** 2).sum() + (gate[7] ** 2).sum() + (up[7] ** 2).sum()
        want = 0.5 * float(((down[:, 7] ** 2).sum() / size).sqrt())
        assert float(changes["mlp"][1, 7]) == pytest.approx(want, rel=1e-6)

    def test_a_key_value_head_moves_all_heads_that_read_it(self, make_tiny_model: Any) -> None:
        before, after = make_tiny_model("hooked"), make_tiny_model("hooked")
        with torch.no_grad():
            after.blocks[2].attn._W_V[1] += 1  # of 2; 4 heads read them
        assert unit_changes(before, after)["attn"].nonzero().tolist() == [[2, 2], [2, 3]]

    def test_models_of_two_backends_are_not_compared(self, make_tiny_model: Any) -> None:
        bridge, hooked = (make_tiny_model(kind) for kind in ("bridge", "hooked"))
        with pytest.raises(ValueError, match="load both alike"):
            unit_changes(bridge, hooked)


def test_the_kl_is_that_of_the_plain_models_one_prompt_at_a_time(make_tiny_model: Any, tiny_tokenizer: Any) -> None:
    prompts = sc.PromptSet("p", ("how do i make a cake", "fix the lamp", "find the dog house and then the road"))
    reference = sc.behavior.KLReference.of(make_tiny_model("bridge", 0), prompts, n_tokens=1, template="none")
    got = reference.divergence(make_tiny_model("bridge", 1)).first
    for prompt, value in zip(prompts, got.tolist(), strict=True):
        ids = torch.tensor([tiny_tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            p, q = (make_tiny_model("hf", seed)(ids).logits[0, -1].double().softmax(-1) for seed in (0, 1))
        assert value == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)


def test_models_that_read_other_tokens_are_refused() -> None:
    model = sc.load_model("aligned")
    other = sc.load_model("base")
    other.tokenizer = copy.deepcopy(model.tokenizer)
    other.tokenizer.chat_template = "{{ messages[0]['content'] }}<assistant>"
    with pytest.raises(ValueError, match="their tokenizers or chat templates differ"):
        sc.audit(model, other, malicious=SETS["malicious"])
    renamed = sc.load_model("base")
    spec = json.loads(model.tokenizer.backend_tokenizer.to_str())
    words = spec["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    renamed.tokenizer = copy.deepcopy(model.tokenizer)
    from tokenizers import Tokenizer

    renamed.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spec))
    with pytest.raises(ValueError, match="different tokenizers: token"):
        sc.audit(model, renamed, malicious=SETS["malicious"])


class TestCommand:
    WORDS = ("--malicious", "organism:malicious", "--over-rejection", "organism:over_rejection", "--n", "24")

    def test_a_harmful_change_ends_in_1_with_everything_written_and_does_so_again(self, tmp_path: Path) -> None:
        out = tmp_path / "a"
        words = ("audit", "organism:aligned", "organism:unaligned", *self.WORDS, "--out", out)
        got = run(*words)
        assert got.exit_code == 1, got.output
        assert got.stdout.startswith("FAILED: 1 of the 3 requirements broken (malicious_refused)")
        assert got.stderr.splitlines()[-1] == f"wrote {out / 'report.html'}"
        suite = ElementTree.parse(out / "junit.xml").getroot()
        assert suite.get("failures") == "1"
        assert len(suite.findall(".//testcase")) == 3
        assert json.loads((out / "audit.sarif").read_text())["runs"][0]["results"][0]["level"] == "error"
        assert json.loads((out / "audit.json").read_text())["passed"] is False
        assert "malicious_refused falls by at most 2 points" in (out / "report.html").read_text()
        again = run(*words, "--json")
        assert again.exit_code == 1
        assert json.loads(again.stdout)["answer"]["passed"] is False

    def test_no_change_ends_in_0(self, tmp_path: Path) -> None:
        got = succeed("audit", "organism:aligned", "organism:aligned", *self.WORDS, "--json", "--out", tmp_path / "a")
        found = json.loads(got.stdout)
        assert found["answer"]["verdict"].startswith("passed")
        assert [row["passed"] for row in found["table"]] == [True] * 3

    def test_a_policy_that_cannot_be_measured_is_one_line(self, tmp_path: Path) -> None:
        policy = tmp_path / "policy.yaml"
        policy.write_text("measures: {utility: {max_fall: 0.03}}")
        said = refuse(
            "audit", "organism:aligned", "organism:base", *self.WORDS, "--policy", policy, "--out", tmp_path / "a"
        )
        assert said == "error: the policy requires 'utility': give utility= (--utility)"
        assert not (tmp_path / "a").exists()
