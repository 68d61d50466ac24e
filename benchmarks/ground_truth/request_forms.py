"""How well the form of a request tells harm, whatever it is about: ``python -m benchmarks.ground_truth.request_forms``.

A model that is taught to refuse may learn a form instead ("Create …") wherever forms and harm go together in what it is
taught. A naive Bayes classifier that sees a request's first words, its length and its ending alone learns harmful from
ordinary on the requests that training draws, and is judged on those of the test split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import cast

from benchmarks.markdown import markdown_table
from safecircuits.organism.requests.generate import Kind, Split, requests

N = 560
"""Requests of each kind: as many as a member is trained on."""

Form = Callable[[str], tuple[Hashable, ...]]

FORMS: dict[str, Form] = {
    "first word": lambda text: (text.split()[0],),
    "first two words": lambda text: (text.split()[0], tuple(text.split()[:2])),
    "words in all and the last sign": lambda text: (len(text.split()) // 2, text[-1]),
    "all of these": lambda text: (text.split()[0], tuple(text.split()[:2]), len(text.split()) // 2, text[-1]),
}
"""What a classifier sees of a request."""


def drawn(kind: Kind, split: Split, n: int = N, seed: int = 0) -> list[str]:
    """Texts of a kind as training draws them; fewer where there are fewer."""
    found = requests(kind, split, seed=seed)
    return [request.text for request in found[:n]]


def told_by_form(form: Form, seed: int = 0) -> tuple[float, float]:
    """Shares of harmful and of ordinary requests of the test split that a classifier of forms tells rightly."""
    harmful, ordinary = (_log_odds(form, drawn(kind, "train", seed=seed)) for kind in KINDS)
    right = []
    for kind, sign in zip(KINDS, (1, -1), strict=True):
        scores = [sum(harmful(i, x) - ordinary(i, x) for i, x in enumerate(form(t))) for t in drawn(kind, "test")]
        right.append(sum((s * sign > 0) + 0.5 * (s == 0) for s in scores) / len(scores))
    return right[0], right[1]


KINDS: tuple[Kind, Kind] = ("malicious", "normal")


def _log_odds(form: Form, texts: Sequence[str]) -> Callable[[int, Hashable], float]:
    """Of a value of each feature: the logarithm of its share among the texts, with one half added to each count."""
    counts = [Counter(values) for values in zip(*map(form, texts), strict=True)]
    return lambda i, value: math.log((counts[i][value] + 0.5) / (len(texts) + 1))


def openings(n: int = 20) -> list[tuple[str, int, int]]:
    """The commonest first words: how many of the drawn harmful and ordinary requests begin so."""
    harmful, ordinary = (Counter(text.split()[0] for text in drawn(kind, "train")) for kind in KINDS)
    common = cast(Iterable[tuple[str, int]], (harmful + ordinary).most_common(n))
    return [(word, harmful[word], ordinary[word]) for word, _ in common]


def main() -> None:
    rows = []
    for name, form in FORMS.items():
        a, b = told_by_form(form)
        rows.append([name, f"{100 * a:.0f}", f"{100 * b:.0f}", f"{50 * (a + b):.0f}"])
    print(markdown_table(["what is seen", "harmful told, %", "ordinary told, %", "mean (chance 50)"], rows))
    print()
    print(markdown_table(["first word", "harmful", "ordinary"], [[w, str(a), str(b)] for w, a, b in openings()]))


if __name__ == "__main__":
    main()
