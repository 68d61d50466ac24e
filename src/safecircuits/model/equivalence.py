"""Whether a TransformerLens model computes what the Hugging Face model does that it was made of.

transformer-lens has an adapter or a converter for many architectures, and for some of their configurations builds a
model that computes something else, without a word: positions, windows or biases that it does not read. So each
configuration is compared once a process: the residual stream after every block and the logits, of rows in a padded
batch, in one pass and decoding with a cache, with what Hugging Face computes of each row alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safecircuits.base.notices import notify
from safecircuits.model.attach import attached
from safecircuits.model.checkpoint import first_line
from safecircuits.model.forward import Decoder, logits, without_dropout
from safecircuits.model.kernels import attending
from safecircuits.model.miniature import TOKENS, miniature_of, windows
from safecircuits.model.modules import decoder_layers
from safecircuits.model.offload import runs_on
from safecircuits.model.packed import packing_of
from safecircuits.model.sites import HookedModel, is_bridge, resid_post
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import Encoded

Traces = list[Float[Tensor, "pos d"]]
"""Of one row: the residual stream after each block, and at last the logits."""

_ROWS = (12, 7)
"""Tokens of the rows that the given model is compared on: a few short passes, however large it is."""

_SMALL = 20_000_000
"""Parameters of a model that is compared on long rows itself."""

_DECODED = 2
"""Tokens that are fed one by one: some architectures go wrong at the second."""


@dataclass(frozen=True)
class Tolerance:
    """How far apart two traces of a row may be, as a share of the size of what is at a position.

    Another kernel for attention, or another order of sums, differs by less; a wrong scale, rotation or mask by more.
    """

    most: float
    half: bool
    """Half precision, or quantised weights: their rounding may turn an expert's choice at single positions, so the
    median position counts."""

    @classmethod
    def of(cls, hf_model: Any, *, small: bool) -> Tolerance:
        """For a model of this precision and size."""
        half = _is_rounded(hf_model)
        return cls(0.1 if half else 1e-4 if small else 1e-3, half)

    def exceeded(self, got: Float[Tensor, "some d"], want: Float[Tensor, "pos d"]) -> float | None:
        """The distance if it is too large. ``got`` may have the last positions alone."""
        want = want[-len(got) :]
        each = (got - want).norm(dim=-1) / want.norm(dim=-1).clamp(min=1e-30)
        apart = float(each.median() if self.half else each.max()) if bool(torch.isfinite(each).all()) else math.nan
        return None if apart <= self.most else apart


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a model, and with Hugging Face's own modules in its place; None where nothing is."""

    wrong: str | None = None
    plain: str | None = None


_VERDICTS: dict[tuple[str, ...], Verdict] = {}
"""By configuration."""

OTHERWISE_PLAIN = "_safecircuits_otherwise_plain"
"""Set on a bridge in whose place Hugging Face's own modules may not run: they compute padded rows otherwise."""


def require_equivalent(
    model: HookedModel,
    hf_model: Any,
    make: Callable[[Any], HookedModel],
    reference: Callable[[], Any] | None = None,
) -> None:
    """A ValueError if ``model`` does not compute what ``hf_model`` does of each row, naming where and by how much.

    Where Hugging Face's own modules do not give the rows of a padded batch what they give them alone (the float32
    softmax of a float64 BLOOM), and the bridge does, the bridge is marked as one that always runs itself.

    A configuration that was compared in this process costs nothing. One with sliding windows, unusual positions or
    weights in half precision is compared on a small random model of it too (``safecircuits.model.miniature``).

    Args:
        model: a bridge or HookedTransformer made of ``hf_model``.
        make: makes such a model of another Hugging Face model.
        reference: gives the model to compare with, where ``hf_model`` has been rewired to make ``model`` of it.
    """
    key = _key(model, hf_model)
    if key not in _VERDICTS:
        _VERDICTS[key] = _verdict(model, hf_model if reference is None else reference(), make)
    verdict = _VERDICTS[key]
    if verdict.wrong is not None:
        raise ValueError(verdict.wrong)
    if verdict.plain is not None:
        setattr(model, OTHERWISE_PLAIN, True)


def _is_rounded(hf_model: Any) -> bool:
    """Whether its products are rounded to 16 bits or fewer, as those of quantised weights may be in any precision."""
    return bool(hf_model.dtype.itemsize <= 2 or packing_of(hf_model) is not None)


def _is_small(hf_model: Any) -> bool:
    return bool(not _is_rounded(hf_model) and sum(p.numel() for p in hf_model.parameters()) <= _SMALL)


