"""Count refusals of many scaled configurations: each once, and not again after an interruption.

What is kept on disk are completions, not verdicts, so that a sweep can be judged again by another detector. Those of a
sweep with ``early_stop`` end where its own detector was certain; the file says so, and no other detector reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from safecircuits.base.arguments import number, whole
from safecircuits.base.errors import keeping
from safecircuits.base.files import write_text
from safecircuits.base.processes import of_main, rank
from safecircuits.base.progress import track
from safecircuits.base.reading import parse_json
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.coherence import incoherent
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.divergence import KLReference
from safecircuits.behavior.early import EarlyVerdict
from safecircuits.behavior.generate import generate
from safecircuits.behavior.incoherence import degenerate
from safecircuits.behavior.scaled_completions import generate_scaled
from safecircuits.behavior.verdict import tokens_needed, verdicts
from safecircuits.behavior.wording import open_thought
from safecircuits.hooks.scale import ComponentSet, scaled, substituted
from safecircuits.layers.sweep_point import SweepPoint
from safecircuits.model.fingerprint import weights_fingerprint
from safecircuits.model.sites import HookedModel, ModelShape, require_hooked, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.prompts.rendering import render

FORMAT, VERSION = "safecircuits-sweep", 1

# One bound's sweep with the usual reach: configurations that run together share layers, and are lost together.
_TOGETHER = 5

_LOOKED_AT = 64


def checked_alpha(alpha: Any, other: str = "") -> float:
    """A number to scale by as Python's own, whichever library it is of; ``other`` is what else was possible."""
    try:
        value = number(alpha, "alpha")
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf") or value == 1:
        raise ValueError(f"alpha must be positive, finite and not 1, not {alpha!r}{other}")
    return value


def early_verdict(
    model: HookedModel, prompts: PromptSet, detector: str | RefusalDetector, template: str
) -> EarlyVerdict | None:
    """What ends completions as soon as their verdict is certain; None where it can be certain of nothing early.

    A thought that the prompt opens may still close, and what stood before then be no answer.
    """
    verdict = EarlyVerdict(detector)
    thinks = open_thought(render(tokenizer_of(model), prompts.prompts[0], template))
    return verdict if verdict.applies and not thinks else None


_Line = tuple[LayerRange | None, float, tuple[str, ...], tuple[bool, ...] | None, tuple[int, ...] | None]
"""Of a sweep file: scaled layers, α, completions, and of each whether the model ended it and in how many tokens."""


class CountingOptions(TypedDict, total=False):
    """How refusals are counted: the arguments of ``RefusalCounter``, which every analysis that counts passes on."""

    components: ComponentSet
    detector: str | RefusalDetector
    max_new_tokens: int | None
    template: str
    early_stop: bool
    resume: str | Path | None
    ordinary: PromptSet | Sequence[str] | None


