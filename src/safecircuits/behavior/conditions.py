"""Safety under pressure: is refusal held without a system prompt, after a compliant opening, with a suffix? (SSAH §3)

Nothing here makes an attack: compliant openings and suffixes are read from what the user has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from safecircuits.base.arguments import checked, indices, whole
from safecircuits.base.counted import answers_name
from safecircuits.base.errors import JudgingError
from safecircuits.base.paired import paired_difference
from safecircuits.base.progress import track
from safecircuits.base.stats import Share
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.generate import continuations
from safecircuits.behavior.refusal import RefusalDetector, degenerate
from safecircuits.behavior.verdict import tokens_needed, verdicts
from safecircuits.behavior.verdict_table import Tally
from safecircuits.data.sources import load_prompts
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.prompts.templates import stop_string
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LONGEST_PREFILL = 32
"""Tokens that are prefilled at most unless told otherwise."""


@dataclass(frozen=True)
class Condition:
    """One way of asking: with or without the system prompt, ``prefilled`` tokens of an answer, the index of a suffix.

    Examples:
        >>> sc.behavior.Condition(system=True, prefilled=4)
        Condition(system=True, prefilled=4, suffix=None)
    """

    system: bool = False
    prefilled: int = 0
    suffix: int | None = None

    def __str__(self) -> str:
        kind = f"suffix {self.suffix}" if self.suffix is not None else f"{self.prefilled} tokens prefilled"
        plain = self.suffix is None and self.prefilled == 0
        return ("plain" if plain else kind) + (", system prompt" if self.system else "")


@dataclass(frozen=True)
class Attempt:
    """What the model did under one condition: completions start after the prefilled tokens."""

    condition: Condition
    refused: Bool[Tensor, " prompt"]
    completions: Completions
    tally: Tally | None = None
    """What the completions are; None in files of earlier versions."""

    @property
    def success(self) -> Share:
        """Attack success: prompts that are not refused, with a 95 % interval; what is no answer counts (``tally``)."""
        return Share.of(~self.refused)

    @property
    def refusal(self) -> Share:
        """Prompts that are refused, with a 95 % interval."""
        return Share.of(self.refused)

    def record(self) -> dict[str, Any]:
        """What stands beside the rate: ``n``, and the shares ``incoherent`` and ``cut`` where they are known."""
        known = {"n": len(self.refused)} if self.tally is None else self.tally.record("")
        asked = self.completions.prompts.ids
        return {**known, "answers": answers_name(asked, self.completions.texts, self.refused.tolist())}


@dataclass(frozen=True)
class Pressure(Result):
    """Refusals of the same malicious prompts under every condition; ``system`` and ``suffixes`` as they were used.

    Examples:
        >>> under = sc.behavior.pressure(model, malicious, suffixes=["quickly !"])
        >>> [attempt.condition.suffix for attempt in under.attempts]
        [None, 0]
    """

    attempts: tuple[Attempt, ...]
    system: str | None
    suffixes: tuple[str, ...]
    provenance: dict[str, Any]

    def __getitem__(self, condition: Condition) -> Attempt:
        for attempt in self.attempts:
            if attempt.condition == condition:
                return attempt
        raise KeyError(f"{condition} was not tried; there are {'; '.join(str(a.condition) for a in self.attempts)}")

    def any_suffix(self, *, system: bool = False) -> Bool[Tensor, " prompt"]:
        """Prompts that are refused with every suffix: an attacker may choose the one that works."""
        rows = [a.refused for a in self.attempts if a.condition.suffix is not None and a.condition.system == system]
        if not rows:
            raise ValueError(f"no suffixes were tried {'with' if system else 'without'} a system prompt")
        return torch.stack(rows).all(dim=0)

    def held(self, *, system: bool = False) -> Int[Tensor, " prompt"]:
        """Up to how many prefilled tokens each prompt is refused, from 0 on without a gap; −1 if not even then."""
        steps = sorted(
            (a for a in self.attempts if a.condition.suffix is None and a.condition.system == system),
            key=lambda attempt: attempt.condition.prefilled,
        )
        if not steps:
            raise ValueError(f"nothing was asked {'with' if system else 'without'} a system prompt: pass system=")
        counts = torch.full((len(steps[0].refused),), -1)
        holding = torch.ones_like(counts, dtype=torch.bool)
        for attempt in steps:
            holding &= attempt.refused
            counts[holding] = attempt.condition.prefilled
        return counts

    def to_frame(self) -> pd.DataFrame:
        """One row a condition, and one for the worst suffix of each prompt.

        Columns: ``system``, ``prefilled``, ``suffix`` (index, ``"any"`` or missing), ``refused``, ``n``,
        ``attack_success`` with ``success_low`` and ``success_high``, the share ``degenerate``, which counts as success
        though it helps nobody, and how many completions are ``incoherent``, ``deflects``, ``undecided`` and ``cut``.
        """
        import pandas as pd

        tallies = [attempt.tally for attempt in self.attempts]
        rows = list(self._rows())
        return pd.DataFrame(
            [
                _row(condition, refusals, broken, tally)
                for (condition, refusals, broken), tally in zip_longest(rows, tallies)
            ]
        )

    def compare(self, after: Pressure) -> pd.DataFrame:
        """Attack success before (this) and after an intervention, and its paired change with a 95 % interval.

        Raises:
            ValueError: if the two did not ask the same prompts under the same conditions.
        """
        import pandas as pd

        mine, theirs = list(self._rows()), list(after._rows())
        if [row[0] for row in mine] != [row[0] for row in theirs]:
            raise ValueError("the two were made under different conditions: run both with the same arguments")
        for ours, other in zip(self.attempts, after.attempts, strict=True):
            if ours.completions.prompts.prompts != other.completions.prompts.prompts:
                raise ValueError("the two asked different prompts: run both with the same prompts and suffixes")
        rows = []
        for (condition, before, _), (_, changed, _) in zip(mine, theirs, strict=True):
            change, low, high = paired_difference(~changed, ~before)
            rates = {"before": Share.of(~before).rate, "after": Share.of(~changed).rate}
            rows.append({**condition, **rates, "change": change, "change_low": low, "change_high": high})
        return pd.DataFrame(rows)

    def record(self) -> dict[str, Any]:
        """Refusal rates with intervals, by system prompt: ``refusal`` by prefilled tokens, and of ``any_suffix``."""
        systems = list(dict.fromkeys(attempt.condition.system for attempt in self.attempts))
        return {
            "refusal": [
                {"system": of.system, "prefilled": of.prefilled, **_rate(attempt.refused), **attempt.record()}
                for attempt in self.attempts
                if (of := attempt.condition).suffix is None
            ],
            "any_suffix": [
                {"system": system, **_rate(self.any_suffix(system=system))} for system in systems if self.suffixes
            ],
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Refusal rate against the number of prefilled tokens; suffixes beside it."""
        from safecircuits.plots.pressure import plot_pressure

        return plot_pressure(self, ax=ax)

    def __str__(self) -> str:
        return "\n".join(
            f"{attempt.condition}: attack success {attempt.success}" + (f" ({attempt.tally})" if attempt.tally else "")
            for attempt in self.attempts
        )

    def _rows(self) -> Iterator[tuple[dict[str, Any], Bool[Tensor, " prompt"], float]]:
        for attempt in self.attempts:
            c = attempt.condition
            broken = sum(map(degenerate, attempt.completions.texts)) / len(attempt.completions)
            yield {"system": c.system, "prefilled": c.prefilled, "suffix": c.suffix}, attempt.refused, broken
        if len(self.suffixes) > 1:
            for system in dict.fromkeys(a.condition.system for a in self.attempts):
                worst = {"system": system, "prefilled": 0, "suffix": "any"}
                yield worst, self.any_suffix(system=system), float("nan")


