"""Is a text an answer at all? What is none by its words: nothing, loops, bytes, mixed-up scripts, others' turns.

What only a model can tell, salad of real words, is told by its tokens (``coherence``).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from safecircuits.behavior.wording import is_visible

Incoherence = Literal["empty", "loop", "bytes", "mixed scripts", "another turn", "unlikely tokens"]

_TURN = re.compile(
    r"<\|?(?:im_start|im_end|start_header_id|eot_id|start_of_turn|end_of_turn)\|?>"
    r"|<\|(?:user|assistant|system|end)\|>|\[/?INST\]|<</?SYS>>"  # without bars they are XML's
    r"|^#{2,3} ?(?:Instruction|Input|Response) ?:[ \t]*$|^#{2,3} ?(?:Human|User) ?:"  # without a colon, headings
    r"|^(?:User|Human|USER|HUMAN): ?(?=\S)",
    re.MULTILINE,
)
# What is shown and not said: code, quotations, and what stands between quotation marks.
_SHOWN = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|^>.*$|(?<!\w)\"[^\"]{0,400}\"|“[^”]{0,400}”|«[^»]{0,400}»|„[^“”]{0,400}[“”]",
    re.DOTALL | re.MULTILINE,
)
_SPEAKER = re.compile(
    r"[ \t]*(?:[*_>-]+ ?)?[A-Z][\w .'-]{0,24}[*_]*: ?[*_]*(?=\S)|[ \t]*(?:[*_>-]+ ?)?(?:User|Human)\b"
)
_NUMBERED = re.compile(r"^\s*(?:\d{1,3}[.)]|[-*•])\s+", re.MULTILINE)
_ROWS = set("0123456789|-=_.:+*#~ \n\t")
_TAIL = 400
_LONGEST_PERIOD = 120
# Letters of these never stand beside Latin ones in one word; others (kanji, kana, hangul) do.
_APART = ("CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "BENGALI", "TAMIL", "GEORGIAN", "ARMENIAN")


def incoherence(text: str) -> Incoherence | None:
    """Why a text is no answer, as far as its words say; None if they do not.

    Examples:
        >>> incoherence("Sure. Sure. Sure. Sure."), incoherence("Paris.\\nUser: And of Italy?"), incoherence("Paris.")
        ('loop', 'another turn', None)
    """
    return broken(text) or breaks_off(text)


def broken(text: str) -> Incoherence | None:
    """Why no answer can be read from a text at all: it is empty, one loop, or writes the other side's turns, too."""
    if not "".join(filter(is_visible, text.replace("\ufffd", ""))).strip():
        return "bytes" if "\ufffd" in text else "empty"
    if _takes_another_turn(text):
        return "another turn"
    return "loop" if degenerate(text) else None


def _takes_another_turn(text: str) -> bool:
    """Whether a text goes on with the other side's turn, and does not show one: in code, in quotation marks, in a
    dialogue that it announces by a colon."""
    spoken = _SHOWN.sub(lambda shown: "\n" * shown[0].count("\n"), text)
    return any(not _announced(spoken[: found.start()]) for found in _TURN.finditer(spoken))


def _announced(before: str) -> bool:
    """Whether what stands before a turn is the announcement of a dialogue, or its earlier lines."""
    for line in reversed([line for line in before.split("\n") if line.strip()]):
        if line.rstrip(" *_").endswith(":") and len(line.split()) > 1:
            return True
        if not _SPEAKER.match(line):
            return False
    return False


def breaks_off(text: str) -> Incoherence | None:
    """Why a text that begins as language does not stay it: it ends in a loop, or is full of bytes or mixed scripts.

    The numbers of a list do not make its lines different.
    """
    unnumbered = _NUMBERED.sub("", text)
    if _ends_in_a_loop(unnumbered) or (unnumbered.strip() and degenerate(unnumbered)):
        return "loop"
    if text.count("\ufffd") * 4 > len(text.replace(" ", "")):
        return "bytes"
    return "mixed scripts" if _scripts_run_together(text) else None


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
    return (len(words) >= min_words and len(set(words)) * 3 < len(words)) or repeats(words[0])


def repeats(word: str) -> bool:
    """Whether a long word is a few characters again and again; digits may be."""
    n = len(word)
    return n >= 8 and not word.isdecimal() and any(word[p:] == word[:-p] for p in range(1, n // 4 + 1))


def _ends_in_a_loop(text: str) -> bool:
    """Whether the second half of a text, and 24 characters at least, is one thing over and over.

    That is four times if it is short, three if it is of a dozen characters, two and a half if it is a sentence;
    of one letter or two, 16 characters will do.

    Rows of digits, rules and the cells of tables repeat and are language.
    """
    tail = text.strip()[-_TAIL:]
    for period in range(1, min(_LONGEST_PERIOD, len(tail) // 2) + 1):
        length = next((i for i in range(period, len(tail)) if tail[-1 - i] != tail[-1 - i + period]), len(tail))
        times = 2.6 if period >= 24 else 3 if period >= 12 else 4
        if length >= max(24 if period > 2 else 16, len(tail) // 2, times * period):
            return not set(tail[-period:]) <= _ROWS
    return False


def _scripts_run_together(text: str) -> bool:
    """Whether two words and more run from Latin letters into those of a script that is written apart from them."""
    mixed = 0
    for word in re.findall(r"[^\W\d_]+", text):
        if word.isascii():
            continue
        names = {unicodedata.name(c, "?").split(" ")[0] for c in word}
        apart = names & set(_APART)
        mixed += len(apart) > 1 or bool(apart and "LATIN" in names)
    return mixed >= 2
