"""The last layer at the last positions alone: what comes out, what runs in full, and from how many tokens on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_passes import PROMPTS, both, positions_by_part, watched
from torch import nn

import safecircuits as sc
from safecircuits.model.last_positions import only_at_last
from safecircuits.weights.probing import head_outputs

MANY = PROMPTS * 8
"""Enough that the last layer is worth narrowing."""


class Part(nn.Module):
    """Doubles its input, and keeps what it was given; ``form`` says how the result comes out."""

    def __init__(self, form: Any = lambda x: x) -> None:
        super().__init__()
        self.form, self.seen = form, list[tuple[int, ...]]()

    def forward(self, x: torch.Tensor, *others: Any, **more: Any) -> Any:
        self.seen.append(tuple(x.shape))
        return self.form(2 * x)


class TestOnlyAtLast:
    X = torch.arange(40 * 6 * 3, dtype=torch.float32).reshape(40, 6, 3) + 1

    def test_the_others_are_zero(self) -> None:
        part = Part()
        with only_at_last([part], 2, 6):
            out = part(self.X)
        assert part.seen == [(40, 2, 3)]
        assert torch.equal(out[:, -2:], 2 * self.X[:, -2:])
        assert not out[:, :-2].any()
        assert torch.equal(part(self.X), 2 * self.X)

    def test_from_128_tokens_on(self) -> None:
        """Of 31 rows 124 tokens are left out, of 32 rows 128."""
        few, many = Part(), Part()
        for part, n in ((few, 31), (many, 32)):
            with only_at_last([part], 2, 6):
                part(self.X[:n])
        assert few.seen == [(31, 6, 3)]
        assert many.seen == [(32, 2, 3)]

    def test_forms_of_a_mixture_of_experts(self) -> None:
        beside, in_one = Part(lambda y: (y, "taken")), Part(lambda y: (y.flatten(0, 1), "taken"))
        with only_at_last([beside, in_one], 2, 6):
            plain, taken = beside(self.X)
            flat = in_one(self.X)[0].view(self.X.shape)
        assert taken == "taken"
        assert torch.equal(plain, flat)
        assert torch.equal(plain[:, -2:], 2 * self.X[:, -2:])

    @pytest.mark.parametrize(
        "call",
        [
            lambda part, x: part(x, x),  # a residual stream, added inside
            lambda part, x: part(x, mask=x[..., 0]),
            lambda part, x: part(x=x),
            lambda part, x: part(x.transpose(0, 1)).transpose(0, 1),  # positions first
            lambda part, x: part(x.flatten(0, 1)).view(x.shape),
        ],
    )
    def test_whatever_else_is_given_runs_in_full(self, call: Any) -> None:
        part = Part()
        with only_at_last([part], 2, 6):
            out = call(part, self.X)
        assert torch.equal(out, 2 * self.X)

    def test_a_layer_that_runs_twice_is_an_error(self) -> None:
        part = Part()
        with only_at_last([part], 1, 6), pytest.raises(RuntimeError, match="Part of the last layer ran twice in one"):
            part(part(self.X))

    @pytest.mark.parametrize("form", [lambda y: y[:, 0], lambda y: y.transpose(0, 1), lambda y: y[:1]])
    def test_a_result_of_another_form_is_an_error(self, form: Any) -> None:
        part = Part(form)
        with only_at_last([part], 2, 6), pytest.raises(RuntimeError, match=r"Part of the last layer made \["):
            part(self.X)


class TestInAModel:
    """As users run it: no size is set for the test."""

    @both
    def test_few_prompts_run_in_full(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend)
        seen = positions_by_part(model)
        sc.collect_residuals(model, PROMPTS)
        assert seen["blocks.2.mlp"] == seen["blocks.0.mlp"]

    @both
    def test_many_prompts_run_at_the_last_position_and_give_the_same(self, backend: str, make_tiny_model: Any) -> None:
        model = make_tiny_model(backend, 3)
        with watched(model):
            residuals = sc.collect_residuals(model, MANY).values
            heads = head_outputs(model, sc.PromptSet("p", MANY))
            texts = sc.generate(model, MANY, max_new_tokens=6).texts
        model = make_tiny_model(backend, 3)
        torch.testing.assert_close(sc.collect_residuals(model, MANY).values, residuals, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(head_outputs(model, sc.PromptSet("p", MANY)), heads, atol=2e-4, rtol=1e-4)
        assert sc.generate(model, MANY, max_new_tokens=6).texts == texts
        seen = positions_by_part(model)
        sc.collect_residuals(model, MANY)
        assert 1 in seen["blocks.2.mlp"]
        assert 1 not in seen["blocks.0.mlp"]
