"""What every prompt begins with says nothing about a prompt: which positions that is, marked in one place.

The first positions of a prompt hold the same tokens whatever is asked: the beginning of sequence, a system prompt, the
template up to the instruction. Whatever a unit does there it does for every prompt. On a real model that is most of
what it ever does: the first position is an attention sink, whose activations are hundreds of times any other's, so
that means and variances over all positions are about the sink, and about how many other positions there are beside it.
The same holds for the first position where its token varies: with no past, the sink is there whatever the token.

The beginning is found by the template alone, not by the prompts of a set: the same positions are left out of every set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from safecircuits.prompts.batching import shared_tokens
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode

# Instructions of different first tokens in any vocabulary of ordinary English.
_ANY = ("how do i", "the name", "Write it", "42")


def encode_to_score(
    tokenizer: Any,
    data: PromptSet,
    *,
    template: str = "auto",
    with_responses: bool = False,
    count_beginning: bool = False,
) -> list[Encoded]:
    """``encode``, with the beginning of each prompt marked as one that does not count (``Encoded.beginning``).

    Args:
        count_beginning: mark none, as the papers have it: every position counts.
    """
    examples = encode(tokenizer, data, template=template, with_responses=with_responses)
    if count_beginning:
        return examples
    common = template_beginning(tokenizer, template)
    return [replace(example, beginning=_agreeing(example, common)) for example in examples]


def template_beginning(tokenizer: Any, template: str = "auto") -> tuple[int, ...]:
    """The tokens with which every prompt in the template begins, whatever its instruction."""
    rendered = encode(tokenizer, PromptSet("any", _ANY), template=template)
    return rendered[0].ids[: shared_tokens(rendered)]


def beginning_facts(tokenizer: Any, template: str, count_beginning: bool) -> dict[str, Any]:
    """For a result: how many leading tokens every prompt in the template has, at least the first, and if they count."""
    return {"tokens": max(1, len(template_beginning(tokenizer, template))), "counted": count_beginning}


def _agreeing(example: Encoded, common: Sequence[int]) -> int:
    """How many of its first tokens a prompt shares with any other, at least one; none of them is of its response.

    A tokenizer may join the end of the template with the start of an instruction, so each prompt is compared itself.
    """
    alike = 0
    while alike < min(len(common), example.response_start) and example.ids[alike] == common[alike]:
        alike += 1
    return min(max(1, alike), example.response_start)
