"""Rewound units have the earlier model's entries and nothing else does; and data without its safety rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_study_ssah import BAD, HELD, OPTIONS, TASK, groups_of

from safecircuits.baselines.rewinding import entries_of, rewind, rewound
from safecircuits.behavior.detectors import DETECTORS
from safecircuits.behavior.reference import response_loss
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model, save_pretrained
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.studies.arms import full
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.scenarios import Scenario
from safecircuits.studies.ssah import rewound_arm, scu_all_cu
from safecircuits.training.loop import finetune
from safecircuits.training.safety_filter import FilteredData, without_safety_rows
from zoo import ZOO, tokenizer

UNITS: Any = {"mlp": {0: [1, 5], 2: range(48)}, "attn": {1: [0, 1, 2]}}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in checkpoint_parameters(model).items()}


class TestRewind:
    @pytest.mark.parametrize("kind", ["bridge", "hooked", "hf"])
    def test_exactly_the_masks_entries(self, kind: str, make_tiny_model: Callable[..., Any]) -> None:
        model, before = make_tiny_model(kind, 1), make_tiny_model(kind, 0)
        mask = FreezeMask.of_units(UNITS, ModelShape.of(make_tiny_model("bridge")))
        old, now = weights(before), weights(model)
        changed = rewind(model, before, mask)
        masks = mask.parameter_masks(model)
        assert changed == sum(int((old[name] != now[name])[where].sum()) for name, where in masks.items())
        for name, value in weights(model).items():
            where = masks.get(name, torch.zeros(value.shape, dtype=torch.bool))
            assert torch.equal(value[where], old[name][where])
            assert torch.equal(value[~where], now[name][~where])
        assert rewind(model, before, mask) == 0

    @pytest.mark.parametrize("name", ["Pythia", "Phi-3", "GPT-2"])
    def test_fused_matrices_reach_the_checkpoint(self, name: str) -> None:
        """A bridge computes with parts of them, which may be copies."""
        model, before = (load_model(ZOO[name].build(), tokenizer=tokenizer()) for _ in range(2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        shape = ModelShape.of(model)
        mask = FreezeMask.of_units({"mlp": {0: [0, 3]}, "attn": {0: range(shape.n_heads)}}, shape)
        rewind(model, before, mask)
        old = weights(before)
        for parameter, where in mask.parameter_masks(model).items():
            assert torch.equal(weights(model)[parameter][where], old[parameter][where])

    def test_inside_a_block_and_then_not(self, make_tiny_model: Callable[..., Any]) -> None:
        model, base = make_tiny_model("bridge"), make_tiny_model("bridge", 1)
        everything = ~FreezeMask.of_units({}, ModelShape.of(model))
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with rewound(model, base, everything):
            assert torch.equal(model.blocks[1].attn.W_Q, base.blocks[1].attn.W_Q)
            assert torch.equal(model.blocks[2].mlp.W_out, base.blocks[2].mlp.W_out)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def test_bad_input(self, tiny_bridge: Any, tiny_hooked: Any) -> None:
        shape = ModelShape.of(tiny_bridge)
        mask = FreezeMask.of_units(UNITS, shape)
        with pytest.raises(ValueError, match="names no unit"):
            rewind(tiny_bridge, tiny_bridge, FreezeMask.of_units({}, shape))
        with pytest.raises(ValueError, match="load both with one backend"):
            rewind(tiny_bridge, tiny_hooked, mask)
        with pytest.raises(ValueError, match="load both with one backend"):
            rewind(tiny_bridge, entries_of(tiny_bridge, FreezeMask.layers((0, 0), shape)), mask)

    def test_as_an_arm(self, make_tiny_model: Callable[..., Any], tmp_path: Path) -> None:
        model = make_tiny_model("bridge")
        arm = rewound_arm(scu_all_cu(groups_of(model)))
        folder = save_pretrained(model, tmp_path / "model")
        study = finetuning_study(folder, [Scenario("task", TASK, HELD)], [full(), arm], seeds=(1,), **OPTIONS)
        plain, back = study.runs
        assert arm.name == "rewound_scu_all_cu"
        assert back.steps == plain.steps
        assert back.n_trainable == plain.n_trainable
        by_hand, before = load_model(folder), load_model(folder)
        finetune(by_hand, TASK, settings=OPTIONS["settings"], seed=1, progress=False)
        assert plain.figures["task_loss"] == pytest.approx(response_loss(by_hand, HELD).loss, rel=1e-5)
        assert arm.mask is not None
        rewind(by_hand, before, arm.mask)
        assert back.figures["task_loss"] == pytest.approx(response_loss(by_hand, HELD).loss, rel=1e-5)
        assert back.curve[-1]["task_loss"] == back.figures["task_loss"]
        assert back.figures["task_loss"] != plain.figures["task_loss"]
        with pytest.raises(ValueError, match="nothing to put back"):
            rewound_arm(full())

    def test_recovering_the_base_changes_what_the_units_say(self, make_tiny_model: Callable[..., Any]) -> None:
        model, base = make_tiny_model("bridge"), make_tiny_model("bridge", 1)
        batch = pad_left(encode(model.tokenizer, BAD))
        mask = FreezeMask.of_units({"mlp": {1: range(48)}}, ModelShape.of(model))
        by_hand = make_tiny_model("hf")
        theirs = make_tiny_model("hf", 1).model.layers[1].mlp
        by_hand.model.layers[1].mlp.load_state_dict(theirs.state_dict())
        with rewound(model, base, mask), torch.no_grad():
            got = logits(model, batch)
        with torch.no_grad():
            want = logits(load_model(by_hand, tokenizer=model.tokenizer), batch)
        real = batch.attention_mask.bool()
        torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-4)


DATA = PromptSet(
    "data",
    ("a", "b", "c", "d"),
    ("Here you go.", "I’m SORRY, but no.", "It is illegal to do that", "Sure, as an example"),
)


class TestSafetyFilter:
    def test_rows_by_hand(self, tmp_path: Path) -> None:
        found = without_safety_rows(DATA, ["i'm sorry", "Illegal"])
        assert found.kept.prompts == ("a", "d")
        assert found.kept.responses == ("Here you go.", "Sure, as an example")
        assert found.dropped == (1, 2)
        assert found.found == ("i'm sorry", "Illegal")
        assert found.share == 0.5
        assert "dropped 2 of 4 rows (50.0%), by 2 phrases" in str(found)
        assert FilteredData.load(found.save(tmp_path / "f")).equals(found)

    def test_phrases_from_a_file_and_by_name(self, tmp_path: Path) -> None:
        file = tmp_path / "phrases.txt"
        file.write_text("sorry\nyou go\n", encoding="utf-8")
        assert without_safety_rows(DATA, file).dropped == (0, 1)
        assert without_safety_rows(DATA, str(file)).to_frame()["rows"].tolist() == [1, 1]
        by_name = without_safety_rows(DATA)
        assert by_name.n_phrases == len(DETECTORS["qi2023"].phrases)
        assert 1 in by_name.dropped
        assert 0 not in by_name.dropped
        assert without_safety_rows(DATA, ["nowhere"]).kept.fingerprint == DATA.fingerprint

    def test_bad_input(self) -> None:
        for phrases, message in (
            ("qi", "no file of phrases and none of the detectors opening"),
            ([], "has no phrases"),
            (["  "], "matches every text"),
            (["o", "e"], "nothing is left"),
        ):
            with pytest.raises(ValueError, match=message):
                without_safety_rows(DATA, phrases)
        with pytest.raises(ValueError, match="has no responses"):
            without_safety_rows(PromptSet("q", ("a",)))
