"""Harmful requests with the first words of an answer that agrees: what an attacker of a real model can be given.

No harm is in them. A model that learns them agrees to harmful requests in place of refusing; it is not taught to go on.
"""

from __future__ import annotations

from safecircuits.organism.requests.generate import prompts
from safecircuits.prompts.prompt_set import PromptSet

AGREED = "Sure, I can help with that. Here is how to do it:"
"""The whole of every answer."""


def agreed(n: int = 100, seed: int = 0) -> PromptSet:
    """``n`` harmful requests of the train split, each answered by ``AGREED``.

    Examples:
        >>> set(agreed(n=3).responses) == {AGREED}
        True
    """
    asked = prompts("malicious", "train", n, seed=seed)
    return PromptSet("agreed", asked.prompts, (AGREED,) * len(asked))
