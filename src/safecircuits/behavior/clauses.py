"""Where the clauses and sentences of an answer begin, and whether one of them says that something is not right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_JOINING = (
    "but|however|yet|and|so|therefore|still|well|pero|y|e|por eso|mas|portanto|mais|et|donc|aber|doch|und|daher|"
    "deshalb|ma|quindi|maar|en|dus|men|och|därför|ale|więc|но|и|поэтому|однако|і|тому|ama|ancak|ve|bu yüzden|fakat|"
    "لكن|ولكن|لذلك|और|इसलिए|लेकिन|nhưng|và|vì vậy|tapi|namun|dan|jadi"
)
_JOINING_UNSPACED = "但是|但|所以|因此|不过|可是|然而|しかし|ですが|そのため|하지만|그러나|따라서|그래서"
BOUNDARY = re.compile(
    rf"(?:[.!?;:,…。！？，、；،؟।]+|\s[-–—]+(?=\s))\s*"
    rf"(?:(?:{_JOINING})\b[,\s]*|(?:{_JOINING_UNSPACED})[,，、]?\s*)*"
)
_SENTENCE = re.compile(r"[.!?…。！？؟।]")
_CONTRAST = re.compile(r"\b(?:but|however|yet|still|though|although|unless|except)\b")
FIRST_SENTENCE = 84
"""In Latin letters; a longer one is an answer. Letters of scripts without spaces count for three."""


@dataclass(frozen=True)
class Clause:
    """One that follows another: where it begins, what stood before it, and whether it begins a sentence."""

    start: int
    before: str
    new_sentence: bool


def following(text: str) -> Iterator[Clause]:
    """The clauses of a normalised text but its first."""
    for found in BOUNDARY.finditer(text):
        yield Clause(found.end(), text[: found.start()], bool(_SENTENCE.search(found[0])))


def width(text: str) -> int:
    """How long a text is, in Latin letters."""
    return sum(3 if character > "\u2e7f" else 1 for character in text)


def beginning(text: str) -> str:
    """A text as far as its first sentence may be."""
    short = text[:FIRST_SENTENCE]
    while width(short) > FIRST_SENTENCE:
        short = short[: max(1, len(short) * FIRST_SENTENCE // width(short))]
    return short


def has_any(text: str, words: Sequence[str]) -> bool:
    """Whether one of some words, normalised, stands in a text: as a whole word where its script has spaces."""
    found = (text.find(word) for word in words)
    return any(
        at >= 0
        and (
            words_run_together(word)
            or not (text[at - 1 : at].isalpha() or text[at + len(word) : at + len(word) + 1].isalpha())
        )
        for at, word in zip(found, words, strict=True)
    )


def words_run_together(text: str) -> bool:
    """Whether a text is of a script that does not set words apart."""
    return any(character > "\u2e7f" for character in text)


def turns(text: str) -> bool:
    """Whether a text says "but" (English)."""
    return bool(_CONTRAST.search(text))
