"""Safety under pressure: is refusal held without a system prompt, after a compliant opening, with a suffix? (SSAH §3)

Nothing here makes an attack: compliant openings and suffixes are read from what the user has.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from safecircuits.base.arguments import checked, indices, whole
from safecircuits.base.errors import keeping
from safecircuits.base.progress import track
from safecircuits.behavior.attempts import Attempt, Condition, Pressure
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.generate import continuations
from safecircuits.behavior.verdict import notice_needed, verdicts
from safecircuits.data.sources import load_prompts
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.prompts.templates import stop_string

LONGEST_PREFILL = 32
"""Tokens that are prefilled at most unless told otherwise."""


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
    limit = max_new_tokens or notice_needed(detector, len(conditions) * len(prompts))
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
        with keeping(lambda: {"attempts": tuple(attempts)}):
            found = verdicts(answers, detector)
        attempts.append(Attempt(condition, found.refused, answers, found.tally, found.by_category))
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
