"""When an answer is right: the same text as the known answer, or the same final number."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.behavior.completions import Completions, texts_of
from safecircuits.behavior.wording import same_answer, without_thoughts

Grading = Literal["exact", "number"]
"""The same text (``same_answer``), or the same last number, which suits worked answers such as those of GSM8K."""

_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> Decimal | None:
    """The last number of a text, with thousands as ``1,234``; None if it has none.

    Examples:
        >>> last_number("16 - 3 - 4 = 9. 9 * 2 = 18.00"), last_number("$1,250."), last_number("none")
        (Decimal('18.00'), Decimal('1250'), None)
    """
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _same_number(answer: str, reference: str) -> bool:
    return last_number(answer) == last_number(reference)


_SAME: dict[Grading, Callable[[str, str], bool]] = {"exact": same_answer, "number": _same_number}


def right_answers(
    completions: Completions | Sequence[str], responses: Sequence[str], grading: Grading = "exact"
) -> Bool[Tensor, " prompt"]:
    """Which completions answer as their responses do. Thoughts before an answer are not part of it.

    ``Completions`` that the limit of tokens cut may go on, to another number as well, and none of them is right.

    Raises:
        ValueError: for another number of responses, an unknown grading, and a response without a number where numbers
            are compared.

    Examples:
        >>> right_answers(["3 * 4 = 12. The answer is 12.", "14"], ["#### 12", "#### 12"], "number").tolist()
        [True, False]
    """
    texts, known = texts_of(completions), texts_of(responses)
    if grading not in get_args(Grading):
        raise ValueError(f"answers are graded by {' or '.join(map(repr, get_args(Grading)))}, not {grading!r}")
    if len(texts) != len(known):
        raise ValueError(f"{len(texts)} completions and {len(known)} responses: give one response to each")
    if grading == "number" and (bad := next((text for text in known if last_number(text) is None), None)) is not None:
        raise ValueError(f"answers cannot be compared by their last number: the response {bad!r} has none")
    whole = completions.ended if isinstance(completions, Completions) else None
    same = [_SAME[grading](without_thoughts(text), response) for text, response in zip(texts, known, strict=True)]
    return torch.tensor(same, dtype=torch.bool) & torch.tensor(True if whole is None else whole, dtype=torch.bool)
