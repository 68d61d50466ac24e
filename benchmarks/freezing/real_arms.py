"""What is frozen in each arm: found once for a member and kept with the results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safecircuits.base.vocabulary import LayerRange
from safecircuits.baselines.lora import Lora
from safecircuits.behavior.generate import generate
from safecircuits.layers.decision import decision_layers
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import HookedModel
from safecircuits.organism.requests.generate import prompts as requests
from safecircuits.organism.smollm2.catalog import SMOLLM2, member, planted
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.arms import Arm, full, sppft
from safecircuits.studies.ssah import as_many_random, lora_arm, scu_top_cu
from safecircuits.units.groups import classify_units
from safecircuits.units.importance import score_units

if TYPE_CHECKING:
    from benchmarks.freezing.real import Setup

ARMS = ("full", "decision layers", "other layers", "planted place", "SCU + top CU", "random units", "LoRA")
SEED = 29
SCU, UCU, RU = 0.013, 0.133, 0.148
"""SSAH's shares of all units."""


def arms_of(model: HookedModel, setup: Setup, record: dict[str, Any]) -> dict[str, Arm]:
    """The arms by name, those that this member has; what was searched for is kept in ``record``."""
    wanted = setup.arms
    arms = {"full": full()}
    if {"decision layers", "other layers"} & set(wanted):
        block = _block(model, setup, record)
        if block is not None:
            arms["decision layers"] = sppft(block, "decision layers")
            others = f"{len(block)} layers outside {block}, by seed"
            arms["other layers"] = Arm("other layers", others, FreezeMask.layers(block), draw="layers")
    if "planted place" in wanted and member(setup.member).kind != "aligned":
        arms["planted place"] = _planted(model, setup)
    if {"SCU + top CU", "random units"} & set(wanted):
        scu = _scu(model, setup)
        control = as_many_random(scu)
        arms["SCU + top CU"] = Arm("SCU + top CU", scu.frozen, scu.mask)
        arms["random units"] = Arm("random units", "as many units as SCU + top CU, by seed", control.mask, draw="units")
    lora = lora_arm(Lora(r=8))
    arms["LoRA"] = Arm("LoRA", lora.frozen, method=lora.method)
    return {name: arm for name, arm in arms.items() if name in wanted}


def _block(model: HookedModel, setup: Setup, record: dict[str, Any]) -> LayerRange | None:
    if "decision" not in record:
        normal, malicious = (requests(kind, "test", setup.pairs, SEED) for kind in ("normal", "malicious"))
        found = decision_layers(model, normal, malicious, detector="taught")
        record["decision"] = {"layers": list(found.layers) if found.layers else None, "verdict": found.verdict}
    layers = record["decision"]["layers"]
    return LayerRange(*layers) if layers else None


def _planted(model: HookedModel, setup: Setup) -> Arm:
    where, one = planted(f"{SMOLLM2}:{setup.member}"), member(setup.member)
    if one.kind == "layers":
        mask = FreezeMask.layers(set(where.layers), model)
    else:
        mask = FreezeMask.of_units({"mlp": where.mlp_units, "attn": where.heads}, model)
    return Arm("planted place", f"{one.kind} in layers {one.layers[0]} to {one.layers[-1]}", mask)


def _scu(model: HookedModel, setup: Setup) -> Arm:
    """By the paper's score on the model's own answers, as a user would have them."""
    scores = []
    for kind in ("malicious", "normal"):
        asked = requests(kind, "test", setup.pairs + setup.scored, SEED)[setup.pairs :]
        answers = generate(model, PromptSet(asked.name, asked.prompts), max_new_tokens=setup.tokens).texts
        scores.append(score_units(model, PromptSet(asked.name, asked.prompts, answers)))
    return scu_top_cu(classify_units(*scores, scu=SCU, ucu=UCU, ru=RU))
