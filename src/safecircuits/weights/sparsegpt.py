"""SparseGPT (Frantar and Alistarh 2023): take weights out of a matrix and let the others of their row make up for it.

With H = XXᵀ of a matrix's inputs (damped), columns are treated from the first to the last. A weight w_i that is taken
out changes the later weights of its row by −w_i / [F⁻¹]_11 · [F⁻¹]_1, F = H[i:, i:]: the change that keeps the row's
output nearest to what it was. Which weights go is decided block by block, those of the least w² / [F⁻¹]_11.

All Hessians are of the dense model, from one pass over the data. The original prunes a layer before it measures what
enters the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.vocabulary import Component, TokenChoice
from safecircuits.hooks.linear_maps import Matrix, components_of
from safecircuits.model.in_use import used_alone
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result
from safecircuits.weights.choice import require_n_of_m, take
from safecircuits.weights.grams import input_grams
from safecircuits.weights.scores import WeightMask


@dataclass(frozen=True)
class SparseWeights(Result):
    """Matrices with weights taken out, and which those were.

    Examples:
        >>> sparse = sc.weights.sparse_gpt(model, utility, n_of_m=(2, 4), components=["out"])
        >>> sparse.removed.share, sorted(sparse.weights)[:2]
        (0.5, ['0.out', '1.out'])
    """

    weights: Mapping[str, Float[Tensor, "out in"]]
    removed: WeightMask


@checked
def sparse_gpt(
    model: HookedModel,
    data: PromptSet,
    share: float | None = None,
    *,
    n_of_m: tuple[int, int] | None = None,
    mask: WeightMask | None = None,
    damping: float = 0.01,
    block: int = 128,
    tokens: TokenChoice = "all",
    components: Sequence[Component] | None = None,
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> SparseWeights:
    """SparseGPT: remove the weights whose loss the remaining ones make up for best. The model itself stays as it is.

    H of every matrix is held in float64: 44 GB for all of Llama-2-7b, of which 31 are the MLP's output matrices'. Where
    that is too much, call it by ``components``.

    Args:
        share: of each block of columns, how many of its weights; or
        n_of_m: so many of every m consecutive inputs of a row; or
        mask: weights that were chosen otherwise, such as a set difference, whose matrices alone are treated.
        damping: added to the diagonal of H, as a share of its mean.
        block: columns whose weights are chosen together.
        tokens: whose inputs make up H.

    Raises:
        ValueError: unless exactly one of ``share``, ``n_of_m`` and ``mask`` is given, and for values out of range.

    Examples:
        >>> sparse = sc.weights.sparse_gpt(model, utility, 0.5, components=["out"])
        >>> with sc.weights.with_sparse_weights(model, sparse):
        ...     measured = sc.evaluate(model, malicious=malicious)
    """
    if sum(given is not None for given in (share, n_of_m, mask)) != 1:
        raise ValueError("give one of share, n_of_m and mask: which weights to take out")
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"share is at least 0 and below 1, not {share}")
    if damping <= 0 or block < 1:
        raise ValueError(f"damping is above 0 and block at least 1, not {damping} and {block}")
    shape = ModelShape.of(model)
    if mask is not None:
        shape.require_same(mask.shape, "the choice of weights")
        keys = list(mask.masks)
    else:
        keys = [f"{i}.{c}" for i in range(shape.n_layers) for c in components_of(model, components)]
    matrices = {key: Matrix.named(model, key) for key in keys}
    if n_of_m is not None:
        require_n_of_m(n_of_m, {key: matrix.read().shape[1] for key, matrix in matrices.items()})
    read = tuple(dict.fromkeys(matrix.component for matrix in matrices.values()))
    grams = input_grams(
        model,
        data,
        tokens=tokens,
        components=read,
        template=template,
        max_tokens=max_tokens,
        progress=progress,
        what="inputs of the matrices",
        count_beginning=True,  # what the weights that stay must still compute, the attention sink too
    )
    weights, masks = {}, {}
    for key, matrix in track(matrices.items(), "SparseGPT", total=len(matrices), enabled=progress):
        hessian = grams.of(int(key.partition(".")[0]), matrix.component)
        chosen = None if mask is None else mask.masks[key]
        weight, gone = prune_matrix(
            matrix.read().double(), hessian, share=share, n_of_m=n_of_m, mask=chosen, damping=damping, block=block
        )
        weights[key], masks[key] = weight.to(matrix.view.dtype).cpu(), gone.cpu()
    provenance = {
        "data": data.identity,
        "tokens": tokens,
        "template": template,
        "share": share,
        "n_of_m": None if n_of_m is None else list(n_of_m),
        "mask": None if mask is None else mask.provenance,
        "damping": damping,
        "block": block,
    }
    return SparseWeights(weights, WeightMask(masks, shape, provenance))


@torch.no_grad()
def prune_matrix(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    *,
    share: float | None = None,
    n_of_m: tuple[int, int] | None = None,
    mask: Bool[Tensor, "out in"] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
    """One matrix without the chosen weights, the others updated, and which were taken out; see ``sparse_gpt``."""
    weight, hessian = weight.clone(), hessian.clone()
    dead = hessian.diagonal() == 0  # nothing ever enters there, so nothing is lost
    hessian.diagonal()[dead] = 1.0
    weight[:, dead] = 0.0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    # Row i of the inverse's Cholesky factor is [F⁻¹]_1 / √[F⁻¹]_11 for F = H[i:, i:]: all of them at once.
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    gone = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    width, step = weight.shape[1], block if n_of_m is None else n_of_m[1]
    window = max(1, block // step) * step
    for first in range(0, width, window):
        # Columns of a window are updated one by one, those after it once: the same sums, as one product.
        inside, after = slice(first, min(first + window, width)), slice(min(first + window, width), width)
        w, inv, out = weight[:, inside], inverse[inside, inside], gone[:, inside]
        errors = torch.zeros_like(w)
        for i in range(w.shape[1]):
            if i % step == 0:
                part = slice(i, i + step)
                cost = (w[:, part] / inv.diagonal()[part]).square()
                if mask is not None:
                    out[:, part] = mask[:, inside][:, part].to(out.device)
                elif n_of_m is not None:
                    out[:, part] = take(cost, n_of_m[0], lowest=True)
                else:
                    assert share is not None
                    n = round(share * cost.numel())
                    out[:, part] = take(cost.reshape(1, -1), n, lowest=True).reshape(cost.shape)
            errors[:, i] = torch.where(out[:, i], w[:, i], 0.0) / inv[i, i]
            w[:, i:] -= errors[:, i, None] * inv[i, i:]
            w[out[:, i], i] = 0.0
        weight[:, after] -= errors @ inverse[inside, after]
    return weight, gone


@contextmanager
def with_sparse_weights(model: HookedModel, sparse: SparseWeights) -> Iterator[None]:
    """Inside the block the model computes with these matrices; afterwards its own are back, bit for bit.

    Raises:
        ValueError: for matrices of another model.

    Examples:
        >>> sparse = sc.weights.sparse_gpt(model, utility, 0.5, components=["out"])
        >>> with sc.weights.with_sparse_weights(model, sparse):
        ...     answers = sc.generate(model, utility)
    """
    ModelShape.of(model).require_same(sparse.removed.shape, "the sparse weights")
    with used_alone(model):
        saved: list[tuple[Matrix, Tensor]] = []
        try:
            for key, value in sparse.weights.items():
                matrix = Matrix.named(model, key)
                saved.append((matrix, matrix.read().clone()))
                matrix.write(value.to(matrix.view))
            yield
        finally:
            for matrix, before in saved:
                matrix.write(before)
