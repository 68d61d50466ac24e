"""Does a completion refuse, by whichever detector? And is it language at all?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.behavior.detectors import DETECTORS as DETECTORS
from safecircuits.behavior.detectors import PhraseDetector as PhraseDetector
from safecircuits.behavior.detectors import RefusalDetector as RefusalDetector
from safecircuits.behavior.detectors import get_detector as get_detector
from safecircuits.behavior.detectors import normalise as normalise
from safecircuits.behavior.generate import Completions


def refused(
    completions: Completions | Sequence[str], detector: str | RefusalDetector = "opening"
) -> Bool[Tensor, " prompt"]:
    """Which completions refuse.

    Raises:
        ValueError: if the detector raises; names the prompt and keeps the cause.
    """
    detect = get_detector(detector)
    texts = completions.texts if isinstance(completions, Completions) else completions
    verdicts = []
    for i, text in enumerate(texts):
        try:
            verdicts.append(bool(detect(text)))
        except Exception as error:
            raise ValueError(f"the refusal detector failed on completion {i}: {text!r}") from error
    return torch.tensor(verdicts, dtype=torch.bool)


def degenerate(completion: str, min_words: int = 6) -> bool:
    """Whether a completion is empty or mostly one thing over and over, as an over-scaled model's are (A.3.4).

    Degenerate is a text of at least ``min_words`` words of which fewer than a third are distinct.
    """
    words = completion.split()
    return not words or (len(words) >= min_words and len(set(words)) * 3 < len(words))
