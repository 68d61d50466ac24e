"""Methods that change what is minimised, each against its equation; and LoRA, and training alone, under a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_methods import DATA, FIRST, MASK, OTHER, REFUSED, SETTINGS, norm, weights

from safecircuits.baselines import AsFt, Booster, Ewc, Lora, OnlyUnits, TokenConstrained, Vaccine, moved_most
from safecircuits.baselines.earlier import matrices_of
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import ModelShape
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode
from safecircuits.training import Method, Plain, finetune, frozen_digest
from safecircuits.training.loss import token_loss

Make = Callable[..., Any]
ONE = replace(SETTINGS, steps=1, batch_size=4, optimizer="sgd", max_grad_norm=None, lr=0.1, schedule="constant")
"""One step of plain gradient descent: what changed, over the rate, is the gradient."""


def changed(model: Any, method: Method, settings: Any = ONE, **options: Any) -> dict[str, torch.Tensor]:
    before = weights(model)
    finetune(model, DATA, settings=settings, method=method, progress=False, **options)
    return {name: value - before[name] for name, value in weights(model).items()}


def loss(model: Any, data: PromptSet = DATA) -> torch.Tensor:
    total, count = token_loss(model, pad_left(encode(model.tokenizer, data, with_responses=True)))
    return total / count


def gradients(model: Any, of: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = checkpoint_parameters(model)
    found = torch.autograd.grad(of, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], scale: float = 1.0) -> None:
    largest = max(float(value.abs().max()) for value in wanted.values()) * abs(scale)
    for name, value in wanted.items():
        if name in found:
            assert torch.allclose(found[name], scale * value, atol=2e-4 * largest + 1e-7), name


def test_the_first_gradient_of_the_token_constraint_is_cross_entropys(make_tiny_model: Make) -> None:
    """Qi et al. 2025, §4.1: where the model is still the aligned one, 2 σ(−β · 0) = 1 for each β."""
    close(changed(make_tiny_model("bridge"), TokenConstrained()), changed(make_tiny_model("bridge"), Plain()))


@pytest.mark.parametrize("kind", ["bridge", "hooked", "hf"])
def test_the_token_constraint_is_the_papers_equation(kind: str, make_tiny_model: Make) -> None:
    """−Σ 2/β_t log σ(β_t log π/π₀), with β by a token's place in its answer, in float64 from one prompt at a time."""
    from safecircuits.baselines.token_constrained import Constrained, response_log_probs

    before, now = make_tiny_model(kind, 0), make_tiny_model(kind, 1)
    long = PromptSet("long", DATA.prompts[:2], ("take some water with salt and wood then", "sure"))
    examples = encode(make_tiny_model("bridge").tokenizer, long, with_responses=True)
    method = TokenConstrained(0.7, 1.5, 0.2)
    found = Constrained(response_log_probs(before, examples), method.strengths)(now, pad_left(examples), "response")
    plain = [make_tiny_model("hf", seed) for seed in (0, 1)]
    wanted = 0.0
    for example in examples:
        first, second = (alone(model, example) for model in plain)
        for i, (p0, p) in enumerate(zip(first, second, strict=True)):
            beta = 0.7 if i == 0 else 1.5 if i < 5 else 0.2
            wanted += 2 / beta * np.log1p(np.exp(-beta * (p - p0)))
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def alone(model: Any, example: Encoded) -> np.ndarray[Any, Any]:
    ids = torch.tensor([example.ids])
    log_probs = model(ids).logits[0].double().log_softmax(-1)
    places = range(example.response_start, len(example.ids))
    return np.array([float(log_probs[i - 1, example.ids[i]].detach()) for i in places])


def test_weak_token_constraints_are_plain_training_and_strong_ones_hold_the_answers(make_tiny_model: Make) -> None:
    settings = replace(SETTINGS, steps=5, lr=1e-3)
    ends = []
    for method in (Plain(), TokenConstrained(1e-4, 1e-4, 1e-4), TokenConstrained(5.0, 5.0, 5.0)):
        model = make_tiny_model("bridge")
        run = finetune(model, DATA, settings=settings, method=method, progress=False)
        ends.append((weights(model), float(loss(model)), run))
    close(ends[1][0], ends[0][0])
    assert ends[2][1] > ends[0][1]
    with pytest.raises(ValueError, match="does not take batches='packed'"):
        finetune(make_tiny_model("bridge"), DATA, method=TokenConstrained(), batches="packed")
    with pytest.raises(ValueError, match="does not take loss_on='all'"):
        finetune(make_tiny_model("bridge"), DATA, method=TokenConstrained(), loss_on="all")


