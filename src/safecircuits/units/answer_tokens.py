"""The tokens that tell a refusal from an answer at its first position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from safecircuits.base.arguments import checked, indices
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.generate import generate
from safecircuits.behavior.openings import opening_tokens
from safecircuits.behavior.refusal import refused
from safecircuits.behavior.verdict import tokens_needed
from safecircuits.hooks.first_logits import first_logits
from safecircuits.layers.counting import early_verdict
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet, encode


@dataclass(frozen=True)
class AnswerTokens:
    """Token ids that open a refusal and token ids that open an answer.

    Examples:
        >>> tokens = sc.units.AnswerTokens.of_words(model.tokenizer, refuse=["i"], comply=["take", "the"])
        >>> len(tokens.refuse), len(tokens.comply)
        (1, 2)
    """

    refuse: tuple[int, ...]
    comply: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "refuse", tuple(indices(self.refuse, "refuse")))
        object.__setattr__(self, "comply", tuple(indices(self.comply, "comply")))
        if not self.refuse or not self.comply:
            raise ValueError(f"give at least one refusing and one complying token, not {self.refuse} and {self.comply}")
        if both := set(self.refuse) & set(self.comply):
            raise ValueError(f"token {min(both)} is named as refusing and as complying")

    @classmethod
    def of_words(cls, tokenizer: object, refuse: list[str], comply: list[str]) -> AnswerTokens:
        """From words: the first token of each, without special tokens."""

        def first(word: str) -> int:
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
            if not ids:
                raise ValueError(f"{word!r} has no tokens")
            return int(ids[0])

        return cls(tuple(map(first, refuse)), tuple(map(first, comply)))

    def difference(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """Refuse-minus-comply logit difference; with several tokens a side, of their log-sum-exp."""
        refuse = logits[:, list(self.refuse)].float().logsumexp(-1)
        return refuse - logits[:, list(self.comply)].float().logsumexp(-1)


@checked
def find_answer_tokens(
    model: HookedModel,
    malicious: PromptSet,
    normal: PromptSet,
    *,
    detector: str | RefusalDetector = "opening",
    at_most: int | None = None,
    max_new_tokens: int | None = None,
    template: str = "auto",
    max_tokens: int | None = None,
) -> AnswerTokens:
    """The tokens with which the model opens its refusals of ``malicious`` and its answers to ``normal``.

    A token that opens both (an "I", say) is of the side that it opens more often. This is the rule of
    ``decision_layers``, which finds the same tokens of the same prompts (``opening_tokens``).

    Args:
        at_most: how many of each side are taken, the most telling ones; all unless given.
        max_new_tokens: of the answers in which refusals are looked for; as many as the detector needs unless given
            (``tokens_needed``).

    Raises:
        ValueError: if the model refuses nothing malicious, answers nothing normal, or opens both in the same way.

    Examples:
        >>> tokens = sc.units.find_answer_tokens(model, malicious, normal)
        >>> [model.tokenizer.decode([token]) for token in tokens.refuse]
        ['i']
    """

    limit = tokens_needed(detector) if max_new_tokens is None else max_new_tokens
    options: dict[str, Any] = {"max_new_tokens": limit, "template": template, "max_tokens": max_tokens}

    def openings(prompts: PromptSet, wanted: bool) -> list[int]:
        until = early_verdict(model, prompts, detector, template)
        verdicts = refused(generate(model, prompts, until=until, **options), detector)
        first = _first_tokens(model, prompts, template, max_tokens)
        return [token for token, verdict in zip(first, verdicts.tolist(), strict=True) if verdict is wanted]

    refusing, complying = openings(malicious, True), openings(normal, False)
    for found, prompts, what in ((refusing, malicious, "refuses"), (complying, normal, "answers")):
        if not found:
            raise ValueError(
                f"the model {what} none of {prompts.name!r}, so that the tokens that decide are not "
                "known: take prompts that it does, or from Python pass answers=AnswerTokens(refuse, comply)"
            )
    refuse, comply = opening_tokens(refusing, complying)
    return AnswerTokens(tuple(refuse[:at_most]), tuple(comply[:at_most]))


def _first_tokens(model: HookedModel, prompts: PromptSet, template: str, max_tokens: int | None) -> list[int]:
    examples = encode(tokenizer_of(model), prompts, template=template)
    return first_logits(model, examples, max_tokens=max_tokens).argmax(-1).tolist()
