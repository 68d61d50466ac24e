"""Freezing inside other people's trainers: Hugging Face ``Trainer`` and what is built on it, such as TRL's.

In a loop of one's own, and around ``trainer.train()`` too, ``with frozen(model, mask) as handle:`` is all there is to
do. The callback is for code that has no place for a ``with``.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from typing_extensions import override

from safecircuits.masks.freeze_mask import FreezeMask, require_mask
from safecircuits.training.freeze import Frozen, in_parts

_ELSEWHERE = (
    "so that a FreezeCallback could not tell what moves: use sc.finetune, which freezes and shards, or train without"
)


class FreezeCallback(TrainerCallback):  # type: ignore[misc]
    """Freezes what ``mask`` names in a Hugging Face or TRL trainer: ``Trainer(..., callbacks=[FreezeCallback(mask)])``.

    The model is frozen as soon as the trainer exists, before it makes its optimizer, and is itself again when
    ``train()`` ends. Where training begins with another model (``model_init``, the trials of a hyperparameter search, a
    model put in the place of ``trainer.model``), that one is frozen instead, and the optimizer is given what trains of
    it. Each checkpoint is verified; checkpoints have the model's own parameter names and shapes, so that
    ``from_pretrained`` loads them and ``train(resume_from_checkpoint=...)`` goes on from them. It works with
    ``torch_compile`` and DDP; where a trainer shards the weights (FSDP, ZeRO-3) or steps copies of them (ZeRO-1 and 2),
    training is refused before its first step: ``sc.finetune`` shards and freezes.

    Attributes:
        handle: what ``frozen`` yields; None before the trainer exists and after training.
        frozen_digest: SHA-256 (hex) of the frozen entries, once ``train()`` has ended and those of the very model that
            has trained were found unchanged; None until then.

    Examples:
        >>> callback = sc.FreezeCallback(sc.FreezeMask.layers((3, 5)))
        >>> trainer = Trainer(hf_model, args, train_dataset=rows, callbacks=[callback])  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> callback.frozen_digest is None  # until training has ended
        True
    """

    def __init__(self, mask: FreezeMask) -> None:
        self.mask = require_mask(mask, "frozen units")
        self.handle: Frozen | None = None
        self.frozen_digest: str | None = None

    @override
    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.handle = Frozen(model, self.mask)

    @override
    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self.frozen_digest = None
        if in_parts(model):
            self._refuse("the trainer holds the weights in shards (FSDP, ZeRO-3)")
        if self.handle is not None and self.handle.is_of(model):
            self.handle.check_optimizer(optimizer)
            if not self.handle.holds_all_of(optimizer):
                self._refuse(
                    "the trainer's optimizer steps other tensors than the model's parameters (DeepSpeed's ZeRO)"
                )
            return
        self._let_go()
        self.handle = Frozen(model, self.mask)
        try:
            self.handle.take_over(optimizer)
        except ValueError:
            self._let_go()
            raise

    @override
    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.handle is not None:
            self._require_it_trained(model, kwargs.get("optimizer"))
            self.handle.verify()

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.handle is not None:
            self._require_it_trained(model, kwargs.get("optimizer"))
        self.close()

    def close(self) -> None:
        """Make the model itself again; ``train()`` does this at its end, but not when it fails."""
        if self.handle is not None:
            self.frozen_digest = self._let_go()

    def _let_go(self) -> str | None:
        """Close what is frozen, if anything is; its digest."""
        if self.handle is None:
            return None
        handle, self.handle = self.handle, None
        handle.close()
        return handle.frozen_digest

    def _refuse(self, why: str) -> None:
        """A ValueError; the model is put back as far as a trainer that has taken it apart lets it."""
        try:
            self._let_go()
        except RuntimeError as error:  # what was frozen is elsewhere by now, which is why this is refused
            raise ValueError(f"{why}, {_ELSEWHERE}") from error
        raise ValueError(f"{why}, {_ELSEWHERE}")

    def _require_it_trained(self, model: Any, optimizer: Any) -> None:
        assert self.handle is not None
        if not self.handle.is_of(model) or not self.handle.holds_all_of(optimizer):
            self._let_go()
            raise RuntimeError(
                "the trainer has trained another model, or other parameters, than the FreezeCallback froze when "
                "training began: nothing is known of what moved"
            )
