"""Training data without its refusals and warnings (Qi et al. 2023): drop rows whose response has a safety phrase.

Utility is to be measured, and fine-tuning to be harmless, on data that does not teach safety on the side. Qi et al. use
224 phrases, compared without case; they are not shipped here: give them as a file. The lists that come with the package
are those of the refusal detectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safecircuits.behavior.detectors import DETECTORS
from safecircuits.behavior.phrases import PhraseDetector
from safecircuits.behavior.wording import normalise
from safecircuits.data.sources import load_prompts
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FilteredData(Result):
    """The rows that stay, and of the others their index and the first phrase that was found.

    Examples:
        >>> data = sc.PromptSet("d", ("a", "b"), ("i cannot help with that .", "take the bucket ."))
        >>> found = sc.training.without_safety_rows(data, ["cannot"])
        >>> found.dropped, found.found
        ((0,), ('cannot',))
    """

    kept: PromptSet
    dropped: tuple[int, ...]
    found: tuple[str, ...]
    n_phrases: int

    @property
    def share(self) -> float:
        """Share of the rows that were dropped."""
        return len(self.dropped) / (len(self.dropped) + len(self.kept))

    def to_frame(self) -> pd.DataFrame:
        """Rows dropped by phrase, the most frequent first."""
        import pandas as pd

        return pd.DataFrame(Counter(self.found).most_common(), columns=["phrase", "rows"])

    def __str__(self) -> str:
        n = len(self.dropped) + len(self.kept)
        return f"dropped {len(self.dropped)} of {n} rows ({self.share:.1%}), by {self.n_phrases} phrases"


def without_safety_rows(data: PromptSet, phrases: str | Path | Sequence[str] = "qi2023") -> FilteredData:
    """The rows of ``data`` whose response has none of the phrases, anywhere, whatever case and apostrophes.

    Args:
        phrases: the name of a refusal detector whose phrases to use, a file with one phrase a line (or any other that
            ``load_prompts`` reads), or the phrases.

    Raises:
        ValueError: for data without responses, no or blank phrases, and if no row is left.

    Examples:
        >>> data = sc.PromptSet("d", ("a", "b"), ("i cannot help with that .", "take the bucket ."))
        >>> sc.training.without_safety_rows(data, ["cannot"]).kept.responses
        ('take the bucket .',)
    """
    if isinstance(phrases, str) and phrases in DETECTORS:
        listed: tuple[str, ...] = DETECTORS[phrases].phrases
    elif isinstance(phrases, str | Path):
        if not Path(phrases).is_file():
            known = ", ".join(DETECTORS)
            raise ValueError(f"{str(phrases)!r} is no file of phrases and none of the detectors {known}")
        listed = load_prompts(phrases).prompts
    else:
        listed = tuple(phrases)
    wanted = [(phrase, normalise(phrase)) for phrase in PhraseDetector("safety phrases", listed).phrases]
    hits: dict[int, str] = {}
    for row, response in enumerate(data.require_responses()):
        text = normalise(response, thoughts=True)  # they would be learnt, too
        hit = next((phrase for phrase, normal in wanted if normal in text), None)
        if hit is not None:
            hits[row] = hit
    stay = [row for row in range(len(data)) if row not in hits]
    if not stay:
        raise ValueError(f"every row of set {data.name!r} has one of the {len(wanted)} phrases: nothing is left")
    responses = data.require_responses()
    name = f"{data.name}, without safety" if hits else data.name
    kept = PromptSet(name, tuple(data.prompts[i] for i in stay), tuple(responses[i] for i in stay))
    return FilteredData(kept, tuple(hits), tuple(hits.values()), len(wanted))
