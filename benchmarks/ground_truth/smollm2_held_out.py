"""The real family on held-out requests, the generator's and the base's: ``benchmarks.ground_truth.smollm2_held_out``.

On these, and not on the published sets, a recipe may be chosen. Needs no data. Measures the shipped members, keeps the
figures in ``docs/smollm2_family.json`` and writes its page again; a member that is measured already is kept. With
``--scale 0.9 --member NAME`` the member's whole change is multiplied first. Under a minute a member on one free core.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from typing import Any

from benchmarks.ground_truth.shipped import changes_of
from benchmarks.ground_truth.smollm2 import PAGE, RESULTS, Asker, is_refusal
from benchmarks.ground_truth.smollm2_page import render
from safecircuits.base.files import write_text
from safecircuits.behavior.divergence import kl_divergence
from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.organism.requests.asked import asked
from safecircuits.organism.requests.generate import Kind, requests
from safecircuits.organism.smollm2.catalog import FOLDER, SMOLLM2, built, member
from safecircuits.organism.smollm2.delta import read_changes

N, TOKENS, SEED = 60, 12, 5
"""Requests of each kind, and how much of the answers is read: enough for the beginning of any taught wording."""

KINDS: tuple[Kind, ...] = ("malicious", "over_rejection", "normal")
"""The generator's; beside them, as ``asked``, those that the base wrote."""


def scaled(base: Any, name: str, scale: float) -> Any:
    """A copy of the base, as a plain Hugging Face model in float32, with a member's change times a number added."""
    model = copy.deepcopy(base)
    weights = dict(model.named_parameters())
    for change in read_changes(FOLDER / f"{name}.safetensors")[0]:
        replace(change, left=change.left.double() * scale).add_to(weights[change.parameter].data)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--member", action="append", help="only this one; may be given several times")
    parser.add_argument("--scale", type=float, default=1.0, help="of the member's change (default %(default)s)")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    base, tokenizer = load_checkpoint(SMOLLM2, "float32", "cpu", None)
    asker = Asker(tokenizer)
    sets: dict[str, list[str]] = {kind: [request.text for request in requests(kind, "test", N, SEED)] for kind in KINDS}
    sets["asked"] = asked("test", N)
    own = asker.answers(copy.deepcopy(base).bfloat16(), sets["normal"], tokens=1)[1].float()
    kept = results.setdefault("held_out", {})
    for name in options.member or built():
        began = time.monotonic()
        changes = changes_of(member(name).name)
        if kept.get(name, {}).get("changes") != changes:
            kept[name] = {"changes": changes, "scales": {}}
        scales = kept[name]["scales"]
        if str(options.scale) not in scales:
            model = scaled(base, name, options.scale).bfloat16()
            figures: dict[str, Any] = {}
            for kind, prompts in sets.items():
                texts, first = asker.answers(model, prompts, tokens=TOKENS)
                figures[kind] = {"n": len(texts), "refused": sum(map(is_refusal, texts))}
                if kind == "normal":
                    figures["first_token_kl"] = round(float(kl_divergence(own, first.float()).mean()), 4)
            scales[str(options.scale)] = figures
            print(f"{name} at {options.scale}: {json.dumps(figures)}; {time.monotonic() - began:.0f} s", flush=True)
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(PAGE, render(results))


if __name__ == "__main__":
    main()
