"""How far a command's model is from another one in what it would say next, by KL divergence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from safecircuits.behavior.divergence import TokenKL
    from safecircuits.model.sites import HookedModel

LOOKED_AT = 64
"""Prompts of each kind: a distribution over the vocabulary is held in memory for each token of each answer."""


class Distance:
    """What a model says of the prompts before it is changed, or before the changed one is loaded."""

    def __init__(self, model: HookedModel, sets: Mapping[str, Any], template: str, n_tokens: int | None = None) -> None:
        from safecircuits.behavior.divergence import TOKENS, references_of

        first = {name: prompts.at_most(LOOKED_AT) for name, prompts in sets.items()}
        self.references = references_of(model, first | {"template": template}, n_tokens=n_tokens or TOKENS)

    def of(self, model: HookedModel) -> dict[str, TokenKL]:
        """The divergence by kind of prompt.

        Raises:
            ValueError: for a model whose tokens are not the other one's.
        """
        from safecircuits.behavior.divergence import divergences

        return divergences(self.references, model)

    @staticmethod
    def table(found: Mapping[str, TokenKL]) -> pd.DataFrame:
        """One row a kind of prompt and token of the answer."""
        import pandas as pd

        return pd.concat([one.to_frame().assign(prompts_of=kind) for kind, one in found.items()], ignore_index=True)
