"""The stations of the demo in the order of its flow; each keeps what it finds, so that a resumed run has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from safecircuits.base.progress import say
from safecircuits.behavior.stakes import tell_if_nothing_to_lose
from safecircuits.demo.bench import SUBJECT, Bench
from safecircuits.demo.finding import find_behavior, find_gaps, find_groups, find_layers, remove_groups
from safecircuits.demo.parts import Results, localization_part, similarity_part
from safecircuits.demo.planted import planted_layers, planted_units
from safecircuits.demo.protecting import finetune_arms
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import ModelShape

T = TypeVar("T")


def run_stations(bench: Bench) -> tuple[Results, FreezeMask]:
    """What all stations find, and the mask of the located layers and the safety-critical units."""
    say(f"safecircuits demo on the embedded models, backend {bench.settings.backend}")
    results: Results = {"schema": 1, "model": _subject(bench)}
    results["behavior"] = _timed("behaviour of the five stages", lambda: find_behavior(bench))
    tell_if_nothing_to_lose(results["behavior"][SUBJECT], "the demo")
    gaps = _timed("similarity: base, aligned, planted-layers", lambda: find_gaps(bench))
    results["similarity"] = similarity_part(gaps, bench.settings.curve_prompts)
    found = _timed("localization on aligned", lambda: find_layers(bench, "localization", bench.model, gaps[SUBJECT]))
    results["localization"] = localization_part(found)
    groups = _timed("unit scores and groups", lambda: find_groups(bench, "groups", bench.model))
    results["units"] = _timed("group ablation with random control", lambda: remove_groups(bench, groups))
    results["planted"] = {
        "layers": _timed("planted layers: what is found", lambda: planted_layers(bench, gaps["planted-layers"])),
        "units": _timed("planted units: ablation curve", lambda: planted_units(bench)),
    }
    results["finetune"] = _timed("fine-tuning arms", lambda: finetune_arms(bench, found.layers, groups))
    critical = FreezeMask.units(groups, "SCU")
    if not found.located:
        say("  the mask is of the units alone: scaling located no layers")
        return results, critical
    return results, FreezeMask.layers(found.layers) | critical


def _subject(bench: Bench) -> Results:
    return {
        "name": SUBJECT,
        **vars(ModelShape.of(bench.model)),
        "n_parameters": sum(p.numel() for p in checkpoint_parameters(bench.model).values()),
        "backend": bench.settings.backend,
    }


def _timed(what: str, run: Callable[[], T]) -> T:
    """Run one station and say how long it took."""
    started = time.perf_counter()
    result = run()
    say(f"  {what}: {time.perf_counter() - started:.1f} s")
    return result
