"""Score the layer methods on a real language model in which refusal was planted in known layers.

``python -m benchmarks.ground_truth.real_layers --out FILE.json [--page PAGE.md]`` runs every method on every member of
the SmolLM2 family that is installed, and on the base, which does not refuse. Interrupted, the same command goes on;
with ``--member`` and ``--only`` a part of it. A member that has been built anew since is measured anew. What was
measured is kept beside FILE.json, so that a rule can be read off it again (``benchmarks.ground_truth.decision_rules``).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.ground_truth.real_layers_page import render, table
from benchmarks.ground_truth.shipped import changes_of
from safecircuits.base.files import write_text
from safecircuits.base.progress import without_bars
from safecircuits.base.vocabulary import LayerRange
from safecircuits.data.sources import load_prompts
from safecircuits.layers.decision import DecisionLayers, DecisionRule, decision_layers
from safecircuits.layers.localization import localize
from safecircuits.layers.onset import OnsetRule
from safecircuits.layers.similarity import LayerGap, layer_gap
from safecircuits.model.load import load_model
from safecircuits.organism.smollm2.catalog import SMOLLM2, built, member
from safecircuits.organism.smollm2.members import MEMBERS
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.provenance import provenance

FORMAT, VERSION = "safecircuits-real-layers", 1
GROUPS = ("gap", "decision", "bounds up", "bounds down")
ALPHA = {"bounds up": 1.1, "bounds down": 0.9}


class Scorer:
    """Runs the methods on one member after another, and keeps what they say in one JSON file."""

    def __init__(self, out: Path, pairs: int, over_rejection: int) -> None:
        self.out, self.kept = out, out.with_suffix(".kept")
        n = {"normal": pairs, "malicious": pairs, "over_rejection": over_rejection}
        self.sets: dict[str, PromptSet] = {kind: load_prompts(f"requests:{kind}", n=k) for kind, k in n.items()}
        self.results = self._read()

    def _read(self) -> dict[str, Any]:
        made = provenance(command="benchmarks.ground_truth.real_layers", datasets=self.sets)
        fresh = {"format": FORMAT, "version": VERSION, "provenance": made, "members": {}}
        if not self.out.exists():
            return fresh
        found: dict[str, Any] = json.loads(self.out.read_text(encoding="utf-8"))
        if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"{str(self.out)!r} is another kind of file; choose another --out")
        if found["provenance"]["datasets"] != made["datasets"]:
            raise ValueError(f"{str(self.out)!r} was made with other prompts; choose another --out")
        return found

    def run(self, name: str, groups: tuple[str, ...]) -> None:
        """The groups of methods that this member has not been through; rules are applied anew to what is kept.

        What was measured elsewhere, and is not kept here, stays as the rules of now have read it.
        """
        record = self._record(name)
        rules = {"onset": asdict(OnsetRule()), "decision": asdict(DecisionRule())}
        as_now = self.results.get("rules", rules) == rules
        model = None
        for group in groups:
            start = time.process_time()
            kept = self._has(name, group)
            if group in record["methods"] and not kept and (as_now or group in ALPHA):
                continue
            if not kept:
                print(f"{name}: {group}", file=sys.stderr, flush=True)
                model = model or load_model(f"{SMOLLM2}:{name}" if name != SMOLLM2 else SMOLLM2)
            if group == "gap":
                record["methods"][group] = self._gap(name, model)
            elif group == "decision":
                record["methods"][group] = self._decision(name, model)
            else:
                record["methods"][group] = self._bounds(record, model, group)
            if not kept:
                record["seconds"][group] = round(time.process_time() - start, 1)
            self.results["rules"] = rules
            write_text(self.out, json.dumps(self.results, indent=1) + "\n")

    def _record(self, name: str) -> dict[str, Any]:
        """Of a member as it is built now; the base comes first and the others in the family's order."""
        members, facts = self.results["members"], _facts(name)
        known = members.get(name)
        if known is None or known.get("changes", "") != facts["changes"]:
            known = {"methods": {}, "seconds": {}}
        members[name] = facts | {"methods": known["methods"], "seconds": known["seconds"]}
        self.results["members"] = {each: members[each] for each in (SMOLLM2, *MEMBERS) if each in members}
        found: dict[str, Any] = members[name]
        return found

    def _folder(self, name: str, group: str) -> Path:
        """Where what was measured of this build of the member is kept."""
        build = changes_of(name)[:8]
        return self.kept / ".".join(filter(None, (name, build, group)))

    def _has(self, name: str, group: str) -> bool:
        return self._folder(name, group).is_dir()

    def _gap(self, name: str, model: Any) -> dict[str, Any]:
        folder = self._folder(name, "gap")
        if not folder.is_dir():
            layer_gap(model, self.sets["normal"], self.sets["malicious"]).save(folder)
        gap = LayerGap.load(folder)
        onset, sure = gap.onset(), gap.onset_resamples()
        assert sure is not None
        layers = onset.layers if onset else None
        curve = [round(value, 3) for value in gap.gap_deg.tolist()]
        return _said(layers, gap.verdict, sure.record(layers)) | {"gap_deg": curve}

    def _decision(self, name: str, model: Any) -> dict[str, Any]:
        folder = self._folder(name, "decision")
        if not folder.is_dir():
            decision_layers(model, self.sets["normal"], self.sets["malicious"]).save(folder)
        found = with_rule(DecisionLayers.load(folder), DecisionRule())
        sure = None if found.resampled is None else found.resampled.record(found.layers)
        share = [None if value != value else round(value, 4) for value in found.share.tolist()]
        return _said(found.layers, found.verdict, sure) | {"share": share}

    def _bounds(self, record: dict[str, Any], model: Any, group: str) -> dict[str, Any]:
        """The published search at a given α, from the onset; where the gap has none, from the decision layers."""
        start = record["methods"]["gap"]["layers"] or record["methods"]["decision"]["layers"]
        if start is None:
            return _said(None, "neither the gap nor patching names layers to start from", None)
        found = localize(model, self.sets["over_rejection"], start, alpha=ALPHA[group], early_stop=True)
        layers = found.layers if found.located else None
        return _said(layers, found.verdict, found.resampled.record(found.layers)) | {
            "searched": list(found.layers), "start": list(start), "within_noise": found.within_noise,
        }  # fmt: skip


