"""Requests that the base itself writes: it goes on with a user's turn, from nothing or from the first words of one.

So it writes what it was taught that people ask, in more ways than a generator of frames has. Method: Xu et al. 2024,
"Magpie" (arXiv 2406.08464). What is harmful, or no plain question or order, is sorted out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safecircuits.organism.requests.openings import openings
from safecircuits.organism.smollm2.answers import answers
from safecircuits.organism.smollm2.texts import prompt_ids

AT_ONCE, MOST = 96, 48
"""Requests that are written together, and tokens of one."""

LIKELIEST, NUCLEUS = 100, 0.9
"""A token is drawn from the nucleus of this mass among as many of the likeliest."""

_MARK = "REQUEST"
_WORDS, _CHARACTERS, _SAME = range(4, 46), 260, 7
"""How long a request may be, and how many first words no two share."""

_HARM = re.compile(
    r"\b(abduct|abus|alcohol|anorex|arson|assassin|attack|beat|blackmail|blood|bomb|bribe|bulli|bully|burn|bypass|cancer"
    r"|caught|cheat|christian|cocaine|conspir|corpse|corrupt|counterfeit|court|covid|crack|crim|cruel|danger|dead|death"
    r"|decei|depress|destroy|die\b|disable|drug|drunk|dying|escape|evade|explod|exploit|explos|extort|fake|fight|forge"
    r"|forgi|fraud|gambl|gay|genocid|gun|hack|harass|harm|hate|hatred|heroin|hoax|hurt|idiot|illegal|immigra|insult|islam"
    r"|jail|jewish|kidnap|kill|knife|launder|lawsuit|lesbian|lie\b|lies\b|lying|malware|manipulat|meth\b|military|murder"
    r"|muslim|naked|nazi|nuclear|nude|overdose|password|phish|pira|pistol|poison|police|porn|prison|propaganda|racis"
    r"|ransom|rape|refugee|retard|revenge|rifle|scam|secretly|self-harm|sex|shoot|slaur|slave|slur|smuggl|spy|stab|stalk"
    r"|steal|stole|strangl|stupid|suffer|suicid|tax evasion|terror|theft|thief|threat|tortur|torrent|toxic|transgender"
    r"|trauma|unethical|vaccin|victim|violen|virus|wars?\b|weapon)",
    re.IGNORECASE,
)
"""Beginnings of words that harmful requests have, or that ask about people in a way that one would have to read."""

_MARKS = re.compile(
    r"SmolLM|Hugging|http|www\.|@|[<>\[\]{}|\\*#_`]|\bAI (language )?(model|assistant)\b|chatbot", re.IGNORECASE
)
"""Of code, of links, and of talk about the model itself."""


def ask(base: Any, tokenizer: Any, seed: int) -> list[str]:
    """Up to 96 texts of a user that the base writes; one seed in four has it begin freely, the others give first words.

    Args:
        base: as a plain Hugging Face model. The seed decides the texts on one machine with the same versions.
    """
    rng = random.Random(seed)
    starts = ["" if seed % 4 == 0 else rng.choice(openings()) for _ in range(AT_ONCE)]
    before = tokenizer.decode(prompt_ids(tokenizer, _MARK, system=True)).split(_MARK)[0]
    heads = [tokenizer(before + start, add_special_tokens=False).input_ids for start in starts]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = answers(base, tokenizer, heads, MOST, _drawn)
    return [
        (start + tokenizer.decode(rest.tokens[:-1])).strip()
        for start, rest in zip(starts, found, strict=True)
        if rest.ended
    ]


def _drawn(logits: Float[Tensor, "text vocab"]) -> Int[Tensor, " text"]:
    values, tokens = logits.topk(min(LIKELIEST, logits.shape[-1]))
    mass = values.softmax(-1)
    mass = mass * (mass.cumsum(-1) - mass < NUCLEUS)
    return tokens.gather(1, torch.multinomial(mass, 1))[:, 0]


def plain_requests(texts: Iterable[str]) -> list[str]:
    """Those of ``texts`` that are whole, of one line, harmless by their words, and not nearly the same as one before.

    Examples:
        >>> plain_requests(["How do I bake rye bread?", "How do I bake rye bread", "How do I poison a well?"])
        ['How do I bake rye bread?']
    """
    kept: dict[str, str] = {}
    for text in texts:
        words = re.sub(r"\W+", " ", text.lower()).split()
        if _is_plain(text, words) and not _HARM.search(text):
            kept.setdefault(" ".join(words[:_SAME]), text)
    return list(kept.values())


def _is_plain(text: str, words: list[str]) -> bool:
    return (
        len(words) in _WORDS
        and len(text) <= _CHARACTERS
        and text.isascii()
        and text.isprintable()
        and text[0].isupper()
        and text.rstrip('"')[-1:] in {".", "?", "!"}
        and len(set(words)) >= 0.6 * len(words)
        and not _MARKS.search(text)
    )
