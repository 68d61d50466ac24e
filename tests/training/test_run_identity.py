"""A run is its starting weights, too, and it does not end with weights that are no numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import With
from tokenizers.models import WordLevel

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.fingerprint import weights_fingerprint
from safecircuits.model.load import load_model
from safecircuits.training import Phase

DATA = sc.PromptSet(
    "data", ("find a lamp", "how do i bake the cake", "fix the road"), ("sure", "sorry i cannot", "help")
)
FROZEN: dict[str, Any] = {
    "nothing": {"freeze": None, "steps": 3},
    "layers": {"freeze": FreezeMask.layers(1), "steps": 3},
    "phases": {"freeze": [Phase(FreezeMask.layers((0, 1)), steps=1), Phase(FreezeMask.layers(1), steps=2)]},
}


def model_of(kind: Any, seed: int = 0) -> Any:
    hf = build_tiny_llama(seed=seed)
    return hf if kind == "plain" else load_model(hf, tokenizer=build_tiny_tokenizer(), backend=kind)


def trained(model: Any, **options: Any) -> Any:
    settings = {"batch_size": 2, "lr": 1e-2, "progress": False, "tokenizer": build_tiny_tokenizer()} | options
    return sc.finetune(model, DATA, **settings)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("kind", ["plain", "bridge", "hooked"])
def test_another_models_checkpoint_is_refused(kind: str, frozen: str, tmp_path: Path) -> None:
    """Other weights of the same shape: all of them, or a single entry of one that trains, or of one that does not."""
    want = trained(model_of(kind), **FROZEN[frozen], checkpoint_dir=tmp_path, checkpoint_every=1)
    others = [model_of(kind, seed=5)]
    for name in ("blocks.1.mlp.W_out", "ln_final.w") if kind == "hooked" else ("layers.1.mlp.down_proj", "model.norm"):
        other = model_of(kind)
        with torch.no_grad():
            found = [p for own, p in other.named_parameters() if name in sc.model.load.plain_name(own)]
            found[0].view(-1)[3].add_(1e-3)
        others.append(other)
    for other in others:
        before = {name: p.clone() for name, p in other.named_parameters()}
        with pytest.raises(ValueError, match=r"began with other weights|was made with frozen"):
            trained(other, **FROZEN[frozen], checkpoint_dir=tmp_path)
        assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())
    again = trained(model_of(kind), **FROZEN[frozen], checkpoint_dir=tmp_path)
    assert again.losses == want.losses


def test_a_checkpoint_of_the_same_texts_in_other_tokens_is_refused(tmp_path: Path) -> None:
    """Another tokenizer, or another chat template in it, makes other data of the same prompts."""
    trained(model_of("bridge"), steps=3, checkpoint_dir=tmp_path)
    turns, unknown = build_tiny_tokenizer(), build_tiny_tokenizer()
    turns.chat_template = "{% for m in messages %}{{ m.content }} <user> {% endfor %}"
    unknown.backend_tokenizer.model = WordLevel({"<unk>": 1, "the": 8}, unk_token="<unk>")
    for other in (turns, unknown):
        with pytest.raises(ValueError, match="was made with tokens = "):
            trained(model_of("bridge"), steps=3, checkpoint_dir=tmp_path, tokenizer=other)
    again = trained(model_of("bridge"), steps=3, checkpoint_dir=tmp_path, tokenizer=build_tiny_tokenizer())
    assert again.settings["resumed_from"] == 3


def test_the_fingerprint_sees_every_entry_and_its_place() -> None:
    model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())
    first = weights_fingerprint(model)
    assert first == weights_fingerprint(copy.deepcopy(model))
    matrix = model.blocks[1].mlp.out.original_component.weight
    with torch.no_grad():
        for change in (
            lambda: matrix[7, 3].mul_(-1),
            lambda: matrix.copy_(matrix.flip(0)),
            lambda: matrix[0, :2].copy_(matrix[0, [1, 0]].clone()),
        ):
            kept = matrix.clone()
            change()
            assert weights_fingerprint(model) != first
            matrix.copy_(kept)
    assert weights_fingerprint(model) == first
    for dtype in (torch.bfloat16, torch.float64):
        assert weights_fingerprint(copy.deepcopy(model).to(dtype)) != first


OVERFLOW: dict[str, dict[str, Any]] = {
    "rate": {"lr": 1e38, "warmup_steps": 0},
    "rate beyond float32": {"lr": 1e300, "warmup_steps": 0},
    "decay": {"lr": 1e3, "weight_decay": 1e38, "warmup_steps": 0},
    "step": {"lr": 3e38, "optimizer": "sgd", "max_grad_norm": None},
}


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("how", OVERFLOW)
def test_weights_that_are_no_numbers_after_the_last_step_are_an_error(how: str, frozen: str, tmp_path: Path) -> None:
    length = {"steps": 1} if "steps" in FROZEN[frozen] else {}
    options = FROZEN[frozen] | length | OVERFLOW[how]
    seen: list[int] = []
    with pytest.raises(FloatingPointError, match=r"the weights after step 1 are not finite"):
        trained(
            model_of("bridge"),
            **options,
            checkpoint_dir=tmp_path,
            checkpoint_every=1,
            eval_every=1,
            callbacks=[lambda _, step: seen.append(step)],
        )
    assert not list(tmp_path.glob("step-*")), "nothing that is not finite is kept"
    assert not seen, "nor evaluated"


def test_the_last_good_checkpoint_stays_when_the_last_step_overflows(tmp_path: Path) -> None:
    def poison(step: int, parameters: Any) -> None:
        if step == 2:
            next(iter(parameters.values())).grad.fill_(3e38)

    options: dict[str, Any] = {"steps": 3, "checkpoint_dir": tmp_path, "checkpoint_every": 1, "max_grad_norm": None}
    want = trained(model_of("bridge"), steps=3, max_grad_norm=None)
    with pytest.raises(FloatingPointError, match=r"not finite|norm is inf"):
        trained(model_of("bridge"), method=With(on_gradients=poison), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert trained(model_of("bridge"), **options).losses == want.losses