class RefusalCounter:
    """Runs a configuration on all prompts and counts refusals; a configuration it has met before costs nothing.

    Args:
        components: which matrices are scaled; see ``scaled``.
        detector: what counts as a refusal.
        max_new_tokens: as many as the detector needs unless given (``tokens_needed``). The paper finds that refusals
            show in the first 4 to 8 tokens (§3.4.3).
        template: how a prompt is put to the model; see ``safecircuits.prompts.templates.TEMPLATES``.
        early_stop: end each completion as soon as no further token can change its verdict (``EarlyVerdict``). Counts
            and degenerate shares stay the same; the completions are cut, and another detector cannot judge them. Where
            the template opens a thought (``<think>``), nothing is certain before it closes, and none is cut.
        resume: a file of JSON lines to which every finished configuration is added, and from which those of an
            interrupted run are read. The unscaled model runs in any case, and must answer as it did then. What an
            interruption loses are the configurations that were being decoded together, at most five: they share their
            batches, so that none of them is finished before all are.
        ordinary: prompts on which each configuration's first-token KL to the unscaled model is measured, a pass each:
            how much of what scaling does to refusals it does to any answer.

    Raises:
        ValueError: if the file was made with other prompts, settings or another model, or is no such file; for a model
            without hook points.
        JudgingError: a ValueError, if the detector raises. The completions are in the file by then; the error's
            ``completions`` are those it failed on, and its ``kept["points"]`` the configurations counted before.

    Examples:
        >>> counter = sc.layers.RefusalCounter(model, over_rejection)
        >>> counter.count(sc.LayerRange(3, 5), alpha=1.2).count <= counter.baseline.count
        True
    """

    def __init__(
        self,
        model: HookedModel,
        prompts: PromptSet,
        *,
        components: ComponentSet = "all",
        detector: str | RefusalDetector = "opening",
        max_new_tokens: int | None = None,
        template: str = "auto",
        early_stop: bool = False,
        resume: str | Path | None = None,
        ordinary: PromptSet | Sequence[str] | None = None,
    ) -> None:
        require_hooked(model, "scaling layers")
        self.model, self.prompts, self.components, self.detector = model, prompts, components, detector
        self.generation: dict[str, Any] = {
            "max_new_tokens": whole(
                tokens_needed(detector) if max_new_tokens is None else max_new_tokens, "max_new_tokens", 1
            ),
            "template": template,
        }
        self.until = early_verdict(model, prompts, detector, template) if early_stop else None
        self.known: dict[tuple[LayerRange | None, float], SweepPoint] = {}
        self.reference = None if ordinary is None else KLReference.of(model, ordinary, n_tokens=1, template=template)
        self.path = None if resume is None else Path(resume)
        self._drafts: list[list[int]] = []
        answers = generate(model, prompts, **self.generation, until=self.until, token_ids=self._drafts)
        path = self.path
        before = [] if path is None else of_main(lambda: self._read(path, answers))
        for layers, alpha, texts, ended, lengths in before:
            self._judge(layers, alpha, Completions(prompts, texts, answers.cut, ended, lengths))
        if not before:
            self._write(None, 1.0, answers)
            self._judge(None, 1.0, answers)

    @property
    def baseline(self) -> SweepPoint:
        """The model as it is."""
        return self.known[None, 1.0]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the counts depend on besides the model: prompts, components, detector and how completions are made.

        ``ordinary`` are the prompts of the KL, if it was measured. ``substituted`` names the matrices that were scaled
        behind a norm that would have cancelled α, if any.
        """
        prompts, detector = self.prompts, self.detector
        return {
            "over_rejection": prompts.identity,
            "components": self._components,
            "substituted": substituted(self.model, self.components),
            "detector": detector if isinstance(detector, str) else repr(detector),
            "early_stop": self.until is not None,
            **({} if self.reference is None else {"ordinary": self.reference.provenance["prompts"]}),
            **self.generation,
        }

    @property
    def _components(self) -> str | list[str]:
        return self.components if isinstance(self.components, str) else list(self.components)

    def incoherent(self, point: SweepPoint) -> float:
        """Share of a configuration's completions that are no language to the unscaled model (``coherence``).

        Of the first 64 prompts, and none that the unscaled model answers in the same words.
        """
        told = [
            row
            for row in range(min(len(self.prompts), _LOOKED_AT))
            if point.completions.texts[row] != self.baseline.completions.texts[row]
        ]
        if not told:
            return 0.0
        texts = tuple(point.completions.texts[row] for row in told)
        asked = PromptSet(self.prompts.name, tuple(self.prompts.prompts[row] for row in told))
        strange = incoherent(self.model, Completions(asked, texts), self.generation["template"])
        return int(strange.sum()) / min(len(self.prompts), _LOOKED_AT)

    def count(self, layers: LayerRange, alpha: float) -> SweepPoint:
        """The configuration with ``layers`` scaled by ``alpha``."""
        return self.count_all([(layers, alpha)])[0]

    def count_all(
        self, configurations: Sequence[tuple[LayerRange, float]], *, what: str = "", progress: bool = False
    ) -> list[SweepPoint]:
        """Every configuration of (scaled layers, α). Some at a time decode together, and are then kept."""
        missing = [key for key in dict.fromkeys(configurations) if key not in self.known]
        size = _TOGETHER
        groups = [missing[i : i + size] for i in range(0, len(missing), size)]
        each_done = (1 for group in groups for _ in self._run(group))
        for _ in track(each_done, what, total=len(missing), enabled=progress):
            pass
        return [self.known[key] for key in configurations]

    def _run(self, group: Sequence[tuple[LayerRange, float]]) -> Sequence[tuple[LayerRange, float]]:
        profiles = [dict.fromkeys(layers.indices, alpha) for layers, alpha in group]
        answers = generate_scaled(
            self.model,
            self.prompts,
            profiles,
            components=self.components,
            until=self.until,
            drafts=self._drafts,
            **self.generation,
        )
        # All are written before any is judged: a detector that raises must not cost the completions.
        for (layers, alpha), texts in zip(group, answers, strict=True):
            self._write(layers, alpha, texts)
        for (layers, alpha), texts in zip(group, answers, strict=True):
            self._judge(layers, alpha, texts)
        return group

    def _judge(self, layers: LayerRange | None, alpha: float, answers: Completions) -> None:
        broken = sum(map(degenerate, answers.texts)) / len(answers)
        with keeping(lambda: {"points": tuple(self.known.values())}):
            found = verdicts(answers, self.detector)
        tally, kinds = (found.tally, found.by_category) if answers.cut is None else (None, {})
        self.known[layers, alpha] = SweepPoint(
            layers, alpha, found.refused, broken, answers, tally, kinds, self._first_token_kl(layers, alpha)
        )

    def _first_token_kl(self, layers: LayerRange | None, alpha: float) -> float | None:
        if self.reference is None or layers is None:
            return None if self.reference is None else 0.0
        with scaled(self.model, layers, alpha, components=self.components):
            return float(self.reference.divergence(self.model).first.mean())

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "prompts": self.prompts.fingerprint,
            "components": self._components,
            "shape": asdict(ModelShape.of(self.model)),
            "weights": weights_fingerprint(self.model),
            "early_stop": self.until.reason if self.until else None,
            **self.generation,
        }

    def _write(self, layers: LayerRange | None, alpha: float, answers: Completions) -> None:
        if self.path is None or rank() > 0:  # of several processes one writes
            return
        if layers is None:
            write_text(self.path, json.dumps(self._header()) + "\n")
        line: dict[str, Any] = {
            "layers": list(layers) if layers else None,
            "alpha": alpha,
            "completions": answers.texts,
        }
        if answers.ended is not None:
            line["ended"] = answers.ended
        if answers.tokens is not None:
            line["tokens"] = answers.tokens
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _read(self, path: Path, unscaled: Completions) -> list[_Line]:
        if not path.exists():
            return []
        # A run that was killed while writing leaves an unfinished last line, which counts as not written.
        # Split at line feeds alone: a completion may hold other line separators.
        complete = path.read_text(encoding="utf-8").rpartition("\n")[0].split("\n")
        try:
            header, *rows = [parse_json(line) for line in complete]
            points = [
                (
                    row["layers"] and LayerRange(*row["layers"]),
                    row["alpha"],
                    tuple(row["completions"]),
                    tuple(row["ended"]) if "ended" in row else None,
                    tuple(row["tokens"]) if "tokens" in row else None,
                )
                for row in rows
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is not a file of sweep results: {error}") from error
        mine = self._header()
        differs = [key for key, value in mine.items() if header.get(key) != value]
        if points and points[0][2] != unscaled.texts and not differs:
            differs = ["weights"]
        if differs:
            key = differs[0]
            if key == "weights":
                raise ValueError(f"{str(path)!r} was made with other weights; give this run a file of its own")
            raise ValueError(
                f"{str(path)!r} was made with another {key} ({header.get(key)}, now {mine[key]}); "
                "give this run a file of its own"
            )
        if path.read_text(encoding="utf-8") != "".join(f"{line}\n" for line in complete):
            write_text(path, "".join(f"{line}\n" for line in complete))
        return points
