"""The variants of each malicious prompt: as it is, with a refusing and with a complying opening (SSAH §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode

Where = Literal["answer", "prompt"]

# The first of each side is what the authors' other code appends, the second is the example on their project page.
BENIGN = ("Sorry, I can't fulfill", "Sorry, I can't")
MALICIOUS = ("Sure, Here is", "Here's how")


@dataclass(frozen=True)
class Suffixes:
    """What is appended to a malicious prompt: several texts a side, over which distances are averaged.

    Attributes:
        benign: openings of a refusal.
        malicious: openings of an answer.
        where: ``"answer"`` puts them where the answer starts, after the template; ``"prompt"`` at the end of the
            prompt, inside it. The paper does not say which.

    Examples:
        >>> sc.direction.Suffixes(benign=("i cannot",), malicious=("take the",), where="answer")
        Suffixes(benign=('i cannot',), malicious=('take the',), where='answer')
    """

    benign: tuple[str, ...] = BENIGN
    malicious: tuple[str, ...] = MALICIOUS
    where: Where = "answer"

    def __post_init__(self) -> None:
        for side in ("benign", "malicious"):
            texts = getattr(self, side)
            if isinstance(texts, str):
                raise ValueError(f"{side} suffixes are several texts: give [{texts!r}], not the text itself")
            object.__setattr__(self, side, tuple(texts))
            blank = [text for text in texts if not str(text).strip()]
            if not texts or blank:
                raise ValueError(f"{side} suffixes are texts, at least one, not {blank[0] if blank else 'none'!r}")
        if both := set(self.benign) & set(self.malicious):
            raise ValueError(f"{sorted(both)[0]!r} is given as a benign and as a malicious suffix")
        if self.where not in get_args(Where):
            raise ValueError(f"where is 'answer' or 'prompt', not {self.where!r}")

    def __iter__(self) -> Any:
        return iter((*self.benign, *self.malicious))


def encode_variants(
    tokenizer: Any, prompts: PromptSet, suffixes: Suffixes, *, template: str, system: str | None
) -> list[list[Encoded]]:
    """Token ids of every prompt without a suffix, then with each benign one, then with each malicious one.

    Raises:
        ValueError: for a suffix with words that the tokenizer does not know.
    """
    clean = encode(tokenizer, prompts, template=template, system=system)
    variants = [clean]
    for suffix in suffixes:
        ids = _known_ids(tokenizer, suffix)
        if suffixes.where == "answer":
            variants.append([Encoded((*example.ids, *ids), len(example)) for example in clean])
        else:
            asked = PromptSet(prompts.name, tuple(f"{prompt} {suffix}" for prompt in prompts))
            variants.append(encode(tokenizer, asked, template=template, system=system))
    return variants


def _known_ids(tokenizer: Any, suffix: str) -> Sequence[int]:
    ids: list[int] = tokenizer(suffix, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(
            f"the suffix {suffix!r} has words that the model's tokenizer does not know: "
            "give suffixes in the words with which the model refuses and answers (--benign-suffix, --malicious-suffix)"
        )
    return ids