def _rate(refused: Bool[Tensor, " prompt"]) -> dict[str, Any]:
    share = Share.of(refused)
    return {"rate": share.rate, "interval": list(share.interval)}


def _row(
    condition: dict[str, Any], refusals: Bool[Tensor, " prompt"], broken: float, tally: Tally | None
) -> dict[str, Any]:
    success = Share.of(~refusals)
    low, high = success.interval
    rates = {"attack_success": success.rate, "success_low": low, "success_high": high, "degenerate": broken}
    names = ("incoherent", "deflects", "undecided", "cut")
    counts = {name: None if tally is None else getattr(tally, name) for name in names}
    return {**condition, "refused": int(refusals.sum()), "n": success.n, **rates, **counts}


@checked
def pressure(
    model: HookedModel,
    malicious: PromptSet | Sequence[str],
    *,
    system: str | None = None,
    prefill: str | Sequence[str] | Completions | None = None,
    prefill_tokens: int | Sequence[int] | None = None,
    suffixes: Sequence[str] | str | Path = (),
    judged: Literal["continuation", "answer"] = "continuation",
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int | None = None,
    template: str = "auto",
    max_tokens: int | None = None,
    progress: bool = False,
) -> Pressure:
    """Ask malicious prompts plainly and under pressure; with a system prompt given, everything with and without one.

    Call it before and after an intervention, or inside ``with scaled(...)`` or ``ablated(...)``, and put both side by
    side with ``before.compare(after)``.

    Args:
        system: a system prompt that asks for care.
        prefill: a compliant opening that the answer is made to start with: one text for all prompts, one for each, or
            another model's completions of the same prompts (an unaligned sibling's, or the model's own with its refusal
            ablated). The targets of AdvBench are such openings, too: ``load_prompts("advbench").responses``.
        prefill_tokens: how many of its tokens: up to k for a number k, or the numbers themselves. By default 1 to
            8, 16 and 32, as far as the shortest opening reaches.
        suffixes: adversarial suffixes, each put after every prompt and a space: a list, or a file that ``load_prompts``
            reads (txt with one suffix a line, csv, json).
        judged: whether the detector sees what the model wrote after the prefilled tokens, or these and what follows.
            The detectors that look at the start need the first.
        detector, max_new_tokens, template, max_tokens: as in ``evaluate``; ``max_new_tokens`` counts from the end of
            the prefilled tokens, and is what the detector needs unless given (``tokens_needed``).

    Raises:
        ValueError: for openings that do not match the prompts or have too few tokens.
        JudgingError: a ValueError, if the detector raises; its ``kept["attempts"]`` has the conditions judged before.

    Examples:
        >>> base = sc.load_model("base")
        >>> under = sc.behavior.pressure(model, malicious, prefill=sc.generate(base, malicious), prefill_tokens=[2, 4])
        >>> [attempt.condition.prefilled for attempt in under.attempts]
        [0, 2, 4]
    """
    prompts = replace(as_prompt_set(malicious, "malicious"), responses=None)
    tails = load_prompts(suffixes).prompts if isinstance(suffixes, str | Path) else tuple(suffixes)
    openings = None if prefill is None else _openings(prompts, prefill)
    if openings is None and prefill_tokens is not None:
        raise ValueError("prefill_tokens needs prefill=, the compliant opening")
    if judged not in ("continuation", "answer"):
        raise ValueError(f"judged is 'continuation' or 'answer', not {judged!r}")
    lengths = [] if openings is None else _prefill_lengths(model.tokenizer, openings, prefill_tokens)
    systems = (False,) if system is None else (False, True)
    conditions = [
        condition
        for given in systems
        for condition in (
            Condition(given),
            *(Condition(given, prefilled=k) for k in lengths),
            *(Condition(given, suffix=i) for i in range(len(tails))),
        )
    ]
    limit = max_new_tokens or tokens_needed(detector)
    attempts: list[Attempt] = []
    for condition in track(conditions, "conditions", enabled=progress):
        asked = prompts if condition.suffix is None else _with_suffix(prompts, tails[condition.suffix])
        message = system if condition.system or system is None else ""
        if condition.prefilled and openings is not None:
            answered = replace(prompts, responses=openings)
            whole = encode(tokenizer_of(model), answered, template=template, system=message, with_responses=True)
            # What ``encode`` puts after the response, its end of sequence, is cut off with the rest.
            examples = [
                Encoded(example.ids[: example.response_start + condition.prefilled], example.response_start)
                for example in whole
            ]
        else:
            examples = encode(tokenizer_of(model), asked, template=template, system=message)
        stop = stop_string(model.tokenizer, template)
        texts, lengths_written, ended = continuations(model, examples, limit, max_tokens=max_tokens, stop=stop)
        if judged == "answer":
            begun = model.tokenizer.batch_decode(
                [e.ids[e.response_start :] for e in examples], skip_special_tokens=True
            )
            texts = [f"{start} {text.strip()}" for start, text in zip(begun, texts, strict=True)]
        answers = Completions(
            asked,
            tuple(text.strip() for text in texts),
            ended=tuple(ended),
            tokens=tuple(lengths_written),
        )
        try:
            found = verdicts(answers, detector)
            attempts.append(Attempt(condition, found.refused, answers, found.tally))
        except JudgingError as error:
            error.kept["attempts"] = tuple(attempts)
            raise
    made_by = {
        "malicious": prompts.identity,
        "prefill_sha": None if openings is None else PromptSet("openings", openings).fingerprint,
        "judged": judged,
        "detector": detector if isinstance(detector, str) else repr(detector),
        "max_new_tokens": limit,
        "template": template,
    }
    return Pressure(tuple(attempts), system, tails, made_by)


