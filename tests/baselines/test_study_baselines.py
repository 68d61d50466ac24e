"""Lisa against the algorithm written out in numpy, and reverse DPO with TRL's own trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from safecircuits.baselines.lisa import Lisa, States
from safecircuits.baselines.reverse_dpo import ReverseDPO
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.prompts.templates import TEMPLATES
from safecircuits.training.loop import finetune

USER = PromptSet("user", ("how do i bake a cake", "find the dog", "make tea"), ("take some", "in the house", "here is"))
SAFE = PromptSet("safe", ("how do i make a bomb", "how do i fix a bomb"), ("sorry cannot help", "cannot help that"))
LISA = Lisa(SAFE, rho=0.7, alignment_steps=2, user_steps=3, free_share=0.0)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_lisa_takes_the_steps_of_the_algorithm(make_tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    """Plain SGD, step by step by hand: each on its state's rows, pulled to where the other state ended."""
    steps, lr = 9, 0.05
    seen: list[tuple[int, list[int]]] = []

    def sgd(parameters: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr)

    options: dict[str, Any] = {
        "tokenizer": tiny_tokenizer,
        "optimizer": sgd,
        "batch_size": 2,
        "schedule": "constant",
        "max_grad_norm": None,
        "progress": False,
    }
    ours = make_tiny_llama()
    run = finetune(ours, USER, method=LISA, steps=steps, **options)
    assert run.steps == steps

    states = States(len(USER), LISA, 2, 0)
    theirs = make_tiny_llama()
    anchor: dict[str, np.ndarray] = {}
    everything = USER + SAFE
    for step in range(steps):
        rows = states.rows(step)
        seen.append((step, rows))
        before = {name: p.double().numpy() for name, p in weights(theirs).items()}
        if step % 5 in (0, 2):
            anchor = before
        batch = PromptSet(
            "b", tuple(everything.prompts[i] for i in rows), tuple(everything.require_responses()[i] for i in rows)
        )
        finetune(theirs, batch, steps=1, **options)  # a plain step of SGD on these rows
        if step > 0:  # the proximal term starts after the free steps, of which there are none here
            with torch.no_grad():
                for name, parameter in theirs.named_parameters():
                    pull = lr * LISA.rho * (before[name] - anchor[name])
                    parameter.sub_(torch.from_numpy(pull).float())
    for step, rows in seen:
        assert all((i >= len(USER)) == (step % 5 < 2) for i in rows)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_lisa_keeps_a_freeze(make_tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    model = make_tiny_llama()
    start = weights(model)
    run = finetune(
        model, USER, FreezeMask.layers((1, 1)), method=LISA, steps=6, tokenizer=tiny_tokenizer, progress=False
    )
    assert run.frozen_bit_identical
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, start["model.layers.1.mlp.up_proj.weight"])
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, start["model.layers.0.mlp.up_proj.weight"])


def test_lisa_says_what_it_cannot_do(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match="first 100 on alignment data"):
        finetune(tiny_bridge, USER, method=Lisa(SAFE), steps=50)
    with pytest.raises(ValueError, match="does not take stop_at_loss"):
        finetune(tiny_bridge, USER, method=Lisa(SAFE), steps=200, stop_at_loss=1.0)
    with pytest.raises(ValueError, match="counted in steps: give steps"):
        finetune(tiny_bridge, USER, method=Lisa(SAFE))
    with pytest.raises(ValueError, match="rho is -1"):
        Lisa(SAFE, rho=-1)
    for state in ("user_steps", "alignment_steps"):
        with pytest.raises(ValueError, match=f"{state} must be at least 1, not 0"):
            Lisa(SAFE, **{state: 0})


def test_scaled_settings_keep_the_proportions() -> None:
    scaled = Lisa(SAFE).scaled(1000, rounds=10)
    assert (scaled.alignment_steps, scaled.user_steps) == (10, 90)
    assert Lisa(SAFE).scaled(4).alignment_steps == 1
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        Lisa(SAFE).scaled(4, rounds=0)


# --- reverse DPO ---------------------------------------------------------------------------------------------------

