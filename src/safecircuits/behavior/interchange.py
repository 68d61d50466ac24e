"""Greedy completions of one checkpoint with units of another in it: dynamic activation patching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.behavior.along import along
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.decoding import Until, Writer, end_tokens
from safecircuits.behavior.divergence import KLReference, TokenKL, kl_divergence
from safecircuits.behavior.generate import Jobs, completions_of, decode_all, require_room
from safecircuits.hooks.lockstep import Name, UnitPatching, as_sets
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.memory import batch_tokens
from safecircuits.model.shares import in_order, spread, weights_digest
from safecircuits.model.sites import HookedModel, require_hooked, tokenizer_of
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.prompts.templates import stop_string


@checked
def generate_patched(
    model: HookedModel,
    source: HookedModel,
    prompts: PromptSet | Sequence[str],
    units: Mapping[str, FreezeMask],
    *,
    outgoing: bool = False,
    max_new_tokens: int = 16,
    template: str = "auto",
    system: str | None = None,
    tokenizer: Any = None,
    max_tokens: int | None = None,
    until: Until | None = None,
    progress: bool = False,
) -> dict[str, Completions]:
    """What ``model`` writes with units of ``source`` in it, for each named set of units, all sets in shared batches.

    At every step the source reads the same tokens over a cache of its own, and the activations that the units have
    there replace those in the model: dynamic activation patching (Chen et al., NeurIPS 2025, §3.2). With every neuron
    and head patched the answers are the source's, if the two agree in what no unit holds: embeddings, output
    projections and their biases, norms behind sublayers, the final norm and the unembedding. (Norms before sublayers
    and input projections may differ: what they make is replaced.) With ``outgoing`` the output projections may
    differ too. With no unit patched they are the model's own.

    Args:
        model, source: two checkpoints of one architecture, shape and vocabulary; on either backend.
        units: sets of units by name.
        outgoing: patch what a unit writes into the residual stream, by the source's own outgoing weights, instead of
            its activation alone. Where training has moved the output projections (nearly everywhere but with adapters
            that leave them), an activation read by other weights than those it was trained with is neither model's.
        tokenizer: puts the prompts to both; the model's own unless given. An aligned model may have a chat template
            that its base lacks.
        max_new_tokens, template, system, max_tokens, until: as in ``generate``. A text ends at the end tokens of either
            model.

    Raises:
        ValueError: for two checkpoints that are no pair, units of another model, or no units by name.
        FloatingPointError: if the logits are not finite.

    Examples:
        >>> base = sc.load_model("base")
        >>> every = sc.FreezeMask.layers((0, 7), model)
        >>> answers = sc.behavior.generate_patched(base, model, malicious, {"all": every}, outgoing=True)
        >>> answers["all"].texts[0]
        'i cannot do that .'
    """
    require_room(max_new_tokens)
    for one in (model, source):
        require_hooked(one, "patching units")
    sets = as_sets(model, units)
    prompts = as_prompt_set(prompts)
    tokenizer = tokenizer or tokenizer_of(model)
    patching = UnitPatching(model, source, list(sets.values()), outgoing=outgoing)
    examples = tuple(encode(tokenizer, prompts, template=template, system=system))
    writer = Writer(model, max_new_tokens, until, stop_string(tokenizer, template))
    writer.ends |= end_tokens(source)
    # Each row has a cache in either model.
    budget = max(1, batch_tokens(model, examples, max_tokens, more=max_new_tokens, cached=True) // 2)

    def part(share: list[int]) -> list[list[list[int]]]:
        mine = tuple(examples[row] for row in share)
        owner = tuple(which for which in range(len(sets)) for _ in mine)
        with patching.running() as runner:
            found = decode_all(runner, Jobs(mine * len(sets), owner, budget), patching, writer, progress)
        return [[found[i * len(mine) + k] for i in range(len(sets))] for k in range(len(mine))]

    what = f"completions with units of a source, {weights_digest(source)}"
    by_prompt = in_order(spread(model, examples, part, what))
    return {name: completions_of(prompts, [written[i] for written in by_prompt], writer) for i, name in enumerate(sets)}


@checked
def patched_divergences(
    model: HookedModel,
    source: HookedModel,
    reference: KLReference,
    units: Mapping[Name, FreezeMask],
    *,
    outgoing: bool = False,
    max_tokens: int | None = None,
) -> dict[Name, TokenKL]:
    """How far ``model`` with units of ``source`` in it is from what it says without, for each named set of units.

    Both read the intact model's own answers token by token, as in ``generate_patched``.

    Args:
        reference: of ``model`` without any units patched.

    Examples:
        >>> base = sc.load_model("base")
        >>> reference = sc.behavior.KLReference.of(base, malicious, n_tokens=2, tokenizer=model.tokenizer)
        >>> none = sc.FreezeMask.of_units({}, base)
        >>> found = sc.behavior.patched_divergences(base, model, reference, {"nothing": none})
        >>> bool(found["nothing"].first.max() < 1e-6)
        True
    """
    sets = as_sets(model, units)
    patching = UnitPatching(model, source, list(sets.values()), outgoing=outgoing)
    answers = [example.ids[example.response_start :] for example in reference.examples]
    asked = tuple(Encoded(one.ids[: one.response_start], one.response_start) for one in reference.examples)
    budget = max(1, batch_tokens(model, asked, max_tokens, more=reference.n_tokens, cached=True) // 2)

    def part(share: list[int]) -> list[Float[Tensor, "set token"]]:
        owner = tuple(which for which in range(len(sets)) for _ in share)
        jobs = Jobs(tuple(asked[row] for row in share) * len(sets), owner, budget)
        values = torch.full((len(sets), len(share), reference.n_tokens), torch.nan, dtype=torch.float64)

        def take(job: int, step: int, logits: Tensor) -> None:
            which, place = divmod(job, len(share))
            known = reference.log_probs[share[place]]
            if step < len(known):
                values[which, place, step] = kl_divergence(known[step], logits.cpu())

        with patching.running() as runner:
            along(runner, jobs, patching, [answers[row] for row in share] * len(sets), take)
        return list(values.transpose(0, 1))

    found = in_order(spread(model, asked, part, f"divergences with units of a source, {weights_digest(source)}"))
    by_set = torch.stack(found).transpose(0, 1)
    return {name: TokenKL(values.contiguous(), reference.provenance) for name, values in zip(sets, by_set, strict=True)}
