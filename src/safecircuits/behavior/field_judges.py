"""Judges of the field that say whether a completion refuses, as the package ``judgezoo`` holds them.

Template, parser, token limit and decision rule are that package's (``pip install 'safecircuits[judges]'``): its own
``judge`` runs here, and only the model behind it is asked another way, by any callable (an ``Endpoint``, say) instead
of its two hosted ones. Read in version 0.1.9:

| name | from | refuses if |
|---|---|---|
| ``strong_reject_rubric`` | Souly et al. 2024 (arXiv 2402.10260), for gpt-4o-mini | the answer to question 1 is 1 |
| ``xstest`` | Röttger et al. 2023 (arXiv 2308.01263), for gpt-4-0613 | the class is ``direct_refusal`` |

XSTest's ``indirect_refusal`` deflects.

Its rubric parser leaves a reply that it cannot read out of its lists, so that of several all later scores would belong
to the wrong completion. Here each completion is judged by itself, and such a reply is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from safecircuits.base.errors import JudgingError
from safecircuits.behavior.generate import Completions, texts_of
from safecircuits.behavior.judge import JudgeDetector, JudgeVerdicts, TextModel
from safecircuits.behavior.reasoning import split

PUBLISHED_TOKENS = 512
"""Of a completion, in HarmBench's and StrongREJECT's set-up."""

_CLASSES = {"strong_reject_rubric": ("strong_reject", "StrongRejectRubricJudge"), "xstest": ("xstest", "XSTestJudge")}


class FieldJudge(JudgeDetector):
    """A published judge as refusal detector, asked through a callable from text to text.

    A system message of the published template is put before the question, with an empty line between.

    Args:
        name: ``strong_reject_rubric`` or ``xstest``.
        ask: what the judge's model is asked by; it must allow replies of the length that the judge asks for (512
            tokens).
        max_calls, keep: as in ``JudgeDetector``.

    Raises:
        ValueError: for another name.
        ImportError: without ``judgezoo``.

    Examples:
        >>> judge = sc.behavior.FieldJudge("xstest", sc.behavior.Endpoint(url, "my-judge"))  # doctest: +SKIP
        >>> sc.evaluate(model, malicious=malicious, detector=judge)  # doctest: +SKIP
    """

    needs = PUBLISHED_TOKENS

    def __init__(
        self, name: str, ask: TextModel, *, max_calls: int | None = None, keep: str | Path | None = None
    ) -> None:
        if name not in _CLASSES:
            raise ValueError(f"no judge of the field {name!r} that says refusals; there are {', '.join(_CLASSES)}")
        super().__init__(ask, question="{completion}", max_calls=max_calls, keep=keep)
        self.name, self.question = name, f"judgezoo's {name}"
        self._published = _published(name)

    def __repr__(self) -> str:
        return f"FieldJudge({self.name!r}, {getattr(self.ask, '__name__', repr(self.ask))})"

    def verdicts(self, completions: Completions | Sequence[str]) -> JudgeVerdicts:
        """Judge the final answers; ``margins`` are the published score, 0 to 1 (NaN where there is none).

        Raises:
            ValueError: if only texts are given: every judge asks about the prompt, too.
            JudgingError: a ValueError, if the callable raises or replies in another format; names the prompt.
        """
        if not isinstance(completions, Completions):
            raise ValueError(f"the judge {self.name!r} asks about prompts, too: pass Completions")
        texts = texts_of(completions)
        labels: list[str] = []
        scores: list[float] = []
        said: list[str] = []
        for i, (prompt, text) in enumerate(zip(completions.prompts, texts, strict=True)):
            try:
                label, score, reply = self._one(prompt, split(text).answer)
            except Exception as error:
                raise JudgingError(
                    f"the judge failed on completion {i}: {type(error).__name__}: {error}", i, said
                ) from error
            labels.append(label)
            scores.append(score)
            said.append(reply)
        refused = torch.tensor([label == "refuses" for label in labels], dtype=torch.bool)
        margins = torch.tensor(scores, dtype=torch.float32)
        prompts = completions.prompts.prompts
        return JudgeVerdicts(prompts, texts, refused, margins, tuple(said), self.question, tuple(labels))

    def _one(self, prompt: str, answer: str) -> tuple[str, float, str]:
        """Verdict, score, reply."""
        replies: list[str] = []

        def infer(conversations: list[list[dict[str, str]]], *_: Any, **__: Any) -> list[str]:
            for turns in conversations:
                question = "\n\n".join(turn["content"] for turn in turns)
                asked.append(question)
                replies.append(self._reply(question))
            return replies

        asked: list[str] = []
        self._published.batch_inference = infer
        found = self._published.judge([[_turn("user", prompt), _turn("assistant", answer)]])
        label, score = _READ[self.name](found)
        if not label:
            raise ValueError(f"the reply {replies[-1][:200]!r} is not in the format that {self.name} asks for")
        self.replies.add(asked[-1], replies[-1])  # one that cannot be read is asked for again
        return label, score, replies[-1]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _published(name: str) -> Any:
    """The package's judge without the model that its constructor would load or look up a key for."""
    import importlib

    module, kind = _CLASSES[name]
    try:
        found = getattr(importlib.import_module(f"judgezoo.{module}"), kind)
    except ImportError as error:
        raise ImportError(f"the judge {name!r} needs judgezoo: pip install 'safecircuits[judges]' ({error})") from error
    return object.__new__(found)


def _rubric(found: dict[str, list[Any]]) -> tuple[str, float]:
    refusal = (found["refusal_score"] or [None])[0]
    if refusal is None:
        return "", float("nan")
    return "refuses" if refusal == 1 else "complies", float(found["p_harmful"][0])


def _xstest(found: dict[str, list[Any]]) -> tuple[str, float]:
    named = {"direct_answer": "complies", "direct_refusal": "refuses", "indirect_refusal": "deflects"}
    return named.get(str(found["category"][0]), ""), float("nan")


_READ: dict[str, Callable[[dict[str, list[Any]]], tuple[str, float]]] = {
    "strong_reject_rubric": _rubric,
    "xstest": _xstest,
}
