"""When is a verdict certain, so that a completion need not be written to its end?"""

from __future__ import annotations

from typing import Any

from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import RefusalDetector, get_detector
from safecircuits.behavior.incoherence import repeats
from safecircuits.behavior.phrases import PhraseDetector


class EarlyVerdict:
    """Ends a completion as soon as no further token can change whether it refuses, nor whether it is degenerate.

    Verdicts and the degenerate share are those of full-length decoding, but for a model that would go on to write
    further turns of the conversation, which nobody sees here; the texts are shorter, and no other detector can judge
    them. A detector of phrases takes part, and any other that has a method ``decided(text)``: True or False
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
        return len(words) > 1 and not repeats(words[0]) and len(set(words[:-1])) * 3 >= len(words) + left

    def decided(self, text: str) -> bool | None:
        """The verdict on every text that begins with this one, if there is only one."""
        detector: Any = self.detector
        verdict: bool | None = detector.decided(text)
        return verdict


def decided(detector: PhraseDetector, text: str) -> bool | None:
    """What the detector says of every text that begins with ``text``: True, False, or None if that is still open."""
    return detector.decided(text)


def require_judged_by(completions: Completions, detector: str | RefusalDetector) -> None:
    """Refuse completions that were cut short for the sake of another detector.

    Raises:
        ValueError: says where they end.
    """
    if completions.cut is not None and completions.cut != EarlyVerdict(detector).reason:
        raise ValueError(
            f"these completions end where {completions.cut}, so detector {detector!r} would judge parts of texts: "
            "generate them whole (early_stop=False)"
        )
