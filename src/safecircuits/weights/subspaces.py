"""ActSVD: the directions a matrix writes on a data set, and a model without those that only safety uses.

For a matrix W and its inputs X on a data set, the leading left singular vectors U of WX span what it writes there, and
Π = UUᵀ projects on them. Wei et al. 2024 take (I − Π^u) Π^s W out of W: what it writes on the safety data outside of
what it writes on the utility data. U are here the eigenvectors of W (XXᵀ) Wᵀ, whose middle is summed while the data
streams by: exact, and without storing an activation.

Their code goes through the layers in turn: X of a layer is what the layers below write once they have been changed, and
U come from a randomised SVD of as many iterations as are asked for (20), which has not converged where singular values
are close. ``without_directions`` takes all matrices of the model as it is, so that one pass serves any rank;
``without_directions_layerwise`` goes as they do, with exact U.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.vocabulary import Component, TokenChoice
from safecircuits.hooks.linear_maps import Matrix, components_of
from safecircuits.model.beginning import beginning_facts
from safecircuits.model.in_use import used_alone
from safecircuits.model.sites import HookedModel, ModelShape, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.units.scores import tokenizer_fingerprint
from safecircuits.weights.grams import input_grams

_NOTHING = 1e-5
"""A direction is not written at all where its singular value is less than this part of the largest one."""


@dataclass(frozen=True)
class OutputSpaces(Result):
    """Of each matrix (``"3.q"``: layer and matrix) the leading directions it writes, as columns, strongest first.

    Examples:
        >>> spaces = sc.weights.output_spaces(model, malicious, components=["o"], rank=4)
        >>> spaces.bases["3.o"].shape, spaces.singular_values["3.o"].shape
        (torch.Size([128, 4]), torch.Size([4]))
    """

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


@checked
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
    layers: Sequence[int] | None = None,
    progress: bool = False,
) -> OutputSpaces:
    """The leading ``rank`` directions (all unless given) that each matrix of every layer writes on ``data``.

    Args:
        count_beginning: whether what every prompt begins with counts too; see ``score_units``. It matters where the
            prompt's tokens do.
        layers: of these layers alone (0-indexed).

    Raises:
        ValueError: for an unknown matrix, or data without responses where they are asked for.
        FloatingPointError: for inputs that are not finite; names the matrix.

    Examples:
        >>> safety, answers = (sc.weights.output_spaces(model, d, components=["o"]) for d in (malicious, utility))
        >>> shared = safety.overlap(answers, rank=4)
        >>> 0 <= shared["3.o"] <= 1
        True
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
        layers=layers,
    )
    bases, values = {}, {}
    for layer in range(int(model.cfg.n_layers)) if layers is None else layers:
        for component in chosen:
            weight = Matrix.of(model, layer, component).read().double()
            gram = grams.of(layer, component).clone()
            energies, vectors = torch.linalg.eigh(weight @ gram @ weight.T)
            keep = vectors.shape[1] if rank is None else min(rank, vectors.shape[1])
            bases[f"{layer}.{component}"] = vectors.flip(1)[:, :keep].float().cpu().contiguous()
            values[f"{layer}.{component}"] = energies.flip(0)[:keep].clamp(min=0).sqrt().float().cpu()
    provenance: dict[str, Any] = {
        "data": data.identity,
        "template": template,
        "beginning": beginning_facts(tokenizer_of(model), template, count_beginning),
    }
    return OutputSpaces(bases, values, tokens, ModelShape.of(model), tokenizer_fingerprint(model.tokenizer), provenance)


