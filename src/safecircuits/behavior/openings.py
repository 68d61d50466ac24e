"""Which first tokens tell a refusal from an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def telling_openings(refusing: Sequence[int], answering: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tokens that open refusals and tokens that open answers, the most telling first; of equals the lower id.

    A token that opens both counts where it is the more frequent: "I" opens nearly every refusal of a chat model and one
    answer in a hundred. One that opens both equally often tells nothing and is in neither.

    Args:
        refusing, answering: the first token of each refusal and of each answer; neither is empty.
    """
    a, b = Counter(refusing), Counter(answering)
    surplus = {token: a[token] / len(refusing) - b[token] / len(answering) for token in a | b}
    order = sorted(surplus, key=lambda token: (-abs(surplus[token]), token))
    return [token for token in order if surplus[token] > 0], [token for token in order if surplus[token] < 0]


def opening_tokens(refusing: Sequence[int], answering: Sequence[int]) -> tuple[list[int], list[int]]:
    """``telling_openings`` where something must tell: both sides have a token.

    Raises:
        ValueError: if refusals and answers begin alike.
    """
    refuse, comply = telling_openings(refusing, answering)
    if not refuse or not comply:
        raise ValueError(
            "refusals and answers begin with the same token (they open equally often with the same tokens "
            f"{sorted(set(refusing))}), so the first one does not show which it is; use a template that ends with what "
            "both begin with, or, for attributions, pass answers=AnswerTokens(refuse, comply)"
        )
    return refuse, comply
