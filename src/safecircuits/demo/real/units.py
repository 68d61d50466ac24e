"""Which units: scores with the beginning left out, and what is left without the highest, beside the planted ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from safecircuits.base.text import percent
from safecircuits.base.vocabulary import LayerRange, Site
from safecircuits.behavior.generate import generate
from safecircuits.demo.real.layers import KNOWN, found_block, planted_range
from safecircuits.demo.real.removal import NOTHING, Removed, remove
from safecircuits.demo.real.settings import RealDemo
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.papers.conclusion import Conclusion
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Part, Parts
from safecircuits.plots.removal import plot_removal
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.report.saved import frame_table
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.units.answer_tokens import find_answer_tokens
from safecircuits.units.importance import score_units
from safecircuits.units.scores import UnitScores
from safecircuits.units.selection import top

PAPER = "SSAH"
HALF, SMALL_KL = 0.5, 0.2
"""A set carries refusal if it leaves at most half, and little else if ordinary first tokens move by no more than this
(nats): planting itself moved them by 0.08 to 0.2."""


def site_of(study: RealDemo) -> Site:
    """Heads where heads are planted, neurons elsewhere."""
    return "attn" if study.kind == "heads" else "mlp"


def n_units(study: RealDemo) -> int:
    """How many units are removed: as many as are planted, where units are."""
    known = study.planted
    return known.n_units() if known is not None and study.kind != "layers" else study.settings.units


def _answered(study: RealDemo, kind: str) -> PromptSet:
    """The scored prompts with the model's own answers."""
    asked, s = study.prompts(f"{kind}, scored"), study.settings
    answers = generate(study.model, asked, max_new_tokens=s.response_tokens, template=s.template)
    return PromptSet(asked.name, asked.prompts, answers.texts)


def _score(study: RealDemo, name: str) -> UnitScores:
    model, template = study.model, study.settings.template
    site = (site_of(study),)
    if name == "ordinary":
        return score_units(model, study.prompts("normal, scored"), tokens="prompt", sites=site, template=template)
    if name == "attribution":
        malicious, normal = (study.prompts(f"{kind}, scored") for kind in ("malicious", "normal"))
        answers = find_answer_tokens(
            model,
            malicious,
            normal,
            detector=study.settings.detector,
            max_new_tokens=study.settings.max_new_tokens,
            template=template,
        )
        return score_units(
            model, malicious, method="attribution", reference=normal, answers=answers, sites=site, template=template
        )
    return score_units(model, _answered(study, name), sites=site, template=template)


def _orders(study: RealDemo) -> dict[str, Tensor]:
    """A number a unit by each score; high for what refusal should need."""
    found, site = study[SCORES], site_of(study)
    difference = found["malicious"].scores[site] - found["normal"].scores[site]
    return {"attribution": found["attribution"].scores[site], "WIFV, S − U": difference}


def _within(order: Tensor, layers: LayerRange | tuple[int, ...]) -> Tensor:
    inside = torch.zeros(len(order), dtype=torch.bool)
    inside[[*(range(layers.first, layers.last + 1) if isinstance(layers, LayerRange) else layers)]] = True
    return torch.where(inside[:, None], order, torch.full_like(order, float("-inf")))


def removed_sets(study: RealDemo) -> dict[str, FreezeMask]:
    """What is removed: the highest everywhere, the highest in the layers that were found, and what is known."""
    site, n, block = site_of(study), n_units(study), found_block(study)
    orders = _orders(study)
    sets = {f"{name}, all layers": top({site: order}, n, study.shape) for name, order in orders.items()}
    inside = f"attribution, decision layers {block}"
    sets[inside] = top({site: _within(orders["attribution"], block)}, n, study.shape)
    if study.kind == "layers":
        named = f"attribution, planted layers {planted_range(study)}"
        sets[named] = top({site: _within(orders["attribution"], study.planted_layers)}, n, study.shape)
    elif study.planted is not None:
        sets[f"the {n} planted {study.kind}"] = study.planted
    sets["random, in the decision layers"] = FreezeMask.random_units(
        sets[inside], study.shape, study.settings.seed, per_layer=True
    )
    return sets


