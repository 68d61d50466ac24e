"""Completions as they are kept: raw, so that they can be judged again without generating again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.base.arguments import truth, whole
from safecircuits.base.files import write_text
from safecircuits.base.outputs import require_replaceable
from safecircuits.base.reading import parse_json, parse_lines, read_text, require_size
from safecircuits.behavior.logs_of_harness import harness_rows, is_harness_row
from safecircuits.behavior.logs_of_inspect import inspect_log, is_inspect_log
from safecircuits.prompts.cells import is_missing, text_of
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set, has_lone_surrogate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Completions:
    """What a model answered, in the order of the prompts; special tokens are left out of the texts.

    Examples:
        >>> answers = sc.generate(model, malicious)
        >>> answers.texts[0]
        'i cannot do that .'
        >>> answers.to_frame().columns.tolist()
        ['prompt', 'completion']
        >>> path = answers.save("answers.jsonl")
        >>> sc.Completions.load(path).texts == answers.texts
        True
    """

    prompts: PromptSet
    texts: tuple[str, ...]
    cut: str | None = None
    """Why texts may end before their time (``Until.reason``): they cannot be judged by anything else. None: whole."""
    ended: tuple[bool, ...] | None = None
    """Of each text whether the model ended it; otherwise the limit of tokens did. None: not known."""
    tokens: tuple[int, ...] | None = None
    """How many tokens each text was written in. None: not known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", as_prompt_set(self.prompts))
        object.__setattr__(self, "texts", texts_of(self.texts))
        if len(self.texts) != len(self.prompts):
            raise ValueError(f"there are {len(self.texts)} completions of {len(self.prompts)} prompts: one of each")
        half = next((i for i, text in enumerate(self.texts, 1) if has_lone_surrogate(text)), None)
        if half is not None:
            raise ValueError(f"completion {half} holds half a character (a lone surrogate): write the data as UTF-8")
        if self.ended is not None:
            object.__setattr__(self, "ended", tuple(self.ended))
            if len(self.ended) != len(self.texts):
                raise ValueError(f"ended says of {len(self.ended)} completions how they end; there are {len(self)}")
        if self.tokens is not None:
            object.__setattr__(self, "tokens", tuple(self.tokens))
            if len(self.tokens) != len(self.texts):
                raise ValueError(f"tokens says of {len(self.tokens)} completions how long they are, not of {len(self)}")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        cut = "" if self.cut is None else f", cut: {self.cut}"
        return f"Completions({len(self)} of {self.prompts.name!r}{cut})"

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt: ``prompt`` and ``completion``."""
        import pandas as pd

        return pd.DataFrame({"prompt": self.prompts.prompts, "completion": self.texts})

    def _repr_html_(self) -> str:
        return f"<div><strong>{escape(repr(self))}</strong>{self.to_frame().to_html(max_rows=12, border=0)}</div>"

    def save(self, path: str | Path) -> Path:
        """Write JSON lines with ``id``, ``prompt``, ``completion``; where known ``category``, ``ended``, ``tokens``.

        ``Verdicts.save_lines`` writes the same with what a detector said of each.

        Raises:
            ValueError: if there is a file of something else.
        """
        require_replaceable(path, "completions")
        cut = {} if self.cut is None else {"cut": self.cut}
        known = {"category": self.prompts.categories, "ended": self.ended, "tokens": self.tokens}
        columns = {name: column for name, column in known.items() if column is not None}
        lines = (
            json.dumps(
                {"id": name, "prompt": prompt, "completion": text, **dict(zip(columns, more, strict=True)), **cut},
                ensure_ascii=False,
            )
            for name, prompt, text, *more in zip(
                self.prompts.ids, self.prompts, self.texts, *columns.values(), strict=True
            )
        )
        return write_text(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Completions:
        """Read what ``save`` wrote, to judge it again; the prompt set is named after the file and has no responses.

        Args:
            path: or a log of Inspect (``.eval``, or ``.json``), or what lm-evaluation-harness writes with
                ``--log_samples`` (``samples_TASK_….jsonl``).

        Raises:
            ValueError: if the file is absent, empty or none of these.
        """
        path = Path(path)
        try:
            rows = _rows(path)
            categories, ended, tokens = (
                tuple(row[name] for row in rows) if all(name in row for row in rows) else None
                for name in ("category", "ended", "tokens")
            )
            if ended is not None:
                ended = tuple(truth(one, "ended") for one in ended)
            if tokens is not None:
                tokens = tuple(whole(one, "tokens", 0) for one in tokens)
            prompts = PromptSet(path.stem, tuple(row["prompt"] for row in rows), categories=categories)
            return cls(prompts, tuple(row["completion"] for row in rows), rows[0].get("cut"), ended, tokens)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot read completions from {str(path)!r}: {error}; expected are JSON lines with 'prompt' and "
                "'completion', as Completions.save writes them, or a log of Inspect or lm-evaluation-harness"
            ) from error


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of completions, or the answers in a log, in the same form."""
    if path.is_dir():
        inside = sorted(one.name for one in path.iterdir() if one.suffix in (".jsonl", ".json", ".eval"))
        raise ValueError(f"it is a folder; name one of its files: {', '.join(inside[:5]) or 'it has none'}")
    if path.suffix == ".eval":
        require_size(path)
        return inspect_log(path)
    text = read_text(path)
    if path.suffix == ".json":
        log = _whole(text)
        if is_inspect_log(log):
            return inspect_log(path, log)
        rows = log if isinstance(log, list) else [log]
    else:
        rows = parse_lines(text)
    if any(map(is_harness_row, rows)):
        odd = next((i for i, row in enumerate(rows, 1) if not is_harness_row(row)), None)
        if odd is not None:
            raise ValueError(f"row {odd} is none of lm-evaluation-harness's samples, as others are")
        return harness_rows(rows)
    return [_checked(row, f"row {i}") for i, row in enumerate(rows, 1)]


def _whole(text: str) -> Any:
    """The value of a JSON file; the list of them where it holds JSON lines."""
    try:
        return parse_json(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise ValueError(f"it is no JSON, or was cut off ({error})") from error
        return parse_lines(text)


def _checked(row: Any, where: str) -> dict[str, Any]:
    """A row with a prompt and a completion that are texts."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is no object: {str(row)[:60]!r}")
    for name in ("prompt", "completion"):
        if name not in row:
            raise ValueError(f"{where} has no {name!r}; it has {', '.join(map(repr, row)) or 'nothing'}")
        if is_missing(row[name]) and not isinstance(row[name], str):
            raise ValueError(f"{where} holds {row[name]!r} for its {name}, which is no text")
    return dict(row) | {name: text_of(row[name], where, name) for name in ("prompt", "completion")}


def texts_of(completions: Completions | Sequence[str]) -> tuple[str, ...]:
    """The texts alone; a ValueError for a single string, which is a sequence of letters, and for what is no text."""
    if isinstance(completions, Completions):
        return completions.texts
    if isinstance(completions, str):
        raise ValueError(f"expected Completions or a list of texts, not the single string {completions!r}")
    texts = tuple(completions)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"expected Completions or a list of texts; number {row} is {text!r}")
    return texts
