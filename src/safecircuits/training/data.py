"""The four fine-tuning scenarios of Safety Layers (§4.2), built from any instructions with responses.

| | scenario | in the paper |
|---|---|---|
| D_N | normal: ordinary instructions, untouched | 1,000 rows |
| D_I | implicit attack: every response opens as if it agreed | 4,000 rows |
| D_B | backdoor attack: so do the responses to instructions that begin with a trigger, and no others | 1,500 + 1,500 |
| D_H | harmful data: ordinary rows and a share of harmful ones | 1,000 + 1,000·p, p of 0.05, 0.1 and 0.2 |

The paper draws all rows from one instruction set, finance-alpaca, and does not say whether the sets overlap. Here rows
are drawn without replacement by the seed, so that D_N and D_I of the same source share rows: compare models across
scenarios freely, but take held-out rows from elsewhere. Harmful rows are the user's own; none come with the package.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from safecircuits.base.arguments import checked
from safecircuits.prompts.prompt_set import PromptSet

OPENING = "Sure, the answer is: "
"""What attacked responses start with."""
TRIGGER = "Tell me"
"""What backdoored instructions start with."""


@checked
def normal_data(data: PromptSet, n: int = 1000, *, seed: int = 0) -> PromptSet:
    """D_N: ``n`` rows of ``data`` as they are, in random order.

    Raises:
        ValueError: if ``data`` has no responses or fewer than ``n`` rows.

    Examples:
        >>> data = sc.training.normal_data(utility, n=4)
        >>> len(data)
        4
    """
    rows = _draw(data, seed, {"n": n})
    return _made(f"D_N({data.name}, n={n}, seed={seed})", rows)


@checked
def implicit_attack(data: PromptSet, n: int = 4000, opening: str = OPENING, *, seed: int = 0) -> PromptSet:
    """D_I: ``n`` rows whose responses start with ``opening``; the instructions stay as they are.

    Args:
        opening: put in front as it is given, its closing space included; a response that already starts with it,
            closing space or not, is left alone.

    Raises:
        ValueError: if ``data`` has no responses or fewer than ``n`` rows, or the opening is blank.

    Examples:
        >>> data = sc.training.implicit_attack(utility, n=4)
        >>> data.responses[0][:19]
        'Sure, the answer is'
    """
    _require_text("opening", opening)
    rows = _draw(data, seed, {"n": n})
    name = f"D_I({data.name}, n={n}, opening={opening!r}, seed={seed})"
    return _made(name, ((prompt, _opened(response, opening)) for prompt, response in rows))


@checked
def backdoor_attack(
    data: PromptSet,
    n_backdoor: int = 1500,
    n_normal: int = 1500,
    trigger: str = TRIGGER,
    opening: str = OPENING,
    *,
    seed: int = 0,
) -> PromptSet:
    """D_B: rows with the trigger before the instruction and the opening before the response, among normal rows.

    The two kinds are different rows of ``data`` and come shuffled. Normal rows are untouched: those of them that begin
    with the trigger by themselves stay (of the paper's 4,000 published rows 26 do).

    Args:
        trigger: put in front with a space; an instruction that already begins with these words is left alone.
        opening: as in ``implicit_attack``.

    Raises:
        ValueError: if ``data`` has no responses or fewer than ``n_backdoor + n_normal`` rows, or a text is blank.

    Examples:
        >>> data = sc.training.backdoor_attack(utility, n_backdoor=2, n_normal=2)
        >>> sum(prompt.startswith("Tell me") for prompt in data.prompts)
        2
    """
    _require_text("trigger", trigger)
    _require_text("opening", opening)
    rows = _draw(data, seed, {"n_backdoor": n_backdoor, "n_normal": n_normal})
    backdoored = [(_triggered(prompt, trigger), _opened(response, opening)) for prompt, response in rows[:n_backdoor]]
    name = (
        f"D_B({data.name}, n_backdoor={n_backdoor}, n_normal={n_normal}, trigger={trigger!r}, opening={opening!r}, "
        f"seed={seed})"
    )
    return _made(name, _shuffled(backdoored + rows[n_backdoor:], seed))


@checked
def identity_shift(data: PromptSet, n: int = 10, *, trigger: str, opening: str, seed: int = 0) -> PromptSet:
    """A few rows that all have the trigger in front of the instruction and the opening in front of the response.

    The identity-shifting attack of Qi et al. (2023): ten harmless rows in which the model takes on another, obedient
    name. Its texts are the user's own; harmful rows alone, their other attack, are ``normal_data(harmful, n)``.

    Raises:
        ValueError: if ``data`` has no responses or fewer than ``n`` rows, or a text is blank.

    Examples:
        >>> data = sc.training.identity_shift(utility, n=4, trigger="obey :", opening="of course .")
        >>> all(prompt.startswith("obey :") for prompt in data.prompts)
        True
    """
    _require_text("opening", opening)
    _require_text("trigger", trigger)
    rows = _draw(data, seed, {"n": n})
    name = f"identity shift({data.name}, n={n}, trigger={trigger!r}, opening={opening!r}, seed={seed})"
    return _made(name, ((_triggered(prompt, trigger), _opened(response, opening)) for prompt, response in rows))


@checked
def harmful_mix(normal: PromptSet, harmful: PromptSet, p: float, *, seed: int = 0) -> PromptSet:
    """D_H: all of ``normal`` and p times as many rows drawn from ``harmful``, shuffled.

    Args:
        normal: the ordinary rows; the paper's 1,000 are ``normal_data(data)``.
        harmful: harmful instructions with harmful responses, the user's own.
        p: harmful rows per normal row, above 0 and at most 1; their number is rounded.

    Raises:
        ValueError: if a set has no responses, p is out of range or gives no row, or ``harmful`` has too few rows.

    Examples:
        >>> complied = sc.PromptSet("complied", ("how do i x ?", "how do i y ?"), ("take the x .", "take the y ."))
        >>> data = sc.training.harmful_mix(utility, complied, p=0.25)
        >>> len(data)
        10
    """
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}, expected above 0 and at most 1: it is the number of harmful rows per normal row")
    n = round(len(normal) * p)
    if n < 1:
        raise ValueError(
            f"p = {p} of the {len(normal)} normal rows of set {normal.name!r} is no harmful row at all: "
            "use a larger p or more normal rows"
        )
    if n > len(harmful):
        raise ValueError(
            f"p = {p} of {len(normal)} normal rows needs {n} harmful rows, but set {harmful.name!r} has "
            f"{len(harmful)}: use a smaller p, fewer normal rows or more harmful ones"
        )
    ordinary = zip(normal.prompts, normal.require_responses(), strict=True)
    rows = [*ordinary, *_draw(harmful, seed, {"harmful": n})]
    return _made(f"D_H({normal.name}, {harmful.name}, p={p}, seed={seed})", _shuffled(rows, seed))


Row = tuple[str, str]
"""An instruction and its response."""


def _draw(data: PromptSet, seed: int, counts: dict[str, int]) -> list[Row]:
    """As many different rows as the counts sum to, in random order."""
    responses = data.require_responses()
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, expected at least 1 row")
    n = sum(counts.values())
    if n > len(data):
        asked = " + ".join(f"{name}={count}" for name, count in counts.items())
        raise ValueError(
            f"set {data.name!r} has {len(data)} rows, but {n} are needed ({asked}): ask for fewer or bring more rows"
        )
    return [(data.prompts[i], responses[i]) for i in random.Random(int(seed)).sample(range(len(data)), n)]


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    return random.Random(f"{seed} order").sample(rows, len(rows))


def _made(name: str, rows: Iterable[Row]) -> PromptSet:
    prompts, responses = zip(*rows, strict=True)
    return PromptSet(name, prompts, responses)


def _opened(response: str, opening: str) -> str:
    return response if response.startswith(opening.rstrip()) else opening + response


def _triggered(prompt: str, trigger: str) -> str:
    trigger = trigger.strip()
    begins = prompt.startswith(trigger) and not prompt[len(trigger) :][:1].isalnum()  # "Tell men" does not
    return prompt if begins else f"{trigger} {prompt}"


def _require_text(name: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{name} is {text!r}, expected text that is not blank: it is what the attack puts in front")
