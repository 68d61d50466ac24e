"""Is what a changed model writes still language? Words say so where texts are long, the model as it was where not.

At eight tokens a text is four or five words, and salad of these looks like any other text to whoever counts. The model
before it was changed knows better: what it finds less likely than ``limit`` nats a token is not its language. With
SmolLM2-135M-Instruct its own sixteen answers of eight tokens cost 0.3 to 4.0 nats a token, those of layers 8 to 15
scaled by 1.2 (still sentences) 1.2 to 4.9, by 1.3 (salad begins) 2.4 to 7.8 and by 1.4 (salad) 3.1 to 9.0; the limit
is 5.4 (``python -m benchmarks.models.coherence``).

After training on rows whose answers the model as it was finds unlikely itself (another language, a set opening), it
cannot tell what is new from salad: ``that_knows`` says so, and words alone decide.

The first token is left out: how an answer begins is the choice between refusing and complying, which is what changes
are made to alter. A base model finds the first word of a refusal all but impossible, and the rest of it plain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.notices import notify
from safecircuits.behavior.completions import Completions
from safecircuits.model.as_it_was import AsItWas
from safecircuits.model.attach import without_hooks
from safecircuits.model.forward import logits
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import batches
from safecircuits.prompts.chat_set import ChatSet, TrainingData
from safecircuits.prompts.prompt_set import Encoded, PromptSet, encode
from safecircuits.prompts.turns import Turn

Unchanged: TypeAlias = HookedModel | AsItWas | Sequence[HookedModel | AsItWas]
"""A model as it was before a change: itself with hooks on it, its weights as they were kept, or another one; or several
models any of which knows what language is."""

UNKNOWN = 0.05
"""The share of taught answers that a judge may find to be no language."""
_ROWS = 64
"""Of the taught rows, evenly spread."""

# Logits of every position of a batch are held at once.
_TOKENS = 1024


def limit(model: HookedModel) -> float:
    """Half of what guessing would cost: ln(d_vocab) / 2 nats a token."""
    return math.log(int(model.cfg.d_vocab)) / 2


def nats_per_token(
    model: HookedModel, completions: Completions, template: str = "auto", system: str | None = None
) -> Float[Tensor, " prompt"]:
    """How unlikely the model, with the hooks in force now, finds each completion once it has begun; infinite if empty.

    The mean over its tokens but the first, or over its one token.

    Args:
        template, system: in which the prompts were asked.

    Raises:
        FloatingPointError: if the logits are not finite.
    """
    return _nats(model, completions, template, system)[0]


def _nats(
    model: HookedModel, completions: Completions, template: str, system: str | None
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """``nats_per_token``, and the same of the tokens that the model finds likeliest in their places."""
    tokenizer = tokenizer_of(model)
    asked = encode(tokenizer, completions.prompts, template=template, system=system)
    written: Sequence[Sequence[int]] = tokenizer(list(completions.texts), add_special_tokens=False)["input_ids"]
    found = torch.full((2, len(asked)), torch.inf, dtype=torch.float64)
    found[1] = 0.0
    rows = [row for row, ids in enumerate(written) if len(ids)]
    examples = [Encoded((*asked[row].ids, *written[row]), len(asked[row])) for row in rows]
    with torch.inference_mode():
        for batch in batches(examples, _TOKENS) if examples else ():
            predicted = logits(model, batch)[:, :-1].float().log_softmax(-1).cpu()
            if not torch.isfinite(predicted).all():
                raise FloatingPointError("the logits are not finite")
            likely = predicted.gather(2, batch.input_ids[:, 1:, None])[..., 0].double()
            ours = batch.is_response[:, 1:].clone()
            first = ours & (ours.cumsum(1) == 1)
            ours &= ~(first & (ours.sum(1, keepdim=True) > 1))
            at = [rows[place] for place in batch.rows]
            for which, each in enumerate((likely, predicted.amax(-1).double())):
                found[which, at] = -(each * ours).sum(1) / ours.sum(1)
    return found[0], found[1]


def unlikely_answers(
    unchanged: Unchanged | None, completions: Completions, template: str = "auto", system: str | None = None
) -> Bool[Tensor, " prompt"] | None:
    """Which completions are ``incoherent`` to the model as it was; None where there is none to ask.

    Hooks that others have placed on it do not act. Of several models all must find a completion so: what one of them
    knows is language.
    """
    if unchanged is None:
        return None
    if isinstance(unchanged, AsItWas):
        if not unchanged.is_there:
            notify("the weights are split among processes: whether answers are language is told by their words alone")
            return None
        with unchanged.back() as model:
            return unlikely_answers(model, completions, template, system)
    if isinstance(unchanged, Sequence):
        each = [unlikely_answers(one, completions, template, system) for one in unchanged]
        known = [one for one in each if one is not None]
        return torch.stack(known).all(0) if known else None
    with without_hooks(unchanged) if hasattr(unchanged, "hook_dict") else nullcontext():
        return incoherent(unchanged, completions, template, system)


def incoherent(
    model: HookedModel, completions: Completions, template: str = "auto", system: str | None = None
) -> Bool[Tensor, " prompt"]:
    """Which completions the model, as it is now, finds less likely than ``limit``: another model's word salad.

    Not where any other tokens would have been as unlikely to it: then it knows no language that they could be of.
    """
    nats, least = _nats(model, completions, template, system)
    return (nats > limit(model)) & (least <= limit(model))


@checked
def that_knows(
    unchanged: HookedModel | AsItWas,
    taught: TrainingData,
    *,
    tokens: int | None = None,
    template: str = "auto",
    system: str | None = None,
) -> HookedModel | AsItWas | None:
    """A judge of what a model writes that learns these answers; None if more than ``UNKNOWN`` are no language to it.

    Args:
        taught: rows of training with their responses, or chats, of which the first answer counts.
        tokens: how many of an answer's are judged; all unless given.

    Examples:
        >>> odd = sc.PromptSet("odd", malicious.prompts, ("rope of the the is :",) * len(malicious))
        >>> sc.behavior.that_knows(model, odd) is None, sc.behavior.that_knows(model, utility) is model
        (True, True)
    """
    chats = ChatSet.of(taught)
    rows = range(0, len(chats), math.ceil(len(chats) / _ROWS))
    firsts = [first for chat in chats.subset(rows) if (first := _first_exchange(chat)) is not None]
    if not firsts:
        return unchanged
    asked, answers = zip(*firsts, strict=True)
    tokenizer = tokenizer_of(unchanged.model if isinstance(unchanged, AsItWas) else unchanged)
    written = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    said = Completions(PromptSet(taught.name, asked), tuple(tokenizer.decode(ids[:tokens]) for ids in written))
    odd = unlikely_answers(unchanged, said, template, system)
    if odd is None or float(odd.float().mean()) <= UNKNOWN:
        return unchanged
    notify(
        f"the model before training takes {int(odd.sum())} of {len(said)} answers of {taught.name!r} for no language, "
        "and cannot tell what is learnt from word salad: whether answers are language is told by their words alone"
    )
    return None


def _first_exchange(chat: Sequence[Turn]) -> tuple[str, str] | None:
    """The first question of a chat that is answered, with its answer."""
    return next(((q.content, a.content) for q, a in pairwise(chat) if (q.role, a.role) == ("user", "assistant")), None)
