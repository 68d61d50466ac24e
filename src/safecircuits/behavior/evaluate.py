"""Safety and utility of a model in three numbers: malicious refused, over-rejected, answered exactly right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.errors import keeping
from safecircuits.base.notices import notify
from safecircuits.behavior.answers import marked
from safecircuits.behavior.coherence import Unchanged, unlikely_answers
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.generate import generate
from safecircuits.behavior.grading import Grading, right_answers
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.verdict import notice_needed, verdicts
from safecircuits.behavior.verdict_table import Verdicts
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set


class EvaluationOptions(TypedDict, total=False):
    """The arguments of ``evaluate``, for functions that pass them on."""

    malicious: PromptSet | None
    over_rejection: PromptSet | None
    utility: PromptSet | None
    detector: str | RefusalDetector
    max_new_tokens: int | None
    refusal_tokens: int | None
    template: str
    system: str | None
    max_tokens: int | None
    unchanged: Unchanged | None
    grading: Grading


def exact_match(completions: Completions | Sequence[str], responses: Sequence[str]) -> Bool[Tensor, " prompt"]:
    """Which completions are their response: the same up to case, white space and one final period (``same_answer``).

    Every other sign counts: ``-5`` is not ``5``. Thoughts before an answer (``<think>…</think>``) are not part of it.
    ``Completions`` that the limit of tokens cut may go on after the response, and none of them is right.

    Raises:
        ValueError: for another number of responses, or what is no list of texts.

    Examples:
        >>> sc.behavior.exact_match(["Paris.", "-5", "paris or rome"], ["paris", "5", "paris"]).tolist()
        [True, False, False]
    """
    return right_answers(completions, responses)


@checked
def evaluate(
    model: HookedModel,
    *,
    malicious: PromptSet | Sequence[str] | None = None,
    over_rejection: PromptSet | Sequence[str] | None = None,
    utility: PromptSet | None = None,
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int | None = None,
    refusal_tokens: int | None = None,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    unchanged: Unchanged | None = None,
    grading: Grading = "exact",
    progress: bool = False,
) -> Behavior:
    """Refusal rate, over-refusal and utility, measured on greedy completions; every set is optional.

    Counted as refused is what ``verdicts`` says refuses; answers that are incoherent are no refusals, and are counted
    separately. Hooks on the model stay in force. The result has rates with 95 % intervals, and every answer.

    Args:
        malicious: requests that should be refused: a prompt set, or a list of prompts.
        over_rejection: harmless requests that sound dangerous.
        utility: prompts with responses; ``grading`` says which answers are right.
        max_new_tokens: must be enough for the utility responses, 16 unless given. Of these one token more is written,
            which shows whether an answer goes on.
        refusal_tokens: of the completions that are judged for refusal; ``max_new_tokens`` if that is given, and
            otherwise as many as the detector needs (``tokens_needed``): 24 where it looks at the start, 256 where it
            reads whole answers, which costs about ten times as much and is said in a notice.
        template, system, max_tokens: as in ``generate``.
        unchanged: the model as it was before it was changed: ``model`` itself with hooks on it (they are lifted), its
            weights as ``AsItWas`` keeps them, or another model; of several, any. What it finds to be no language
            (``coherence.incoherent``) is incoherent. Word salad of eight tokens shows in nothing else. It costs one
            pass. After training, ``that_knows`` says whether it can tell what was taught from salad.
        grading: ``"exact"`` if an answer must be its response (``exact_match``), ``"number"`` if both must end in the
            same number, whatever else they say: for worked answers, to which ``max_new_tokens`` gives room.

    Raises:
        JudgingError: a ValueError, if the detector raises; its ``kept`` has the completions of every set by name.

    Examples:
        >>> measured = sc.evaluate(model, malicious=malicious, over_rejection=over_rejection, utility=utility)
        >>> measured.rates["malicious_refused"], measured.rates["utility"]
        (1.0, 1.0)
        >>> print(measured.shares["malicious_refused"])
        100.0 % [67.6, 100.0] (8/8)
    """
    sets: EvaluationOptions = {
        "malicious": None if malicious is None else as_prompt_set(malicious, "malicious"),
        "over_rejection": None if over_rejection is None else as_prompt_set(over_rejection, "over_rejection"),
        "utility": None if utility is None else as_prompt_set(utility, "utility"),
        "detector": detector,
        "max_new_tokens": max_new_tokens,
        "refusal_tokens": refusal_tokens,
        "template": template,
        "system": system,
        "max_tokens": max_tokens,
        "grading": grading,
    }
    given = written(model, progress=progress, **sets)
    return judge(given, detector, unchanged=unchanged, template=template, system=system, grading=grading)


def written(model: HookedModel, *, progress: bool = False, **sets: Unpack[EvaluationOptions]) -> dict[str, Completions]:
    """The completions that ``evaluate`` judges, by set, for those who judge them later: by ``judge_as``."""
    named = {name: sets.get(name) for name in ("malicious", "over_rejection", "utility")}
    asked = {name: as_prompt_set(prompts, name) for name, prompts in named.items() if prompts is not None}
    if not asked:
        raise ValueError("nothing to evaluate: give malicious=, over_rejection= or utility=")
    longest = sets.get("max_new_tokens")
    n_judged = sum(len(prompts) for name, prompts in asked.items() if name != "utility")
    if "utility" in asked and sets.get("grading", "exact") == "exact":
        notice_long_answers(model, asked["utility"], longest or UTILITY_TOKENS)
    needed = sets.get("refusal_tokens") or longest
    if needed is None and n_judged:
        needed = notice_needed(sets.get("detector", "opening"), n_judged)
    how: dict[str, Any] = {name: sets[name] for name in ("template", "system", "max_tokens") if name in sets}
    return {
        name: generate(
            model,
            prompts,
            max_new_tokens=answer_tokens(longest or UTILITY_TOKENS) if name == "utility" else needed or 1,
            progress=progress,
            **how,
        )
        for name, prompts in asked.items()
    }


def judge_as(answers: Mapping[str, Completions], unchanged: Unchanged | None, sets: EvaluationOptions) -> Behavior:
    """What ``evaluate(model, unchanged=unchanged, **sets)`` says of completions that ``written`` has made."""
    named = {name: sets.get(name) for name in ("detector", "template", "system", "grading")}
    how: dict[str, Any] = {name: value for name, value in named.items() if name in sets}
    return judge(answers, **how, unchanged=sets.get("unchanged") or unchanged)


UTILITY_TOKENS = 16


def answer_tokens(max_new_tokens: int) -> int:
    """Tokens to write for an answer of at most ``max_new_tokens``: one more says whether it ends there."""
    return max_new_tokens + 1


def notice_long_answers(model: HookedModel, utility: PromptSet, max_new_tokens: int) -> None:
    """Tell if known answers are longer than completions may be: those count as wrong, whatever the model says."""
    lengths = answer_lengths(model, utility)
    too_long = sum(length > max_new_tokens for length in lengths)
    if too_long:
        notify(
            f"{too_long} of the {len(lengths)} known answers of {utility.name!r} are longer than a completion may be, "
            f"so that none can equal them: utility is an exact match within max_new_tokens={max_new_tokens}, and the "
            f"longest answer has {max(lengths)}"
        )


def answer_lengths(model: HookedModel, utility: PromptSet) -> list[int]:
    """Tokens of each known answer; empty for a model without a tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return []
    return [len(ids) for ids in tokenizer(list(utility.require_responses()), add_special_tokens=False)["input_ids"]]


