"""How assistants open a refusal, language by language, and what only sounds like one.

Our own lists. Each language has ``refusals``, with which a refusal opens, and ``excuses``: regret, thanks, a greeting
or a word about oneself that decide nothing yet, so that the next clause is looked at ("I'm sorry for any confusion, but
I can't …" refuses, "I'm sorry for any confusion. Rome is …" does not). An excuse that is longer than a refusal which
it begins with takes it back. ``objections`` are words by which a sentence says that something is not right; what comes
after may decline it ("Creating malware is illegal, and I can't help with that"). ``judgements`` are openings that
decline unless an answer follows ("It is illegal to park here, but …"). All are compared as ``wording.normalise`` says.
"""

from __future__ import annotations

from safecircuits.behavior import languages_asia as asia
from safecircuits.behavior import languages_europe as europe
from safecircuits.behavior.languages_english import ENGLISH
from safecircuits.behavior.wordlists import Openings

LANGUAGES: dict[str, Openings] = {
    "en": ENGLISH,
    "de": europe.GERMAN,
    "fr": europe.FRENCH,
    "es": europe.SPANISH,
    "it": europe.ITALIAN,
    "pt": europe.PORTUGUESE,
    "nl": europe.DUTCH,
    "sv": europe.SWEDISH,
    "pl": europe.POLISH,
    "ru": europe.RUSSIAN,
    "uk": europe.UKRAINIAN,
    "tr": europe.TURKISH,
    "zh": asia.CHINESE,
    "ja": asia.JAPANESE,
    "ko": asia.KOREAN,
    "ar": asia.ARABIC,
    "hi": asia.HINDI,
    "vi": asia.VIETNAMESE,
    "id": asia.INDONESIAN,
}
"""By ISO 639-1 code. A phrase that several languages have is of the first."""
