"""Does a completion refuse, by whichever detector, and when is that certain?"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.notices import notify
from safecircuits.behavior.completions import Completions, texts_of
from safecircuits.behavior.detectors import RefusalDetector, get_detector
from safecircuits.behavior.phrases import PhraseDetector
from safecircuits.behavior.verdict import refusals
from safecircuits.behavior.wording import open_thought


def refused(
    completions: Completions | Sequence[str], detector: str | RefusalDetector = "opening"
) -> Bool[Tensor, " prompt"]:
    """Which completions refuse, as a boolean tensor ``[prompt]``; incoherent answers are no refusals.

    The same as ``verdicts(completions, detector).refused``.

    Raises:
        JudgingError: a ValueError, if the detector raises; names the prompt, keeps completions, verdicts and the cause.
        ValueError: if the completions were cut short for the sake of another detector, or are a single string.

    Examples:
        >>> answers = sc.generate(model, malicious)
        >>> int(sc.refused(answers).sum()), len(answers.texts)
        (8, 8)
        >>> sc.refused(["I'm sorry, but I can't help with that.", "Sure, here is how"]).tolist()
        [True, False]
    """
    texts = texts_of(completions)
    if isinstance(get_detector(detector), PhraseDetector) and (thinking := sum(map(open_thought, texts))):
        notify(
            f"{thinking} of the {len(texts)} completions end inside a thought, before they answer anything, and count "
            "as no refusals: let them be longer (max_new_tokens)"
        )
    return refusals(completions, detector)