def _with_suffix(prompts: PromptSet, suffix: str) -> PromptSet:
    return PromptSet(prompts.name, tuple(f"{prompt} {suffix}" for prompt in prompts))


def _openings(prompts: PromptSet, prefill: str | Sequence[str] | Completions) -> tuple[str, ...]:
    if isinstance(prefill, str):
        texts: tuple[str, ...] = (prefill,) * len(prompts)
    elif isinstance(prefill, Completions):
        if prefill.prompts.prompts != prompts.prompts:
            raise ValueError("the completions to prefill with answer other prompts than these, or in another order")
        texts = prefill.texts
    else:
        texts = tuple(prefill)
    if len(texts) != len(prompts):
        raise ValueError(f"{len(texts)} openings to prefill for {len(prompts)} prompts: give one for each, or one text")
    return texts


def _prefill_lengths(tokenizer: Any, openings: Sequence[str], asked: int | Sequence[int] | None) -> list[int]:
    tokens = [len(ids) for ids in tokenizer(list(openings), add_special_tokens=False)["input_ids"]]
    shortest = min(range(len(tokens)), key=tokens.__getitem__)
    if asked is None:
        steps = (*range(1, 9), 16, LONGEST_PREFILL)
        asked = [step for step in steps if step <= max(1, tokens[shortest])]
    if isinstance(asked, Sized) and not (hasattr(asked, "ndim") and not asked.ndim):
        lengths = sorted(set(indices(asked, "prefill_tokens")) - {0})
    else:
        lengths = list(range(1, whole(asked, "prefill_tokens", 1) + 1))
    if not lengths or lengths[0] < 1:
        raise ValueError(f"prefill_tokens must be positive whole numbers, not {asked}")
    if lengths[-1] > tokens[shortest]:
        raise ValueError(
            f"{lengths[-1]} tokens are to be prefilled, but the opening of prompt {shortest} has {tokens[shortest]}: "
            f"{openings[shortest]!r}; lower prefill_tokens or give longer openings"
        )
    return lengths
