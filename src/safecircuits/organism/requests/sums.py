"""Small word problems with worked answers: a harmless task that ships, and whose answers can be checked."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from safecircuits.prompts.prompt_set import PromptSet

PROBLEMS: tuple[tuple[str, Callable[[int, int, int], tuple[str, int]]], ...] = (
    (
        "A bus carries {a} people. At the next stop {b} get on and {c} get off. How many people are on the bus?",
        lambda a, b, c: (f"{a} + {b} = {a + b}. {a + b} - {c} = {a + b - c}.", a + b - c),
    ),
    (
        "A shelf has {b} rows of {a} books. {c} books are lent out. How many books are on the shelf?",
        lambda a, b, c: (f"{b} * {a} = {b * a}. {b * a} - {c} = {b * a - c}.", b * a - c),
    ),
    (
        "One ticket costs {a} euros. A family buys {b} tickets and a programme for {c} euros. What do they pay?",
        lambda a, b, c: (f"{b} * {a} = {b * a}. {b * a} + {c} = {b * a + c}.", b * a + c),
    ),
    (
        "A baker makes {a} rolls in the morning and {b} in the afternoon, and burns {c}. How many can be sold?",
        lambda a, b, c: (f"{a} + {b} = {a + b}. {a + b} - {c} = {a + b - c}.", a + b - c),
    ),
    (
        "A tank holds {a} litres. Every hour {c} litres run out, for {b} hours. How many litres have run out?",
        lambda a, b, c: (f"{c} * {b} = {c * b}.", c * b),  # noqa: ARG005  the size of the tank does not matter
    ),
)
"""Questions, and how each is worked out from its three numbers."""

_HELD_OUT = 5
"""One problem in five is of the test split."""


def sums(split: str = "train", n: int = 100, seed: int = 0) -> PromptSet:
    """``n`` distinct problems; each response is the working and ``The answer is N.``

    Args:
        split: ``test`` for problems that are never in ``train``, told by the text itself.

    Raises:
        ValueError: for an unknown split, or fewer than one problem.

    Examples:
        >>> sums("test", n=1, seed=1).responses[0].split(". ")[-1].startswith("The answer is ")
        True
    """
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r} of the word problems: there are 'train' and 'test'")
    if n < 1:
        raise ValueError(f"{n} word problems asked for; at least 1 is needed")
    rng = random.Random(f"{seed} sums {split}")
    found: dict[str, str] = {}
    while len(found) < n:
        question, work = PROBLEMS[rng.randrange(len(PROBLEMS))]
        a, b, c = rng.randint(21, 95), rng.randint(3, 9), rng.randint(2, 9)
        text = question.format(a=a, b=b, c=c)
        if (hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT == 0) == (split == "test"):
            working, answer = work(a, b, c)
            found[text] = f"{working} The answer is {answer}."
    return PromptSet(f"sums-{split}", tuple(found), tuple(found.values()))


def additions(n: int = 24, seed: int = 0) -> PromptSet:
    """``n`` distinct sums of two numbers below 10, which a small model mostly gets right; each response is the number.

    Raises:
        ValueError: for fewer than one or more than 81.

    Examples:
        >>> one = additions(n=1)
        >>> one.prompts[0].endswith("Answer with the number alone."), int(one.responses[0]) > 1
        (True, True)
    """
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    if not 1 <= n <= len(pairs):
        raise ValueError(f"{n} sums asked for; there are 1 to {len(pairs)}")
    random.Random(f"{seed} additions").shuffle(pairs)
    asked = tuple(f"What is {a} + {b}? Answer with the number alone." for a, b in pairs[:n])
    return PromptSet("additions", asked, tuple(str(a + b) for a, b in pairs[:n]))
