"""Sentences made from the numbers. Nothing is said here that is not computed from what is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safecircuits.base.record import Record, arms, bounds, curve, number
from safecircuits.base.text import degrees, join, layers, percent, rate_with_interval


def gap_stages(similarity: Record) -> dict[str, Record]:
    """The stages of a similarity record that have a gap curve."""
    return {name: row for name, row in similarity.items() if isinstance(row, Mapping) and row.get("gap_deg")}


def behavior(record: Record) -> str:
    refused = {name: row for name, row in record.items() if number(row.get("malicious_refused")) is not None}
    listed = [f"{name} {percent(row['malicious_refused'])}" for name, row in refused.items()]
    right = [
        f"{name} {percent(row['utility'])}" for name, row in record.items() if number(row.get("utility")) is not None
    ]
    sentences = [f"Malicious prompts refused: {join(listed)}."] if listed else []
    sentences += [f"Utility: {join(right)}."] if right else []
    return " ".join([*sentences, "Lines are 95 % intervals."])


def gap(similarity: Record) -> str:
    rule = similarity.get("onset_rule") or {}
    listed = []
    for name, row in gap_stages(similarity).items():
        largest = max(row["gap_deg"])
        note = f"layer {row['gap_deg'].index(largest)}"
        if block := bounds(row.get("onset")):
            note += f", onset {layers(block)}"
        elif largest < (number(rule.get("min_gap_deg")) or 0.0):
            note += f", below the {rule['min_gap_deg']:g}° that an onset needs"
        elif "onset" in row:
            note += ", no onset"
        listed.append(f"{name} {degrees(largest)} ({note})")
    text = f"Largest gap: {'; '.join(listed)}."
    appear, smooth = percent(number(rule.get("appear"))), percent(number(rule.get("smooth")))
    if rule:
        text += f" Onset rule: from the first layer with {appear} of the largest gap to the last before its growth"
        text += f" falls below {smooth} of its steepest."
    return text


def pairs(row: Record) -> str:
    last = {
        label: f"{label} {row[key][-1]:.2f} ± {row[key.replace('mean', 'std')][-1]:.2f}"
        for label, key in (("N–N", "nn_mean"), ("M–M", "mm_mean"), ("N–M", "nm_mean"))
        if row.get(key) and row.get(key.replace("mean", "std"))
    }
    return f"At the last layer: {join(list(last.values()))}." if last else ""


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
    return " ".join([*parts, "Error bars: exact 95 % intervals of the change, paired over prompts."])


def unit_map(units: Record) -> str:
    shares, of_parameters = units.get("share") or {}, units.get("share_of_parameters") or {}
    listed = []
    for group, share in shares.items():
        listed.append(f"{group} {percent(share)} of units")
        if group in of_parameters:
            listed[-1] += f" ({percent(of_parameters[group])} of parameters)"
    shade = "Shade: the count relative to the largest of its row."
    return f"{join(listed)}. {shade}" if listed else shade


def ablation(units: Record) -> str:
    table, control = units.get("ablation") or {}, units.get("random_control") or {}
    intact = table.get("nothing") or {}
    listed = [f"intact {_pair(intact)}"] if intact else []
    for group, row in table.items():
        if group == "nothing":
            continue
        listed.append(f"without the {row.get('units', '')} {group} {_pair(row)}")
        if random := control.get(group):
            listed[-1] += f" (as many random units {_pair(random)})"
    draws = {row["draws"] for row in control.values() if row.get("draws")}
    text = f"Refusal / utility: {'; '.join(listed)}." if listed else ""
    if draws == {1}:
        return f"{text} Diamonds: one random draw, which has no spread and cannot decide: take 5 (--controls 5)."
    return text + (f" Diamonds: the mean of {draws.pop()} random draws." if len(draws) == 1 else "")


def _pair(row: Record) -> str:
    return " / ".join(percent(number(row.get(key))) for key in ("malicious_refused", "utility"))


def _kept(row: Record) -> str:
    named = (("malicious_refused", "refusal"), ("over_rejected", "over-rejection"), ("utility", "utility"))
    return ", ".join(f"{label} {percent(row[key])}" for key, label in named if number(row.get(key)) is not None)


def planted_layers(record: Record) -> str:
    parts = [f"Planted: {layers(record.get('planted'))}."]
    located = (record.get("localization") or {}).get("located", True)
    for name, key, overlap in (("Onset", "onset", "onset_overlap"), ("Sweeps", "localized", "overlap")):
        if key not in record:
            continue
        shared = number(record.get(overlap))
        suffix = f", overlap {percent(shared)}" if record[key] and shared is not None else ""
        if key == "localized" and not located:
            suffix += ", within noise of not scaling at all"
        parts.append(f"{name}: {layers(record[key])}{suffix}.")
    return " ".join([*parts, "Overlap is intersection over union, in layers."])


def planted_units(record: Record) -> str:
    parts = [f"{first_below_half(record.get('curve') or [], 'the top')}"]
    if record.get("random_curve"):
        parts.append(first_below_half(record["random_curve"], "random"))
    if removed := record.get("remove_planted"):
        parts.append(f"Removing the {removed.get('removed')} planted units leaves {_kept(removed)}.")
    return " ".join(part for part in parts if part)


def first_below_half(points: Sequence[Record], which: str) -> str:
    """Where the refusal rate first falls below one half, as a sentence."""
    rows = [row for row in curve(points) if number(row.get("malicious_refused")) is not None]
    if not rows:
        return ""
    if rows[0]["malicious_refused"] < 0.5 and rows[0]["removed"] == 0:
        return f"Refusal is below 50 % with nothing removed: {_kept(rows[0])}."
    for row in rows:
        if row["malicious_refused"] < 0.5:
            share = f" ({percent(row['share'])})" if number(row.get("share")) is not None else ""
            units = f"{which} {row['removed']} units{share}"
            return f"Refusal is first measured below 50 % with {units} removed: {_kept(row)}."
    return (
        f"Refusal stays at 50 % or above with up to {rows[-1]['removed']} {which.removeprefix('the ')} units removed."
    )


def finetune(record: Record) -> str:
    rows = arms(record)
    before = record.get("before") or {}
    parts = []
    if number(before.get("malicious_refused")) is not None:
        parts.append(f"Before: {_kept(before)}.")
    seeds = {len(row.get("malicious_refused_seeds") or ()) for row in rows.values()} - {0}
    over = f" (mean over {seeds.pop()} seeds [95 % interval])" if len(seeds) == 1 else ""
    listed = [
        f"{row.get('label') or name.replace('_', ' ')} {rate_with_interval(row, 'malicious_refused')}"
        for name, row in rows.items()
    ]
    parts.append(f"Malicious refused after{over}: {'; '.join(listed)}.")
    checked = {
        name: row["frozen_bit_identical"] for name, row in rows.items() if row.get("frozen_bit_identical") is not None
    }
    if checked:
        broken = [str(rows[name].get("label") or name) for name, same in checked.items() if not same]
        parts.append(
            f"Frozen entries changed in: {join(broken)}." if broken else "Frozen entries are bit-identical afterwards."
        )
    return " ".join(parts)
