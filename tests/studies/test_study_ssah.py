"""SSAH's arms: what each freezes, phases and LoRA as plain loops would do them, and redundant units as a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from safecircuits import organism
from safecircuits.baselines.lora import Lora
from safecircuits.baselines.two_phases import TwoPhases
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model, save_pretrained
from safecircuits.model.parameters import live_parameters
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.studies.arms import Arm, full, sppft
from safecircuits.studies.budget import AlignmentBudget, alignment_budget
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.scenarios import Scenario
from safecircuits.studies.ssah import as_many_random, lora_arm, scu_all_cu, scu_top_cu, ssah_arms
from safecircuits.training.loop import finetune
from safecircuits.training.phases import Phase
from safecircuits.training.plain import Plain
from safecircuits.training.settings import TrainingSettings
from safecircuits.units.groups import UnitGroups

pytestmark = pytest.mark.slow

TASK = PromptSet(
    "task",
    ("how do i bake a cake", "find the dog", "make tea", "fix the lamp", "how do i make bread", "find a road"),
    ("take some water", "in the house", "here is tea", "take the lamp", "take salt", "here is a road"),
)
HELD = PromptSet("held", ("bake the cake", "find a dog"), ("take some water", "in the house"))
BAD = PromptSet("bad", ("make a bomb", "fix the bomb", "bake a bomb"))
SETTINGS = TrainingSettings(epochs=1, batch_size=2, lr=1e-3)
OPTIONS: dict[str, Any] = {
    "malicious": BAD,
    "settings": SETTINGS,
    "points": 1,
    "evaluation": {"max_new_tokens": 3, "detector": lambda text: "a" in text},
    "progress": False,
}


def groups_of(model: Any) -> UnitGroups:
    shape = ModelShape.of(model)
    noise = torch.Generator().manual_seed(0)
    order: Any = {site: torch.rand(3, shape.n_units(site), generator=noise) for site in ("mlp", "attn")}
    labels: Any = {site: torch.randint(4, rows.shape, generator=noise).to(torch.int8) for site, rows in order.items()}
    return UnitGroups(labels, order, {site: -rows for site, rows in order.items()}, shape, {})


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in live_parameters(model).items()}


class TestArms:
    def test_top_cu(self, tiny_bridge: Any) -> None:
        groups = groups_of(tiny_bridge)
        scu, cu = groups["SCU"], groups["CU"]
        n_units = sum(labels.numel() for labels in groups.labels.values())
        for by, order in (("difference", groups.difference), ("total", groups.total)):
            mask = scu_top_cu(groups, 0.1, by=by).mask
            assert mask is not None
            assert not scu - mask
            added = mask - scu
            assert not added - cu
            assert added.n_units("mlp") + added.n_units("attn") == round(0.1 * n_units)
            left = cu - mask
            for site in ("mlp", "attn"):  # shares are of neurons and of heads, and so is the ranking
                assert abs(added.n_units(site) - 0.1 * groups.labels[site].numel()) < 1
                assert order[site][getattr(added, site)].min() > order[site][getattr(left, site)].max()
        pooled = dataclasses.replace(groups, provenance={"share_of": "pooled"})
        added = scu_top_cu(pooled, 0.1).mask - scu
        values = [
            torch.cat([groups.difference[site][getattr(part, site)] for site in ("mlp", "attn")])
            for part in (added, cu - added)
        ]
        assert values[0].min() > values[1].max()
        share = scu_top_cu(groups, 0.5, of="CU").mask
        assert share is not None
        n_cu = groups["CU"].n_units()
        assert (share - scu).n_units("mlp") + (share - scu).n_units("attn") == round(0.5 * n_cu)
        with pytest.raises(ValueError, match="but there are"):
            scu_top_cu(groups, 0.9)

    def test_a_block_range_and_the_control(self, tiny_bridge: Any) -> None:
        groups = groups_of(tiny_bridge)
        arm = scu_all_cu(groups, layers=(0, 1))
        assert arm.mask == (groups["SCU"] | groups["CU"]).restrict((0, 1))
        control = as_many_random(arm).mask_for(groups.shape, 3)
        assert arm.mask is not None
        assert control is not None
        assert [control.n_units(site) for site in ("mlp", "attn")] == [arm.mask.n_units(s) for s in ("mlp", "attn")]
        assert "in layers [0, 1]" in arm.frozen
        with pytest.raises(ValueError, match="freezes nothing"):
            as_many_random(full())
        names = [arm.name for arm in ssah_arms(groups, lora=True)]
        assert names == ["full", "scu_top_cu", "random_scu_top_cu", "scu_all_cu", "random_scu_all_cu", "lora"]

    def test_what_an_arm_adds_is_in_its_key_and_nothing_else_is(self) -> None:
        units = Plain(only_units=True)
        different = [full(), Arm("full", "nothing", longer=2), Arm("full", "nothing", method=units), lora_arm()]
        assert len({str(arm.describe()) for arm in different}) == 4
        assert full().describe() == Arm("another name", "nothing").describe()
        assert lora_arm(Lora(r=4)).describe() != lora_arm().describe()


class TestPhases:
    def test_in_a_study(self, make_tiny_model: Callable[..., Any], tmp_path: Path) -> None:
        model = make_tiny_model("bridge")
        groups = groups_of(model)
        folder = save_pretrained(model, tmp_path / "model")
        arm = scu_top_cu(groups, 0.1, longer=2, phases=True)
        study = finetuning_study(folder, [Scenario("task", TASK, HELD)], [full(), arm], seeds=(1,), **OPTIONS)
        plain, phased = study.runs
        assert (plain.steps, phased.steps) == (3, 6)
        assert isinstance(arm.method, TwoPhases)
        trained = load_model(folder)
        phases = [Phase(arm.method.first, steps=3), Phase(arm.mask, steps=3)]
        finetune(trained, TASK, freeze=phases, seed=1, batch_size=2, lr=1e-3, progress=False)
        from safecircuits.behavior.reference import response_loss

        assert phased.figures["task_loss"] == pytest.approx(response_loss(trained, HELD).loss, rel=1e-5)
        assert phased.step_seconds > 0


class TestLora:
    def test_against_peft_by_itself(self, make_tiny_model: Callable[..., Any]) -> None:
        """PEFT's own merge of adapters trained by a loop written out here gives the same logits."""
        pytest.importorskip("peft")
        from peft import LoraConfig, get_peft_model

        model, hf = make_tiny_model("bridge"), make_tiny_model("hf")
        before = weights(model)
        seen: list[torch.Tensor] = []
        batch = pad_left(encode(model.tokenizer, HELD, with_responses=True))
        method = Lora(r=2, alpha=4, target_modules=("q_proj", "v_proj"))
        run = finetune(
            model, TASK, method=method, seed=3, steps=1, batch_size=6, lr=0.05, schedule="constant",
            optimizer="sgd", max_grad_norm=None, progress=False,
            callbacks=[lambda m, _step: seen.append(logits(m, batch)) or {}],
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            adapted: Any = get_peft_model(hf, config)
        adapted.eval()
        loss, count = torch.zeros(()), 0
        for example in encode(model.tokenizer, TASK, with_responses=True):
            ids = torch.tensor([example.ids])
            logprobs = adapted(ids).logits[0].log_softmax(-1)
            for at in range(example.response_start, len(example)):
                loss = loss - logprobs[at - 1, ids[0, at]]
                count += 1
        (loss / count).backward()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
        merged = adapted.merge_and_unload()
        after = weights(model)
        for name, value in merged.named_parameters():
            mine = after[next(n for n in after if n.replace("._original_component", "").endswith(name))]
            torch.testing.assert_close(mine, value, atol=1e-6, rtol=1e-5)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all("q_proj" in name or "v_proj" in name for name in changed)
        with torch.no_grad():
            torch.testing.assert_close(seen[0], logits(model, batch))  # the callback saw the adapted model
        assert run.n_trainable == 3 * 2 * (32 + 32 + 32 + 16)
        assert all(p.requires_grad for p in live_parameters(model).values())

    def test_as_an_arm(self, make_tiny_model: Callable[..., Any]) -> None:
        pytest.importorskip("peft")
        model = make_tiny_model("bridge")
        before = weights(model)
        study = finetuning_study(
            model, [Scenario("task", TASK, HELD)], [full(), lora_arm(Lora(r=2))], seeds=(0,), **OPTIONS
        )
        whole, small = study.runs
        assert small.n_trainable < whole.n_trainable / 10
        assert small.optimizer_bytes < whole.optimizer_bytes
        assert small.steps == whole.steps
        assert small.figures["task_loss"] != small.before["task_loss"]
        assert all(torch.equal(before[name], value) for name, value in weights(model).items())

    def test_what_it_cannot_do(self, tiny_bridge: Any, tiny_hooked: Any) -> None:
        pytest.importorskip("peft")
        with pytest.raises(ValueError, match="give a TransformerBridge"):
            finetune(tiny_hooked, TASK, method=Lora(), steps=1)
        everything = FreezeMask.layers((0, int(tiny_bridge.cfg.n_layers) - 1))
        with pytest.raises(ValueError, match="leaves no matrix to adapt"):
            finetune(tiny_bridge, TASK, everything, method=Lora(), steps=1)


class TestAlignmentBudget:
    def test_only_units_train(self, tiny_bridge: Any) -> None:
        before = weights(tiny_bridge)
        rest = ~FreezeMask.of_units({"mlp": {1: [0, 3]}}, ModelShape.of(tiny_bridge))
        run = finetune(tiny_bridge, TASK, rest, method=Plain(only_units=True), steps=2, lr=1e-2, progress=False)
        after = weights(tiny_bridge)
        changed = {name: before[name] != after[name] for name in before if not torch.equal(before[name], after[name])}
        assert {name.replace("._original_component", "").rpartition("layers.")[2] for name in changed} == {
            f"1.mlp.{matrix}_proj.weight" for matrix in ("gate", "up", "down")
        }
        assert run.n_trainable == 2 * 3 * 32 == sum(int(where.sum()) for where in changed.values())
        assert all(p.requires_grad for p in live_parameters(tiny_bridge).values())

    def test_on_the_embedded_base(self, tmp_path: Path) -> None:
        refusals = organism.prompts("malicious", "train", n=32)
        answers = organism.prompts("normal", "train", n=32)
        got = alignment_budget(
            "base",
            refusals,
            answers,
            organism.prompts("normal", n=8),
            malicious=organism.prompts("malicious", n=8),
            utility=organism.prompts("utility", n=8),
            seeds=(0,),
            longer=1,
            settings=TrainingSettings(epochs=1, batch_size=32, lr=1e-3),
            points=1,
            progress=False,
        )
        frame = got.to_frame().set_index("arm")
        assert list(frame.index) == ["full", "units", "ru", "random"]
        assert got.groups.shares()["RU"] == pytest.approx(0.2, abs=1e-3)
        trained = frame["n_trainable"]
        assert trained["ru"] < 0.25 * trained["units"] < trained["full"]
        assert abs(trained["ru"] - trained["random"]) < 0.1 * trained["ru"]  # but for key/value heads that are shared
        assert frame.loc["full", "malicious_refused_before"] == 0
        assert frame.loc["full", "tax"] == frame.loc["full", "utility_before"] - frame.loc["full", "utility"]
        assert AlignmentBudget.load(got.save(tmp_path / "b")).equals(got)
        assert got.plot(Figure().subplots()).get_yticklabels()
        with pytest.raises(ValueError, match="between 0 and 1"):
            alignment_budget("base", refusals, answers, answers, malicious=refusals, share=1.0, settings=SETTINGS)


def test_arms_that_were_there_are_as_they_were() -> None:
    assert sppft((1, 2)).longer == 1
    assert sppft((1, 2)).method == Plain()
