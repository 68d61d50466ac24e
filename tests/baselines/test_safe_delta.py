"""Safe Delta against a plain loop over entries in float64, and where it must be an identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_methods import DATA, REFUSED, SETTINGS, weights

from safecircuits.baselines import SafeDelta
from safecircuits.baselines.earlier import matrices_of
from safecircuits.baselines.safe_delta import NEVER, SIZE, TOGETHER, inverse_factor, safe_delta
from safecircuits.model.parameters import as_hooked
from safecircuits.training import Plain, finetune

Array = np.ndarray[Any, Any]


def by_hand(aligned: Array, trained: Array, gram: Array, scale: float, block: int) -> Array:
    """Entry by entry: selection by 1/d², and a push of the later entries of a row for every entry taken over."""
    out, width = aligned.shape
    h = gram + 0.01 * np.trace(gram) / width * np.eye(width)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    now, result = aligned.copy(), aligned.copy()
    for first in range(0, width, block):
        columns = list(range(first, min(first + block, width)))
        price = {i: 1 / upper[i, i] ** 2 for i in columns}
        entries = sorted(((r, i) for r in range(out) for i in columns), key=lambda e: (price[e[1]], e[0], e[1]))
        entries = entries[: len(entries) - int(NEVER * len(entries))]
        threshold = scale * np.mean(list(price.values())) * out * len(columns) / SIZE**2
        taken, spent = set(), 0.0
        for r, i in entries:
            spent += (trained[r, i] - now[r, i]) ** 2 * price[i]
            if spent > threshold:
                break
            taken.add((r, i))
        for start in range(0, len(columns), TOGETHER):
            group = columns[start : start + TOGETHER]
            for r in range(out):
                for i in group:
                    result[r, i] = trained[r, i] if (r, i) in taken else now[r, i]
                errors = {i: (now[r, i] - result[r, i]) / upper[i, i] for i in group}
                for j in range(group[-1] + 1, width):
                    now[r, j] -= sum(errors[i] * upper[i, j] for i in group)
    return result


@pytest.mark.parametrize("block", [12, 8])
@pytest.mark.parametrize("spend", [0.02, 0.3, 10.0])
def test_a_matrix_is_that_of_a_loop_over_its_entries(spend: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safecircuits.baselines.safe_delta.BLOCK", block)
    rng = np.random.default_rng(3)
    aligned, inputs = rng.normal(size=(5, 12)), rng.normal(size=(40, 12)) * np.linspace(0.3, 2, 12)
    trained = aligned + 0.1 * rng.normal(size=aligned.shape)
    gram, scale = inputs.T @ inputs, spend * 0.01 * SIZE**2
    got = safe_delta(torch.tensor(aligned), torch.tensor(trained), inverse_factor(torch.tensor(gram)), scale).numpy()
    wanted = by_hand(aligned, trained, gram, scale, block)
    assert np.allclose(got, wanted, atol=1e-9)
    kept = np.isclose(got, trained)
    assert 0 < kept.sum() <= 60 - int(NEVER * 8 * 5)


def test_the_push_is_the_least_that_holds_the_outputs_where_one_column_is_taken_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C = −δ_m / [H⁻¹]_mm · [H⁻¹]_m, which is least squares on the other entries of the row."""
    monkeypatch.setattr("safecircuits.baselines.safe_delta.TOGETHER", 1)
    rng = np.random.default_rng(5)
    aligned, inputs = rng.normal(size=(3, 6)), rng.normal(size=(50, 6)) @ (np.eye(6) + 0.4)
    inputs[:, 0] *= 0.1  # so that nothing hangs on the first column
    trained = aligned + rng.normal(size=aligned.shape)
    gram = inputs.T @ inputs
    hessian = gram + 0.01 * np.trace(gram) / 6 * np.eye(6)
    inverse = np.linalg.inv(hessian)
    upper = np.linalg.cholesky(inverse).T
    delta = trained[:, 0] - aligned[:, 0]
    price = 1 / np.diag(upper) ** 2
    just = (delta**2).sum() * price[0] * 1.0001 / (price.mean() * 3 * 6 / SIZE**2)
    got = safe_delta(torch.tensor(aligned), torch.tensor(trained), inverse_factor(torch.tensor(gram)), just).numpy()
    assert np.allclose(got, aligned + np.outer(delta / inverse[0, 0], inverse[0]), atol=1e-9)
    others = -np.linalg.solve(hessian[1:, 1:], hessian[1:, 0])
    assert np.allclose(got[:, 1:] - aligned[:, 1:], np.outer(delta, others), atol=1e-9)


@pytest.mark.parametrize("kind", ["bridge", "hooked", "hf"])
def test_nothing_is_kept_at_scale_0_and_nearly_all_where_safety_costs_nothing(
    kind: str, make_tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    start = weights(make_tiny_model(kind, 0))

    def after(method: Any) -> Any:
        model = make_tiny_model(kind, 0)
        finetune(model, DATA, settings=SETTINGS, method=method, tokenizer=tiny_tokenizer, progress=False)
        return model

    none = weights(after(SafeDelta(REFUSED, 0.0)))
    assert all(torch.equal(none[name], value) for name, value in start.items())
    plain, most = (matrices_of(after(method)) for method in (Plain(), SafeDelta(REFUSED, 1e12)))
    for key, matrix in plain.items():
        same = torch.isclose(most[key].read(), matrix.read(), atol=1e-6).float().mean()
        assert same >= 1 - NEVER - 1e-6
    model = after(SafeDelta(REFUSED, 1e12))
    inside = {id(matrix.owner) for matrix in matrices_of(model).values()}
    for name, parameter in as_hooked(model).named_parameters():
        if id(parameter) not in inside and name in start:
            assert torch.equal(parameter, start[name]), name
