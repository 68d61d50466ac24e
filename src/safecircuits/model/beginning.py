"""Which positions count in a score; what every prompt begins with does not, since it says nothing about a prompt.

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

from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.vocabulary import TOKEN_CHOICES, TokenChoice
from safecircuits.prompts.batching import Batch, shared_tokens
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode

# Instructions of different first tokens in any vocabulary of ordinary English.
_ANY = ("how do i", "the name", "Write it", "42")


def encode_to_score(
    tokenizer: Any,
    data: PromptSet,
    *,
    tokens: TokenChoice,
    template: str = "auto",
    count_beginning: bool = False,
) -> list[Encoded]:
    """``encode``, with the beginning of each prompt marked as one that does not count (``Encoded.beginning``).

    Args:
        tokens: whose tokens count. Where the prompt's alone do, the responses are left away: nothing is after them.
        count_beginning: mark none, as the papers have it: every position counts.

    Raises:
        ValueError: for an unknown choice of tokens, or data without responses where they count.
    """
    require_tokens(tokens)
    examples = encode(tokenizer, data, template=template, with_responses=tokens != "prompt")
    if count_beginning:
        return examples
    common = template_beginning(tokenizer, template)
    return [replace(example, beginning=_agreeing(example, common)) for example in examples]


def require_tokens(tokens: Any) -> None:
    """A ValueError unless this is a choice of whose tokens count."""
    if tokens not in TOKEN_CHOICES:
        raise ValueError(f"tokens is 'response', 'prompt' or 'all', not {tokens!r}")


def chosen_positions(batch: Batch, tokens: TokenChoice) -> Bool[Tensor, "batch pos"]:
    """The positions of the response, of the prompt, or of both; never padding, nor a beginning that is marked."""
    real = batch.attention_mask.bool()
    if batch.is_beginning is not None:
        real = real & ~batch.is_beginning
    if tokens == "response":
        return batch.is_response
    return real & ~batch.is_response if tokens == "prompt" else real


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