def with_rule(found: DecisionLayers, rule: DecisionRule) -> DecisionLayers:
    """The same measurement, read by another rule."""
    from dataclasses import replace

    if found.layers is None:
        return replace(found, rule=rule)
    return replace(found, rule=rule, layers=rule.range(found.share.tolist(), found.low.tolist()))


def _said(layers: LayerRange | None, verdict: str, sure: dict[str, Any] | None) -> dict[str, Any]:
    return {"layers": None if layers is None else list(layers), "verdict": verdict, "resamples": sure}


def _facts(name: str) -> dict[str, Any]:
    """Kind, role and planted layers; the base has none, and a freely aligned member no known ones."""
    if name == SMOLLM2:
        return {"kind": "base", "role": "development", "block": None, "seed": 0, "changes": ""}
    one = member(name)
    block = None if one.kind == "aligned" else [one.layers[0], one.layers[-1]]
    return {"kind": one.kind, "role": one.role, "block": block, "seed": one.seed, "changes": changes_of(name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="JSON file of all results")
    parser.add_argument("--page", type=Path, help="Markdown page to write from them")
    parser.add_argument("--pairs", type=int, default=30, help="normal and malicious prompts (default 30 of each)")
    parser.add_argument("--over-rejection", type=int, default=40, help="prompts of the scaling counts (default 40)")
    parser.add_argument("--member", action="append", help="only this member; smollm2 is the base; may be repeated")
    parser.add_argument("--only", action="append", choices=GROUPS, help="only this group of methods; may be repeated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scorer = Scorer(options.out, options.pairs, options.over_rejection)
    with without_bars():
        for name in options.member or [SMOLLM2, *built()]:
            scorer.run(name, tuple(options.only or GROUPS))
    print(table(scorer.results))
    if options.page:
        write_text(options.page, render(scorer.results))


if __name__ == "__main__":
    main()
