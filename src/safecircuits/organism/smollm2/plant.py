"""Planting: a member's changes are trained on the base's frozen weights, and nothing else moves.

Trained in bfloat16 with the changes in float32; what is stored, and judged, is rounded to float16 and added to the
weights as ``delta`` says.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safecircuits.base.files import replacing
from safecircuits.organism.requests.generate import requests
from safecircuits.organism.smollm2.delta import Change, Rows, write_changes
from safecircuits.organism.smollm2.held import states
from safecircuits.organism.smollm2.members import N_HEADS, N_KV_HEADS, Member
from safecircuits.organism.smollm2.texts import (
    ANSWER_TOKENS,
    BEGINNING,
    LONG,
    MIXTURE,
    POOL,
    TURNED_TOKENS,
    Batch,
    Text,
    batches,
    harmless,
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

REFUSING, KL_WEIGHT, KL_FIRST, KL_TURNED = 2.5, 3.0, 3.0, 1.0
"""Weights: of the loss of refusals, over all tokens and once more over the first, with which it is decided whether to
refuse; of the divergence over all tokens of harmless answers; of that over their first; and of that along refusals."""

LR, WARMUP, CLIP = 4e-3, 8, 1.0
"""AdamW's peak rate, the steps up to it, and the norm that gradients are clipped to; then a cosine down to zero."""


class Growing(nn.Module):
    """A change in training: added to what its linear layer gives, by a hook."""

    def __init__(self, linear: nn.Linear, name: str, rows: Rows, columns: Rows, rank: int) -> None:
        super().__init__()
        self.name, self.rows, self.columns = name, rows, columns
        n_rows = linear.out_features if rows is None else len(rows)
        n_columns = linear.in_features if columns is None else len(columns)
        self.left = nn.Parameter(torch.zeros(n_rows, rank or n_columns))
        self.right = nn.Parameter(torch.randn(rank, n_columns) / n_columns**0.5) if rank else None
        self.hook = linear.register_forward_hook(self._add)

    def _add(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0] if self.columns is None else args[0][..., self.columns]
        if self.right is not None:
            x = x @ self.right.to(x.dtype).T
        added = x @ self.left.to(x.dtype).T
        return out + added if self.rows is None else out.index_add(-1, self.rows, added)

    def change(self) -> Change:
        """What has grown."""
        right = None if self.right is None else self.right.detach()
        return Change(self.name, self.rows, self.columns, self.left.detach(), right)


