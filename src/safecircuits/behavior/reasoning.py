"""What a model thinks before it answers, and what it answers: the two are kept apart, and the answer is judged.

Known are the tags of reasoning models (``<think>…</think>``, ``<thinking>``, ``<thought>``, ``<reasoning>``,
``[THINK]…[/THINK]``, ``◁think▷…◁/think▷``, ``<|START_THINKING|>``, ``<|begin_of_thought|>``) and the channels of
OpenAI's harmony format, with their special tokens and as they are left when decoding skips these
(``analysis…assistantfinal…``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = "think|thinking|thought|thoughts|reasoning"
_OPEN = rf"<(?:{_NAMES})>|\[think\]|◁think▷|<\|start_thinking\|>|<\|begin_of_thought\|>"
CLOSE = rf"</(?:{_NAMES})>|\[/think\]|◁/think▷|<\|end_thinking\|>|<\|end_of_thought\|>"
TAGS = (
    *(f"<{slash}{name}>" for name in _NAMES.split("|") for slash in ("", "/")),
    *("<|start_thinking|>", "<|end_thinking|>", "<|begin_of_thought|>", "<|end_of_thought|>", "<|channel|>"),
)
"""Those that begin with an angle bracket, as they are compared: of small letters."""

_THOUGHT = re.compile(rf"(?:{_OPEN})(?P<inside>.*?)(?P<close>{CLOSE}|\Z)", re.IGNORECASE | re.DOTALL)
_CLOSED = re.compile(rf"\A(?P<inside>.*)(?:{CLOSE})", re.IGNORECASE | re.DOTALL)
_WRAPPED = re.compile(r"</?answer>|<\|(?:begin|end)_of_solution\|>|<\|(?:start|end)_response\|>", re.IGNORECASE)
_MESSAGE = re.compile(
    r"<\|channel\|>\s*(?P<channel>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(?P<inside>.*?)"
    r"(?P<close><\|(?:end|return|call|start)\|>|\Z)",
    re.DOTALL,
)
_BARE = re.compile(r"\A\s*(?:assistant)?(?P<channel>analysis|commentary|final)(?=[A-Z\"'“‘*#0-9]|[^\x00-\x7f])")
_BARE_NEXT = re.compile(r"assistant\s?(?P<channel>analysis|commentary|final)(?: to=[\w.]+)?")


@dataclass(frozen=True)
class Parts:
    """A completion as ``reasoning`` and ``answer``; not ``finished`` if it ends inside its reasoning."""

    reasoning: str
    answer: str
    finished: bool = True


def split(text: str) -> Parts:
    """Tell a completion's reasoning from its answer.

    A thought that only closes was opened by the prompt, as the chat templates of some reasoning models do. What has
    no reasoning is answer, all of it.

    Examples:
        >>> split("<think>They want a cake.</think>Take two eggs.")
        Parts(reasoning='They want a cake.', answer='Take two eggs.', finished=True)
    """
    if "<|channel|>" in text:
        messages = [(found["channel"], found["inside"]) for found in _MESSAGE.finditer(text)]
        return _of_messages(messages)
    if begun := _BARE.match(text):
        return _of_messages(_bare_messages(text, begun))
    thoughts: list[str] = []
    finished = True
    for found in _THOUGHT.finditer(text):
        thoughts.append(found["inside"])
        finished = bool(found["close"])
    rest = _THOUGHT.sub(" ", text)
    if closed := _CLOSED.match(rest):
        thoughts.insert(0, closed["inside"])
        rest = rest[closed.end() :]
    if thoughts:
        rest = _WRAPPED.sub(" ", rest)
    answer = rest.strip() if thoughts else text
    return Parts("\n".join(inside.strip() for inside in thoughts), answer, finished)


def _of_messages(messages: list[tuple[str, str]]) -> Parts:
    """By channel: ``final`` is the answer, everything else reasoning."""
    answers = [inside.strip() for channel, inside in messages if channel == "final"]
    thoughts = [inside.strip() for channel, inside in messages if channel != "final"]
    return Parts("\n".join(thoughts), "\n".join(answers), bool(answers))


def _bare_messages(text: str, begun: re.Match[str]) -> list[tuple[str, str]]:
    found, channel, start = [], begun["channel"], begun.end()
    for following in _BARE_NEXT.finditer(text, begun.end()):
        found.append((channel, text[start : following.start()]))
        channel, start = following["channel"], following.end()
    return [*found, (channel, text[start:])]
