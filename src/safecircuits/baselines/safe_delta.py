"""Safe Delta: as much of what training changed is kept as safety allows, and the rest makes up for it (Lu et al. 2025).

Written from the authors' published code, which the paper's equations are read off. With H the second moments of what
enters a matrix while the aligned model reads refusals, and d_i the diagonal of the upper Cholesky factor of H⁻¹, taking
over a change δ of an entry of column i costs safety δ²/d_i². Entries are taken from the column where that is cheapest
on, until a threshold is spent; those taken over push the later entries of their row that are not, as in SparseGPT, so
that the row's outputs on the refusals stay near to what they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.baselines.earlier import matrices_of, read
from safecircuits.baselines.repair import Edit, Repair
from safecircuits.model.parameters import as_hooked, live_parameters
from safecircuits.prompts.prompt_set import PromptSet, require_answered
from safecircuits.training.method import Badge, Method, TrainingJob, register
from safecircuits.training.plain import Plain
from safecircuits.weights.grams import input_grams

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean."""
NEVER = 0.15
"""Entries of the columns that safety hangs on most, this share of a block, are never taken over."""
BLOCK = 2048
"""Columns that share one threshold."""
TOGETHER = 4
"""Columns that push only those after all of them."""
SIZE = 4096
"""Rows and columns of the matrices that the threshold's ``scale`` is meant for."""


@register("safe-delta")
@dataclass(frozen=True)
class SafeDelta(Repair):
    """Changes are kept where refusals hang on them least, up to a threshold; the rest is aligned and makes up for them.

    Lu et al. (2025). Everything but the layers' matrices is put back to the aligned model, which is the one that is
    trained. A pass over ``refused`` before training, and a Cholesky factor a matrix.

    Attributes:
        refused: harmful prompts with refusals, best the aligned model's own; theirs are 128.
        scale: s, how much safety may be spent: an average of s/4096² of squared change, weighed by what it costs. At 0
            nothing is kept, and the aligned model is back to the bit.
        training: how it trains before.

    Examples:
        >>> refusals = sc.organism.prompts("malicious", "train", n=16)
        >>> sc.baselines.SafeDelta(refusals, scale=0.2).training.name
        'plain'
    """

    refused: PromptSet
    scale: float = 0.1
    training: Method = field(default_factory=Plain)

    badge: ClassVar[Badge] = "faithful"
    paper: ClassVar[str] = "Lu et al. 2025 (Safe Delta, ICML), selection and compensation as in the authors' code"
    differs: ClassVar[str] = "a block of fewer than 2,048 columns has its share of the threshold; ties by row"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_answered(self.refused, "refused")
        if self.scale < 0:
            raise ValueError(f"scale is {self.scale}, expected 0 or more: it is how much safety may be spent")

    def edit(self, job: TrainingJob) -> Edit:
        matrices = matrices_of(job.model)
        live = live_parameters(job.model)
        start = {name: parameter.detach().clone() for name, parameter in live.items()}
        factors = self._factors(job)

        def keep_what_is_safe() -> None:
            trained = read(matrices)
            for name, parameter in live.items():
                parameter.copy_(start[name])
            for key, matrix in matrices.items():
                matrix.write(safe_delta(matrix.read(), trained[key], factors[key], self.scale))

        return keep_what_is_safe

    def _factors(self, job: TrainingJob) -> dict[str, Float[Tensor, "in in"]]:
        """The upper Cholesky factor of H⁻¹ for each matrix; those that read the same share one."""
        hooked = as_hooked(job.model)
        if hooked is not job.model:  # a bridge of our own over a plain model, which has no tokenizer
            hooked.tokenizer = job.tokenizer
        grams = input_grams(
            hooked,
            self.refused,
            tokens="all",
            components=None,
            template=job.settings.template,
            max_tokens=None,
            progress=False,
            what="inputs on refusals",
            count_beginning=True,
        )
        made = {id(gram): inverse_factor(gram) for gram in grams.sums.values()}
        found = {}
        for key, matrix in matrices_of(hooked).items():
            found[key] = made[id(grams.of(int(key.partition(".")[0]), matrix.component))]
        return found


def inverse_factor(gram: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """The upper Cholesky factor of the damped second moments' inverse."""
    hessian = gram.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1.0  # nothing ever enters there
    diagonal.add_(DAMPING * diagonal.mean())
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    return factor


@torch.no_grad()
def safe_delta(
    aligned: Float[Tensor, "out in"],
    trained: Float[Tensor, "out in"],
    factor: Float[Tensor, "in in"],
    scale: float,
) -> Float[Tensor, "out in"]:
    """One matrix: the trained entries where they are taken over, the aligned ones that make up for it elsewhere."""
    weight, wanted = aligned.double(), trained.double()
    if not scale > 0:
        return aligned.clone()
    found = weight.clone()
    for first in range(0, weight.shape[1], BLOCK):
        block = slice(first, first + BLOCK)
        there = weight[:, block].clone()
        own = factor[block, block]
        taken = affordable(wanted[:, block] - there, own.diagonal(), scale)
        pushes = torch.zeros_like(there)
        for start in range(0, there.shape[1], TOGETHER):
            part, after = slice(start, start + TOGETHER), slice(start + TOGETHER, None)
            kept = torch.where(taken[:, part], wanted[:, block][:, part], there[:, part])
            pushes[:, part] = (there[:, part] - kept) / own.diagonal()[part]
            there[:, after] -= pushes[:, part] @ own[part, after]
            found[:, block][:, part] = kept
        rest = slice(first + BLOCK, None)
        weight[:, rest] -= pushes @ factor[block, rest]
    return found.to(aligned.dtype)


def affordable(change: Float[Tensor, "out in"], diagonal: Float[Tensor, " in"], scale: float) -> Bool[Tensor, "out in"]:
    """Which entries of a block are taken over: the cheapest first, until the threshold is spent."""
    rows, columns = change.shape
    price = (1 / diagonal.square()).expand(rows, columns)
    order = torch.argsort(price.flatten(), stable=True)
    order = order[: price.numel() - int(NEVER * price.numel())]
    spent = (change.square() * price).flatten()[order].cumsum(0)
    threshold = scale * price.mean() * (rows / SIZE) * (columns / SIZE)
    taken = torch.zeros(price.numel(), dtype=torch.bool, device=change.device)
    taken[order] = spent <= threshold
    return taken.reshape(change.shape)
