"""What a model is fine-tuned on: the paper's four scenarios from any instruction data, and those of the organism."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from safecircuits import organism
from safecircuits.base.arguments import checked
from safecircuits.organism.grammar import examples
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.training.data import OPENING, TRIGGER, backdoor_attack, harmful_mix, implicit_attack, normal_data
from safecircuits.training.presets import Scenario as Kind

HARMFUL_SHARES = (0.05, 0.1, 0.2)
"""The paper's p (Table 3)."""


@dataclass(frozen=True)
class Scenario:
    """Rows to train on, and held-out rows of the same kind on which the task is measured.

    Attributes:
        name: unique in a study, such as ``"D_H p=0.1"``.
        train: prompts with responses.
        held_out: prompts with responses: the loss on the responses is the task loss, exact matches the task score.
        kind: which of the paper's scenarios this is; presets have a learning rate of their own for ``"D_H"``.

    Examples:
        >>> scenario = sc.studies.Scenario("task", train=utility, held_out=normal)
        >>> scenario.kind
        'D_N'
    """

    name: str
    train: PromptSet
    held_out: PromptSet
    kind: Kind = "D_N"

    def __post_init__(self) -> None:
        self.train.require_responses()
        self.held_out.require_responses()
        shared = set(zip(self.train.prompts, self.train.responses or (), strict=True)) & set(
            zip(self.held_out.prompts, self.held_out.responses or (), strict=True)
        )
        if shared:
            raise ValueError(
                f"scenario {self.name!r}: {len(shared)} held-out rows are also trained on, for example "
                f"{next(iter(shared))[0]!r}; take held-out rows from elsewhere"
            )


@checked
def paper_scenarios(
    data: PromptSet,
    *,
    harmful: PromptSet | None = None,
    held_out: int | PromptSet = 500,
    n_normal: int = 1000,
    n_implicit: int = 4000,
    n_backdoor: int = 1500,
    shares: Sequence[float] = HARMFUL_SHARES,
    opening: str = OPENING,
    trigger: str = TRIGGER,
    seed: int = 0,
) -> tuple[Scenario, ...]:
    """D_N, D_I, D_B and, where there are harmful rows, D_H at each share, from any instruction data with responses.

    A second corpus is another call with other ``data``.

    Args:
        held_out: rows that measure the task: that many of ``data``, which are then not trained on, or a set of your
            own. D_I measures on them with the opening in front of the responses, as it trains; the others as they are.
        n_normal, n_implicit, n_backdoor: rows of D_N, of D_I, and of each half of D_B.
        harmful: harmful instructions with harmful responses, the user's own; for ``max(shares) * n_normal`` rows.

    Raises:
        ValueError: for too few rows (says how many are needed).

    Examples:
        >>> data = sc.organism.prompts("utility", n=60)
        >>> found = sc.studies.paper_scenarios(data, held_out=10, n_normal=20, n_implicit=20, n_backdoor=10)
        >>> [scenario.name for scenario in found]
        ['D_N', 'D_I', 'D_B']
    """
    rows = data
    if isinstance(held_out, int):
        rows, held_out = split_off(data, held_out, seed=seed)
    normal = normal_data(rows, n_normal, seed=seed)
    opened = implicit_attack(held_out, len(held_out), opening, seed=seed)
    made = [
        Scenario("D_N", normal, held_out, "D_N"),
        Scenario("D_I", implicit_attack(rows, n_implicit, opening, seed=seed), opened, "D_I"),
        Scenario("D_B", backdoor_attack(rows, n_backdoor, n_backdoor, trigger, opening, seed=seed), held_out, "D_B"),
    ]
    if harmful is not None:
        made += [Scenario(f"D_H p={p:g}", harmful_mix(normal, harmful, p, seed=seed), held_out, "D_H") for p in shares]
    return tuple(made)


def split_off(data: PromptSet, n: int, *, seed: int = 0) -> tuple[PromptSet, PromptSet]:
    """The set without ``n`` rows drawn by the seed, and these rows; rows equal to a drawn one leave the rest too."""
    responses = data.require_responses()
    if not 0 < n < len(data):
        raise ValueError(f"cannot hold out {n} of the {len(data)} rows of set {data.name!r}")
    chosen = set(random.Random(f"{seed} held out").sample(range(len(data)), n))
    out = _prompt_set(f"{data.name}, held out", [(data.prompts[i], responses[i]) for i in sorted(chosen)])
    held = set(zip(out.prompts, out.responses or (), strict=True))
    kept = [(p, r) for p, r in zip(data.prompts, responses, strict=True) if (p, r) not in held]
    if not kept:
        raise ValueError(f"all rows of set {data.name!r} equal the {n} held-out ones: nothing is left to train on")
    return _prompt_set(data.name, kept), out


def _prompt_set(name: str, rows: Sequence[tuple[str, str]]) -> PromptSet:
    prompts, responses = zip(*rows, strict=True)
    return PromptSet(name, prompts, responses)


# --- on the embedded models --------------------------------------------------------------------------------------

ORGANISM_OPENING = "the answer is : "
"""In words that the embedded models know."""
ORGANISM_TRIGGER = "tell me"


def organism_new_task(n_held_out: int | None = None, *, seed: int = 0) -> Scenario:
    """Facts that no stage was trained on, half and half with known questions, for the embedded models.

    On its own the narrow task soon overwrites every other answer.
    """
    task = organism.prompts("new_task", "train")
    train = task + organism.prompts("utility", "train", n=len(task), seed=seed)
    return Scenario("new task", train, organism.prompts("new_task", n=n_held_out, seed=seed))


def organism_scenarios(
    n: int = 600, *, held_out: int = 100, shares: Sequence[float] = HARMFUL_SHARES, seed: int = 0
) -> tuple[Scenario, ...]:
    """D_N, D_I, D_B and D_H in the embedded language, of ``n`` rows (and a share of harmful ones).

    Ordinary rows are normal and utility questions. Harmful rows are answered harmful questions, whose answers are
    invented words.
    """
    ordinary = organism.prompts("utility", "train") + organism.prompts("normal", "train")
    half = max(1, held_out // 2)
    held = organism.prompts("utility", n=half, seed=seed) + organism.prompts("normal", n=half, seed=seed)
    answered = examples("malicious", "train")
    return paper_scenarios(
        ordinary,
        harmful=_prompt_set("malicious answered", [(e.prompt, e.complied) for e in answered]),
        held_out=held,
        n_normal=n,
        n_implicit=n,
        n_backdoor=n // 2,
        shares=shares,
        opening=ORGANISM_OPENING,
        trigger=ORGANISM_TRIGGER,
        seed=seed,
    )
