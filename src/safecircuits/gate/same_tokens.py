"""Two models that are asked the same: the same tokens for every prompt, and the same words for every token."""

from __future__ import annotations

from collections.abc import Sequence

from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet, encode


def require_same_tokens(
    before: HookedModel, after: HookedModel, sets: Sequence[PromptSet], template: str, system: str | None
) -> None:
    """A ValueError unless both models read each prompt as the same tokens, which are the same words to both."""
    old, new = tokenizer_of(before), tokenizer_of(after)
    theirs = {id: word for word, id in new.get_vocab().items()}
    for word, id in sorted(old.get_vocab().items(), key=lambda pair: pair[1]):
        if id in theirs and theirs[id] != word:
            raise ValueError(
                f"the models have different tokenizers: token {id} is {word!r} before and {theirs[id]!r} after; an "
                "audit compares a model with what training made of it"
            )
    for prompts in sets:
        pairs = zip(*(encode(one, prompts, template=template, system=system) for one in (old, new)), strict=True)
        for prompt, (a, b) in zip(prompts, pairs, strict=True):
            if a.ids != b.ids:
                raise ValueError(
                    f"the models are asked {prompt[:60]!r} in different tokens ({old.decode(a.ids)[:80]!r} before, "
                    f"{new.decode(b.ids)[:80]!r} after): their tokenizers or chat templates differ; give both the same"
                )
