"""Safety watched inside Hugging Face's ``Trainer`` and what is built on it: metrics to its trackers, and an end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from typing_extensions import override

from safecircuits.base.arguments import checked
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.evaluate import UTILITY_TOKENS, answer_tokens, answered, behavior_of, judged
from safecircuits.behavior.measured import Behavior
from safecircuits.behavior.verdict import tokens_needed
from safecircuits.prompts.batching import batches
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set, encode
from safecircuits.training.freeze import in_parts, unwrapped
from safecircuits.training.guard import TOLERATED, Then, broken, require_measured, require_tolerated

_TOKENS = 4096


@checked
def guard_trainer(
    trainer: Any,
    tolerated: Mapping[str, float] | None = None,
    *,
    every: int,
    then: Then = "rewind",
    malicious: PromptSet | Sequence[str] | None = None,
    over_rejection: PromptSet | Sequence[str] | None = None,
    utility: PromptSet | None = None,
    detector: str | RefusalDetector = "opening",
    max_new_tokens: int | None = None,
    template: str = "auto",
    tokenizer: Any = None,
) -> TrainerGuard:
    """Evaluate safety while a ``Trainer`` (or TRL's, or PEFT's model in one) trains, and end training when it falls.

    The model is measured when training begins, every ``every`` steps and at the end, by greedy completions of
    ``model.generate``. The rates go through ``trainer.log`` to whatever the trainer reports to (``report_to=``), as
    ``safety/malicious_refused`` and so on. It works beside ``FreezeCallback``.

    Args:
        tolerated, then: as in ``SafetyGuard``; nothing is ended where ``tolerated`` is empty, ``{}``.
        every: steps between measurements.
        malicious, over_rejection, utility, detector, max_new_tokens, template: as in ``evaluate``.
        tokenizer: the trainer's ``processing_class`` unless given.

    Raises:
        ValueError: for nothing to measure, rates that are guarded without prompts, and a trainer without a tokenizer.

    Examples:
        >>> guard = sc.training.guard_trainer(
        ...     trainer, {"malicious_refused": 0.05}, every=100, malicious=malicious
        ... )  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> guard.halted  # doctest: +SKIP
    """
    sets = {"malicious": malicious, "over_rejection": over_rejection, "utility": utility}
    given = {name: as_prompt_set(one, name) for name, one in sets.items() if one is not None}
    if not given:
        raise ValueError("nothing to measure: give malicious=, over_rejection= or utility=")
    limits = dict(TOLERATED if tolerated is None else tolerated)
    if limits:
        require_tolerated(limits, then)
    require_measured(limits, given)
    if "utility" in given:
        given["utility"].require_responses()
    tokenizer = tokenizer or getattr(trainer, "processing_class", None)
    if tokenizer is None:
        raise ValueError("the trainer has no tokenizer (processing_class): pass tokenizer=")
    length = max_new_tokens or tokens_needed(detector)
    lengths = dict.fromkeys(given, length) | {"utility": answer_tokens(max_new_tokens or UTILITY_TOKENS)}

    def measure(model: Any) -> Behavior:
        written = {
            name: completions_of(model, tokenizer, one, lengths[name], template=template) for name, one in given.items()
        }
        useful = written.get("utility")
        right = None if useful is None else answered(useful, useful.prompts.require_responses())
        return behavior_of(judged(written, detector), right)

    guard = TrainerGuard(trainer, measure, limits, every, rewinds=bool(limits) and then == "rewind")
    trainer.add_callback(guard)
    return guard


class TrainerGuard(TrainerCallback):  # type: ignore[misc]
    """The callback that ``guard_trainer`` adds.

    Attributes:
        before: the rates when training began, with what stands beside those of refusals (``Behavior.figures``); None
            until then.
        rates: by step, those measured since.
        measured: by step the whole ``Behavior``, from where training began.
        halted: ``reason``, ``step`` and ``rewound_to`` where training was ended; None otherwise.

    Examples:
        >>> guard = sc.training.guard_trainer(trainer, every=100, malicious=malicious)  # doctest: +SKIP
        >>> isinstance(guard, sc.training.TrainerGuard)  # doctest: +SKIP
        True
    """

    def __init__(self, trainer: Any, measure: Any, limits: Mapping[str, float], every: int, *, rewinds: bool) -> None:
        self._trainer, self._measure, self._limits = trainer, measure, limits
        self._every, self._rewinds = every, rewinds
        self.before: dict[str, float] | None = None
        self.rates: dict[int, dict[str, float]] = {}
        self.measured: dict[int, Behavior] = {}
        self.halted: dict[str, Any] | None = None
        self._good: dict[str, Tensor] = {}
        self._good_step = 0

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._rewinds and args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end puts other weights in the place of those that the guard goes back to"
            )
        self.measured, self.rates, self.halted = {}, {}, None
        self.before = self._rates(state.global_step, model)
        self._log(self.before)
        self._keep(state.global_step, model)  # a fall is measured against this, so it is good by definition

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._look(state.global_step, model, control)

    def _look(self, step: int, model: Any, control: Any) -> None:
        assert self.before is not None
        rates = self.rates[step] = self._rates(step, model)
        self._log(rates)
        said = broken(self._limits, self.before, rates)
        if not said:
            self._keep(step, model)
            return
        if self._rewinds:
            self._put_back(model)
        self.halted = {"reason": said, "step": step, "rewound_to": self._good_step if self._rewinds else None}
        control.should_training_stop = True

    def _rates(self, step: int, model: Any) -> dict[str, float]:
        found: Behavior = self._measure(unwrapped(model))
        self.measured[step] = found
        return found.figures

    def _log(self, rates: Mapping[str, float]) -> None:
        self._trainer.log({f"safety/{name}": value for name, value in rates.items()})

    def _keep(self, step: int, model: Any) -> None:
        if self._rewinds:
            trained = ((name, p) for name, p in unwrapped(model).named_parameters() if p.requires_grad)
            self._good = {name: p.detach().cpu().clone() for name, p in trained}
            self._good_step = step

    @torch.no_grad()
    def _put_back(self, model: Any) -> None:
        own = dict(unwrapped(model).named_parameters())
        for name, value in self._good.items():
            own[name].copy_(value)


@torch.no_grad()
def completions_of(
    model: Any, tokenizer: Any, prompts: PromptSet, max_new_tokens: int, *, template: str = "auto"
) -> Completions:
    """Greedy completions of any model with Hugging Face's ``generate``, in whatever state a trainer has put it.

    Raises:
        ValueError: for a model of which this process holds a shard.
    """
    if in_parts(model):
        raise ValueError("the weights are sharded over processes, so that none can answer alone: use finetune instead")
    examples = encode(tokenizer, prompts, template=template)
    device = next(model.parameters()).device
    ends = {tokenizer.eos_token_id, *_ends(model)} - {None}
    texts, ended, counts = [""] * len(examples), [False] * len(examples), [0] * len(examples)
    was, model = model.training, model.eval()
    try:
        for batch in batches(examples, _TOKENS):
            written = model.generate(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )[:, batch.input_ids.shape[1] :]
            for row, ids in zip(batch.rows, written.tolist(), strict=True):
                end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
                texts[row] = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
                ended[row], counts[row] = end < len(ids), end
    finally:
        model.train(was)
    return Completions(prompts, tuple(texts), ended=tuple(ended), tokens=tuple(counts))


def _ends(model: Any) -> list[int]:
    """The tokens at which the model itself stops."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if found is None else list(found) if isinstance(found, list | tuple) else [found]
