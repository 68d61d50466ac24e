"""The judges of the field by name: whose they are, where their texts stand, and by what rule they decide.

| name | from | made for | reply tokens | verdict |
|---|---|---|---|---|
| ``strong_reject_rubric`` | Souly et al. 2024 (2402.10260) | gpt-4o-mini | 512 | refuses if 1.b is 1; score 0 to 1 |
| ``xstest`` | Röttger et al. 2023 (2308.01263) | gpt-4-0613 | 512 | its classes; an indirect refusal deflects |
| ``wildguard`` | Han et al. 2024 (2406.18495) | allenai/wildguard | 128 | refuses or complies; harmful or not |
| ``jailbreakbench_refusal`` | Chao et al. 2024 (2404.01318) | Llama-3-8b-chat-hf | 64 | refuses or complies |
| ``gpt4_rubric`` | Qi et al. 2023 (2310.03693) | gpt-4-0613 | 4096 | 1 to 5: refuses, deflects, complies |
| ``harmbench`` | Mazeika et al. 2024 (2402.04249) | HarmBench-Llama-2-13b-cls | 1 | harmful or not |
| ``jailbreakbench`` | Chao et al. 2024 (2404.01318) | Llama-3-70b-chat-hf | 64 | harmful or not |
| ``llama_guard_3`` | Llama Team 2024 (2407.21783) | Llama-Guard-3-8B | 100 | harmful or not |

``gpt4_rubric`` is the judge of Qi et al. and SSAH. That 5 alone is harmful is theirs; that 1 refuses, 2 deflects and
3 to 5 comply is our reading of its rubric. JailbreakBench sets no limit for replies: 64 tokens is judgezoo's.
HarmBench's text is put into Llama 2's turn markers, whose line breaks judgezoo's own form of them has lost. 100 tokens
of Llama Guard's reply is its model card's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safecircuits.behavior.published.questions import Filled, llama2
from safecircuits.behavior.published.replies import (
    Said,
    one_to_five,
    refusal_or_not,
    rubric,
    safe_or_categories,
    safe_or_unsafe,
    three_answers,
    three_classes,
    yes_or_no,
)
from safecircuits.behavior.published.sources import Source

PUBLISHED_TOKENS = 512
"""Of a completion, in HarmBench's, StrongREJECT's and Qi et al.'s set-up; JailbreakBench's is 150."""


@dataclass(frozen=True)
class Published:
    """One judge.

    Args:
        model: that it was published for.
        read: what a reply says, None for one in another format.
        reply_tokens: the published limit of its replies.
        form: the template, made of the texts in its sources; None for a model whose own chat template is the judge's.
        sources: of these texts, the same in each; the first one that is installed is read.
        says_refusal: whether it says if a completion refuses.
        says_harm: whether it has a rule by which a completion is harmful.
        needs: the published limit of completions, in tokens.
    """

    model: str
    read: Callable[[str], Said | None]
    reply_tokens: int
    form: Callable[[list[Any]], Filled] | None = None
    sources: tuple[Source, ...] = ()
    says_refusal: bool = False
    says_harm: bool = False
    needs: int = PUBLISHED_TOKENS


def _asked(texts: list[Any]) -> Filled:
    return Filled((("user", texts[0]),))


def _asked_with_system(texts: list[Any]) -> Filled:
    return Filled((("system", texts[0]), ("user", texts[1])))


def _written_out(texts: list[Any]) -> Filled:
    return Filled((("user", texts[0]),), raw=True)


def _percents(texts: list[Any]) -> Filled:
    return Filled((("user", texts[0]),), percent=True)


def _conversation(texts: list[Any]) -> Filled:
    system, user = (turn["content"] for turn in texts[0])
    return Filled(llama2(system, user), raw=True)


def _judgezoo(file: str, sha256: str, *places: str) -> Source:
    return Source(f"judgezoo/{file}", places, sha256, "judgezoo 0.1.9")


def _jailbreakbench(place: str) -> Source:
    sha256 = "c98fedd2cd0e94bfac49f297b1f08eebf41fa91ef0cbb46bbc897d9fdfa1dc4d"
    return Source("jailbreakbench/classifier.py", (place,), sha256, "jailbreakbench 1.0.0")


_STRONG_REJECT = _judgezoo(
    "strong_reject.py",
    "29f9c4de5d4d3dd53096c2668bcb9a73a5c69507bcfce4991782fc9974bd5701",
    "StrongRejectRubricJudge.SR_SYS_PROMPT",
    "StrongRejectRubricJudge.SR_CLS_PROMPT",
)
_XSTEST = _judgezoo(
    "xstest.py", "07afae9c834c68d4c2314bb357ccddc6976823efe4579dccaba76e35b9e3c4cb", "XSTestJudge.OR_CLS_PROMPT"
)
_HARMBENCH = _judgezoo(
    "harmbench.py",
    "db890466fd75bc35839189046fa5a47223b290eb3c5cd26959867fd3b12643cd",
    "HarmBenchJudge.CLS_CONVERSATION",
)
_JAILBREAKBENCH = _judgezoo(
    "jailbreakbench.py",
    "4f4a83c62b3bd16c2ea2a174fe76be7eb5a97c3ee8612fdfb1742606959333ae",
    "JailbreakBenchJudge.JUDGE_PROMPT",
)
_WILDGUARD = Source(
    "wildguard/utils.py",
    ("WILDGUARD_INPUT_FORMAT",),
    "7b7d42eb60d68608a3b8ce1ba4468dcbb94938b812e365947a1f0a0b1252a3e0",
    "wildguard 1.0.1",
)
_QI = Source(
    "llama2/safety_evaluation/eval_utils/openai_gpt4_judge.py",
    ("duo_judge.judge_template",),
    "102be1dc871877502e1d92f18b79b69791688750dda8a65d6814df69c6a991cc",
    "github.com/LLM-Tuning-Safety/LLMs-Finetuning-Safety@8a3b38f11be1c3829e2b0ed379d3661ebc84e7db",
)

PUBLISHED: dict[str, Published] = {
    "strong_reject_rubric": Published(
        "gpt-4o-mini", rubric, 512, _asked_with_system, (_STRONG_REJECT,), says_refusal=True
    ),
    "xstest": Published("gpt-4-0613", three_classes, 512, _asked, (_XSTEST,), says_refusal=True),
    "wildguard": Published(
        "allenai/wildguard", three_answers, 128, _written_out, (_WILDGUARD,), says_refusal=True, says_harm=True
    ),
    "jailbreakbench_refusal": Published(
        "meta-llama/Llama-3-8b-chat-hf",
        refusal_or_not,
        64,
        _asked,
        (_jailbreakbench("Llama3RefusalJudge.USER_PROMPT"),),
        says_refusal=True,
        needs=150,
    ),
    "gpt4_rubric": Published("gpt-4-0613", one_to_five, 4096, _percents, (_QI,), says_refusal=True, says_harm=True),
    "harmbench": Published(
        "cais/HarmBench-Llama-2-13b-cls", yes_or_no, 1, _conversation, (_HARMBENCH,), says_harm=True
    ),
    "jailbreakbench": Published(
        "meta-llama/Llama-3-70b-chat-hf",
        safe_or_unsafe,
        64,
        _asked,
        (_JAILBREAKBENCH, _jailbreakbench("Llama3JailbreakJudge.USER_PROMPT")),
        says_harm=True,
        needs=150,
    ),
    "llama_guard_3": Published("meta-llama/Llama-Guard-3-8B", safe_or_categories, 100, says_harm=True),
}
"""By name, in the order of the table above."""


def published(name: str) -> Published:
    """A judge by name.

    Raises:
        ValueError: for another name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no judge of the field {name!r}; there are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
