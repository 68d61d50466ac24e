"""What trains, against an independent loop in float64 that trains everything and undoes what is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_finetune import DATA, MASK, With

from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.prompts.prompt_set import encode
from safecircuits.training import finetune

STEPS = [[0, 1, 2, 3], [4, 5], [3, 1, 5, 0], [2, 4, 5]]
LR, DECAY, CLIP, WARMUP = 1e-2, 0.1, 0.3, 2


def reference(optimizer: str, loss_on: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Each example alone, gradients of frozen entries zeroed, frozen entries written back after each step."""
    model = build_tiny_llama(dtype=torch.float64)
    masks = MASK.parameter_masks(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kinds: dict[str, Any] = {
        "adamw": lambda ps: torch.optim.AdamW(ps, lr=LR, weight_decay=DECAY),
        "sgd": lambda ps: torch.optim.SGD(ps, lr=LR, weight_decay=DECAY, momentum=0.9),
    }
    opt = kinds[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda k: (k + 1) / WARMUP if k < WARMUP else 1 - (k - WARMUP) / (len(STEPS) - WARMUP)
    )
    examples = encode(build_tiny_tokenizer(), DATA, with_responses=True)
    losses = []
    for rows in STEPS:
        opt.zero_grad()
        total, count = torch.zeros((), dtype=torch.float64), 0
        for example in (examples[i] for i in rows):
            ids = torch.tensor(example.ids)
            first = example.response_start if loss_on == "response" else 1
            log_probs = model(ids[None]).logits[0].log_softmax(-1)
            total = total - sum(log_probs[t - 1, ids[t]] for t in range(first, len(ids)))
            count += len(ids) - first
        (total / count).backward()
        losses.append(total.item() / count)
        for name, frozen_at in masks.items():
            model.get_parameter(name).grad[frozen_at] = 0
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
        for p in model.parameters():
            p.grad.mul_(min(1.0, CLIP / (float(norm) + 1e-6)))
        opt.step()
        scheduler.step()
        with torch.no_grad():
            for name, frozen_at in masks.items():
                model.get_parameter(name)[frozen_at] = before[name][frozen_at]
    return {name: p.detach() for name, p in model.named_parameters()}, losses


@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 4},
        {"batch_size": 1, "grad_accumulation": 4},
        {"batch_size": 4, "batches": "packed", "gradient_checkpointing": True},
    ],
)
def test_trained_weights_are_those_of_a_plain_loop(how: dict[str, Any], optimizer: Any, loss_on: Any) -> None:
    expected, losses = reference(optimizer, loss_on)
    model = build_tiny_llama(dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = finetune(
        model,
        DATA,
        freeze=MASK,
        steps=len(STEPS),
        method=With(rows=STEPS.__getitem__),
        lr=LR,
        weight_decay=DECAY,
        warmup_steps=WARMUP,
        max_grad_norm=CLIP,
        optimizer=optimizer,
        loss_on=loss_on,
        tokenizer=build_tiny_tokenizer(),
        progress=False,
        **how,
    )
    assert run.losses == pytest.approx(losses, rel=1e-10)
    masks = MASK.parameter_masks(model)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=0, atol=1e-8)
        assert not torch.equal(p.detach(), before[name]) or masks[name].all()
        if name in masks:
            assert torch.equal(p.detach()[masks[name]], before[name][masks[name]])
