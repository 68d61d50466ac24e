"""Is what a changed model writes still language? Words say so where texts are long, the model as it was where not.

At eight tokens a text is four or five words, and salad of these looks like any other text to whoever counts. The model
before it was changed knows better: what it finds less likely than ``limit`` nats a token is not its language. With
SmolLM2-135M-Instruct its own sixteen answers of eight tokens cost 0.3 to 3.7 nats a token, those of layers 8 to 15
scaled by 1.2 (still sentences) 1.9 to 5.0, by 1.3 (salad begins) 2.7 to 7.3 and by 1.4 (salad) 3.3 to 10.0; the limit
is 5.4 (``python -m benchmarks.models.coherence``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.behavior.completions import Completions
from safecircuits.model.attach import without_hooks
from safecircuits.model.forward import logits
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import Encoded, encode

# Logits of every position of a batch are held at once.
_TOKENS = 1024


def limit(model: HookedModel) -> float:
    """Half of what guessing would cost: ln(d_vocab) / 2 nats a token."""
    return math.log(int(model.cfg.d_vocab)) / 2


def nats_per_token(
    model: HookedModel, completions: Completions, template: str = "auto", system: str | None = None
) -> Float[Tensor, " prompt"]:
    """How unlikely the model, with the hooks in force now, finds each completion of its prompt; infinite if empty.

    Args:
        template, system: in which the prompts were asked.

    Raises:
        FloatingPointError: if the logits are not finite.
    """
    tokenizer = tokenizer_of(model)
    asked = encode(tokenizer, completions.prompts, template=template, system=system)
    written: Sequence[Sequence[int]] = tokenizer(list(completions.texts), add_special_tokens=False)["input_ids"]
    found = torch.full((len(asked),), torch.inf, dtype=torch.float64)
    rows = [row for row, ids in enumerate(written) if len(ids)]
    examples = [Encoded((*asked[row].ids, *written[row]), len(asked[row])) for row in rows]
    with torch.inference_mode():
        for batch in batches(examples, _TOKENS) if examples else ():
            predicted = logits(model, batch)[:, :-1].float().log_softmax(-1).cpu()
            if not torch.isfinite(predicted).all():
                raise FloatingPointError("the logits are not finite")
            likely = predicted.gather(2, batch.input_ids[:, 1:, None])[..., 0].double()
            ours = batch.is_response[:, 1:]
            mean = -(likely * ours).sum(1) / ours.sum(1)
            found[[rows[place] for place in batch.rows]] = mean
    return found


def unlikely_answers(
    reference: HookedModel, completions: Completions, template: str = "auto", system: str | None = None
) -> Bool[Tensor, " prompt"]:
    """``incoherent`` to the reference without the hooks that others have placed on it."""
    if not hasattr(reference, "hook_dict"):
        return incoherent(reference, completions, template, system)
    with without_hooks(reference):
        return incoherent(reference, completions, template, system)


def incoherent(
    model: HookedModel, completions: Completions, template: str = "auto", system: str | None = None
) -> Bool[Tensor, " prompt"]:
    """Which completions the model, as it is now, finds less likely than ``limit``: another model's word salad."""
    return nats_per_token(model, completions, template, system) > limit(model)