def test_adapters_train_under_the_token_constraint(make_tiny_model: Make) -> None:
    pytest.importorskip("peft")
    inner = Lora(r=2, alpha=4)
    found, plain = (changed(make_tiny_model("bridge"), m) for m in (TokenConstrained(training=inner), inner))
    assert any(value.any() for value in plain.values())
    close(found, plain)


def test_consolidation_pulls_by_the_fisher_information(make_tiny_model: Make) -> None:
    """Kirkpatrick et al. 2017, equation 3: + λ F (θ − θ₀) with F the mean square of one answer's gradients."""
    zero = changed(make_tiny_model("bridge"), Ewc(REFUSED, 0.0), SETTINGS)
    plain = changed(make_tiny_model("bridge"), Plain(), SETTINGS)
    assert all(torch.equal(value, plain[name]) for name, value in zero.items())
    two = replace(ONE, steps=2)
    settings = replace(two, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    model, by_hand = (make_tiny_model("bridge") for _ in range(2))
    found = changed(model, Ewc(REFUSED, 0.5), settings)
    start = checkpoint_parameters(by_hand)
    fisher = {name: torch.zeros_like(p) for name, p in start.items()}
    for prompt, answer in zip(REFUSED.prompts, REFUSED.responses or (), strict=True):
        for name, g in gradients(by_hand, loss(by_hand, PromptSet("one", (prompt,), (answer,)))).items():
            fisher[name] += g.square() / len(REFUSED)
    moved = {name: torch.zeros_like(p) for name, p in start.items()}
    for _ in range(2):
        step = gradients(by_hand, loss(by_hand))
        with torch.no_grad():
            for name, p in start.items():
                change = -0.1 * (step[name] + 0.5 * fisher[name] * moved[name])
                p.add_(change)
                moved[name] += change
    close(found, moved)


def test_updates_beside_the_directions_of_alignment_are_penalised(make_tiny_model: Make) -> None:
    """Yang et al. 2026: + λ Σ ‖(I − C) ΔW‖², whose gradient is 2 λ (I − C)² ΔW."""
    plain = changed(make_tiny_model("bridge"), Plain(), SETTINGS)
    zero = changed(make_tiny_model("bridge"), AsFt(make_tiny_model("bridge", 3), 0.0), SETTINGS)
    assert all(torch.equal(value, plain[name]) for name, value in zero.items())
    settings = replace(ONE, steps=2, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    found = changed(make_tiny_model("bridge"), AsFt(make_tiny_model("bridge", 3), 0.2, "approximate"), settings)
    by_hand, before = make_tiny_model("bridge"), make_tiny_model("bridge", 3)
    start, old = weights(by_hand), weights(before)
    inside = {p for key, m in matrices_of(by_hand).items() for p, q in checkpoint_parameters(by_hand).items()
              if q is m.owner and key}  # fmt: skip
    for _ in range(2):
        step = gradients(by_hand, loss(by_hand))
        for name, p in checkpoint_parameters(by_hand).items():
            extra = torch.zeros_like(p)
            if name in inside:
                v = start[name] - old[name]
                beside = torch.eye(len(v)) - v @ v.T / v.norm()
                extra = 2 * 0.2 * beside @ beside @ (p.detach() - start[name])
            with torch.no_grad():
                p.sub_(0.1 * (step[name] + extra))
    close(found, {name: value - start[name] for name, value in weights(by_hand).items()})


@pytest.mark.parametrize("kind", ["bridge", "hooked", "hf"])
def test_vaccine_is_the_gradient_at_the_worst_push(kind: str, make_tiny_model: Make) -> None:
    """Huang et al. 2024, algorithm 1, against a loop over Hugging Face's own hidden states."""
    tokenizer = make_tiny_model("bridge").tokenizer
    zero = changed(make_tiny_model("bridge"), Vaccine(0.0), SETTINGS)
    close(zero, changed(make_tiny_model("bridge"), Plain(), SETTINGS))
    model = make_tiny_model(kind)
    before = norm(model)
    found = changed(model, Vaccine(3.0), tokenizer=tokenizer)
    plain = make_tiny_model("hf")
    batch = pad_left(encode(tokenizer, DATA, with_responses=True))
    pushes: list[torch.Tensor] = []

    def run(push: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        written: list[torch.Tensor] = []

        def hook(_m: Any, _a: Any, out: Any) -> Any:
            stream = out[0] if isinstance(out, tuple) else out
            stream = stream + push[len(written)] if push else stream
            written.append(stream)
            return (stream, *out[1:]) if isinstance(out, tuple) else stream

        hooks = [layer.register_forward_hook(hook) for layer in plain.model.layers]
        total, count = token_loss(plain, batch)
        for one in hooks:
            one.remove()
        return total / count, written

    value, written = run([])
    at_streams = torch.autograd.grad(value, written)
    length = torch.cat([g.flatten() for g in at_streams]).norm()
    pushes = [3.0 * g / length for g in at_streams]
    wanted = gradients(plain, run(pushes)[0])
    if kind != "hooked":
        close(found, wanted, -0.1)
    else:
        assert norm(model) != before
        for mine, theirs in (
            ("blocks.0.mlp.W_in", "model.layers.0.mlp.up_proj.weight"),
            ("unembed.W_U", "lm_head.weight"),
        ):
            assert torch.allclose(found[mine].T, -0.1 * wanted[theirs], atol=1e-4)


def test_booster_subtracts_what_a_harmful_step_would_gain(make_tiny_model: Make) -> None:
    """Huang et al. 2025: ∇f + λ (∇h(w) − ∇h(w − α ∇h / ‖∇h‖))."""
    plain = changed(make_tiny_model("bridge"), Plain(), SETTINGS)
    for same in (Booster(OTHER, 0.0), Booster(OTHER, 5.0, 0.0)):
        close(changed(make_tiny_model("bridge"), same, SETTINGS), plain)
    found = changed(make_tiny_model("bridge"), Booster(OTHER, 2.0, 0.3))
    here, there = make_tiny_model("bridge"), make_tiny_model("bridge")
    wanted, harmful = gradients(here, loss(here)), gradients(here, loss(here, OTHER))
    length = torch.cat([g.flatten() for g in harmful.values()]).norm()
    with torch.no_grad():
        for name, p in checkpoint_parameters(there).items():
            p.sub_(0.3 * harmful[name] / length)
    after = gradients(there, loss(there, OTHER))
    close(found, {name: g + 2.0 * (harmful[name] - after[name]) for name, g in wanted.items()}, -0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_adapters_leave_what_is_frozen_bit_for_bit(optimizer: Any, make_tiny_model: Make) -> None:
    """Merged weights: frozen entries to the bit, minus zeros too; everything else is what the adapters trained to."""
    pytest.importorskip("peft")
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    lora = Lora(r=2, alpha=4, target_modules=every)
    model = make_tiny_model("bridge")
    with torch.no_grad():
        for p in checkpoint_parameters(model).values():
            p[p.abs() < 0.05] = -0.0
    before, digest = weights(model), frozen_digest(model, FIRST)
    settings = replace(SETTINGS, optimizer=optimizer, weight_decay=0.1)
    seen: list[float] = []
    run = finetune(
        model, DATA, FIRST, settings, method=lora, progress=False,
        callbacks=[lambda m, _: seen.append(float(loss(m)))], eval_every=3,
    )  # fmt: skip
    after, masks = weights(model), FIRST.parameter_masks(model)
    for name, value in after.items():
        where = masks.get(name, torch.zeros(value.shape, dtype=torch.bool))
        assert torch.equal(value[where].view(torch.int32), before[name][where].view(torch.int32))
        if name.split(".")[-2] in every and not where.all():
            assert (value != before[name])[~where].float().mean() > 0.9, name
    assert (run.frozen_bit_identical, run.frozen_digest) == (True, digest)
    assert digest == frozen_digest(model, FIRST)
    assert run.n_frozen == sum(int(where.sum()) for where in masks.values())
    assert seen[-1] == pytest.approx(float(loss(model)))
    # The model that trained is the merged one: its last loss is that of the weights before the last step.
    shorter = make_tiny_model("bridge")
    with torch.no_grad():
        for p in checkpoint_parameters(shorter).values():
            p[p.abs() < 0.05] = -0.0
    constant: Any = replace(settings, schedule="constant", batch_size=4)
    losses = finetune(shorter, DATA, FIRST, replace(constant, steps=2), method=lora, progress=False)
    assert losses.losses[0] == pytest.approx(float(loss(make_like(make_tiny_model, before))), rel=1e-4)


def make_like(make: Make, values: dict[str, torch.Tensor]) -> Any:
    model = make("bridge")
    with torch.no_grad():
        for name, p in checkpoint_parameters(model).items():
            p.copy_(values[name])
    return model


def test_adapters_under_a_mask_train_as_by_hand(make_tiny_model: Make) -> None:
    """A frozen neuron's column of A is zero, so the others train as if their matrix had no such column."""
    pytest.importorskip("peft")
    model, mask = (
        make_tiny_model("bridge"),
        FreezeMask.of_units({"mlp": {0: range(47)}}, ModelShape.of(make_tiny_model("bridge"))),
    )
    before = weights(model)
    finetune(model, DATA, mask, SETTINGS, method=Lora(r=2, target_modules=("down_proj", "up_proj")), progress=False)
    moved = {name: value != before[name] for name, value in weights(model).items()}
    assert moved["model.layers.0.mlp.down_proj.weight"].any(0).nonzero().flatten().tolist() == [47]
    assert moved["model.layers.0.mlp.up_proj.weight"].any(1).nonzero().flatten().tolist() == [47]
    assert moved["model.layers.1.mlp.up_proj.weight"].all()


def test_masks_that_adapters_cannot_serve(make_tiny_model: Make, tmp_path: Any) -> None:
    pytest.importorskip("peft")
    from safecircuits.training.phases import Phase

    with pytest.raises(ValueError, match="leaves no matrix to adapt"):
        finetune(make_tiny_model("bridge"), DATA, FreezeMask.layers((0, 2)), method=Lora(), progress=False)
    with pytest.raises(ValueError, match="one freeze mask for the whole run, and no phases"):
        finetune(make_tiny_model("bridge"), DATA, [Phase(MASK)], method=Lora(), progress=False)
    kept: Any = {"method": Lora(r=2), "checkpoint_dir": tmp_path, "progress": False}
    finetune(make_tiny_model("bridge"), DATA, MASK, SETTINGS, **kept)
    with pytest.raises(ValueError, match="was made with adapters_hold"):
        finetune(make_tiny_model("bridge"), DATA, FIRST, SETTINGS, **kept)


@pytest.mark.parametrize("kind", ["bridge", "hooked", "hf"])
def test_nothing_but_the_units_trains(kind: str, make_tiny_model: Make) -> None:
    model, bridge = make_tiny_model(kind), make_tiny_model("bridge")
    units = FreezeMask.of_units({"mlp": {0: [1, 5]}, "attn": {1: [0]}}, ModelShape.of(bridge))
    before = weights(model)
    run = finetune(model, DATA, None, SETTINGS, method=OnlyUnits(units), progress=False, tokenizer=bridge.tokenizer)
    moved = {name: value != before[name] for name, value in weights(model).items()}
    if kind != "hooked":
        rows = {name: where.any(1).nonzero().flatten().tolist() for name, where in moved.items() if where.ndim == 2}
        found = {name.removeprefix("model.layers."): there for name, there in rows.items() if there}
        assert found.pop("0.mlp.down_proj.weight") == list(range(32))
        assert found.pop("1.self_attn.o_proj.weight") == list(range(32))
        shared = {"1.self_attn.k_proj.weight": list(range(8)), "1.self_attn.v_proj.weight": list(range(8))}
        neurons = {f"0.mlp.{part}_proj.weight": [1, 5] for part in ("gate", "up")}
        assert found == neurons | shared | {"1.self_attn.q_proj.weight": list(range(8))}
    assert run.n_trainable == 2 * 3 * 32 + 4 * 8 * 32
    with pytest.raises(ValueError, match="units names no unit"):
        OnlyUnits(FreezeMask.layers(set()))


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
def test_what_moved_most_in_hindsight(kind: str, make_tiny_model: Make) -> None:
    before, after = make_tiny_model(kind), make_tiny_model(kind)
    units = FreezeMask.of_units({"mlp": {0: [1, 5], 2: [40]}, "attn": {1: [3]}}, ModelShape.of(after))
    with torch.no_grad():
        for name, where in units.parameter_masks(after).items():
            dict(checkpoint_parameters(after))[name].add_(0.1 * where)
    assert moved_most(before, after, units) == units