def _remove(study: RealDemo) -> Removed:
    s, means = study.settings, study[SCORES]["ordinary"]
    return remove(
        study.model,
        removed_sets(study),
        malicious=study.prompts("malicious, without units"),
        ordinary=study.prompts("normal, without units"),
        to=means.mean,
        spare=means.beginning,
        known=study.planted,
        detector=s.detector,
        max_new_tokens=s.max_new_tokens,
        template=s.template,
    )


def _section(study: RealDemo, made: StudyPage) -> None:
    removed = study[REMOVED]
    plot_removal(removed.to_frame(), ax=made.axes("removal", 2.9))
    scores = study[SCORES]
    made.add(
        "units",
        "Which units refuse, and what is left without them",
        f"Units are {'heads' if site_of(study) == 'attn' else 'MLP neurons'}, scored on {study.settings.scored} "
        f"requests of each kind; {scores['attribution'].beginning} first positions, the template’s own, say nothing "
        "about a request and are left out. Removed units are set to their mean over ordinary requests. A model that is "
        "broken refuses nothing either: so beside the refusals that are left stands how far the first tokens of "
        f"ordinary answers move (KL, nats). Measured on {study.settings.scored} other requests of each kind.",
        [
            Exhibit(
                "removal",
                "Refusal left, and what it cost, by removed units",
                "Down is less refusal, right is more damage to ordinary answers.",
                [frame_table("Without each set", removed.to_frame())],
            ),
            Exhibit(None, "Where the highest units lie", "By layer.", [_depths(study)]),
        ],
    )


def _depths(study: RealDemo) -> Table:
    site, n = site_of(study), n_units(study)
    rows = []
    for name, order in _orders(study).items():
        by_layer = top({site: order}, n, study.shape).at(site).sum(1).tolist()
        rows.append([name, *map(str, by_layer)])
    if study.planted is not None:
        rows.append(["planted", *map(str, study.planted.at(site).sum(1).tolist())])
    return Table(f"The {n} highest, by layer", ["score", *map(str, range(study.shape.n_layers))], rows)


def _claims(study: RealDemo) -> Iterator[Conclusion]:
    removed, known, site, n = study[REMOVED], study.planted, site_of(study), n_units(study)
    if known is not None:
        chance = float(known.at(site).float().mean())
        shares = {
            name: (top({site: order}, n, study.shape) & known).n_units() / n for name, order in _orders(study).items()
        }
        listed = "; ".join(f"{name} {percent(share)}" for name, share in shares.items())
        text = f"Planted are {study.place}. Of the {n} highest are planted: {listed} (chance {percent(chance)})."
        best = max(shares.values())
        shows = "yes" if best >= 0.5 and best >= 2 * chance else "no" if best < 2 * chance else "unclear"
        yield "The highest units lie where refusal was planted", KNOWN, shows, text
    intact = removed.refusal(NOTHING)
    for name in removed.names[1:]:
        left, moved = removed.refusal(name), removed.moved(name)
        text = f"Without the {n} units refusal goes from {intact} to {left}, at a first-token KL of {moved:.2f} on "
        text += "ordinary requests."
        halved = left.rate <= HALF * intact.rate
        shows = "yes" if halved and moved <= SMALL_KL else "no" if not halved else "unclear"
        if halved and moved > SMALL_KL:
            text += f" Above {SMALL_KL} nats, so that more than refusal was lost."
        control = name.startswith("random")
        where = "control" if control else KNOWN if "planted" in name else PAPER
        yield f"Removed units carry refusal and little else: {name}", where, shows, text


SCORES: Parts[RealDemo, str, UnitScores] = Parts(
    lambda _: {name: f"scores_{name}" for name in ("ordinary", "attribution", "malicious", "normal")},
    UnitScores,
    _score,
    says="unit scores ({0})",
)
REMOVED: Part[RealDemo, Removed] = Part(
    "removed",
    Removed,
    _remove,
    says="removals, with the KL on ordinary requests beside them",
    section=_section,
    claims=_claims,
    tables=lambda study: {"removed": study[REMOVED].to_frame()},
)
