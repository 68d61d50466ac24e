"""Profiles of units by one pass over prompts: what drives them, and what they write before the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.vocabulary import MIXTURE_SITES, SITES, Site
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.attach import HookFn, attached
from safecircuits.model.beginning import chosen_positions, encode_to_score
from safecircuits.model.forward import run
from safecircuits.model.memory import batch_tokens
from safecircuits.model.shares import in_order, spread
from safecircuits.model.sites import (
    HookedModel,
    ModelShape,
    output_weight,
    require_hooked,
    resid_post,
    tokenizer_of,
    unit_hook,
)
from safecircuits.prompts.batching import Batch, batches
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set
from safecircuits.units.groups import UnitGroups
from safecircuits.units.profiles import UnitProfiles
from safecircuits.units.scores import UnitScores
from safecircuits.units.token_writes import FinalNorm, straight_layers, token_logits

Unit = tuple[Site, int, int]

SHOWN, PROMPTS = 32, 100
"""Units, and prompts of each set, that commands and studies look at; more make a page no clearer, and large."""


@checked
def unit_profiles(
    model: HookedModel,
    units: FreezeMask,
    prompts: PromptSet | Sequence[str] | Mapping[str, PromptSet],
    *,
    scores: UnitScores | UnitGroups | None = None,
    shown: int = 6,
    n_tokens: int = 8,
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> UnitProfiles:
    """What drives each unit on these prompts, and which tokens it adds to where the answer is about to start.

    Positions with which every prompt begins alike do not count. What a unit adds to the logits is direct: its mean over
    the prompts of the first set, at the last token of the prompt, divided by each prompt's own scale of the final norm,
    through that norm and the unembedding, before any scale or cap of the logits. What later layers make of it is not
    in it. A unit of a layer whose output is not what its units write (behind a norm in Gemma-2 and OLMo-2, by a factor
    in Granite) has no tokens.

    Args:
        prompts: one set, or several by name: the strongest prompts are of all of them.
        scores: what the units were chosen by (of groups, S − U): they come in its order.
        shown: prompts of each unit that are kept with its value at every token.
        n_tokens: tokens that it adds most to, and takes most from.
        max_tokens: tokens in one batch, padding included; 8,192 unless given, or what fits into free memory.

    Raises:
        ValueError: for a mask without units, of another model, or more prompts or tokens shown than there are none of.

    Examples:
        >>> scores = sc.score_units(model, malicious)
        >>> sets = {"malicious": malicious, "normal": normal}
        >>> found = sc.units.unit_profiles(model, scores.top(4), sets, scores=scores)
        >>> list(found.by_set())
        ['malicious', 'normal']
        >>> found.to_frame().columns[:4].tolist()
        ['site', 'layer', 'unit', 'score']
    """
    require_hooked(model)
    if shown < 1 or n_tokens < 1:
        raise ValueError(f"shown and n_tokens are at least 1, not {shown} and {n_tokens}")
    sets = {name: as_prompt_set(one) for name, one in prompts.items()} if isinstance(prompts, Mapping) else None
    if sets is None:
        one = as_prompt_set(prompts)
        sets = {one.name: one}
    if not sets:
        raise ValueError("no prompts to look at the units on")
    values = scores.difference if isinstance(scores, UnitGroups) else scores.scores if scores else {}
    units = units.on(model)
    if any(units.at(site).any() for site in MIXTURE_SITES):
        raise ValueError("units of a mixture of experts have no profile here: give units of the sites mlp and attn")
    chosen = _in_order(units, values)
    if not chosen:
        raise ValueError("the mask has no units to look at")
    tokenizer = tokenizer_of(model)
    examples = [
        example
        for one in sets.values()
        for example in encode_to_score(tokenizer, one, tokens="prompt", template=template)
    ]
    norm = FinalNorm.of(model)

    def part(share: list[int]) -> list[_Seen]:
        return _seen(model, [examples[row] for row in share], chosen, norm, max_tokens, progress)

    seen = in_order(spread(model, examples, part, "unit_profiles"))
    first = len(next(iter(sets.values())))
    straight = straight_layers(model, sorted({layer for _, layer, _ in chosen}), sorted(examples, key=len)[:2])
    writes = token_logits(model, norm, _mean_writes(model, chosen, seen[:first]))
    return _profiles(tokenizer, chosen, values, sets, examples, seen, writes, straight, shown, n_tokens)


def scu_profiles(
    model: HookedModel, groups: UnitGroups, prompts: Mapping[str, PromptSet], *, template: str = "auto"
) -> UnitProfiles:
    """The highest safety-critical units, as many a page shows, on at most ``PROMPTS`` of each set."""
    n = min(SHOWN, groups["SCU"].n_units())
    units = groups.top(n, "SCU", proportionate=True)
    sets = {name: one.at_most(PROMPTS) for name, one in prompts.items()}
    return unit_profiles(model, units, sets, scores=groups, template=template)


@dataclass
class _Seen:
    """One prompt: each unit along its tokens, and its activation at the last one divided by the final norm's scale."""

    along: Float[Tensor, "unit pos"]
    last: list[Tensor]


Values = Mapping[Site, Float[Tensor, "layer unit"]]


def _in_order(units: FreezeMask, scores: Values) -> list[Unit]:
    found = [(site, layer, unit) for site in SITES for layer, row in units.members(site).items() for unit in row]
    known = {unit: value for unit in found if (value := _score(scores, unit)) == value}
    return sorted(found, key=lambda unit: -known.get(unit, float("-inf")))


