"""What localize and grid say in a sentence: each count has beside it of how many answers it is, and which are none."""

from __future__ import annotations

import torch

from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.verdict_table import Tally
from safecircuits.layers.sweep_point import SweepPoint, counted
from safecircuits.prompts.prompt_set import PromptSet


def point(refused: int, incoherent: int | None, cut: int | None) -> SweepPoint:
    prompts = PromptSet("p", tuple("abcdefghij"))
    ended = None if cut is None else tuple(i >= cut for i in range(10))
    tally = None if incoherent is None else Tally(10, refused, 0, 0, incoherent, 0, cut)
    completions = Completions(prompts, ("x",) * 10, ended=ended)
    return SweepPoint(LayerRange(1, 2), 1.2, torch.arange(10) < refused, 0.0, completions, tally)


def test_both_counts_say_what_they_are_of() -> None:
    said = counted(point(7, 2, 1), point(3, 0, 4)).replace("\u00a0", " ")
    assert said == (
        "7 of 10 refused (20 % incoherent, 10 % cut at the token limit, n = 10), "
        "3 unscaled (0 % incoherent, 40 % cut at the token limit, n = 10)"
    )


def test_what_is_not_known_is_said() -> None:
    said = counted(point(7, None, None), point(3, None, None)).replace("\u00a0", " ")
    assert "7 of 10 refused (incoherent or not is not known, cut or not is not known, n = 10), 3 unscaled (" in said
