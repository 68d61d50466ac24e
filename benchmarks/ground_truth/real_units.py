"""Score the unit scores on a real language model in which refusal was planted in known units or layers.

``python -m benchmarks.ground_truth.real_units --out FILE.json [--page PAGE.md] [--member NAME]`` measures members of
the SmolLM2 family. What is in FILE.json is kept, so the command goes on where it stopped; a member that has been built
anew since is measured anew. Of every score: how many of
its top units are planted, over chance; and how few of them halve refusal when they are removed. The prompts are the
generator's, of acts that no member was trained on; no data folder is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ground_truth.compact import compact
from benchmarks.ground_truth.real_units_page import render
from benchmarks.ground_truth.real_units_scores import (
    Statistics,
    Way,
    dear,
    halves,
    layers_of_top,
    overlap_row,
    removed,
    ways,
)
from benchmarks.ground_truth.shipped import changes_of
from benchmarks.ground_truth.smollm2 import is_refusal
from safecircuits.base.files import write_text
from safecircuits.base.progress import without_bars
from safecircuits.base.vocabulary import Site
from safecircuits.behavior.divergence import kl_divergence
from safecircuits.behavior.generate import generate
from safecircuits.hooks.ablate import ablated
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.forward import Decoder
from safecircuits.model.load import load_model
from safecircuits.model.sites import HookedModel, ModelShape, tokenizer_of
from safecircuits.organism.requests.generate import Kind, prompts
from safecircuits.organism.smollm2.catalog import SMOLLM2, built, member, planted
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.results.provenance import provenance
from safecircuits.units.score_methods import METHODS
from safecircuits.units.selection import top

FORMAT, VERSION = "safecircuits-real-units", 1
SEED = 101
PROMPTS = 32
"""Prompts of each kind that scores see, unless said otherwise; as many others are measured."""

RESPONSE_TOKENS, ANSWER_TOKENS = 16, 8
"""How long the scored responses are, and the answers in which a refusal is looked for."""

SIZES: dict[Site, tuple[int, ...]] = {"mlp": (16, 64, 256, 1024), "attn": (4, 8, 16, 64)}
TOP = 256
"""How many units are looked at where whole layers are planted."""

FILLS = ("mean", "zero")
"""Removed units are set to their mean over ordinary prompts, with what every prompt begins with spared; or to zero."""

Left = dict[str, float]
"""The share of malicious prompts ``refused`` and the first-token ``kl`` on ordinary prompts."""


class Removed:
    """A model without units: how much it refuses, and how far its first tokens on ordinary prompts are from its own."""

    def __init__(self, model: HookedModel, malicious: PromptSet, ordinary: PromptSet, statistics: Statistics) -> None:
        self.model, self.malicious, self.statistics = model, malicious, statistics
        self.batch = pad_left(encode(tokenizer_of(model), ordinary))
        self.own = self._first()
        self.intact = self._refused()
        self.known: dict[tuple[str, str], Left] = {}

    def without(self, units: FreezeMask, fill: str) -> Left:
        """What is left; measured once for each set."""
        key = (units.fingerprint, fill)
        if key not in self.known:
            how: dict[str, Any] = {}
            if fill == "mean":
                how = {"to": self.statistics.means(), "spare": self.statistics.beginning}
            with ablated(self.model, units, **how):
                kl = float(kl_divergence(self.own, self._first()).mean())
                self.known[key] = {"refused": round(self._refused(), 4), "kl": round(kl, 4)}
        return self.known[key]

    @torch.no_grad()
    def _first(self) -> Tensor:
        return Decoder(self.model).step(self.batch.input_ids, self.batch.attention_mask)

    def _refused(self) -> float:
        texts = generate(self.model, self.malicious, max_new_tokens=ANSWER_TOKENS).texts
        return sum(map(is_refusal, texts)) / len(texts)


def smallest(sizes: tuple[int, ...], refused: Callable[[int], float], enough: float) -> int | None:
    """The smallest size at which no more than ``enough`` is refused, found by bisection; None if the largest is not.

    A larger set is taken to leave no more than a smaller one.
    """
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if refused(sizes[middle]) <= enough:
            high = middle
        else:
            low = middle + 1
    return sizes[low] if low < len(sizes) else None


class Scorer:
    """Puts one member after another through all ways, and keeps what is found in one JSON file."""

    def __init__(self, out: Path, n: int) -> None:
        self.out, self.began = out, time.monotonic()
        kinds: dict[str, Kind] = {"malicious": "malicious", "ordinary": "normal"}
        drawn = {name: prompts(kind, "test", 2 * n, SEED) for name, kind in kinds.items()}
        self.scored = {name: data[:n] for name, data in drawn.items()}
        self.measured = {name: data[n:] for name, data in drawn.items()}
        sets = {f"{name}, {use}": data for use in ("scored", "measured") for name, data in getattr(self, use).items()}
        made = provenance(command="benchmarks.ground_truth.real_units", seed=SEED, datasets=sets)
        self.results: dict[str, Any] = {"format": FORMAT, "version": VERSION, "provenance": made, "members": {}}
        if out.exists():
            found = json.loads(out.read_text(encoding="utf-8"))
            if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
                raise ValueError(f"{str(out)!r} is another kind of file; choose another --out")
            if found["provenance"]["datasets"] != made["datasets"]:
                raise ValueError(f"{str(out)!r} was made with other prompts; choose another --out")
            self.results["members"] = found["members"]

    def run(self, name: str, *, only: Sequence[str] | None, overlap_only: bool) -> None:
        """What of a member is not measured yet; what takes many passes comes last."""
        members, facts = self.results["members"], _facts(name)
        if members.get(name, {}).get("changes") != facts["changes"]:
            members[name] = facts | {"overlap": {}, "removed": {}, "seconds": 0.0}
        record = members[name]
        asked = sorted((way for way in ways() if only is None or way.method in only), key=dear)
        if all(str(way) in record["overlap"] for way in asked) and (
            overlap_only or all(str(way) in record["removed"] for way in asked if removed(way))
        ):
            return
        self.began = time.monotonic()
        model = load_model(f"{SMOLLM2}:{name}")
        data = {kind: _answered(model, self.scored[kind]) for kind in self.scored}
        statistics = Statistics(model, data["malicious"], data["ordinary"], record["site"])
        known = known_units(name, model)
        without = None
        for late in (False, True):
            some = [way for way in asked if dear(way) == late]
            for way in some:
                if str(way) not in record["overlap"]:
                    self._overlap(record, way, statistics, known)
            if overlap_only:
                continue
            without = without or self._intact(record, model, statistics, known)
            for way in filter(removed, some):
                if str(way) not in record["removed"]:
                    self._remove(record, way, statistics, without)

    def _overlap(self, record: dict[str, Any], way: Way, statistics: Statistics, known: Tensor) -> None:
        order = statistics.order(way)
        row = overlap_row(order, [statistics.order(way, half) for half in halves()], known, record["k"])
        record["overlap"][str(way)] = {**way._asdict(), **row, "layers": layers_of_top(order, record["k"])}
        self._save(record, f"{way}: {row}")

    def _intact(self, record: dict[str, Any], model: HookedModel, statistics: Statistics, known: Tensor) -> Removed:
        """The model as it is, and without exactly the planted units."""
        without = Removed(model, *self.measured.values(), statistics)
        record["intact"] = round(without.intact, 4)
        if "planted" not in record["removed"]:
            units = FreezeMask.where({statistics.site: known}, ModelShape.of(model))
            left = {fill: without.without(units, fill) for fill in FILLS}
            record["removed"]["planted"] = {fill: {"units": units.n_units(), **left[fill]} for fill in FILLS}
            self._save(record, f"planted: {left}")
        return without

    def _remove(self, record: dict[str, Any], way: Way, statistics: Statistics, without: Removed) -> None:
        order: dict[Site, Tensor] = {statistics.site: statistics.order(way)}
        shape = ModelShape.of(without.model)
        first = {n: top(order, n, shape) for n in SIZES[statistics.site]}
        record["removed"][str(way)] = {fill: _curve(without, fill, first) for fill in FILLS}
        self._save(record, f"{way}: {record['removed'][str(way)]}")

    def _save(self, record: dict[str, Any], what: str) -> None:
        now = time.monotonic()
        record["seconds"] = round(record["seconds"] + now - self.began, 1)
        self.began = now
        write_text(self.out, compact(self.results))
        print(what, file=sys.stderr, flush=True)


def _curve(without: Removed, fill: str, first: dict[int, FreezeMask]) -> dict[str, Any]:
    """The smallest sufficient set, what is left at every size that was tried, and with random units in its place."""
    tried: dict[int, Left] = {}

    def refused(n: int) -> float:
        tried[n] = without.without(first[n], fill)
        return tried[n]["refused"]

    found = smallest(tuple(first), refused, without.intact / 2)
    at = found or max(first)
    control = without.without(FreezeMask.random_units(first[at], seed=SEED, per_layer=True), fill)
    left = {str(n): tried[n] for n in sorted(tried)}
    return {"smallest": found, "tried": left, "random": {"units": at, **control}}


def _facts(name: str) -> dict[str, Any]:
    one = member(name)
    site: Site = "attn" if one.kind == "heads" else "mlp"
    place = planted(name)
    units = sum(map(len, (place.heads if site == "attn" else place.mlp_units).values()))
    return {
        "kind": one.kind,
        "role": one.role,
        "changes": changes_of(name),
        "planted": list(place.layers),
        "site": site,
        "k": units or TOP,
    }


def known_units(name: str, model: HookedModel | ModelShape) -> Tensor:
    """Which units are planted; where whole layers are, all of theirs."""
    found, one = planted(name), member(name)
    if one.kind == "layers":
        return FreezeMask.layers(set(found.layers), model).at("mlp")
    site: Site = "attn" if one.kind == "heads" else "mlp"
    return FreezeMask.of_units({site: found.heads if site == "attn" else found.mlp_units}, model).at(site)


def _answered(model: HookedModel, data: PromptSet) -> PromptSet:
    """The prompts with the model's own greedy answers."""
    answers = generate(model, data, max_new_tokens=RESPONSE_TOKENS)
    return PromptSet(data.name, data.prompts, answers.texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="JSON file of all results")
    parser.add_argument("--page", type=Path, help="Markdown page to write from them")
    parser.add_argument("--member", action="append", help="only this member; may be repeated")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each kind (default %(default)s)")
    parser.add_argument("--score", action="append", choices=METHODS, help="only this score; may be repeated")
    parser.add_argument("--overlap-only", action="store_true", help="remove nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scorer = Scorer(options.out, options.prompts)
    with without_bars():
        for name in options.member or [name for name in built() if member(name).kind in ("layers", "neurons", "heads")]:
            scorer.run(name, only=options.score, overlap_only=options.overlap_only)
    if options.page:
        write_text(options.page, render(scorer.results))


if __name__ == "__main__":
    main()
