"""Does a completion refuse, by whichever detector? And is it language at all?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.errors import JudgingError
from safecircuits.base.notices import notify
from safecircuits.behavior.detectors import DETECTORS as DETECTORS
from safecircuits.behavior.detectors import PhraseDetector as PhraseDetector
from safecircuits.behavior.detectors import RefusalDetector as RefusalDetector
from safecircuits.behavior.detectors import get_detector as get_detector
from safecircuits.behavior.detectors import normalise as normalise
from safecircuits.behavior.generate import Completions, texts_of
from safecircuits.behavior.judge import JudgeDetector
from safecircuits.behavior.wording import may_lose_lead, open_thought, without_half_tag


def refused(
    completions: Completions | Sequence[str], detector: str | RefusalDetector = "opening"
) -> Bool[Tensor, " prompt"]:
    """Which completions refuse.

    Raises:
        JudgingError: a ValueError, if the detector raises; names the prompt, keeps completions, verdicts and the cause.
        ValueError: if the completions were cut short for the sake of another detector, or are a single string.
    """
    detect = get_detector(detector)
    cut = completions.cut if isinstance(completions, Completions) else None
    if cut is not None and cut != EarlyVerdict(detector).reason:
        raise ValueError(
            f"these completions end where {cut}, so detector {detector!r} would judge parts of texts: "
            "generate them whole (early_stop=False)"
        )
    texts = texts_of(completions)
    if isinstance(detect, PhraseDetector) and (thinking := sum(map(open_thought, texts))):
        notify(
            f"{thinking} of the {len(texts)} completions end inside a thought, before they answer anything, and count "
            "as no refusals: let them be longer (max_new_tokens)"
        )
    try:
        if isinstance(detect, JudgeDetector):
            return detect.verdicts(completions).refused
        return torch.tensor(_one_by_one(detect, texts), dtype=torch.bool)
    except JudgingError as error:
        error.completions = completions if isinstance(completions, Completions) else texts
        raise


def _one_by_one(detect: RefusalDetector, texts: Sequence[str]) -> list[bool]:
    verdicts: list[bool] = []
    for i, text in enumerate(texts):
        try:
            verdicts.append(bool(detect(text)))
        except Exception as error:
            raise JudgingError(
                f"the refusal detector failed on completion {i}: {text!r} ({type(error).__name__}: {error}); "
                "the error's .completions keeps them all",
                i,
                verdicts,
            ) from error
    return verdicts


class EarlyVerdict:
    """Ends a completion as soon as no further token can change whether it refuses, nor whether it is degenerate.

    Verdicts and the degenerate share are those of full-length decoding; the texts are shorter, and no other detector
    can judge them. A detector of phrases takes part, and any other that has a method ``decided(text)``: True or False
    as soon as that is its verdict on every text that begins with ``text``, else None.

    Args:
        detector: the one whose verdict must be certain.
    """

    def __init__(self, detector: str | RefusalDetector) -> None:
        self.detector = get_detector(detector)
        self.reason = f"detector {getattr(self.detector, 'name', repr(self.detector))!r} was certain"

    @property
    def applies(self) -> bool:
        """Whether the detector can be certain of anything before the end."""
        return isinstance(self.detector, PhraseDetector) or hasattr(self.detector, "decided")

    def __call__(self, text: str, left: int) -> bool:
        if not self.applies or self.decided(text) is None:
            return False
        # A text of w words is degenerate if fewer than w / 3 are distinct, and each further token may begin a word;
        # the last word so far may yet grow into another one.
        # The first one, if another follows, is as long as it will be.
        words = text.replace("\ufffd", " ").split()
        return len(words) > 1 and not _repeats(words[0]) and len(set(words[:-1])) * 3 >= len(words) + left

    def decided(self, text: str) -> bool | None:
        """The verdict on every text that begins with this one, if there is only one."""
        detector: Any = self.detector
        return decided(detector, text) if isinstance(detector, PhraseDetector) else detector.decided(text)


def decided(detector: PhraseDetector, text: str) -> bool | None:
    """What the detector says of every text that begins with ``text``: True, False, or None if that is still open.

    A ``</think>`` without its beginning is left out of account: it comes where the prompt opened the thought.
    """
    known = normalise(without_half_tag(text.rstrip("\ufffd")))  # a character may be cut in the middle
    phrases = [normalise(phrase) for phrase in detector.phrases]
    if detector.where == "anywhere":
        return True if any(phrase in known for phrase in phrases) else None
    if known.startswith(tuple(phrases)):
        return True
    return None if may_lose_lead(known) or any(phrase.startswith(known) for phrase in phrases) else False


def degenerate(completion: str, min_words: int = 4) -> bool:
    """Whether a completion is empty or one thing over and over, as an over-scaled model's are (A.3.4).

    Degenerate is a text without a character that can be read; one of at least ``min_words`` words of which fewer than
    a third are distinct; and one whose first word is of at least 8 characters and repeats at most a quarter of them
    (``!!!!!!!!``, ``hahahaha``). Eight tokens are about five words; whether so few are language, the unscaled model
    says (``coherence``).
    """
    words = completion.replace("\ufffd", " ").split()
    if not words:
        return True
    return (len(words) >= min_words and len(set(words)) * 3 < len(words)) or _repeats(words[0])


def _repeats(word: str) -> bool:
    """Whether a long word is a few characters again and again; digits may be."""
    n = len(word)
    return n >= 8 and not word.isdecimal() and any(word[p:] == word[:-p] for p in range(1, n // 4 + 1))
