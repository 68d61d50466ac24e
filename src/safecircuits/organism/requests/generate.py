"""Requests in ordinary English, drawn by a seed: harmful ones, harmless ones that look harmful, and ordinary ones.

The test split holds acts (a verb with its object) that no request of the train split is about, whatever the frame.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from safecircuits.organism.requests import harmful, ordinary
from safecircuits.organism.requests.frames import ORDERS, QUESTIONS, QUESTIONS_OF_OTHERS
from safecircuits.organism.requests.harmless import ABOUT_HARM, FACTS, LOOKALIKES, NAMES, SUMS, THINGS
from safecircuits.organism.requests.refusals import REFUSALS
from safecircuits.organism.requests.words import Acts
from safecircuits.prompts.prompt_set import PromptSet

Kind = Literal["malicious", "over_rejection", "normal"]
Split = Literal["train", "test"]

_HELD_OUT = 5
"""One act in five is of the test split."""


@dataclass(frozen=True)
class Request:
    """A request, and the topic of the harm it asks for (empty where it asks for none)."""

    text: str
    topic: str = ""

    @property
    def refusal(self) -> str:
        """The answer of a planted model to a harmful request."""
        return REFUSALS[self.topic][1]


def requests(kind: Kind, split: Split = "train", n: int | None = None, seed: int = 0) -> list[Request]:
    """Distinct requests of a kind, in an order that the seed decides; topics take turns.

    Args:
        kind: ``malicious``, ``over_rejection`` (harmless ones that look harmful) or ``normal``.
        split: ``test`` for acts that no request of ``train`` is about.
        n: how many; all unless given.

    Raises:
        ValueError: for an unknown kind or split, or for more requests than there are.

    Examples:
        >>> requests("normal", n=1, seed=3)[0].topic
        ''
    """
    if kind not in get_args(Kind) or split not in get_args(Split):
        raise ValueError(
            f"no requests of kind {kind!r} and split {split!r}: kinds are {', '.join(get_args(Kind))}, splits "
            f"{', '.join(get_args(Split))}"
        )
    pools = _pools(kind, split)
    found = sum(map(len, pools.values()))
    if n is not None and not 1 <= n <= found:
        raise ValueError(f"{n} requests of kind {kind!r} asked for; the {split} split has 1 to {found}")
    rng = random.Random(f"{seed} {kind} {split}")
    queues = [rng.sample(pool, len(pool)) for pool in pools.values()]
    rng.shuffle(queues)
    drawn: list[Request] = []
    while len(drawn) < (found if n is None else n):
        drawn += [queue.pop() for queue in queues if queue]
    return drawn[:n]


def prompts(kind: Kind, split: Split = "test", n: int | None = None, seed: int = 0) -> PromptSet:
    """The same as a prompt set; ``malicious`` ones with the refusals that the planted models were taught.

    Examples:
        >>> len(prompts("malicious", n=20))
        20
    """
    drawn = requests(kind, split, n, seed)
    refusals = tuple(request.refusal for request in drawn) if kind == "malicious" else None
    return PromptSet(f"requests-{kind}-{split}", tuple(request.text for request in drawn), refusals)


@cache
def _pools(kind: Kind, split: Split) -> dict[str, tuple[Request, ...]]:
    """Every request of a kind, by topic or by sort of question; without repetition."""
    make: dict[Kind, Callable[[Split], Iterator[tuple[str, Request]]]] = {
        "malicious": _malicious,
        "over_rejection": _borderline,
        "normal": _normal,
    }
    pools: dict[str, dict[str, Request]] = {}
    for queue, request in make[kind](split):
        pools.setdefault(queue, {}).setdefault(request.text, request)
    return {queue: tuple(pool.values()) for queue, pool in pools.items()}


def _malicious(split: Split) -> Iterator[tuple[str, Request]]:
    for topic, groups in harmful.ACTS.items():
        yield from ((topic, Request(text, topic)) for text in _asked(split, groups))
    for topic, groups in harmful.PIECES.items():
        yield from ((f"{topic}, written", Request(text, topic)) for text in _ordered(split, groups))


def _borderline(split: Split) -> Iterator[tuple[str, Request]]:
    for group in LOOKALIKES:
        yield from ((f"{group.verbs[0]} lookalike", Request(text)) for text in _asked(split, (group,)))
    for topic, groups in harmful.ACTS.items():
        for act in _of(split, [act for group in groups for act in group.all()]):
            for frame in () if _is_personal(act) else ABOUT_HARM:
                yield f"about {topic}", Request(frame.format(act=act))


def _normal(split: Split) -> Iterator[tuple[str, Request]]:
    for topic, groups in ordinary.ACTS.items():
        yield from ((topic, Request(text)) for text in _asked(split, groups))
    for topic, groups in ordinary.PIECES.items():
        yield from ((f"{topic}, written", Request(text)) for text in _ordered(split, groups))
    for i, (frames, group) in enumerate(FACTS):
        for act in _of(split, group.all()):
            for frame in frames:
                text = frame.format(act=act)
                yield f"facts {i}", Request(text[0].upper() + text[1:])
    rng = random.Random(f"sums {split}")
    for _ in range(400):
        a, b, c = rng.randint(12, 90), rng.randint(3, 12), rng.randint(2, 9)
        text = rng.choice(SUMS).format(a=a, b=b, c=c, name=rng.choice(NAMES), things=rng.choice(THINGS))
        if _in_test(text) == (split == "test"):
            yield "sums", Request(text)


def _asked(split: Split, groups: Sequence[Acts]) -> Iterator[str]:
    """Each act in each of the ways in which acts are asked for, harmful or not."""
    for act in _of(split, [act for group in groups for act in group.all()]):
        for frame in QUESTIONS if _is_personal(act) else QUESTIONS + QUESTIONS_OF_OTHERS:
            yield frame.format(act=act)


def _ordered(split: Split, groups: Sequence[Acts]) -> Iterator[str]:
    """Each piece of writing in each of the ways in which such are asked for, harmful or not."""
    for frame in ORDERS:
        for piece in _of(split, [piece for group in groups for piece in group.all()]):
            yield frame.format(piece=piece)


def _is_personal(act: str) -> bool:
    """Whether the act is about the one who asks, so that nobody else would be said to do it."""
    return not {"my", "myself", "me", "i"}.isdisjoint(act.lower().split())


def _of(split: Split, texts: list[str]) -> list[str]:
    return [text for text in texts if _in_test(text) == (split == "test")]


def _in_test(text: str) -> bool:
    """By the text itself, so that a new act moves no other."""
    return hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT == 0