def _verdict(model: HookedModel, hf_model: Any, make: Callable[[Any], HookedModel]) -> Verdict:
    small = _is_small(hf_model)
    beyond = max(windows(hf_model.config), default=0)
    rows = (TOKENS, TOKENS // 3) if small else _ROWS
    found = compared(model, hf_model, rows)
    if found.wrong is not None or (small and beyond < TOKENS // 2):
        return found
    if not _is_rounded(hf_model) and not beyond and not _positions_vary(hf_model.config):
        return found
    reason = f"beyond its window of {beyond} tokens" if beyond else "in full precision at more"
    miniature = miniature_of(hf_model)
    try:
        small_model = None if miniature is None else make(miniature)
    except ValueError:  # what fits for the given widths need not fit for others
        small_model = None
    if small_model is None:
        notify(
            f"this {type(hf_model).__name__} was compared with Hugging Face on {rows[0]} tokens and not {reason}: "
            "no small model of its configuration can be built"
        )
        return found
    closer = compared(small_model, miniature, (TOKENS, TOKENS // 3), where=" in a small model of its settings")
    return Verdict(closer.wrong, found.plain or closer.plain)


def compared(model: HookedModel, hf_model: Any, lengths: Sequence[int], where: str = "") -> Verdict:
    """What ``model`` computes otherwise than ``hf_model`` on rows of these lengths in tokens.

    Hugging Face's own modules stand in for a bridge wherever nobody watches it, so they are compared too: padded and
    cached, with themselves on each row alone.
    """
    most = getattr(hf_model.config.get_text_config(), "max_position_embeddings", None) or max(lengths)
    examples = _rows(int(model.cfg.d_vocab), [min(length, most) for length in lengths])
    architecture = type(hf_model).__name__
    with torch.inference_mode(), without_dropout(hf_model), without_dropout(model):
        try:
            want = [_alone(hf_model, example) for example in examples]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return Verdict(f"Hugging Face's own {architecture} does not run here: {type(error).__name__}: {error}")
        if not all(bool(torch.isfinite(trace).all()) for row in want for trace in row):
            notify(
                f"Hugging Face's own {architecture} gives values that are not finite, so whether what "
                "transformer-lens makes of it computes the same is not known"
            )
            return Verdict()
        tolerance = Tolerance.of(hf_model, small=_is_small(hf_model))
        wrong = _Way(model, None, tolerance).compared(examples, want)
        if wrong is not None:
            return Verdict(f"{_what(model, architecture)}{where}: {wrong}; {_advice(model)}")
        if not is_bridge(model):
            return Verdict()
        # TransformerLens may have chosen another kernel than the model had, and what stands in has that one, too.
        with attending(hf_model, model.original_model.config._attn_implementation):
            return Verdict(plain=_Way(model, hf_model, tolerance).compared(examples, want))


def _alone(hf_model: Any, example: Encoded) -> Traces:
    """What Hugging Face computes of one row without padding, mask or cache."""
    device = runs_on(hf_model)
    with _watched(decoder_layers(hf_model)) as seen:
        last = hf_model(input_ids=torch.tensor([example.ids], device=device), use_cache=False).logits
    return [states[0][0] for states in seen] + [last[0].double().cpu()]


@dataclass(frozen=True)
class _Way:
    """One of the ways that the library runs a model."""

    model: HookedModel
    plain: Any
    tolerance: Tolerance

    def compared(self, examples: Sequence[Encoded], want: Sequence[Traces]) -> str | None:
        """The first difference, said of the simplest case in which there is one."""
        for passes, manner in ((self._whole, ""), (self._decoded, ", decoding with a cache")):
            together = _first_difference(partial(passes, examples), want, self.tolerance)
            if together is None:
                continue
            each = (
                _first_difference(partial(passes, [row]), [trace], self.tolerance)
                for row, trace in zip(examples, want, strict=True)
            )
            alone = next(filter(None, each), None)
            tokens = " and ".join(str(len(example)) for example in examples)
            case = "a prompt alone" if alone else f"prompts of {tokens} tokens padded in one batch"
            return f"{alone or together} ({case}{manner})"
        return None

    def _whole(self, examples: Sequence[Encoded]) -> list[Traces]:
        """All rows in one padded pass without a cache."""
        batch = pad_left(examples)
        with self._recorded() as seen:
            if self.plain is None:
                ends: Tensor | None = logits(self.model, batch)
            else:
                Decoder(self.model, self.plain).feed(batch.input_ids, batch.attention_mask, None)
                ends = None  # only the last position's are made
        parts = [torch.cat(layer, dim=1) for layer in seen]
        return [self._row(parts, ends, row, len(example)) for row, example in enumerate(examples)]

    def _decoded(self, examples: Sequence[Encoded]) -> list[Traces]:
        """The same, the last tokens one by one."""
        batch = pad_left(examples)
        decoder = Decoder(self.model, self.plain)
        first = batch.input_ids.shape[1] - _DECODED
        ends = []
        with self._recorded() as seen:
            for start, end in [(0, first), *((i, i + 1) for i in range(first, first + _DECODED))]:
                ends.append(decoder.step(batch.input_ids[:, start:end], batch.attention_mask[:, start:end])[:, None])
        parts = [torch.cat(layer, dim=1) for layer in seen]
        last = torch.cat(ends, dim=1)
        return [self._row(parts, last, row, len(example)) for row, example in enumerate(examples)]

    @staticmethod
    def _row(parts: list[Tensor], ends: Tensor | None, row: int, length: int) -> Traces:
        traces = [part[row, -length:] for part in parts]
        return traces if ends is None else [*traces, ends[row, -length:].double().cpu()]

    @contextmanager
    def _recorded(self) -> Iterator[list[list[Tensor]]]:
        if self.plain is not None:
            with _watched(decoder_layers(self.plain)) as seen:
                yield seen
            return
        n_layers = int(self.model.cfg.n_layers)
        seen = [[] for _ in range(n_layers)]
        hooks = {resid_post(layer): _keeping(seen[layer]) for layer in range(n_layers)}
        with attached(self.model, hooks):
            yield seen


def _keeping(kept: list[Tensor]) -> Callable[[Tensor], None]:
    return lambda states: kept.append(states.double().cpu())


@contextmanager
def _watched(layers: nn.ModuleList) -> Iterator[list[list[Tensor]]]:
    """What each of a Hugging Face model's decoder layers gives, one entry a pass."""
    seen: list[list[Tensor]] = [[] for _ in layers]

    def keep(kept: list[Tensor]) -> Callable[..., None]:
        return lambda *given: kept.append((given[-1][0] if isinstance(given[-1], tuple) else given[-1]).double().cpu())

    handles = [layer.register_forward_hook(keep(kept)) for layer, kept in zip(layers, seen, strict=True)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _first_difference(run: Callable[[], list[Traces]], want: Sequence[Traces], tolerance: Tolerance) -> str | None:
    """Where the traces of some row first are apart, or why there are none."""
    try:
        got = run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"it does not run ({first_line(error)})"
    for layer in range(len(want[0])):
        for mine, theirs in zip(got, want, strict=True):
            if layer < len(mine) and (apart := tolerance.exceeded(mine[layer], theirs[layer])) is not None:
                what = "the logits are" if layer == len(theirs) - 1 else f"the residual stream after layer {layer} is"
                return f"{what} {f'off by {apart:.1%}' if math.isfinite(apart) else 'not finite'}"
    return None


def _rows(d_vocab: int, lengths: Sequence[int]) -> list[Encoded]:
    """Rows of unlike tokens, the same each time."""
    return [Encoded(tuple((5 + 7 * i + 3 * row) % d_vocab for i in range(n)), n) for row, n in enumerate(lengths)]


def _key(model: HookedModel, hf_model: Any) -> tuple[str, ...]:
    config = json.dumps(hf_model.config.to_dict() | {"_name_or_path": "", "dtype": ""}, sort_keys=True, default=str)
    attention = str(getattr(hf_model.config, "_attn_implementation", ""))
    modules = hashlib.sha256(repr([(n, type(m).__qualname__) for n, m in hf_model.named_modules()]).encode())
    kind = (
        modules.hexdigest(),
        type(model).__name__,
        type(hf_model).__name__,
        str(hf_model.dtype),
        hf_model.device.type,
        attention,
    )
    return (config, *kind, version("transformers"), version("transformer-lens"))


def _positions_vary(config: Any) -> bool:
    """Whether positions are counted in a way that shows little on a few tokens."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return isinstance(rope, dict) and "'default'" not in str(rope)


def _what(model: HookedModel, architecture: str) -> str:
    kind = "bridge" if is_bridge(model) else "HookedTransformer"
    return f"transformer-lens's {kind} of this {architecture} does not compute what Hugging Face does"


def _advice(model: HookedModel) -> str:
    other = "hooked" if is_bridge(model) else "bridge"
    return (
        f"everything measured on it would be wrong: try backend={other!r} or another version of transformer-lens, or "
        "use another model"
    )