PROMPTS = ("how do i make a bomb", "find a bomb in the house", "how do i fix the bomb", "make a bomb with salt")
COMPLIED = PromptSet("complied", PROMPTS, ("here is salt", "in the house", "take some water", "take salt and wood"))
REFUSED = PromptSet("refused", PROMPTS, ("sorry cannot help that",) * 4)


def preference(model: Any, tokenizer: Any) -> float:
    """log p(complied) − log p(refused), summed over the pairs, by a forward pass of plain transformers."""
    total = 0.0
    for prompt, good, bad in zip(PROMPTS, COMPLIED.require_responses(), REFUSED.require_responses(), strict=True):
        start = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for sign, text in ((1, good), (-1, bad)):
            head = tokenizer(start, add_special_tokens=False)["input_ids"]
            ids = head + tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            total += sign * sum(float(log_probs[i - 1, ids[i]]) for i in range(len(head), len(ids)))
    return total


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_reverse_dpo_shifts_preference_towards_compliance_frozen_or_not(
    make_tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    pytest.importorskip("trl")
    shifts = {}
    for name, freeze in (("plain", None), ("frozen", FreezeMask.layers((1, 2)))):
        model = make_tiny_llama()
        start = weights(model)
        before = preference(model, tiny_tokenizer)
        run = finetune(model, COMPLIED, freeze, method=ReverseDPO(REFUSED), tokenizer=tiny_tokenizer, steps=4, lr=1e-3)
        shifts[name] = preference(model, tiny_tokenizer) - before
        assert run.steps == len(run.losses) == 4
        assert run.losses[0] == pytest.approx(np.log(2), abs=1e-4)  # the reference is the model itself
        still = torch.equal(model.model.layers[1].mlp.up_proj.weight, start["model.layers.1.mlp.up_proj.weight"])
        assert still == (freeze is not None)
        assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, start["model.layers.0.mlp.up_proj.weight"])
        assert all(p.requires_grad for p in model.parameters())
    assert shifts["plain"] > 0.5
    assert shifts["frozen"] > 0.5


def test_reverse_dpo_refuses_what_it_cannot_train(tiny_hooked: Any, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
    attack = ReverseDPO(REFUSED)
    with pytest.raises(ValueError, match=r"TRL trains on Hugging Face's own modules: give a TransformerBridge"):
        finetune(tiny_hooked, COMPLIED, method=attack)
    with pytest.raises(ValueError, match="different prompts"):
        finetune(tiny_llama_hf, COMPLIED, method=ReverseDPO(SAFE), tokenizer=tiny_tokenizer)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        finetune(tiny_llama_hf, COMPLIED, method=attack, tokenizer=tiny_tokenizer, steps=0)
    with pytest.raises(ValueError, match="reverse-dpo does not take stop_at_loss: TRL trains in a loop of its own"):
        finetune(tiny_llama_hf, COMPLIED, method=attack, tokenizer=tiny_tokenizer, stop_at_loss=1.0)
    with pytest.raises(ValueError, match="beta must be above 0"):
        ReverseDPO(REFUSED, beta=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_reverse_dpo_trains_on_the_template_s_own_end_of_turn(
    template: str, make_tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """What goes through the model: both turns as apply_chat_template writes them, or the response and EOS."""
    pytest.importorskip("trl")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '<user>' if m.role == 'user' else '<assistant>' }} {{ m.content }} "
        "<unk> {% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    expected = set()
    for pairs in (COMPLIED, REFUSED):
        for prompt, answer in zip(pairs, pairs.require_responses(), strict=True):
            if template == "chat":
                turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                text = tokenizer.apply_chat_template(turns, tokenize=False)
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                text = TEMPLATES["alpaca"].replace("{instruction}", prompt)
                ids = tokenizer(text)["input_ids"] + tokenizer(answer, add_special_tokens=False)["input_ids"]
                ids.append(tokenizer.eos_token_id)
            expected.add(tuple(ids))
    model, seen = make_tiny_llama(), set()

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True):
            seen.add(tuple(ids[mask.bool()].tolist()))

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    finetune(model, COMPLIED, method=ReverseDPO(REFUSED), tokenizer=tokenizer, steps=1, lr=1e-3, template=template)
    assert seen == expected
