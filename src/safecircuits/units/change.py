"""How far alignment has moved each unit: change scores between two checkpoints, on the aligned one's own answers.

    S_i = sqrt( Σ_w Σ_j (a_i(aligned; w)[j] − a_i(base; w)[j])² / Σ_w |w| )

over the answers w that the aligned model writes and their token positions j: the change score of Chen et al. (NeurIPS
2025, arXiv 2406.14144, §3.1, generation-time activation contrasting; ``metric`` in the code), where a_i is what enters
the down projection. Both models read the same tokens. A head's is the Euclidean change of its z vector.

The published score counts what a unit passes on: behind the layers that training has moved, every unit changes. With
``same_stream`` each layer of the base is given the residual stream of the aligned model, so that a unit's change is
that of its own layer's weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.vocabulary import SITES, Site, TokenChoice
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.generate import generate
from safecircuits.hooks.passes import running
from safecircuits.model.attach import HookFn
from safecircuits.model.beginning import beginning_facts, chosen_positions, encode_to_score, require_tokens
from safecircuits.model.memory import batch_tokens
from safecircuits.model.pair import require_pair
from safecircuits.model.shares import spread, weights_digest
from safecircuits.model.sites import HookedModel, ModelShape, output_weight, require_hooked, unit_hook
from safecircuits.prompts.batching import Batch, each_batch
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set
from safecircuits.units.moments import Moments, RunningMoments, merged
from safecircuits.units.scores import UnitScores, model_facts, require_sites

ChangeMethod = Literal["change", "wchange"]

# Activations of the base that wait for the aligned model's, over all layers.
_WAITING = 2**26
# Rows of which each head's output is held at once.
_ROWS = 256


@checked
def change_scores(
    base: HookedModel,
    aligned: HookedModel,
    prompts: PromptSet | Sequence[str],
    *,
    method: ChangeMethod = "change",
    tokens: TokenChoice = "response",
    sites: Sequence[Site] = SITES,
    same_stream: bool = False,
    max_new_tokens: int = 32,
    template: str = "auto",
    max_tokens: int | None = None,
    count_beginning: bool = False,
    progress: bool = False,
) -> UnitScores:
    """Score every unit by how far it has moved from ``base`` to ``aligned``, while both read the aligned one's answers.

    Args:
        base, aligned: two checkpoints of one architecture, shape and vocabulary. The aligned one answers, and its
            template puts the prompts to both.
        prompts: what it answers; malicious prompts find what its refusals are made of.
        method: ``"change"``: root mean square difference of the activation (of a head's z vector), as published.
            ``"wchange"``: of what the unit writes into the residual stream, each model's own outgoing weights included:
            it compares between layers and sites, and sees a unit of which training has moved the outgoing weights
            alone.
        tokens: whose positions count: the answers', as published, the prompts', or all. The first answer token is
            chosen at the last prompt position, which is the prompt's.
        same_stream: give every layer of the base the aligned model's residual stream (ours, not published). A unit then
            scores by what its layer makes otherwise of the same input, and not by what layers below have changed; an
            MLP's input still holds its own layer's attention.
        max_new_tokens: of an answer (256 in the paper).
        max_tokens: tokens in one batch, padding included; at most as many as both models' activations leave room for.
        count_beginning: count the positions that every prompt begins with, too; see ``score_units``.

    Raises:
        ValueError: for two checkpoints that are no pair, a single prompt, a model that answers nothing, and two that
            compute the same.
        FloatingPointError: for a difference that is not finite.

    Examples:
        >>> base = sc.load_model("base")
        >>> scores = sc.units.change_scores(base, model, malicious)
        >>> scores.top(24).n_units(), scores.method
        (24, 'change')
    """
    for model in (base, aligned):
        require_hooked(model, "a change score")
    require_pair(base, aligned)
    require_tokens(tokens)
    if method not in get_args(ChangeMethod):
        raise ValueError(f"method is 'change' or 'wchange', not {method!r}")
    require_sites(aligned, sites)
    n_layers = int(aligned.cfg.n_layers)
    prompts = as_prompt_set(prompts)
    if len(prompts) < 2:
        raise ValueError(
            f"{prompts.name!r} has one prompt, and a change on one prompt is that prompt's: give at least two"
        )
    examples, answers = answered(
        aligned, prompts, max_new_tokens, template=template, count_beginning=count_beginning, max_tokens=max_tokens
    )
    if tokens == "response" and not any(e.response_start < len(e) for e in examples):
        raise ValueError(
            f"the aligned model answers none of {prompts.name!r} by a single token; score the prompts: tokens='prompt'"
        )
    reading = _Reading(base, aligned, method, tokens, tuple(sites), same_stream)

    def part(share: list[int]) -> dict[tuple[str, int], Moments]:
        return reading.differences([examples[row] for row in share], max_tokens, progress).by_key

    what = f"change scores against a base, {weights_digest(base)}"
    seen = RunningMoments(merged(found for _, found in spread(aligned, examples, part, what)))
    moments = {site: seen.stack(site, n_layers) for site in sites}
    provenance = {
        "data": prompts.identity,
        "answers": PromptSet("answers", tuple(text or "(nothing)" for text in answers.texts)).identity,
        "template": template,
        "max_new_tokens": max_new_tokens,
        "same_stream": same_stream,
        "beginning": beginning_facts(aligned.tokenizer, template, count_beginning),
        "tokens_counted": next(iter(moments.values())).count,
    }
    empty = UnitScores(
        scores={}, moments=moments, method=method, tokens=tokens, provenance=provenance, **model_facts(aligned, sites)
    )
    scores = empty.rescore(method)
    if not any(bool(values.any()) for values in scores.scores.values()):
        raise ValueError("no unit differs on these tokens: the two checkpoints compute the same; give another base")
    return scores


def answered(
    model: HookedModel,
    prompts: PromptSet,
    max_new_tokens: int,
    *,
    template: str,
    count_beginning: bool = False,
    max_tokens: int | None = None,
) -> tuple[list[Encoded], Completions]:
    """Each prompt with the very tokens of the model's own greedy answer behind it, and the answers."""
    written: list[list[int]] = []
    answers = generate(
        model, prompts, max_new_tokens=max_new_tokens, template=template, max_tokens=max_tokens, token_ids=written
    )
    asked = encode_to_score(
        model.tokenizer, prompts, tokens="prompt", template=template, count_beginning=count_beginning
    )
    return [replace(e, ids=e.ids + tuple(own)) for e, own in zip(asked, written, strict=True)], answers


class _Reading:
    """Both models on the same tokens, one after the other in every batch: hooks that keep, and that compare.

    The base goes first; with ``same_stream`` the aligned model does, whose residual stream the base is then given.
    """

    def __init__(
        self,
        base: HookedModel,
        aligned: HookedModel,
        method: ChangeMethod,
        tokens: TokenChoice,
        sites: tuple[Site, ...],
        same_stream: bool,
    ) -> None:
        self.models = (aligned, base) if same_stream else (base, aligned)
        self.tokens, self.same_stream, self.seen = tokens, same_stream, RunningMoments()
        self.changed = _written_changes(base, aligned, sites) if method == "wchange" else None
        n_layers, shape = int(aligned.cfg.n_layers), ModelShape.of(aligned)
        self.places = [(site, layer) for site in sites for layer in range(n_layers)]
        self.streams = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)] if same_stream else []
        widths = [shape.n_units(site) * (1 if site == "mlp" else int(aligned.cfg.d_head)) for site in sites]
        self.room = max(1, _WAITING // ((sum(widths) + (shape.d_model if same_stream else 0)) * n_layers))
        self.waiting: dict[Any, Tensor] = {}
        self.index: Int[Tensor, " token"] = torch.zeros(0, dtype=torch.long)

    def differences(self, examples: Sequence[Encoded], max_tokens: int | None, progress: bool) -> RunningMoments:
        """Moments over the chosen tokens: of channels' differences, or of the squared change of what a unit writes."""
        keeping: dict[str, HookFn] = {unit_hook(*place): self._keep(place) for place in self.places}
        comparing: dict[str, HookFn] = {unit_hook(*place): self._compare(*place) for place in self.places}
        keeping |= {name: self._keep_stream(name) for name in self.streams}
        comparing |= {name: self._put_stream(name) for name in self.streams}
        budget = min(batch_tokens(self.models[1], examples, max_tokens), max_tokens or self.room, self.room)
        with running(self.models[0], keeping) as first, running(self.models[1], comparing) as second:

            def work(batch: Batch) -> None:
                self.index = chosen_positions(batch, self.tokens).flatten().nonzero()[:, 0]
                for runner in (first, second):
                    last = None if runner.other_hooks else runner.block(int(runner.model.cfg.n_layers) - 1)
                    runner.decoder().feed(batch.input_ids, batch.attention_mask, last)

            finished = each_batch(examples, work, budget, tight=True)
            each_done = (1 for n in finished for _ in range(n))
            for _ in track(each_done, "change scores", total=len(examples), enabled=progress):
                pass
        return self.seen

    def _keep(self, place: tuple[Site, int]) -> HookFn:
        def hook(activation: Tensor) -> None:
            self.waiting[place] = _rows(activation, self.index)

        return hook

    def _compare(self, site: Site, layer: int) -> HookFn:
        def hook(activation: Tensor) -> None:
            old, new = self.waiting.pop((site, layer)), _rows(activation, self.index)
            if self.same_stream:
                old, new = new, old
            if len(new):
                rows = (new - old).flatten(1) if self.changed is None else self.changed[site, layer](new, old)
                self.seen.add(site, layer, rows, f"the differences at {unit_hook(site, layer)}")

        return hook

    def _keep_stream(self, name: str) -> HookFn:
        def hook(resid: Tensor) -> None:
            self.waiting[name] = resid

        return hook

    def _put_stream(self, name: str) -> HookFn:
        return lambda resid: self.waiting.pop(name).to(resid)


def _rows(activation: Tensor, index: Int[Tensor, " token"]) -> Float[Tensor, "token ..."]:
    """The chosen tokens, at least float32: ``[token d_mlp]`` or ``[token head d_head]``."""
    rows = activation.flatten(0, 1).index_select(0, index.to(activation.device))
    return _at_least_single(rows)


def _at_least_single(values: Tensor) -> Tensor:
    """The same in float32, or in float64 where it is in that."""
    return values if values.dtype == torch.float64 else values.float()


Written = Callable[[Tensor, Tensor], Float[Tensor, "token unit"]]


def _written_changes(base: HookedModel, aligned: HookedModel, sites: Sequence[Site]) -> dict[tuple[Site, int], Written]:
    """For each sublayer, the squared change of what each unit writes, from its two activations."""
    found: dict[tuple[Site, int], Written] = {}
    for site in sites:
        n_units = ModelShape.of(aligned).n_units(site)
        for layer in range(int(aligned.cfg.n_layers)):
            new, old = (_at_least_single(output_weight(model, site, layer)) for model in (aligned, base))
            moved = new - old.to(new)
            found[site, layer] = _of_neurons(new, moved) if site == "mlp" else _of_heads(new, moved, n_units)
    return found


# a W − b V with a = b + δ and V = W − Δ is δ W + b Δ: no difference of large numbers is taken.


def _of_neurons(weight: Float[Tensor, "unit d_model"], moved: Float[Tensor, "unit d_model"]) -> Written:
    squares = weight.square().sum(1), (weight * moved).sum(1), moved.square().sum(1)

    def squared(here: Tensor, there: Tensor) -> Tensor:
        delta = here - there
        terms = delta.square() * squares[0] + 2 * delta * there * squares[1] + there.square() * squares[2]
        return terms.clamp(min=0)

    return squared


def _of_heads(weight: Float[Tensor, "channel d_model"], moved: Float[Tensor, "channel d_model"], n: int) -> Written:
    by_head, moved_by_head = (w.reshape(n, -1, w.shape[1]) for w in (weight, moved))

    def squared(here: Tensor, there: Tensor) -> Tensor:
        parts = []
        for z, old in zip(torch.split(here, _ROWS), torch.split(there, _ROWS), strict=True):
            written = torch.einsum("thd,hdm->thm", z - old, by_head) + torch.einsum("thd,hdm->thm", old, moved_by_head)
            parts.append(written.square().sum(2))
        return torch.cat(parts)

    return squared
