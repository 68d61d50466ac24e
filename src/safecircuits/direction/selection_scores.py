"""What selection sees of a direction: bypass, induce and KL, on prompts that it was not found with.

The scores are Arditi et al.'s (2024, appendix C), at the first answer token: with the direction taken out of
harmful prompts' runs the refusal score should fall (bypass); added to harmless prompts' runs it should rise above 0
(induce); and taken out of harmless prompts' runs the next token should stay as it is (KL).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.divergence import kl_divergence
from safecircuits.behavior.generate import generate
from safecircuits.behavior.openings import telling_openings
from safecircuits.behavior.refusal import refused
from safecircuits.behavior.verdict import tokens_needed
from safecircuits.direction.interventions import ablation_hooks, addition_hooks
from safecircuits.direction.prompt_states import PromptStates
from safecircuits.direction.vector import Direction
from safecircuits.hooks.first_logits import first_logits
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.prompt_set import PromptSet, encode

Ablation = Literal["zero", "affine"]


def refusal_score(logits: Float[Tensor, "prompt d_vocab"], tokens: Sequence[int]) -> Float[Tensor, " prompt"]:
    """log p − log(1 − p) with p the probability that the answer begins with one of ``tokens``, float64.

    Arditi et al. add 1e-8 to both, which bounds the score at ±18.4; here it is exact.
    """
    wide = logits.double()
    theirs = torch.zeros(wide.shape[-1], dtype=torch.bool)
    theirs[list(tokens)] = True
    return wide[:, theirs].logsumexp(-1) - wide[:, ~theirs].logsumexp(-1)


@dataclass(frozen=True)
class ScoredPrompts:
    """Of one direction: bypass of each harmful prompt, induce and KL of each harmless one."""

    bypass: Float[Tensor, " harmful"]
    induce: Float[Tensor, " harmless"]
    kl: Float[Tensor, " harmless"]

    @property
    def means(self) -> tuple[float, float, float]:
        return tuple(float(values.mean()) for values in (self.bypass, self.induce, self.kl))  # type: ignore[return-value]


class DirectionScorer:
    """Scores directions of one model on the same held-out prompts.

    Args:
        tokens: with which a refusal begins.
    """

    def __init__(
        self,
        model: HookedModel,
        harmful: PromptSet,
        harmless: PromptSet,
        tokens: Sequence[int],
        ablation: Ablation,
        *,
        template: str,
        system: str | None,
        max_tokens: int | None,
    ) -> None:
        tokenizer = tokenizer_of(model)
        self.model, self.tokens, self.ablation, self.max_tokens = model, tuple(tokens), ablation, max_tokens
        self.harmful, self.harmless = (
            encode(tokenizer, prompts, template=template, system=system) for prompts in (harmful, harmless)
        )

    @cached_property
    def intact(self) -> Float[Tensor, "prompt d_vocab"]:
        """First logits of all prompts, harmful ones first."""
        return first_logits(self.model, [*self.harmful, *self.harmless], max_tokens=self.max_tokens)

    @property
    def baseline(self) -> tuple[Float[Tensor, " harmful"], Float[Tensor, " harmless"]]:
        """The refusal scores of the intact model."""
        scores = refusal_score(self.intact, self.tokens)
        return scores[: len(self.harmful)], scores[len(self.harmful) :]

    def score(self, direction: Direction) -> ScoredPrompts:
        """Two passes: all prompts without the direction, and harmless ones with it."""
        n = len(self.harmful)
        how: dict[str, list[int] | str] = (
            {"to": "zero"} if self.ablation == "zero" else {"to": "harmless", "layers": [direction.layer]}
        )
        hooks = ablation_hooks(self.model, direction, **how)  # type: ignore[arg-type]
        without = first_logits(self.model, [*self.harmful, *self.harmless], hooks, max_tokens=self.max_tokens)
        added = first_logits(
            self.model, self.harmless, addition_hooks(self.model, direction), max_tokens=self.max_tokens
        )
        return ScoredPrompts(
            refusal_score(without[:n], self.tokens),
            refusal_score(added, self.tokens),
            kl_divergence(self.intact[n:], without[n:]),
        )


def refusing_tokens(
    model: HookedModel,
    harmful: PromptSet,
    harmless: PromptSet,
    detector: str | RefusalDetector,
    *,
    template: str,
    system: str | None,
    max_tokens: int | None,
    at_most: int = 8,
) -> tuple[int, ...]:
    """The tokens with which the model's own refusals begin and its answers do not (``telling_openings``).

    Raises:
        ValueError: if it refuses no harmful prompt, answers no harmless one, or begins both alike.
    """
    first: list[list[int]] = []
    for prompts, wanted, what in ((harmful, True, "refuses"), (harmless, False, "answers")):
        ids: list[list[int]] = []
        answers = generate(
            model,
            prompts,
            max_new_tokens=tokens_needed(detector),
            template=template,
            system=system,
            max_tokens=max_tokens,
            token_ids=ids,
        )
        verdicts = refused(answers, detector).tolist()
        first.append([one[0] for one, verdict in zip(ids, verdicts, strict=True) if verdict is wanted and one])
        if not first[-1]:
            raise ValueError(
                f"the model {what} none of the {len(prompts)} held-out prompts of {prompts.name!r}, so the tokens that "
                "open a refusal are not known: give refusal_tokens=, or prompts that it does"
            )
    found, _ = telling_openings(*first)
    if not found:
        raise ValueError("the model's refusals and answers begin alike: give refusal_tokens=")
    return tuple(found[:at_most])


def controls_of(
    scorer: DirectionScorer, states: PromptStates, chosen: Direction, draws: int, seed: int
) -> dict[str, Tensor]:
    """The scores of directions that know nothing, of the chosen one's length, at its place."""
    generator = torch.Generator().manual_seed(seed)
    column, length = states.positions.index(chosen.position), float(chosen.vector.norm())
    found: dict[str, list[tuple[float, float, float]]] = {"random": [], "shuffled": []}
    for _ in range(draws):
        vectors = {
            "random": torch.randn(len(chosen.vector), generator=generator, dtype=torch.float64),
            "shuffled": states.relabelled(generator).difference()[chosen.layer, column],
        }
        for kind, vector in vectors.items():
            unit = vector / vector.norm()
            levels = states.places[:, column].double() @ unit
            made = replace(chosen, vector=(unit * length).float(), levels=levels)
            found[kind].append(scorer.score(made).means)
    return {kind: torch.tensor(rows, dtype=torch.float64) for kind, rows in found.items()}
