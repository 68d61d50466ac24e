"""Do malicious prompts go to other experts than normal ones? The share of their tokens that each expert gets.

The question of the literature on safety-critical experts; the statistic and its band are ours. Every prompt counts
alike, however long: of each, the share of its tokens that are routed to an expert (over all experts of a layer they
come to top-k), and of those the mean over the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.base.arguments import checked, whole
from safecircuits.base.resamples import DRAWS, multiplicities
from safecircuits.base.stats import canonical_order, simultaneous_band
from safecircuits.base.vocabulary import TokenChoice
from safecircuits.hooks.passes import running
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.attach import HookFn
from safecircuits.model.beginning import beginning_facts, chosen_positions, encode_to_score, require_tokens
from safecircuits.model.expert_points import require_expert_points
from safecircuits.model.mixtures import INDEX, look
from safecircuits.model.shares import columns_in_order, spread
from safecircuits.model.sites import HookedModel, ModelShape, require_hooked, tokenizer_of
from safecircuits.prompts.batching import Batch
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ExpertRouting(Result):
    """How much more of malicious prompts' tokens than of normal ones' goes to each expert.

    Examples:
        >>> shape = sc.ModelShape("M", 1, 8, 0, 1, 1, sc.model.MixtureShape(4, 16, 0, (0,)))
        >>> import torch
        >>> rows = torch.tensor([[0.8, 0.4, 0.4, 0.4]]), torch.tensor([[0.5, 0.5, 0.5, 0.5]])
        >>> band = torch.tensor([[0.1, -0.3, -0.3, -0.3]]), torch.tensor([[0.5, 0.1, 0.1, 0.1]])
        >>> tokens = torch.full((1, 4), 20)
        >>> found = sc.units.ExpertRouting(*rows, *band, tokens, tokens, (9, 9), "prompt", shape, {})
        >>> found.top(1).n_units("expert")
        16
        >>> found.verdict.split(": ")[1]
        'most to layer 0, expert 0, by +0.30 [+0.10, +0.50]'
    """

    malicious: Float[Tensor, "mixture expert"]
    """Share of a prompt's tokens that go to the expert, mean over prompts; one row a mixture layer."""
    normal: Float[Tensor, "mixture expert"]
    low: Float[Tensor, "mixture expert"]
    """Of the difference: a 95 % band that holds all experts at once, so that any may be picked after seeing it."""
    high: Float[Tensor, "mixture expert"]
    malicious_tokens: Int[Tensor, "mixture expert"]
    """How many tokens went to the expert."""
    normal_tokens: Int[Tensor, "mixture expert"]
    n_prompts: tuple[int, int]
    """Malicious and normal ones."""
    tokens: TokenChoice
    shape: ModelShape
    provenance: dict[str, Any]

    @property
    def difference(self) -> Float[Tensor, "mixture expert"]:
        """Of the shares: positive where malicious prompts go more."""
        return self.malicious - self.normal

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer of each row."""
        return self.shape.layers_with("router")

    def top(self, n: int) -> FreezeMask:
        """All neurons of the ``n`` experts that malicious prompts go to most beyond normal ones.

        Raises:
            ValueError: if there are fewer experts.
        """
        n, flat = whole(n, "n", 0), self.difference.flatten()
        if n > len(flat):
            raise ValueError(f"cannot take {n} of {len(flat)} experts")
        mixture = self.shape.mixture
        assert mixture is not None
        units: dict[int, dict[int, range]] = {}
        for i in flat.argsort(descending=True, stable=True)[:n].tolist():
            row, expert = divmod(i, mixture.n_experts)
            units.setdefault(self.layers[row], {})[expert] = range(mixture.d_expert)
        provenance = {"top_experts": n, "by": "routing", **self.provenance}
        return FreezeMask.of_units({"expert": units}, self.shape, provenance)

    @property
    def verdict(self) -> str:
        """How many experts get more, and less, of malicious prompts' tokens, and the one that gets most more."""
        more, less = int((self.low > 0).sum()), int((self.high < 0).sum())
        row, expert = divmod(int(self.difference.argmax()), self.difference.shape[1])
        by, low, high = (float(values[row, expert]) for values in (self.difference, self.low, self.high))
        return (
            f"malicious prompts' tokens go more to {more} and less to {less} of {self.difference.numel()} experts than "
            f"normal ones': most to layer {self.layers[row]}, expert {expert}, by {by:+.2f} [{low:+.2f}, {high:+.2f}]"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row an expert, the largest difference first: shares, their difference with its band, and tokens."""
        import pandas as pd

        index = pd.MultiIndex.from_product([self.layers, range(self.difference.shape[1])], names=["layer", "expert"])
        names = ("malicious", "normal", "difference", "low", "high", "malicious_tokens", "normal_tokens")
        columns = {name: getattr(self, name).flatten().numpy() for name in names}
        frame = pd.DataFrame(columns, index=index).reset_index()
        return frame.sort_values("difference", ascending=False, kind="stable", ignore_index=True)

    def record(self) -> dict[str, Any]:
        """Shares, difference and band by row, and the layer of each row."""
        names = ("malicious", "normal", "difference", "low", "high")
        return {"layers": list(self.layers), **{name: getattr(self, name).tolist() for name in names}}


@checked
def expert_routing(
    model: HookedModel,
    malicious: PromptSet,
    normal: PromptSet,
    *,
    tokens: TokenChoice = "prompt",
    draws: int = DRAWS,
    seed: int = 0,
    template: str = "auto",
    max_tokens: int | None = None,
    count_beginning: bool = False,
    progress: bool = False,
) -> ExpertRouting:
    """How much more often malicious prompts' tokens are routed to each expert than normal ones', with a 95 % band.

    The band is of a bootstrap over prompts of both sets, and holds all experts at once (sup-t).

    Args:
        tokens: whose routing counts: the prompt's, the response's, or all.
        draws, seed: of the bootstrap.
        count_beginning: whether positions that every prompt begins with count; they are routed alike in both sets.

    Raises:
        ValueError: for a model without mixtures of experts that hooks reach, fewer than two prompts in a set, and a
            prompt of which no token counts.

    Examples:
        >>> sc.units.expert_routing(model, malicious, normal)
        Traceback (most recent call last):
        ValueError: expert_routing is about mixtures of experts, and this LlamaForCausalLM is dense
    """
    require_hooked(model)
    require_tokens(tokens)
    sets = as_prompt_set(malicious, "malicious"), as_prompt_set(normal, "normal")
    layers = _mixture_layers(model)
    options: dict[str, Any] = {"template": template, "count_beginning": count_beginning}
    counts, lengths = zip(
        *(_counts(model, data, layers, tokens, max_tokens, progress, options) for data in sets), strict=True
    )
    shares = [each / length[:, None, None] for each, length in zip(counts, lengths, strict=True)]
    generator = torch.Generator().manual_seed(whole(seed, "seed", 0))
    resampled = []
    for data, rows in zip(sets, shares, strict=True):
        ordered = rows[canonical_order(data.prompts)]
        times = multiplicities(len(rows), whole(draws, "draws", 2), generator)
        resampled.append(times @ ordered.flatten(1) / len(rows))
    means = [rows.mean(0) for rows in shares]
    low, high = simultaneous_band((means[0] - means[1]).flatten(), resampled[0] - resampled[1])
    provenance = {
        "malicious": sets[0].identity,
        "normal": sets[1].identity,
        "template": template,
        "beginning": beginning_facts(tokenizer_of(model), template, count_beginning),
        "draws": draws,
        "seed": seed,
    }
    return ExpertRouting(
        malicious=means[0],
        normal=means[1],
        low=low.view_as(means[0]),
        high=high.view_as(means[0]),
        malicious_tokens=counts[0].sum(0).long(),
        normal_tokens=counts[1].sum(0).long(),
        n_prompts=(len(sets[0]), len(sets[1])),
        tokens=tokens,
        shape=ModelShape.of(model),
        provenance=provenance,
    )


def _mixture_layers(model: HookedModel) -> tuple[int, ...]:
    shape = ModelShape.of(model)
    if not (layers := shape.layers_with("router")):
        reasons = [reason for block in model.blocks if (reason := look(getattr(block, "mlp", None))[1])]
        what = f"in this {shape.architecture} {reasons[0]}" if reasons else f"this {shape.architecture} is dense"
        raise ValueError(f"expert_routing is about mixtures of experts, and {what}")
    for layer in layers:
        require_expert_points(model, layer)
    return layers


def _counts(
    model: HookedModel,
    data: PromptSet,
    layers: Sequence[int],
    tokens: TokenChoice,
    max_tokens: int | None,
    progress: bool,
    options: dict[str, Any],
) -> tuple[Float[Tensor, "prompt mixture expert"], Float[Tensor, " prompt"]]:
    """How many tokens of each prompt go to each expert, and how many count."""
    if len(data) < 2:
        raise ValueError(f"a band over prompts needs at least two of them; {data.name!r} has {len(data)}")
    examples = encode_to_score(tokenizer_of(model), data, tokens=tokens, **options)

    def part(share: list[int]) -> tuple[Tensor, Tensor]:
        return _counted(model, [examples[row] for row in share], layers, tokens, max_tokens, progress)

    parts = spread(model, examples, part, "routing of tokens")
    counts, lengths = (columns_in_order([(rows, found[i]) for rows, found in parts], dim=0) for i in range(2))
    if (empty := (lengths == 0).nonzero()).numel():
        raise ValueError(
            f"no {tokens} token of {data.prompts[int(empty[0])]!r} counts beside what every prompt begins with "
            "(count_beginning=True counts that too)"
        )
    return counts, lengths


def _counted(
    model: HookedModel,
    examples: Sequence[Encoded],
    layers: Sequence[int],
    tokens: TokenChoice,
    max_tokens: int | None,
    progress: bool,
) -> tuple[Float[Tensor, "prompt mixture expert"], Float[Tensor, " prompt"]]:
    n_experts = ModelShape.of(model).n_units("router")
    counts = torch.zeros(len(examples), len(layers), n_experts, dtype=torch.float64)
    lengths, now = torch.zeros(len(examples), dtype=torch.float64), dict[int, Tensor]()
    chosen: Tensor
    rows: Sequence[int]

    def watch(row: int) -> HookFn:
        def update(index: Int[Tensor, "batch pos top_k"]) -> None:
            ones = chosen.to(index.device).double()[..., None].expand(index.shape)
            none = torch.zeros(len(index), n_experts, dtype=torch.float64, device=index.device)
            now[row] = none.scatter_add(1, index.flatten(1), ones.flatten(1))

        return update

    def before(batch: Batch, _stands_for: int) -> None:
        nonlocal chosen, rows
        # The prefix that all prompts share comes first, once, and is of no row.
        chosen, rows = chosen_positions(batch, tokens), batch.rows or range(len(examples))
        now.clear()

    def after() -> None:
        lengths[list(rows)] += chosen.sum(1)
        for row, found in now.items():
            counts[list(rows), row] += found.cpu()

    hooks = {f"blocks.{layer}.mlp.{INDEX}": watch(row) for row, layer in enumerate(layers)}
    with running(model, hooks) as runner:
        runner.watch(
            examples, before, after, last_layer=layers[-1], max_tokens=max_tokens, what="routing", progress=progress
        )
    return counts, lengths