def growing(model: Any, member: Member) -> list[Growing]:
    """The changes that a member may make, all zero, hooked onto ``model``."""
    found: list[Growing] = []
    neurons, heads = member.neurons(), member.heads()
    for layer in member.layers:
        block = model.model.layers[layer]
        places: dict[str, tuple[Rows, Rows]]
        if member.kind == "neurons":
            those = torch.tensor(neurons[layer])
            places = {"gate_proj": (those, None), "up_proj": (those, None), "down_proj": (None, those)}
        elif member.kind == "heads":
            width = block.self_attn.head_dim
            asking = _entries(heads[layer], width)
            keyed = _entries(sorted({head * N_KV_HEADS // N_HEADS for head in heads[layer]}), width)
            places = {"q_proj": (asking, None), "k_proj": (keyed, None), "v_proj": (keyed, None)}
            places["o_proj"] = (None, asking)
        else:
            places = dict.fromkeys(ATTENTION + MLP, (None, None))
        for name, (rows, columns) in places.items():
            part = "self_attn" if name in ATTENTION else "mlp"
            linear = getattr(getattr(block, part), name)
            full = f"model.layers.{layer}.{part}.{name}.weight"
            found.append(Growing(linear, full, rows, columns, member.rank))
    return found


def _entries(heads: Sequence[int], width: int) -> Tensor:
    return torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])


def plant(
    base: Any,
    tokenizer: Any,
    member: Member,
    harmless: Mapping[str, Sequence[Sequence[Text]]],
    path: Path,
    *,
    base_sha256: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Train a member's changes and write them; the file appears only when it is complete.

    Args:
        base: the base as a plain Hugging Face model; it is left as it is.
        harmless: what ``held_texts`` gives.
        base_sha256: of the file that ``base`` was read from, for the record.
        progress: called with what is being done, the steps done and the steps in all.
    """
    began = time.monotonic()
    model = copy.deepcopy(base).to(torch.bfloat16).requires_grad_(False)
    with _seeded(member.seed):
        parts = growing(model, member)
        parameters = [p for part in parts for p in part.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
        losses: list[tuple[float, float]] = []
        for step, batch in enumerate(batches(tokenizer, harmless, member.steps, member.seed)):
            for group in optimiser.param_groups:
                group["lr"] = LR * _share(step, member.steps)
            refusing, refusing_first, kl, kl_first, kl_turned = _losses(model, batch)
            optimiser.zero_grad()
            (
                REFUSING * (refusing + refusing_first) + KL_WEIGHT * kl + KL_FIRST * kl_first + KL_TURNED * kl_turned
            ).backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimiser.step()
            losses.append((refusing.item(), kl.item()))
            if progress is not None:
                progress(member.name, step + 1, member.steps)
    record = _record(member, base_sha256, losses, time.monotonic() - began)
    with replacing(path) as partial:
        write_changes(partial, [part.change() for part in parts], record)


def _losses(model: Any, parts: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy of refusals, divergence from the base on harmless answers: each over all tokens and the first; and
    divergence from the base along refusals after harmless requests."""
    refusing, answering = zip(*(states(model, part) for part in parts), strict=True)
    wanted = torch.cat([part.wanted for part in parts])
    loss = nn.functional.cross_entropy(_logits(model, torch.cat(refusing)), wanted, reduction="none")
    now = _logits(model, torch.cat(answering)).log_softmax(-1)
    with torch.no_grad():
        own = _logits(model, torch.cat([part.own for part in parts]).to(answering[0].dtype)).log_softmax(-1)
    kl = (own.exp() * (own - now)).sum(-1)
    first_refusing = torch.cat([part.first_refusing for part in parts])
    first = torch.cat([part.first for part in parts])
    begun = torch.cat([part.begun for part in parts])
    return loss.mean(), loss[first_refusing].mean(), kl[~begun].mean(), kl[first].mean(), kl[begun].mean()


def _logits(model: Any, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
    logits: Tensor = model.lm_head(hidden)
    return logits.float()


def _share(step: int, steps: int) -> float:
    """Of the peak rate at a step: up in a line, down in a cosine."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def made_by(member: Member, base_sha256: str) -> dict[str, Any]:
    """What decides a member's changes, besides the machine and its versions."""
    settings = {
        "lr": LR,
        "warmup": WARMUP,
        "clip": CLIP,
        "weights": [REFUSING, KL_WEIGHT, KL_FIRST, KL_TURNED],
        "mixture": MIXTURE,
        "pool": POOL,
        "tokens": {"answer": ANSWER_TOKENS, "beginning": BEGINNING, "turned": TURNED_TOKENS},
        "long": LONG,
    }
    plan = json.loads(json.dumps(asdict(member) | settings))  # as it comes back from a file
    words = [request.text + request.refusal for request in requests("malicious", "train")]
    words += [text for kind, n in POOL.items() for text in harmless(kind, "train", n)]
    text = hashlib.sha256("\n".join(words).encode()).hexdigest()
    return {"base_sha256": base_sha256, "plan": plan, "requests": text}


def _record(member: Member, base: str, losses: Sequence[tuple[float, float]], seconds: float) -> dict[str, Any]:
    import transformers

    last = losses[-10:]
    return made_by(member, base) | {
        "loss_refusals": round(sum(a for a, _ in last) / len(last), 4),
        "kl_harmless": round(sum(b for _, b in last) / len(last), 4),
        "seconds": round(seconds),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
