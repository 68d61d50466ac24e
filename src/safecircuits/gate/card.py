"""A model card's section about what a fine-tune did to safety: what was frozen, its digest, rates before and after."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from safecircuits.base.outputs import CHECKPOINT_CARD
from safecircuits.base.version import __version__
from safecircuits.gate.auditing import Audit
from safecircuits.training.run import FinetuneRun


def safety_section(
    run: FinetuneRun | None = None,
    audit: Audit | None = None,
    *,
    before: Mapping[str, float] | None = None,
    after: Mapping[str, float] | None = None,
) -> str:
    """The section in Markdown, for a card of one's own; ``model_card`` is a whole card with it.

    Args:
        run: of the fine-tune.
        audit: of the model before and after.
        before, after: rates between 0 and 1 by name, where there is no audit; after it those that a callback of the
            run measured last, unless given.

    Raises:
        ValueError: for nothing to say.

    Examples:
        >>> run = sc.finetune(sc.load_model("aligned"), utility, sc.FreezeMask.layers((3, 5)), steps=1, progress=False)
        >>> print(sc.gate.safety_section(run, before={"malicious_refused": 1.0}, after={"malicious_refused": 0.98}))
        ## What fine-tuning did to safety
        <BLANKLINE>
        - 1 step of the method plain at a peak rate of 0.0003, seed 0.
        - 589,824 weights were frozen and are bit-identical to the base model's: SHA-256 `...`.
        <BLANKLINE>
        | rate | before | after |
        |---|---|---|
        | malicious refused | 100.0 % | 98.0 % |
        <BLANKLINE>
        Measured by safecircuits ... with greedy completions.
    """
    if run is None and audit is None and not (before or after):
        raise ValueError("a card says what was frozen and measured: give run=, audit=, or before= and after=")
    lines = ["## What fine-tuning did to safety", ""]
    if run is not None:
        lines += _training(run)
        if after is None and before:
            left = run.left(before)
            after = {name: left[name] for name in before if name in left}
    if audit is not None:
        before, after = audit.before.rates, audit.after.rates
        lines.append(f"- Audit: {audit.verdict}.")
    if before or after:
        lines += ["", "| rate | before | after |", "|---|---|---|"]
        for name in dict.fromkeys((*(before or {}), *(after or {}))):
            cells = [_percent((rates or {}).get(name)) for rates in (before, after)]
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Measured by safecircuits {__version__} with greedy completions."])


def model_card(name: str, base_model: str | None = None, **about: Any) -> str:
    """A whole card, with the metadata that the hub reads; ``save_pretrained(model, folder, card=...)`` writes it.

    Args:
        name: of the model.
        base_model: what was fine-tuned; a hub id is in the metadata, too.
        about: what ``safety_section`` takes.

    Examples:
        >>> card = sc.gate.model_card("mine", "google/gemma-2b-it", before={"utility": 0.5}, after={"utility": 0.6})
        >>> card.splitlines()[:3]
        ['---', 'library_name: transformers', 'tags: [safecircuits]']
    """
    base = [] if base_model is None else ["", f"Fine-tuned from {base_model}."]
    hub = [f"base_model: {base_model}"] if base_model is not None and re.fullmatch(_HUB_ID, base_model) else []
    head = ["---", "library_name: transformers", "tags: [safecircuits]", *hub, "---", CHECKPOINT_CARD, "", f"# {name}"]
    return "\n".join([*head, *base, "", safety_section(**about), ""])


_HUB_ID = r"[\w.-]+/[\w.-]+"


def _training(run: FinetuneRun) -> list[str]:
    settings = run.settings
    method = settings.get("method", {}).get("name", "plain")
    steps = f"{run.steps} step{'s' * (run.steps != 1)}"
    lines = [
        f"- {steps} of the method {method} at a peak rate of {settings.get('lr', 0):g}, seed {settings.get('seed')}."
    ]
    if run.frozen_bit_identical:
        lines.append(
            f"- {run.n_frozen:,} weights were frozen and are bit-identical to the base model's: SHA-256 "
            f"`{run.frozen_digest}`."
        )
    else:
        lines.append("- Nothing was frozen.")
    if run.halted is not None:
        to = run.halted["rewound_to"]
        lines.append(
            f"- Training was halted after step {run.halted['step']} ({run.halted['reason']})"
            + ("." if to is None else f", and the weights are those of step {to}.")
        )
    return lines


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f} %"
