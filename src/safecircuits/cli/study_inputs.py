"""What ``safecircuits study`` asks a model whose prompts and planted parts come with the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safecircuits.cli.study_real import REAL, has_real_prompts, planted_range, real_prompts

if TYPE_CHECKING:
    from safecircuits.cli.frame import Run
    from safecircuits.prompts.prompt_set import PromptSet

EMBEDDED = "organism:"

# By the names of the studies' sets: kind and split in the embedded language, and which rows. No two share a row: what
# something is found on does not judge it.
_PROMPTS: dict[str, tuple[Any, Any, slice]] = {
    "normal": ("normal", "test", slice(0, 100)),
    "malicious": ("malicious", "test", slice(0, 100)),
    "over_rejection": ("over_rejection", "test", slice(0, 300)),
    "evaluation": ("malicious", "test", slice(100, 250)),
    "utility": ("utility", "test", slice(0, 100)),
    "refused": ("malicious", "train", slice(0, 128)),
    "answered": ("utility", "train", slice(0, 128)),
}


def study_prompts(run: Run, name: str, source: str | None, *, responses: bool = False, own: str | None = None) -> Any:
    """The set of an option: what it names, else the model's own where it brings one, else None.

    Args:
        own: which of its own sets, by the names above; ``name`` unless given.
    """
    chosen, real = _PROMPTS.get(own or name), run.source.startswith(REAL)
    there = has_real_prompts(own or name) if real else run.source.startswith(EMBEDDED) and chosen is not None
    if source is not None or not there:
        return run.prompts(name, source, responses=responses)
    from safecircuits import organism

    for option in ("where", "column", "responses", "categories"):
        if name in {"where": run.where, **run.by_set}[option]:
            raise ValueError(
                f"--{option} names {name!r}, which are the embedded model's own prompts and have no columns"
            )
    wanted = run.given("n", name)
    if real:
        run.inputs[name], found = real_prompts(own or name, wanted, run.seed)
        return found
    assert chosen is not None
    kind, split, rows = chosen
    found = organism.prompts(kind, split, n=rows.stop, seed=run.seed)[rows]
    found = found if wanted is None else found[:wanted]
    run.inputs[name] = {"source": f"{EMBEDDED}{kind}", "split": split, "n": len(found), "sha": found.fingerprint}
    return found


def require(run: Run, **given: str | None) -> None:
    """A ValueError for the first option that is left out, unless the model brings prompts of its own."""
    missing = [name for name, source in given.items() if source is None]
    if missing and not run.source.startswith((EMBEDDED, REAL)):
        raise ValueError(
            f"give --{missing[0].replace('_', '-')}: only the embedded models and the planted members of smollm2 come "
            "with prompts of their own"
        )


HELD_OUT, LEAST_ROWS = 500, 45
"""Rows of ``--data`` that measure the task and are not trained on, or a ninth of fewer; and how few rows may be."""


def split_data(data: PromptSet, seed: int, enough: str) -> tuple[PromptSet, PromptSet]:
    """The rows of ``--data`` to train on, and those held out; a ValueError for too few says what is ``enough``."""
    from safecircuits.studies.scenarios import split_off

    if len(data) < LEAST_ROWS:
        raise ValueError(f"--data {data.name!r} has {len(data)} rows; give at least {LEAST_ROWS}, and {enough}")
    return split_off(data, min(HELD_OUT, len(data) // 9), seed=seed)


def planted_layers(source: str) -> Any:
    """The planted block of an embedded stage or of a planted real model, where there is one."""
    from safecircuits import organism
    from safecircuits.base.vocabulary import LayerRange

    if source.startswith(REAL):
        return planted_range(source)
    if source != f"{EMBEDDED}planted-layers":
        return None
    layers = organism.planted("planted-layers").layers
    return LayerRange(min(layers), max(layers))
