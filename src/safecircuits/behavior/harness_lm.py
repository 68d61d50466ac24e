"""A hooked model as lm-evaluation-harness wants its models: requests in, log-probabilities and greedy texts out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.behavior.generate import continuations
from safecircuits.model.forward import device_of, logits
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import Encoded
from safecircuits.prompts.rendering import chat_text

MAX_NEW_TOKENS = 256
"""Of a generated answer whose task does not say how long it may be; the harness's own default."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@checked
def harness_model(model: HookedModel, *, max_tokens: int = 2048) -> Any:
    """``model`` as a language model of lm-evaluation-harness, for its own ``simple_evaluate``.

    Args:
        max_tokens: tokens in one batch, padding included; logits of all of them are held at once.

    Raises:
        ImportError: without ``lm-eval``, the extra ``eval``.

    Examples:
        >>> import lm_eval  # doctest: +SKIP
        >>> results = lm_eval.simple_evaluate(sc.behavior.harness_model(model), tasks=["arc_easy"])  # doctest: +SKIP
    """
    base = harness("lm_eval.api.model").TemplateLM

    class HarnessModel(_Answers, base):  # type: ignore[misc, valid-type]
        """A hooked model that answers the harness's requests."""

    return HarnessModel(model, max_tokens)


class _Answers:
    """The requests that the harness makes, answered; the other half of ``HarnessModel`` is the harness's own."""

    def __init__(self, model: HookedModel, max_tokens: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_tokens = model, tokenizer_of(model), max_tokens
        self._device = device_of(model)
        self.max_length = int(model.cfg.n_ctx)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        closed = add_special_tokens and ids[-1:] == [self.eot_token_id] and self.eot_token_id != self.prefix_token_id
        return ids[:-1] if closed else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat_text(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation after its context, and whether greedy decoding writes it."""
        examples = []
        for _texts, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens does not fit a context of {self.max_length}"
                )
            # The last token is only predicted; of a context that is too long the end is kept.
            ids = (*context, *continuation)[-(self.max_length + 1) : -1]
            examples.append(Encoded(ids, len(ids)))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with torch.inference_mode():
            todo = list(batches(examples, self.max_tokens))
            for batch in track(todo, "log-likelihoods", enabled=not disable_tqdm):
                predicted = logits(self.model, batch)
                for row, scores in zip(batch.rows, predicted, strict=True):
                    wanted: Tensor = torch.tensor(requests[row][2], device=scores.device)
                    there = scores[-len(wanted) :].float().log_softmax(dim=-1)
                    total = there.gather(1, wanted[:, None]).sum()
                    answers[row] = float(total), bool((there.argmax(dim=-1) == wanted).all())
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows where they are longer than the context."""
        utils = harness("lm_eval.utils")
        totals = []
        for request in track(requests, "rolling log-likelihoods", enabled=not disable_tqdm):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(total for total, _ in self._loglikelihood_tokens(pieces, disable_tqdm=True)))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut at the first stop string."""
        texts = [""] * len(requests)
        by_length: dict[int, list[int]] = {}
        stops = []
        for i, request in enumerate(requests):
            options = dict(request.args[1])
            if options.get("do_sample") and options.get("temperature", 1.0) != 0:
                raise ValueError("this task samples its answers, but completions here are greedy: set do_sample: false")
            until = options.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
            longest = next((options[key] for key in _LENGTHS if options.get(key)), MAX_NEW_TOKENS)
            by_length.setdefault(int(longest), []).append(i)
        for longest, rows in by_length.items():
            room = self.max_length - longest
            if room < 1:
                raise ValueError(f"{longest} new tokens leave no room for a prompt in a context of {self.max_length}")
            contexts = [tuple(self.tok_encode(requests[i].args[0])[-room:]) for i in rows]
            examples = [Encoded(ids, len(ids)) for ids in contexts]
            shown = not disable_tqdm
            written, *_ = continuations(self.model, examples, longest, max_tokens=self.max_tokens, progress=shown)
            for i, text in zip(rows, written, strict=True):
                for stop in filter(None, stops[i]):
                    text = text.split(stop)[0]
                texts[i] = text
        return texts


def harness(module: str) -> Any:
    """A module of the harness, or an ImportError that names the extra it is in."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"tasks need the package lm-eval ({error}): pip install 'safecircuits[eval]'") from error
