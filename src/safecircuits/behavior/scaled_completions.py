"""Greedy completions under several scalings at once, which share the layers and prompts in which they are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safecircuits.behavior.completions import Completions
from safecircuits.behavior.decoding import Until, Writer
from safecircuits.behavior.generate import Jobs, completions_of, decode_all, require_room
from safecircuits.behavior.speculative import SpeculativeDecoding
from safecircuits.hooks.branching import Branches
from safecircuits.hooks.passes import running
from safecircuits.hooks.scale import ComponentSet, RowScaling
from safecircuits.model.attach import hooks_in_force
from safecircuits.model.memory import batch_tokens
from safecircuits.model.shares import in_order, spread
from safecircuits.model.sites import HookedModel, require_hooked, tokenizer_of
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.prompts.templates import stop_string


def generate_scaled(
    model: HookedModel,
    prompts: PromptSet | Sequence[str],
    profiles: Sequence[Mapping[int, float]],
    *,
    components: ComponentSet = "all",
    max_new_tokens: int = 16,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    until: Until | None = None,
    drafts: Sequence[Sequence[int]] | None = None,
    progress: bool = False,
) -> list[Completions]:
    """``generate`` under ``scaled(model, profile)`` for each of ``profiles``, all decoded together in shared batches.

    A layer is computed once for all profiles that are alike up to it. The completions are those of one profile after
    another, up to rounding: a matrix product may round otherwise in a batch of another size, which turns the choice
    between two tokens of all but equal logits. With hooks of your own on the model the profiles do run one after
    another.

    Args:
        profiles: a mapping from layer to α each; layers that it leaves out are not scaled.
        drafts: token ids with which each prompt may be answered, such as those of the unscaled model.
            They change nothing but the time: as far as a model says the same, it takes one pass instead of a step each.

    Raises:
        ValueError, FloatingPointError: as ``generate`` does; ValueError if there is not one draft a prompt, or the
            model has no hook points.
    """
    require_room(max_new_tokens)
    require_hooked(model, "scaling layers")
    prompts = as_prompt_set(prompts)
    examples = encode(tokenizer_of(model), prompts, template=template, system=system)
    n = len(prompts)
    if drafts is not None and len(drafts) != n:
        raise ValueError(f"there must be one draft for each of {n} prompts, not {len(drafts)}")
    writer = Writer(model, max_new_tokens, until, stop_string(model.tokenizer, template))

    def part(share: list[int]) -> list[list[list[int]]]:
        mine = [examples[row] for row in share]
        own = [() if drafts is None else drafts[row] for row in share]
        found = _scaled(model, mine, profiles, components, writer, own, max_tokens, progress)
        return [[of_profile[k] for of_profile in found] for k in range(len(share))]

    by_prompt = in_order(spread(model, examples, part, "completions of scaled models"))
    return [completions_of(prompts, [written[k] for written in by_prompt], writer) for k in range(len(profiles))]


def _scaled(
    model: HookedModel,
    examples: Sequence[Encoded],
    profiles: Sequence[Mapping[int, float]],
    components: ComponentSet,
    writer: Writer,
    drafts: Sequence[Sequence[int]],
    max_tokens: int | None,
    progress: bool,
) -> list[list[list[int]]]:
    """Token ids by profile and example, by this process."""
    n, max_new_tokens = len(examples), writer.max_new_tokens
    _, per_token = hooks_in_force(model)
    groups = [list(profiles)] if per_token else [[profile] for profile in profiles]
    budget = batch_tokens(model, examples, max_tokens, more=max_new_tokens, cached=True)
    written: list[list[list[int]]] = []
    for group in groups:
        scaling = RowScaling(model, group, components=components)
        with running(model, scaling.hooks) as runner:
            if SpeculativeDecoding.possible(runner, examples, max_new_tokens):
                branches = Branches(group, int(model.cfg.n_layers))
                decoding = SpeculativeDecoding(runner, tuple(examples), drafts, branches, scaling, writer, budget)
                written += decoding.run(progress)
            else:
                owner = tuple(which for which in range(len(group)) for _ in range(n))
                jobs = Jobs(tuple(examples) * len(group), owner, budget)
                found = decode_all(runner, jobs, scaling, writer, progress)
                written += [found[i * n : (i + 1) * n] for i in range(len(group))]
    return written