@torch.inference_mode()
def _seen(
    model: HookedModel,
    examples: Sequence[Encoded],
    chosen: Sequence[Unit],
    norm: FinalNorm,
    max_tokens: int | None,
    progress: bool,
) -> list[_Seen]:
    kept: dict[str, Tensor] = {}
    at: dict[tuple[Site, int], list[int]] = {}
    for site, layer, unit in chosen:
        at.setdefault((site, layer), []).append(unit)
    final = resid_post(int(model.cfg.n_layers) - 1)

    def keep(name: str, units: list[int] | None) -> HookFn:
        def store(value: Tensor) -> None:
            kept[name] = (value[:, -1] if units is None else value[:, :, units]).detach().float().cpu()

        return store

    hooks = {unit_hook(*place): keep(unit_hook(*place), units) for place, units in at.items()}
    weights = {(site, layer): _heads(model, layer, units) for (site, layer), units in at.items() if site == "attn"}
    seen: list[_Seen | None] = [None] * len(examples)
    with attached(model, {**hooks, final: keep(final, None)}):
        budget = batch_tokens(model, examples, max_tokens)
        for batch in track(list(batches(examples, budget)), "units on prompts", enabled=progress):
            run(model, batch)
            scale = norm.scale(model, kept[final])
            for line, row in enumerate(batch.rows):
                width = len(examples[row])
                along, last = {}, {}
                for place, units in at.items():
                    values = kept[unit_hook(*place)][line, -width:]
                    sizes = (
                        torch.einsum("phd,hdm->phm", values, weights[place]).norm(dim=-1)
                        if place in weights
                        else values
                    )
                    for slot, unit in enumerate(units):
                        along[(*place, unit)] = sizes[:, slot]
                        last[(*place, unit)] = values[-1, slot] / scale[line]
                rows = torch.stack([along[unit] for unit in chosen])
                rows[:, ~_counts(batch, line, width)] = float("nan")
                seen[row] = _Seen(rows, [last[unit] for unit in chosen])
    return [one for one in seen if one is not None]


def _counts(batch: Batch, line: int, width: int) -> Tensor:
    return chosen_positions(batch, "prompt")[line, -width:].cpu()


def _heads(model: HookedModel, layer: int, units: Sequence[int]) -> Float[Tensor, "head d_head d_model"]:
    rows = output_weight(model, "attn", layer).float().cpu()
    return rows.reshape(ModelShape.of(model).n_heads, -1, rows.shape[1])[list(units)]


def _mean_writes(model: HookedModel, chosen: Sequence[Unit], seen: Sequence[_Seen]) -> Float[Tensor, "unit d_model"]:
    places: dict[tuple[Site, int], list[int]] = {}
    for row, (site, layer, _) in enumerate(chosen):
        places.setdefault((site, layer), []).append(row)
    written: dict[int, Tensor] = {}
    for (site, layer), rows in places.items():  # a matrix is read once, which of a packed one takes a pass
        units = [chosen[row][2] for row in rows]
        weights = (
            _heads(model, layer, units) if site == "attn" else output_weight(model, site, layer)[units].float().cpu()
        )
        for row, weight in zip(rows, weights, strict=True):
            mean = torch.stack([one.last[row] for one in seen]).mean(0)
            written[row] = mean @ weight if site == "attn" else mean * weight
    return torch.stack([written[row] for row in range(len(chosen))])


def _profiles(
    tokenizer: Any,
    chosen: Sequence[Unit],
    scores: Values,
    sets: Mapping[str, PromptSet],
    examples: Sequence[Encoded],
    seen: Sequence[_Seen],
    writes: Float[Tensor, "unit d_vocab"],
    straight: set[int],
    shown: int,
    n_tokens: int,
) -> UnitProfiles:
    places = torch.stack([one.along.abs().nan_to_num(-1.0).argmax(1) for one in seen], 1)
    peaks = torch.stack([one.along.gather(1, places[:, i : i + 1])[:, 0] for i, one in enumerate(seen)], 1).nan_to_num()
    strongest = peaks.abs().topk(min(shown, len(seen)), dim=1).indices
    told = set(strongest.flatten().tolist())
    along = torch.full((*strongest.shape, max(len(examples[prompt]) for prompt in told)), float("nan"))
    for row in range(len(chosen)):
        for place, prompt in enumerate(strongest[row].tolist()):
            along[row, place, : len(examples[prompt])] = seen[prompt].along[row]
    centred = writes - writes.mean(1, keepdim=True)  # a logit alone says nothing: what all tokens get is nobody's
    n = min(n_tokens, centred.shape[1])
    high, low = centred.topk(n, dim=1), (-centred).topk(n, dim=1)

    def words(ids: Tensor) -> tuple[tuple[str, ...], ...]:
        rows = zip(chosen, ids.tolist(), strict=True)
        return tuple(tuple(tokenizer.decode([i]) for i in row) if unit[1] in straight else () for unit, row in rows)

    return UnitProfiles(
        units=tuple(chosen),
        scores=torch.tensor([_score(scores, unit) for unit in chosen]),
        ids=tuple(prompt_id for one in sets.values() for prompt_id in one.ids),
        prompts=tuple(text for one in sets.values() for text in one.prompts),
        sets=tuple(name for name, one in sets.items() for _ in one.prompts),
        peaks=peaks,
        places=places,
        strongest=strongest,
        along=along,
        tokens=tuple(
            tuple(tokenizer.decode([i]) for i in example.ids) if prompt in told else ()
            for prompt, example in enumerate(examples)
        ),
        promoted=words(high.indices),
        suppressed=words(low.indices),
        promoted_logits=high.values,
        suppressed_logits=-low.values,
        provenance={"prompts": {name: one.fingerprint for name, one in sets.items()}, "tokens_of": next(iter(sets))},
    )


def _score(scores: Values, unit: Unit) -> float:
    return float(scores[unit[0]][unit[1:]]) if unit[0] in scores else float("nan")