def judge(
    answers: Mapping[str, Completions],
    detector: str | RefusalDetector = "opening",
    *,
    unchanged: Unchanged | None = None,
    template: str = "auto",
    system: str | None = None,
    grading: Grading = "exact",
) -> Behavior:
    """What ``evaluate`` says of completions that are there already.

    Args:
        answers: by set: ``malicious``, ``over_rejection``, ``utility``; the prompts of the last one have responses.
        template, system: in which they were asked, for the unchanged model.
        grading: as in ``evaluate``.

    Raises:
        JudgingError: a ValueError, if the detector raises; its ``kept`` has the completions of every set by name.
    """
    found = judged(answers, detector, unchanged=unchanged, template=template, system=system)
    useful = answers.get("utility")
    responses = None if useful is None else useful.prompts.require_responses()
    return behavior_of(found, None if useful is None or responses is None else answered(useful, responses, grading))


def answered(completions: Completions, responses: Sequence[str], grading: Grading = "exact") -> Verdicts:
    """Which completions are their response (``right_answers``), as ``behavior_of`` takes it."""
    return marked(completions, responses, right_answers(completions, responses, grading))


def judged(
    answers: Mapping[str, Completions],
    detector: str | RefusalDetector = "opening",
    *,
    unchanged: Unchanged | None = None,
    template: str = "auto",
    system: str | None = None,
) -> dict[str, Verdicts]:
    """The verdicts behind ``judge``, by set; ``utility`` is not judged for refusal.

    Raises:
        JudgingError: a ValueError, if the detector raises; its ``kept`` has the completions of every set by name.
    """
    with keeping(lambda: answers):
        return {
            name: verdicts(
                found,
                detector,
                unlikely=unlikely_answers(unchanged, found, template, system),
            )
            for name, found in answers.items()
            if name != "utility"
        }


def behavior_of(found: Mapping[str, Verdicts], right: Verdicts | None = None) -> Behavior:
    """Verdicts by set, and which answers are right (``answered``), as one result."""
    refusals = {name: one.refused for name, one in found.items()}
    return Behavior(
        refusals.get("malicious"),
        refusals.get("over_rejection"),
        None if right is None else right.are("right"),
        {name: one.tally for name, one in found.items()},
        {name: of for name, one in found.items() if (of := one.by_category)},
        answers=dict(found) if right is None else {**found, "utility": right},
    )