@checked
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
        ValueError: for spaces of another model or tokenizer, and for more directions than they hold or than the data
            has (a matrix cannot write more directions than it was given inputs).

    Examples:
        >>> safety, answers = (sc.weights.output_spaces(model, d, components=["o"]) for d in (malicious, utility))
        >>> with sc.weights.without_directions(model, safety, answers, rank=2):
        ...     measured = sc.evaluate(model, malicious=malicious)
    """
    shape = ModelShape.of(model)
    safety.shape.require_same(shape, "the safety spaces")
    if utility is not None:
        utility.shape.require_same(shape, "the utility spaces")
        if utility.tokenizer != safety.tokenizer or set(utility.bases) != set(safety.bases):
            raise ValueError("the safety and the utility spaces are not of the same tokenizer and matrices")
    ranks = (rank, rank if utility_rank is None else utility_rank)
    with _put_back(model) as before:
        _take_out(model, safety, utility, ranks, bottom, before)
        yield


@checked
@contextmanager
def without_directions_layerwise(
    model: HookedModel,
    safety: PromptSet,
    utility: PromptSet | None = None,
    *,
    rank: int,
    utility_rank: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Iterator[None]:
    """Inside the block the model lacks safety directions as Wei et al. take them out: layer by layer.

    The directions of a layer are of what it is fed by layers that have been changed already; the matrices of one layer
    are taken together. It costs a pass over the data for each layer.

    Args:
        safety, utility: prompts with responses; without ``utility`` all of the safety directions go.
        rank, utility_rank: as in ``without_directions``.
        options: as in ``output_spaces``: ``tokens``, ``components``, ``template``, …

    Raises:
        ValueError: for more directions than the data has, or data without responses where they are asked for.

    Examples:
        >>> with sc.weights.without_directions_layerwise(model, malicious, None, rank=2, components=["o"]):
        ...     measured = sc.evaluate(model, malicious=malicious)
    """
    ranks = (rank, rank if utility_rank is None else utility_rank)
    with _put_back(model) as before:
        for layer in track(range(int(model.cfg.n_layers)), "ActSVD", enabled=progress):
            of_safety = output_spaces(model, safety, layers=(layer,), **options)
            of_utility = None if utility is None else output_spaces(model, utility, layers=(layer,), **options)
            _take_out(model, of_safety, of_utility, ranks, False, before)
        yield


@contextmanager
def _put_back(model: HookedModel) -> Iterator[list[tuple[Matrix, Tensor]]]:
    """Afterwards each matrix in the list is what it was."""
    before: list[tuple[Matrix, Tensor]] = []
    with used_alone(model):
        try:
            yield before
        finally:
            for matrix, weight in before:
                matrix.write(weight)


def _take_out(
    model: HookedModel,
    safety: OutputSpaces,
    utility: OutputSpaces | None,
    ranks: tuple[int, int],
    bottom: bool,
    before: list[tuple[Matrix, Tensor]],
) -> None:
    """Change the matrices that the spaces are of; each with what it was goes to ``before``."""
    for key in safety.bases:
        matrix = Matrix.named(model, key)
        weight = matrix.read().clone()
        chosen = _weakest(safety, key, ranks[0]) if bottom else _leading(safety, key, ranks[0])
        u = chosen.to(weight.device, torch.float64)
        removed = u @ (u.T @ weight.double())
        if utility is not None:
            v = _leading(utility, key, ranks[1]).to(removed)
            removed = removed - v @ (v.T @ removed)
        before.append((matrix, weight))
        matrix.write((weight.double() - removed).to(weight.dtype))


def _leading(spaces: OutputSpaces, key: str, rank: int) -> Tensor:
    basis, values = spaces.bases[key], spaces.singular_values[key]
    if rank < 0 or basis.shape[1] < min(rank, basis.shape[0]):
        raise ValueError(f"the spaces hold {basis.shape[1]} directions of matrix {key}, not {rank}")
    written = int((values > _NOTHING * values[:1]).sum())
    if written < rank < basis.shape[0]:
        raise ValueError(
            f"on this data matrix {key} writes {written} directions, so {rank} of them would be arbitrary beyond "
            f"those: give more prompts, or a rank of at most {written}"
        )
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
