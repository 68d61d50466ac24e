"""A model card's section about what a fine-tune did to safety: what was frozen, its digest, rates before and after."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from safecircuits.base.counted import HEADING, Beside, beside
from safecircuits.base.outputs import CHECKPOINT_CARD
from safecircuits.base.text import points
from safecircuits.base.version import __version__
from safecircuits.behavior.change import BehaviorChange, RateChange
from safecircuits.behavior.measured import Behavior
from safecircuits.gate.auditing import Audit
from safecircuits.training.run import FinetuneRun


def safety_section(
    run: FinetuneRun | None = None,
    audit: Audit | None = None,
    *,
    before: Behavior | Mapping[str, float] | None = None,
    after: Behavior | Mapping[str, float] | None = None,
) -> str:
    """The section in Markdown, for a card of one's own; ``model_card`` is a whole card with it.

    Args:
        run: of the fine-tune.
        audit: of the model before and after.
        before, after: where there is no audit, what ``evaluate`` found, with which the card says of how many prompts
            each rate is, what the answers are otherwise, and whether it has changed (McNemar's exact test). Rates
            between 0 and 1 by name will do; after the run those that a callback measured last, unless given.

    Raises:
        ValueError: for nothing to say, or behaviors on different prompts.

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
        >>> measured = sc.evaluate(model, malicious=malicious)
        >>> print(sc.gate.safety_section(before=measured, after=measured).splitlines()[5])
        | malicious refused | 100.0 % [67.6, 100.0] (8/8) | 100.0 % [67.6, 100.0] (8/8) | +0.0 [−36.8, +36.8] | 1 | ...
    """
    if run is None and audit is None and not (before or after):
        raise ValueError("a card says what was frozen and measured: give run=, audit=, or before= and after=")
    lines = ["## What fine-tuning did to safety", ""]
    if run is not None:
        lines += _training(run)
        if after is None and before:
            known = before.figures if isinstance(before, Behavior) else before
            after = {k: value for k, value in run.left(known).items() if k in known or _BESIDE.fullmatch(k)}
    if audit is not None:
        before, after = audit.before, audit.after
        lines.append(f"- Audit: {audit.verdict}.")
    if isinstance(before, Behavior) and isinstance(after, Behavior):
        lines += _changes(BehaviorChange(before, after)) if before.counted else []
    elif before or after:
        lines += _rates(*(one.figures if isinstance(one, Behavior) else one or {} for one in (before, after)))
    return "\n".join([*lines, "", _measured([one for one in (before, after) if isinstance(one, Behavior)])])


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


def _measured(found: Sequence[Behavior]) -> str:
    """How the rates were measured, and who said what refuses."""
    judges = {one.detector for behavior in found for of, one in behavior.answers.items() if of != "utility"}
    said = f"; what refuses is said by {' and '.join(sorted(judges))}" if judges else ""
    return f"Measured by safecircuits {__version__} with greedy completions{said}."


def _changes(found: BehaviorChange) -> list[str]:
    """Rates before and after, of all prompts and by category, each with its test."""
    columns = ["rate", "before", "after", "change in points", "p", f"{HEADING}, before", f"{HEADING}, after"]
    rows = [_row(one) for one in (*found.changes, *found.changes_by_category)]
    tested = "Intervals are 95 %, those of changes exact; p is McNemar's exact test, corrected by Holm over categories."
    far = [f"- On {of} prompts: {one}." for of, one in found.after.kl.items()]
    return [*_table(columns, rows), "", tested, *(["", "How far next tokens have moved:", "", *far] if far else [])]


def _row(one: RateChange) -> list[str]:
    tallies = one.tallies or ()
    told = [Beside.of(tally.record(""), "refused").cell for tally in tallies] or ["–", "–"]
    change = points(one.change, one.low, one.high)
    return [one.name, str(one.before), str(one.after), change, f"{one.p_corrected:.2g}", *told]


_BESIDE = re.compile(r"(malicious|over_rejection)_(n|deflects|incoherent|undecided|cut|reasoning)|step")
"""What figures have beside rates."""


def _rates(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Rates by name as they are, where no more is known of them."""
    names = [name for name in dict.fromkeys((*before, *after)) if not _BESIDE.fullmatch(name)]
    cells = [[f"{_percent(of.get(name))}{beside(of, name)}" for of in (before, after)] for name in names]
    titles = [name.replace("_", " ") for name in names]
    return _table(["rate", "before", "after"], [[title, *row] for title, row in zip(titles, cells, strict=True)])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (columns, *rows)]
    return ["", lines[0], "|---" * len(columns) + "|", *lines[1:]]


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f} %"
