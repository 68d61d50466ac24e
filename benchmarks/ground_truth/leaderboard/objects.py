"""Where the three objects meet: SCU, safety layers and the top writers of the direction, pair by pair."""

from __future__ import annotations

from typing import Any

from benchmarks.ground_truth.leaderboard.directions import writers_of
from benchmarks.ground_truth.leaderboard.subjects import Subject
from safecircuits.layers.decision import decision_layers
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.units.groups import classify_units
from safecircuits.units.importance import score_units
from safecircuits.units.three_objects import object_overlap

SCU, UCU, RU = 0.013, 0.133, 0.148
"""Shares of all units: those of Llama-2-7b-chat in the paper."""

NAMES = ("SCU", "safety layers", "top writers", "planted")


def three_objects(subject: Subject) -> list[dict[str, Any]]:
    """Common units of each pair of the three objects and of what was planted, with what chance has.

    SCU are SSAH's at its shares; safety layers the decision layers; the writers as many as there are SCU.
    """
    model, seen = subject.model, subject.seen
    scores = [score_units(model, data) for data in (seen.malicious, subject.utility)]
    scu = classify_units(*scores, scu=SCU, ucu=UCU, ru=RU)["SCU"]
    writers = writers_of(subject)
    sets = {"SCU": scu, "top writers": writers.top(scu.n_units()), "planted": subject.planted}
    layers = decision_layers(model, seen.normal, seen.malicious, detector=subject.measured.detector).layers
    if layers is not None:
        sets["safety layers"] = FreezeMask.layers(layers, model)
    found = object_overlap({name: sets[name] for name in NAMES if name in sets}, model)
    return [
        {**vars(pair), "p": float(f"{pair.p:.3g}"), "over_chance": round(pair.over_chance, 3)} for pair in found.pairs
    ]
