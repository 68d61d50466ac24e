"""Score every localizer of blocks, units and directions on models in which refusal was planted.

    python -m benchmarks.ground_truth.leaderboard --out FILE.json [--family DIR] [--page PAGE.md]

Runs them on the shipped planted models and on the members that ``benchmarks.ground_truth.build --part all`` has put
under DIR. With ``--real`` members of the SmolLM2 family are the models instead. Interrupted, the same command goes on:
results are kept after each method on each model. A localizer is added by one function and its name
(``docs/how-to/add-a-localizer.md``).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.ground_truth.compact import compact
from benchmarks.ground_truth.leaderboard.figures import figures
from benchmarks.ground_truth.leaderboard.judging import KL, REMOVED, UTILITY_LOSS, Judge, area, overlap, said, smallest
from benchmarks.ground_truth.leaderboard.objects import three_objects
from benchmarks.ground_truth.leaderboard.page import render, table
from benchmarks.ground_truth.leaderboard.passes import counted
from benchmarks.ground_truth.leaderboard.registry import OBJECTS, Localizer, NotRun, localizers
from benchmarks.ground_truth.leaderboard.subjects import Subject, mean_prompt_tokens, organisms, real
from safecircuits.base.files import write_text
from safecircuits.base.progress import without_bars
from safecircuits.base.vocabulary import SITES
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.results.provenance import provenance

FORMAT, VERSION = "safecircuits-leaderboard", 1


class Board:
    """Runs localizers on one model after another, and keeps what comes of it in one JSON file."""

    def __init__(self, out: Path, family: str, *, judged: bool = True) -> None:
        self.out, self.judged = out, judged
        rules = {"removed": REMOVED, "utility_loss": UTILITY_LOSS, "kl": KL}
        made = provenance(command="benchmarks.ground_truth.leaderboard")
        self.results: dict[str, Any] = {"format": FORMAT, "version": VERSION, "family": family, "rules": rules}
        self.results |= {"provenance": made, "members": {}}
        if not out.exists():
            return
        found = json.loads(out.read_text(encoding="utf-8"))
        for key in ("format", "version", "family", "rules"):
            if found.get(key) != self.results[key]:
                raise ValueError(f"{str(out)!r} was made with another {key}; choose another --out")
        self.results["members"] = found["members"]

    def run(
        self, subject: Subject, methods: Iterable[Localizer], again: list[str], left_out: Mapping[str, str]
    ) -> None:
        """The methods that this member has not been through, or that are asked for again."""
        member = self._member(subject)
        cells: dict[str, Any] = member["cells"]
        wanted = [one for one in methods if one.name not in left_out]
        enough = "above" if self.judged else "overlap"
        due = [one for one in wanted if enough not in cells.get(one.name, {}) or one.name in again]
        cells |= {name: {"not run": why} for name, why in left_out.items() if "overlap" not in cells.get(name, {})}
        self._save()
        lacks_objects = self.judged and "objects" not in member
        if not due and not lacks_objects:
            return
        judge = Judge(subject)
        member["intact"] = judge.intact
        if lacks_objects:
            member["objects"] = three_objects(subject)
            self._save()
        positions, change = subject.planted_change
        last = change[-1, positions.index(-1)]
        member["planted_direction"] = [round(value, 4) for value in (last / last.norm()).tolist()]
        length = mean_prompt_tokens(subject)
        for one in due:
            print(f"{subject.name}: {one.name}", file=sys.stderr, flush=True)
            member["cells"][one.name] = self._cell(subject, judge, member, one, length)
            self._save()

    def _cell(
        self, subject: Subject, judge: Judge, member: dict[str, Any], one: Localizer, length: float
    ) -> dict[str, Any]:
        if one.needs_base:
            _ = subject.base  # its loading is no cost of the method
        start = time.process_time()
        with counted(subject.model) as passes:
            found = one.find(subject)
        if isinstance(found, NotRun):
            return {"not run": found.why}
        cell: dict[str, Any] = {"seconds": round(time.process_time() - start + passes.seconds, 2)}
        cell["forward"], cell["backward"] = (round(n, 1) for n in passes.passes(length))
        if found is None:
            return cell | {"overlap": 0.0, "points": [], "smallest": None, "area": 0.0, "above": None}
        share, chance = overlap(subject, found)
        cell |= said(found) | {"overlap": round(share, 4), "chance": round(chance, 4)}
        if not self.judged:
            return cell
        points = judge.curve(found)
        name, curves = judge.control(found)
        if name not in member["controls"]:
            member["controls"][name] = [area(curve, judge.intact) for curve in curves()]
        mine, theirs = area(points, judge.intact), member["controls"][name]
        cell |= {"points": points, "smallest": smallest(points, judge.intact), "area": round(mine, 4)}
        return cell | {"above": round(mine - sum(theirs) / len(theirs), 4)}

    def _member(self, subject: Subject) -> dict[str, Any]:
        fingerprint = fingerprint_checkpoint(subject.source)
        facts = {
            "role": subject.role,
            "kind": subject.kind,
            "block": list(subject.block),
            "n_layers": subject.shape.n_layers,
            "planted_units": _by_layer(subject) if subject.kind == "units" else None,
            "k": subject.k,
            "fingerprint": fingerprint,
        }
        known = self.results["members"].get(subject.name)
        if known is None or known["fingerprint"] != fingerprint:  # built anew since
            known = {"cells": {}, "controls": {}}
        member: dict[str, Any] = known | facts
        self.results["members"][subject.name] = member
        return member

    def _save(self) -> None:
        write_text(self.out, compact(self.results))


def _left_out(given: list[str]) -> Iterator[tuple[str, str]]:
    for text in given:
        name, equals, why = text.partition("=")
        if not equals or not why.strip():
            raise ValueError(f"--leave-out is METHOD=WHY, not {text!r}")
        localizers([name])
        yield name, why.strip()


def _by_layer(subject: Subject) -> list[float]:
    """Of each layer the share of its units that is planted."""
    rows = torch.cat([subject.planted.at(site) for site in SITES], dim=1)
    return [round(value, 5) for value in rows.double().mean(1).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="JSON file of all results")
    parser.add_argument("--page", type=Path, help="Markdown page to write from them, its figure beside it")
    parser.add_argument("--family", type=Path, help="folder with further members of the planted family")
    parser.add_argument("--real", action="append", metavar="NAME", help="of the SmolLM2 family; may be repeated")
    parser.add_argument("--prompts", type=int, help="of each kind, on real members (default 32 seen, 24 that judge)")
    parser.add_argument("--member", action="append", help="only this one of the family; may be repeated")
    parser.add_argument("--only", action="append", metavar="METHOD", help="only this localizer; may be repeated")
    parser.add_argument(
        "--leave-out",
        action="append",
        metavar="METHOD=WHY",
        help="a localizer that is not run, and why; its row says so",
    )
    parser.add_argument(
        "--overlap-only",
        action="store_true",
        help="only where things are found; what is left without them is measured by the same command without this",
    )
    parser.add_argument("--again", action="append", metavar="METHOD", help="this one anew; may be repeated")
    options = parser.parse_args()
    if options.real and options.family:
        parser.error("--real and --family are two leaderboards: give each its own --out")
    try:
        chosen = localizers([*(options.only or []), *(options.again or [])] if options.only else None)
        localizers(options.again)
        left_out = dict(_left_out(options.leave_out or []))
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    board = Board(options.out, "smollm2" if options.real else "organisms", judged=not options.overlap_only)
    subjects = real(options.real, options.prompts) if options.real else organisms(options.family)
    with without_bars():
        for subject in subjects:
            if not options.member or subject.name in options.member:
                board.run(subject, chosen, options.again or [], left_out)
    for kind in OBJECTS:
        for role in ("development", "judged"):
            print(f"\n{kind}, {role}\n{table(board.results, kind, role)}")
    if options.page:
        write_text(options.page, render(board.results))
        for place, drawn in figures(board.results).items():
            write_text(options.page.parent / place, drawn)


if __name__ == "__main__":
    main()
