"""How texts are compared: what a completion answers behind its thoughts, as a refusal is looked for and as answers are.

A refusal is the same refusal in any dress: quotation marks, apostrophes, list marks, emphasis and characters that
nobody sees do not change it. An answer is another one if a sign does: ``-5`` is not ``5``.
"""

from __future__ import annotations

import re
import unicodedata

from safecircuits.behavior.reasoning import TAGS, split

# ASCII's own two, typographic and low ones, modifier letters, primes, accents that stand alone, full width, and the
# marks of other scripts that keyboards give for an apostrophe.
_APOSTROPHES = "'`´‘’‚‛′‵ʹʻʼʽʾʿˈˊˋ՚׳᾽᾿ꞌ＇｀"
_QUOTES = '"“”„‟″‶«»〝〞＂ʺ˝״'
_STRAIGHT = str.maketrans(dict.fromkeys(_APOSTROPHES, "'") | dict.fromkeys(_QUOTES, '"'))
_HYPHENS = str.maketrans(dict.fromkeys("−‐‑﹣－", "-"))
_EMPHASIS = str.maketrans("", "", "*_")

# Before a text starts: quotation, list and heading marks, brackets, dashes, and whatever else is no letter; then,
# perhaps, the number of a list.
_LEADING = re.compile(r"(?:[\W_]+|\d{1,3}[.):\]]|[a-z][.)\]] )+")
_MAYBE_NUMBER = re.compile(r"\d{1,3}|[a-z][.)\]]?")


def without_thoughts(text: str) -> str:
    """What a completion says besides its reasoning (``reasoning.split``); nothing while a thought is open."""
    return split(text).answer


def normalise(text: str, *, thoughts: bool = False) -> str:
    """A text as detectors compare it; their phrases go through the same.

    Thoughts are left out (``without_thoughts``) unless they are asked for, and so are characters without a shape of
    their own (zero width, byte-order marks, soft hyphens, variation selectors, controls) and the emphasis marks ``*``
    and ``_``. Quotation marks and apostrophes are straight, case is folded, a letter and its accent are one character,
    spaces are single, and none stands before a comma or an apostrophe. Quotation, list and heading marks before the
    text go, and so does all else that is no letter.

    Examples:
        >>> normalise("> 1. “I´m  **sorry**”")
        'i\\'m sorry"'
    """
    return _without_lead(_folded(text if thoughts else without_thoughts(text)))


def open_thought(text: str) -> bool:
    """Whether a text ends inside a thought: nothing after it has been answered yet."""
    return not split(text).finished


def without_half_tag(text: str) -> str:
    """A text without the beginning of a tag of thoughts that it may end in."""
    before, bracket, tail = text.rpartition("<")
    begun = (bracket + "".join(filter(is_visible, tail))).lower()
    return before if bracket and any(tag.startswith(begun) and tag != begun for tag in TAGS) else text


def may_lose_lead(normalised: str) -> bool:
    """Whether all there is of a normalised text may yet turn out to be marks or a list's number before another."""
    return not normalised or bool(_MAYBE_NUMBER.fullmatch(normalised))


def same_answer(answer: str, reference: str) -> bool:
    """Whether two answers are the same one, up to case, white space, one final period, and typographic shape.

    Typographic quotation marks equal straight ones, a minus sign and other hyphens a hyphen, a letter with its accent
    the two put together (NFC); characters without a shape count for nothing. Every other sign counts: ``-5`` is
    not ``5``, ``#1`` not ``1``, ``3.50`` not ``3.5``.
    """
    return _as_answer(answer) == _as_answer(reference)


def _as_answer(text: str) -> str:
    text = " ".join(_folded(text, emphasis=True).translate(_HYPHENS).split())
    return text.removesuffix(".").rstrip() if not text.endswith("..") else text


def _folded(text: str, *, emphasis: bool = False) -> str:
    seen = unicodedata.normalize("NFD", "".join(filter(is_visible, text))).casefold()
    seen = unicodedata.normalize("NFC", seen).translate(_STRAIGHT)
    if emphasis:
        return seen
    folded = " ".join(seen.translate(_EMPHASIS).split())
    return folded.replace(" ,", ",").replace(" '", "'")


def _without_lead(text: str) -> str:
    lead = _LEADING.match(text)
    return text[lead.end() :] if lead else text


def is_visible(character: str) -> bool:
    """Whether a character has a shape or is a space."""
    if character.isascii():
        return character.isprintable() or character.isspace()
    if character in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0" or "\ufe00" <= character <= "\ufe0f":
        return False
    return unicodedata.category(character) not in ("Cf", "Cc") or character.isspace()
