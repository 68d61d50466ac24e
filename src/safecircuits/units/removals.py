"""Behaviour without a set of units, measured once each, and not again after an interruption."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from safecircuits.base.files import write_text
from safecircuits.base.reading import parse_json
from safecircuits.behavior.answers import of_plain, plain
from safecircuits.behavior.divergence import TOKENS, TokenKL, divergences, references_of
from safecircuits.behavior.evaluate import EvaluationOptions, evaluate, judge_as, written
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.verdict_table import Tally
from safecircuits.hooks.ablate import UnitValues, ablated
from safecircuits.masks.freeze_mask import FreezeMask, units_of
from safecircuits.model.fingerprint import weights_fingerprint
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.prompts.prompt_set import PromptSet

FORMAT, VERSION = "safecircuits-removals", 6
_SETS = ("malicious", "over_rejection", "utility")


class Removals:
    """Measures a model without units; a set that it has met before costs nothing.

    Args:
        to, spare: replacement values instead of zero, and how many first positions are left; see ``ablated``.
        kl_tokens: of how many tokens of each answer the KL to the intact model is measured too (``Behavior.kl``); none
            with 0, and 1 takes a single pass.
        resume: a file of JSON lines to which every finished measurement is added, and from which those of an
            interrupted run are read. The intact model runs in any case, and must behave as it did then.
        sets: passed to ``evaluate``.

    Raises:
        ValueError: if the file was made with other prompts, settings or another model, or is no such file.
    """

    def __init__(
        self,
        model: HookedModel,
        *,
        to: UnitValues | None = None,
        spare: int = 0,
        kl_tokens: int = TOKENS,
        resume: str | Path | None = None,
        **sets: Unpack[EvaluationOptions],
    ) -> None:
        self.model, self.to, self.spare, self.sets = model, to, spare, sets
        self.path = None if resume is None else Path(resume)
        self.intact = evaluate(model, **sets)
        self.references = references_of(model, sets, n_tokens=kl_tokens) if kl_tokens else {}
        self.known: dict[str, Behavior] = {}
        if self.path is None:
            return
        if self.path.exists():
            self._read(self.path)
        else:
            write_text(self.path, json.dumps(self._header()) + "\n")

    def without(self, units: FreezeMask) -> Behavior:
        """Behaviour without ``units``; with none, the intact model's."""
        units = units_of(self.model, units)
        if not units:
            return self.intact
        key = units.fingerprint
        if key not in self.known:
            with ablated(self.model, units, to=self.to, spare=self.spare):
                answers, kl = written(self.model, **self.sets), divergences(self.references, self.model)
            self.known[key] = replace(judge_as(answers, self.model, self.sets), kl=kl)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    kept = {**_bits(self.known[key]), "answers": plain(self.known[key].answers)}
                    file.write(json.dumps({"units": key, **kept}) + "\n")
        return self.known[key]

    def _header(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name, value in sorted(self.sets.items()):
            if name == "unchanged":  # a model; whose weights are above
                continue
            plain = value is None or isinstance(value, str | int)
            options[name] = value.fingerprint if isinstance(value, PromptSet) else value if plain else repr(value)
        return {
            "format": FORMAT,
            "version": VERSION,
            "shape": asdict(ModelShape.of(self.model)),
            "options": options,
            "replacement": ("zero" if self.to is None else _digest_of_values(self.to))
            + (f", sparing {self.spare}" if self.spare else ""),
            "intact": _bits(self.intact),
            "kl": {name: reference.n_tokens for name, reference in sorted(self.references.items())},
            "weights": weights_fingerprint(self.model),
        }

    def _read(self, path: Path) -> None:
        # A run that was killed while writing leaves an unfinished last line, which counts as not written.
        complete = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        try:
            header, *rows = [parse_json(line) for line in complete]
            about = {of: reference.provenance for of, reference in self.references.items()}
            found = {row["units"]: _behavior(row, about) for row in rows}
            mine = self._header()
            differs = [key for key, value in mine.items() if header.get(key) != value]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} is not a file of measured removals: {error}") from error
        if differs:
            names = {"intact": "other weights", "weights": "other weights", "options": "other prompts or settings"}
            what = names.get(differs[0], f"another {differs[0]}")
            raise ValueError(f"{str(path)!r} was made with {what}; give this run a file of its own")
        self.known = found
        if path.read_text(encoding="utf-8") != "".join(f"{line}\n" for line in complete):
            write_text(path, "".join(f"{line}\n" for line in complete))


def _digest_of_values(values: UnitValues) -> str:
    digest = hashlib.sha256()
    for site, rows in sorted(values.items()):
        for layer, value in sorted(rows.items()):
            digest.update(f"{site}{layer}".encode())
            digest.update(value.detach().double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _bits(behavior: Behavior) -> dict[str, Any]:
    def text(verdicts: Tensor | None) -> str | None:
        return None if verdicts is None else "".join("1" if verdict else "0" for verdict in verdicts.tolist())

    bits = {name: text(getattr(behavior, name)) for name in _SETS}
    by_category = {of: {kind: asdict(one) for kind, one in kinds.items()} for of, kinds in behavior.by_category.items()}
    kl = {of: one.values.tolist() for of, one in behavior.kl.items()}
    tallies = {of: asdict(one) for of, one in behavior.tallies.items()}
    return {**bits, "tallies": tallies, "by_category": by_category, "kl": kl}


def _behavior(row: dict[str, Any], about: dict[str, dict[str, Any]]) -> Behavior:
    def verdicts(text: str | None) -> Tensor | None:
        return None if text is None else torch.tensor([bit == "1" for bit in text], dtype=torch.bool)

    tallies = {of: Tally(**one) for of, one in row["tallies"].items()}
    by_category = {of: {kind: Tally(**one) for kind, one in kinds.items()} for of, kinds in row["by_category"].items()}
    malicious, over_rejection, utility = (verdicts(row[name]) for name in _SETS)
    kl = {of: TokenKL(torch.tensor(values, dtype=torch.float64), about[of]) for of, values in row["kl"].items()}
    answers = of_plain(row["answers"])
    return Behavior(malicious, over_rejection, utility, tallies, by_category, kl=kl, answers=answers)
