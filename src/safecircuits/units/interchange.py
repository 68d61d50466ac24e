"""Are these units enough to make a base model refuse, and does an aligned one need them? Patching curves.

Units are patched from the highest down, as many as a curve has counts, while the patched model writes (dynamic
activation patching): the aligned model's into the base (sufficient?), and the base's into the aligned one (necessary?).
Beside them go as many random units, and as many random units of the same layers. What a count of units carries is its
faithfulness

    f(k) = (m(k) − m(0)) / (m(all) − m(0))

with m(0) the refusal rate of the patched model as it is and m(all) that of the other one: Chen et al.'s causal effect
(arXiv 2406.14144, §3.2), and the faithfulness of MIB (Mueller et al., ICML 2025, arXiv 2504.13151). MIB's two summaries
are integrals over the share of units k: CPR = ∫ f(k) dk, higher is better, and CMD = ∫ |1 − f(k)| dk, lower is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.notices import notify
from safecircuits.base.stats import Share
from safecircuits.base.vocabulary import SITES
from safecircuits.behavior.coherence import unlikely_answers
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.divergence import TOKENS, KLReference
from safecircuits.behavior.generate import generate
from safecircuits.behavior.interchange import generate_patched, patched_divergences
from safecircuits.behavior.refusal import refused
from safecircuits.behavior.stakes import LEAST
from safecircuits.behavior.verdict import tokens_needed, verdicts
from safecircuits.hooks.lockstep import as_sets
from safecircuits.layers.counting import early_verdict
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.pair import require_pair
from safecircuits.model.sites import HookedModel, ModelShape, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.units.interchange_curves import CONTROLS, DIRECTIONS, Chosen, Direction, PatchingCurve, PatchingCurves
from safecircuits.units.scores import UnitScores

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of all units: those at which MIB measures."""


KL_PROMPTS = 32
"""Of each kind, on which every set of units is measured: a distribution over the vocabulary is held for each token."""


