"""Prefix tuning and LLaMA-Adapter: PEFT's own model gives the same step, the same logits and the same texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_study_ssah import BAD, HELD, OPTIONS, TASK, weights

from safecircuits.baselines.virtual_tokens import LlamaAdapter, PrefixTuning
from safecircuits.behavior.evaluate import evaluate
from safecircuits.behavior.generate import generate
from safecircuits.behavior.reference import response_loss
from safecircuits.behavior.scaled_completions import generate_scaled
from safecircuits.layers.counting import RefusalCounter
from safecircuits.layers.grid import scaling_grid
from safecircuits.layers.localization import localize
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model, save_pretrained
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode
from safecircuits.studies.arms import full
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.scenarios import Scenario
from safecircuits.studies.ssah import llama_adapter_arm, prefix_arm
from safecircuits.training.loop import finetune
from zoo import ZOO, tokenizer

pytest.importorskip("peft")

KINDS: dict[str, Any] = {"prefix": PrefixTuning(4), "adapter": LlamaAdapter(3, layers=2)}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def peft_model(kind: str, hf: Any) -> Any:
    """PEFT's model by itself, from the same seed."""
    from peft import AdaptionPromptConfig, PrefixTuningConfig, get_peft_model

    config: Any = (
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        if kind == "prefix"
        else AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return get_peft_model(hf, config).eval()


@kinds
def test_against_peft_by_itself(kind: str, make_tiny_model: Callable[..., Any]) -> None:
    """One step by hand, a prompt at a time without padding; then logits and greedy texts of the two."""
    model, theirs = make_tiny_model("bridge"), peft_model(kind, make_tiny_model("hf"))
    before = weights(model)
    run = finetune(
        model, TASK, method=KINDS[kind], seed=3, steps=1, batch_size=6, lr=0.5, schedule="constant",
        optimizer="sgd", max_grad_norm=None, progress=False,
    )  # fmt: skip
    tuned = run.tuned
    loss, count = torch.zeros(()), 0
    for example in encode(model.tokenizer, TASK, with_responses=True):
        ids = torch.tensor([example.ids])
        logprobs = theirs(ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        for at in range(example.response_start, len(example)):
            loss = loss - logprobs[at - 1, ids[0, at]]
            count += 1
    (loss / count).backward()
    trained = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            assert parameter.grad is not None
            parameter -= 0.5 * parameter.grad
    assert run.n_trainable == sum(p.numel() for p in trained.values())
    mine = {
        name.removeprefix("peft."): p for name, p in tuned.named_parameters() if name.removeprefix("peft.") in trained
    }
    assert set(mine) == set(trained)
    for name, parameter in trained.items():
        torch.testing.assert_close(mine[name].detach(), parameter.detach(), atol=1e-4, rtol=1e-3)
    examples = encode(model.tokenizer, HELD, with_responses=True)
    with torch.no_grad():
        got = logits(tuned, pad_left(examples))
        for row, example in enumerate(examples):
            ids = torch.tensor([example.ids])
            want = theirs(ids, attention_mask=torch.ones_like(ids)).logits[0]
            torch.testing.assert_close(got[row, -len(example) :], want, atol=2e-3, rtol=2e-3)
    texts = generate(tuned, TASK, max_new_tokens=5).texts
    assert texts == generate(tuned, TASK, max_new_tokens=5, max_tokens=1).texts
    for text, example in zip(texts, encode(model.tokenizer, TASK), strict=True):
        ids = torch.tensor([example.ids])
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
        assert model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == text
    after = weights(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class Enough:
    """One word is enough."""

    reason = "after a word"

    def __call__(self, text: str, left: int) -> bool:
        return bool(text)


@kinds
def test_it_learns_and_everything_measures_it(kind: str, make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    run = finetune(
        model, TASK, method=KINDS[kind], steps=30, batch_size=6, lr=0.05, progress=False,
        callbacks=[lambda m, _step: {"loss": response_loss(m, HELD).loss}], eval_every=15,
    )  # fmt: skip
    tuned = run.tuned
    assert run.losses[-1] < 0.9 * run.losses[0]
    assert run.evaluations[-1]["loss"] == pytest.approx(response_loss(tuned, HELD).loss)
    found = evaluate(tuned, malicious=BAD, utility=HELD, max_new_tokens=4)
    assert set(found.rates) == {"malicious_refused", "utility"}
    tokens: list[list[int]] = []
    whole = generate(tuned, BAD, max_new_tokens=4, token_ids=tokens)
    stopped = generate(tuned, BAD, max_new_tokens=4, until=Enough())
    assert [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens] == list(whole.texts)
    assert [text.split()[:1] for text in whole.texts] == [text.split() for text in stopped.texts]
    assert stopped.cut == Enough.reason


def test_as_arms(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model("bridge")
    before = weights(model)
    arms = [full(), prefix_arm(PrefixTuning(2)), llama_adapter_arm()]
    study = finetuning_study(model, [Scenario("task", TASK, HELD)], arms, seeds=(0,), **OPTIONS)
    whole, prefix, adapter = study.runs
    assert prefix.n_trainable == 2 * 3 * 2 * 16  # tokens, layers, keys and values, width of the key/value heads
    assert adapter.n_trainable == 3 * (10 * 32 + 1)  # as many layers as there are
    assert whole.steps == prefix.steps == adapter.steps
    assert prefix.figures["task_loss"] != prefix.before["task_loss"]
    assert prefix.curve[-1]["task_loss"] == pytest.approx(prefix.figures["task_loss"])
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    assert prefix_arm().describe() != llama_adapter_arm().describe()
    assert prefix_arm().method == PrefixTuning(30)


@pytest.mark.parametrize("plain", [False, True])
def test_what_needs_hook_points_says_so(make_tiny_model: Callable[..., Any], plain: bool) -> None:
    model: Any = make_tiny_model("hf" if plain else "bridge")
    if plain:
        model.tokenizer = tokenizer()
    else:
        model = finetune(model, TASK, method=PrefixTuning(2), steps=1, progress=False).tuned
    kind = type(model).__name__
    for call in (
        lambda: generate_scaled(model, BAD, [{0: 1.1}]),
        lambda: RefusalCounter(model, BAD),
        lambda: localize(model, BAD, (0, 1)),
        lambda: scaling_grid(model, BAD, alpha=1.1),
    ):
        with pytest.raises(ValueError, match=f"needs a TransformerLens model, not a {kind}, which has no hook points"):
            call()


@kinds
def test_the_adapter_is_saved_by_itself(kind: str, make_tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    from peft import PeftModel

    tuned = finetune(
        make_tiny_model("bridge"), TASK, method=KINDS[kind], steps=2, batch_size=6, lr=0.05, progress=False
    ).tuned
    with pytest.raises(ValueError, match=r"a TunedModel is no model .*model\.peft\.save_pretrained"):
        save_pretrained(tuned, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    tuned.peft.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(make_tiny_model("hf"), tmp_path / "adapter").eval()
    [example] = encode(tokenizer(), HELD[:1], with_responses=True)
    ids = torch.tensor([example.ids])
    with torch.no_grad():
        got = again(ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(got, tuned(ids, torch.ones_like(ids), return_type="logits")[:, -ids.shape[1] :])


def test_gradient_checkpointing_of_an_adapter_changes_nothing(make_tiny_model: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"method": LlamaAdapter(2), "steps": 2, "lr": 0.05, "progress": False}
    runs = [
        finetune(make_tiny_model("bridge"), TASK, gradient_checkpointing=again, **options) for again in (False, True)
    ]
    assert runs[0].losses == runs[1].losses


def test_what_it_cannot_do(tiny_bridge: Any, tiny_hooked: Any) -> None:
    with pytest.raises(ValueError, match="give a TransformerBridge"):
        finetune(tiny_hooked, TASK, method=PrefixTuning(), steps=1)
    with pytest.raises(ValueError, match="prefix does not take freeze"):
        finetune(tiny_bridge, TASK, FreezeMask.layers((1, 1)), method=PrefixTuning(), steps=1)
    with pytest.raises(ValueError, match="does not take gradient_checkpointing"):
        finetune(tiny_bridge, TASK, method=PrefixTuning(2), steps=1, gradient_checkpointing=True)
    with pytest.raises(ValueError, match="virtual_tokens must be at least 1, not 0"):
        PrefixTuning(0)
    qwen = load_model(ZOO["Qwen2"].build(), tokenizer=tokenizer())
    with pytest.raises(ValueError, match="LLaMA-Adapter for llama, mistral, gpt2, not for qwen2"):
        finetune(qwen, TASK, method=LlamaAdapter(), steps=1)
