"""Sentences made from the numbers. Nothing is said here that is not computed from what is passed in."""

from __future__ import annotations

from safecircuits.base.counted import Beside, at_most, said
from safecircuits.base.record import Record, number
from safecircuits.base.text import join, percent


def behavior(record: Record) -> str:
    refused = {name: row for name, row in record.items() if number(row.get("malicious_refused")) is not None}
    listed = [f"{name} {said(row, 'malicious_refused')}" for name, row in refused.items()]
    right = [
        f"{name} {percent(row['utility'])}" for name, row in record.items() if number(row.get("utility")) is not None
    ]
    sentences = [f"Malicious prompts refused: {join(listed)}."] if listed else []
    sentences += [f"Utility: {join(right)}."] if right else []
    return " ".join([*sentences, "Lines are 95 % intervals."])


def sweeps(record: Record) -> str:
    verdict = str(record.get("verdict") or "").rstrip(".")
    parts = [f"{verdict[0].upper()}{verdict[1:]}."] if verdict else []
    if (alpha := number(record.get("alpha"))) is not None and record.get("alpha_found") is not None:
        parts.append(
            f"The search settled on α = {alpha:g}."
            if record["alpha_found"]
            else f"No α gave the spread that the search looks for; α = {alpha:g} had the widest."
        )
    elif alpha is not None:
        parts.append(f"α = {alpha:g} was given.")
    if unscaled := Beside.of(record, "refused"):
        scaled = [row for bound in ("upper", "lower") for row in record.get(bound) or ()]
        parts.append(f"Of the answers unscaled {unscaled}; scaled {at_most(scaled, 'refused')}.")
    return " ".join([*parts, "Error bars: exact 95 % intervals of the change, paired over prompts."])