@checked
def patching_curves(
    base: HookedModel,
    aligned: HookedModel,
    units: UnitScores | Mapping[int, FreezeMask],
    malicious: PromptSet | Sequence[str],
    *,
    counts: Sequence[int] | None = None,
    directions: Sequence[Direction] = DIRECTIONS,
    controls: int = 2,
    outgoing: bool = False,
    harmless: PromptSet | Sequence[str] | None = None,
    kl_tokens: int = TOKENS,
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int | None = None,
    template: str = "auto",
    max_tokens: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PatchingCurves:
    """Patch more and more units between two checkpoints while they write, both ways, and count refusals.

    Args:
        base, aligned: two checkpoints of one architecture, shape and vocabulary. The aligned one's tokenizer and
            template put the prompts to both.
        units: scores, such as those of ``change_scores``, whose highest units are patched; or masks by their number
            of units.
        malicious: should not be what the units were found on.
        counts: how many units are patched, ascending; MIB's shares of all scored units unless given.
        directions: ``"sufficient"``: the aligned model's units in the base; ``"necessary"``: the other way round.
        controls: draws of random units, and as many of random units of the same layers.
        outgoing: patch what units write, by the source's own outgoing weights; see ``generate_patched``. Without it the
            curve need not reach 1 with every unit patched, where training has moved the output projections.
        harmless: ordinary prompts. On these and on the malicious ones, the first 32 of each, the KL of the patched
            model to itself without is measured at every count (``PatchingCurve.kl``); unless given, on malicious alone.
        kl_tokens: of each of its own answers that this looks at; 0: it is not measured.
        detector, max_new_tokens: what counts as a refusal; as many tokens as the detector needs unless given. An answer
            ends as soon as its verdict is certain.
        seed: of the first draw of either control.

    Raises:
        ValueError: for two checkpoints that are no pair or of which the aligned one does not refuse more, a single
            prompt, and counts that do not ascend or that there are not units for.

    Examples:
        >>> base = sc.load_model("base")
        >>> scores = sc.units.change_scores(base, model, malicious, method="wchange")
        >>> found = sc.units.patching_curves(base, model, scores, malicious, counts=[64], controls=1, outgoing=True)
        >>> found.directions
        ('sufficient', 'necessary')
    """
    require_pair(base, aligned)
    prompts = as_prompt_set(malicious, "malicious")
    if len(prompts) < 2:
        raise ValueError(f"{prompts.name!r} has one prompt: a refusal rate needs at least two")
    wrong = [one for one in directions if one not in DIRECTIONS]
    if isinstance(directions, str) or wrong or not directions:
        raise ValueError(f"directions are some of {', '.join(map(repr, DIRECTIONS))}, not {directions!r}")
    found, n_units = _found(aligned, units, counts)
    if isinstance(units, UnitScores) and units.provenance.get("data", {}).get("sha") == prompts.fingerprint:
        notify(f"the units were scored on the very prompts of {prompts.name!r} that now judge them: hold some out")
    limit = tokens_needed(detector) if max_new_tokens is None else max_new_tokens
    until = early_verdict(aligned, prompts, detector, template)
    options: dict[str, Any] = {"max_new_tokens": limit, "template": template, "max_tokens": max_tokens, "until": until}
    none = FreezeMask.of_units({}, base)
    # The base is asked as the aligned model is: by its tokenizer, until an end token of either.
    asked = {**options, "tokenizer": tokenizer_of(aligned)}
    intact = generate_patched(base, aligned, prompts, {"": none}, **asked)[""], generate(aligned, prompts, **options)
    before, after = (refused(texts, detector) for texts in intact)
    _require_difference(before, after)
    kinds = {"malicious": prompts} | ({} if harmless is None else {"harmless": as_prompt_set(harmless, "harmless")})
    jobs = _jobs(found, controls, seed)
    masks = {units.fingerprint: units for units in jobs.values()}
    curves = []
    for direction in dict.fromkeys(directions):
        pair = (base, aligned) if direction == "sufficient" else (aligned, base)
        texts = generate_patched(*pair, prompts, masks, outgoing=outgoing, progress=progress, **asked)
        read = {
            key: verdicts(answers, detector, unlikely=unlikely_answers(aligned, answers, template))
            for key, answers in texts.items()
        }
        far = {
            kind: patched_divergences(*pair, reference, masks, outgoing=outgoing, max_tokens=max_tokens)
            for kind, reference in _references(pair[0], kinds, kl_tokens, template, max_tokens, asked["tokenizer"])
        }
        for chosen, draw in dict.fromkeys((chosen, draw) for chosen, draw, _ in jobs):
            rows = [read[jobs[chosen, draw, count].fingerprint] for count in found]
            what = tuple(row.tally for row in rows), tuple(row.by_category for row in rows)
            moved = tuple(
                {kind: found_far[jobs[chosen, draw, count].fingerprint] for kind, found_far in far.items()}
                for count in found
            )
            refusals = torch.stack([row.refused for row in rows])
            curves.append(PatchingCurve(direction, chosen, draw, refusals, *what, moved if far else ()))
    made_of = {"method": units.method, **units.provenance} if isinstance(units, UnitScores) else "masks"
    provenance = {
        "units": made_of,
        "malicious": prompts.identity,
        "outgoing": outgoing,
        "detector": detector if isinstance(detector, str) else repr(detector),
        "max_new_tokens": limit,
        "template": template,
        "controls": controls,
        "seed": seed,
    }
    return PatchingCurves(tuple(found), n_units, before, after, tuple(curves), provenance)


def _references(
    patched: HookedModel,
    kinds: Mapping[str, PromptSet],
    n_tokens: int,
    template: str,
    max_tokens: int | None,
    tokenizer: Any,
) -> Iterator[tuple[str, KLReference]]:
    """What the model that is patched says of each kind of prompts without; none where no tokens are looked at."""
    options: dict[str, Any] = {"template": template, "max_tokens": max_tokens, "tokenizer": tokenizer}
    for kind, prompts in kinds.items() if n_tokens else ():
        yield kind, KLReference.of(patched, prompts.at_most(KL_PROMPTS), n_tokens=n_tokens, **options)


def _found(
    model: HookedModel, units: UnitScores | Mapping[int, FreezeMask], counts: Sequence[int] | None
) -> tuple[dict[int, FreezeMask], int]:
    """The units to patch by their number, and how many there are at the sites that were scored."""
    shape = ModelShape.of(model)
    if not isinstance(units, UnitScores):
        if counts is not None:
            raise ValueError("masks by their number of units have their counts: leave counts= out, or pass scores")
        masks: dict[int, FreezeMask] = dict(sorted(as_sets(model, units).items()))
        if wrong := [n for n, mask in masks.items() if mask.n_units() != n or not n]:
            raise ValueError(
                f"the mask of {wrong[0]!r} units has {masks[wrong[0]].n_units()}: masks are by their number"
            )
        sites = [site for site in SITES if any(mask.n_units(site) for mask in masks.values())]
        return masks, shape.n_layers * sum(map(shape.n_units, sites))
    units.shape.require_same(shape, "the scores")
    n_units = sum(values.numel() for values in units.scores.values())
    if counts is None:
        counts = sorted({max(1, int(share * n_units)) for share in SHARES})
    if not counts or any(a >= b for a, b in itertools.pairwise(counts)) or counts[-1] > n_units:
        raise ValueError(f"counts must ascend, from 1 to at most the {n_units} scored units, not {tuple(counts)}")
    return {count: units.top(count) for count in counts}, n_units


def _jobs(found: Mapping[int, FreezeMask], controls: int, seed: int) -> dict[tuple[Chosen, int, int], FreezeMask]:
    """What is patched, by kind of units, draw and count."""
    jobs: dict[tuple[Chosen, int, int], FreezeMask] = {("found", 0, n): units for n, units in found.items()}
    for chosen, draw in itertools.product(CONTROLS, range(controls)):
        for n, units in found.items():
            like = FreezeMask.random_units(units, seed=seed + draw, per_layer=chosen == "same layers")
            jobs[chosen, draw, n] = like
    return jobs


def _require_difference(base: Bool[Tensor, " prompt"], aligned: Bool[Tensor, " prompt"]) -> None:
    a, b = Share.of(aligned), Share.of(base)
    if not math.isfinite(a.rate) or a.rate - b.rate < LEAST:
        raise ValueError(
            f"the aligned model refuses {a} and the base {b}: there is no refusal that units could carry; take prompts "
            "that only the aligned model refuses, or another detector"
        )
