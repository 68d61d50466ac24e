"""ActSVD: the directions a matrix writes on a data set, and a model without those that only safety uses.

For a matrix W and its inputs X on a data set, the leading left singular vectors U of WX span what it writes there, and
Π = UUᵀ projects on them. Wei et al. 2024 take (I − Π^u) Π^s W out of W: what it writes on the safety data outside of
what it writes on the utility data. U are here the eigenvectors of W (XXᵀ) Wᵀ, whose middle is summed while the data
streams by: exact, and without storing an activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.beginning import beginning_facts
from safecircuits.in_use import used_alone
from safecircuits.prompts import PromptSet
from safecircuits.results import Result
from safecircuits.sites import Component, HookedModel, ModelShape, tokenizer_of
from safecircuits.units.input_grams import input_grams
from safecircuits.units.linear_maps import Matrix, components_of
from safecircuits.units.scores import TokenChoice, tokenizer_fingerprint


@dataclass(frozen=True)
class OutputSpaces(Result):
    """Of each matrix (``"3.q"``: layer and matrix) the leading directions it writes, as columns, strongest first."""

    bases: Mapping[str, Float[Tensor, "out rank"]]
    singular_values: Mapping[str, Float[Tensor, " rank"]]
    tokens: TokenChoice
    shape: ModelShape
    tokenizer: str
    provenance: dict[str, Any]

    def overlap(self, other: OutputSpaces, rank: int) -> dict[str, float]:
        """Share of the leading ``rank``-dimensional spaces that the two have in common, matrix by matrix: 0 to 1.

        A matrix with fewer outputs than ``rank`` has all of its directions in common.

        Raises:
            ValueError: for a rank below 1 or above what the spaces hold, and for spaces of another model or of other
                matrices.
        """
        other.shape.require_same(self.shape, "the other spaces")
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        if set(self.bases) != set(other.bases):
            raise ValueError("the two spaces are not of the same matrices")
        shares = {}
        for key in self.bases:
            mine, theirs = _leading(self, key, rank), _leading(other, key, rank)
            shares[key] = float((mine.T @ theirs).square().sum()) / mine.shape[1]
        return shares


def output_spaces(
    model: HookedModel,
    data: PromptSet,
    *,
    rank: int | None = None,
    tokens: TokenChoice = "response",
    components: Sequence[Component] | None = None,
    template: str = "auto",
    max_tokens: int | None = None,
    count_beginning: bool = False,
    progress: bool = False,
) -> OutputSpaces:
    """The leading ``rank`` directions (all unless given) that each matrix of every layer writes on ``data``.

    Raises:
        ValueError: for an unknown matrix, or data without responses where they are asked for.
        FloatingPointError: for inputs that are not finite; names the matrix.
    """
    chosen = components_of(model, components)
    grams = input_grams(
        model,
        data,
        tokens=tokens,
        components=chosen,
        template=template,
        max_tokens=max_tokens,
        progress=progress,
        what="output spaces",
        count_beginning=count_beginning,
    )
    bases, values = {}, {}
    for layer in range(int(model.cfg.n_layers)):
        for component in chosen:
            weight = Matrix.of(model, layer, component).read().double()
            gram = grams.of(layer, component).clone()
            energies, vectors = torch.linalg.eigh(weight @ gram @ weight.T)
            keep = vectors.shape[1] if rank is None else min(rank, vectors.shape[1])
            bases[f"{layer}.{component}"] = vectors.flip(1)[:, :keep].float().cpu().contiguous()
            values[f"{layer}.{component}"] = energies.flip(0)[:keep].clamp(min=0).sqrt().float().cpu()
    provenance: dict[str, Any] = {
        "data": {"name": data.name, "n": len(data), "sha": data.fingerprint},
        "template": template,
        "beginning": beginning_facts(tokenizer_of(model), template, count_beginning),
    }
    return OutputSpaces(bases, values, tokens, ModelShape.of(model), tokenizer_fingerprint(model.tokenizer), provenance)


@contextmanager
def without_directions(
    model: HookedModel,
    safety: OutputSpaces,
    utility: OutputSpaces | None = None,
    *,
    rank: int,
    utility_rank: int | None = None,
    bottom: bool = False,
) -> Iterator[None]:
    """Inside the block each matrix lacks its ``rank`` leading safety directions, as far as utility does not use them.

    Args:
        bottom: the ``rank`` weakest directions go instead, which compresses a matrix to what the data needs; for spaces
            with all directions.
        utility: directions to keep: their leading ``utility_rank`` (``rank`` unless given). Without it all of the
            safety directions go.

    Raises:
        ValueError: for spaces of another model or tokenizer, or of fewer directions than asked for.
    """
    shape = ModelShape.of(model)
    safety.shape.require_same(shape, "the safety spaces")
    if utility is not None:
        utility.shape.require_same(shape, "the utility spaces")
        if utility.tokenizer != safety.tokenizer or set(utility.bases) != set(safety.bases):
            raise ValueError("the safety and the utility spaces are not of the same tokenizer and matrices")
    with used_alone(model):
        before: list[tuple[Matrix, Tensor]] = []
        try:
            for key in safety.bases:
                layer, _, component = key.partition(".")
                matrix = Matrix.of(model, int(layer), component)  # type: ignore[arg-type]
                weight = matrix.read().clone()
                before.append((matrix, weight))
                chosen = _weakest(safety, key, rank) if bottom else _leading(safety, key, rank)
                u = chosen.to(weight.device, torch.float64)
                removed = u @ (u.T @ weight.double())
                if utility is not None:
                    v = _leading(utility, key, rank if utility_rank is None else utility_rank).to(removed)
                    removed = removed - v @ (v.T @ removed)
                matrix.write((weight.double() - removed).to(weight.dtype))
            yield
        finally:
            for matrix, weight in before:
                matrix.write(weight)


def _leading(spaces: OutputSpaces, key: str, rank: int) -> Tensor:
    basis = spaces.bases[key]
    if rank < 0 or basis.shape[1] < min(rank, basis.shape[0]):
        raise ValueError(f"the spaces hold {basis.shape[1]} directions of matrix {key}, not {rank}")
    return basis[:, :rank]


def _weakest(spaces: OutputSpaces, key: str, rank: int) -> Tensor:
    basis = spaces.bases[key]
    if basis.shape[1] < basis.shape[0]:
        raise ValueError(
            f"the spaces hold {basis.shape[1]} of {basis.shape[0]} directions of matrix {key}, so the weakest are "
            "unknown: make them with rank=None"
        )
    if not 0 <= rank <= basis.shape[1]:
        raise ValueError(f"matrix {key} has {basis.shape[1]} directions, not {rank}")
    return basis[:, basis.shape[1] - rank :]
