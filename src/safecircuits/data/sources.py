"""Prompts from anywhere: a file, a hub data set, a table, a list, or the embedded language."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from safecircuits import organism
from safecircuits.base.arguments import checked
from safecircuits.base.notices import notify
from safecircuits.base.reading import parse_json
from safecircuits.data.chats import CHAT_COLUMNS, is_missing, read_cells
from safecircuits.data.hub import HUB_SETS, known_set, read_hub
from safecircuits.organism.grammar import KINDS, Kind, Split
from safecircuits.organism.requests import generate
from safecircuits.prompts.prompt_set import NO_CATEGORY, PromptSet, as_prompt_set

if TYPE_CHECKING:
    import pandas as pd

PROMPT_COLUMNS = (
    "instruction", "prompt", "question", "goal", "query", "text", "input", "behavior", "behaviour", *CHAT_COLUMNS,
)  # fmt: skip
CATEGORY_COLUMNS = ("category", "harm_category", "semantic_category", "risk_category", "harm_type")
RESPONSE_COLUMNS = ("output", "response", "answer", "target", "completion")
CONTEXT_COLUMNS = {
    "instruction": (("input", "context"), "{prompt}\n\n{context}"),
    "behavior": (("contextstring", "context"), "{context}\n\n---\n\n{prompt}"),
    "behaviour": (("contextstring", "context"), "{context}\n\n---\n\n{prompt}"),
}
"""What stands beside a prompt and belongs to it, and how the two are joined, by the prompt's column: a context behind
the instruction (Alpaca, Dolly), or before the behaviour, in the form that HarmBench's own code gives both."""


@checked
def load_prompts(
    source: str | Path | PromptSet | pd.DataFrame | Mapping[str, Sequence[Any]] | Sequence[str | Mapping[str, Any]],
    *,
    column: str | None = None,
    responses: str | None = None,
    categories: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    split: str | None = None,
    where: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> PromptSet:
    """Read prompts and, where there are any, their responses.

    Args:
        source: a file (csv, tsv, json, jsonl, parquet, txt with one prompt a line), ``"organism:KIND"`` for the
            embedded language (malicious, over_rejection, normal, utility, new_task), ``"requests:KIND"`` for requests
            in ordinary English (malicious, over_rejection, normal), a hub data set by its id or a short name
            (``data.hub.HUB_SETS``: advbench, xstest-safe, alpaca, dolly, …), a table (of pandas or ``datasets``, a
            mapping of columns, or a list of rows that are mappings), a list, array or column of strings, or a
            PromptSet. A csv file with a single column may lack a header; one whose header has no comma may be separated
            by semicolons, tabs or bars.
        column: the column with the prompts; guessed from usual names (instruction, prompt, question, …) if left out,
            whatever their case, spaces and plural. What belongs to a prompt is joined to it: the ``input`` or
            ``context`` of an ``instruction`` after it (Alpaca, Dolly), the ``ContextString`` of a ``behavior`` before
            it (HarmBench); a context beside another column is not read, with a notice.
            It may hold chats of one question and its answer: lists of messages with role and content (``messages`` of
            OpenAI and TRL) or from and value (``conversations`` of ShareGPT), also where a csv file has them as text.
        responses: the column with the responses, likewise; ``""`` for none. Rows without one are left out, with a
            notice, unless this is ``""``.
        categories: the column with each prompt's category, likewise (category, harm_category, …); ``""`` for none. Rows
            without one are of the category ``"none"``, with a notice.
        n, seed: take ``n`` prompts: the first, or drawn with a seed.
        split: of the embedded language (``"test"`` by default) or of a hub data set (``"train"``, or what its short
            name says); a ``DatasetDict`` needs one.
        where: keep the rows of a table that have these values: ``where={"label": "safe"}``. What has no columns (the
            embedded language, a list, a PromptSet) cannot be asked for them.

    Hub data sets are kept in the cache of ``datasets`` and read from it without a connection; the first use of each
    prints its licence on stderr.

    Raises:
        ValueError: for a source that cannot be read, a column that is not there (names those that are), an empty set.

    Examples:
        >>> rows = [{"prompt": "name a fruit .", "response": "apple"}, {"prompt": "name a tool .", "response": "saw"}]
        >>> prompts = sc.load_prompts(rows, name="names")
        >>> prompts.prompts, prompts.responses
        (('name a fruit .', 'name a tool .'), ('apple', 'saw'))
        >>> advbench = sc.load_prompts("advbench", n=100)  # doctest: +SKIP
    """
    if isinstance(source, Iterator):
        source = list(source)  # it can be read but once
    table = None if isinstance(source, str | Path | PromptSet) else _table_of(_split_of(source, split))
    if where and table is None and (not isinstance(source, str | Path) or _is_ours(source)):
        what = repr(source) if isinstance(source, str) else f"a {type(source).__name__}"
        raise ValueError(f"{what} has no columns, so that no rows can be chosen by {', '.join(map(repr, where))}")
    if isinstance(source, PromptSet):
        return source.take(n, seed=seed)
    if isinstance(source, str) and _is_ours(source):
        return _ours(source, split or "test").take(n, seed=seed)
    if isinstance(source, str | Path):
        path = Path(source)
        label = name or (path.stem if path.suffix else str(source))
        known = known_set(str(source))
        if path.suffix.lower() in _READERS:
            table = _read_file(path)
        else:
            if known is None:
                _require_hub_id(path)
            table = read_hub(str(source), known, split)
        if known is not None:
            column = known.column if column is None else column
            responses = known.responses if responses is None else responses
            categories = known.categories if categories is None else categories
            where = dict(known.where) | dict(where or {})
    elif table is None:
        prompts: list[Any] = list(source)
        return as_prompt_set(prompts, name or "prompts").take(n, seed=seed)
    else:
        label = name or "table"
    return _from_table(_rows_where(table, where or {}, label), column, responses, label, categories).take(n, seed=seed)


def _require_hub_id(path: Path) -> None:
    """A ValueError for what is on this disk, or cannot be the id of a hub data set."""
    kinds = ", ".join(_READERS)
    if path.is_dir():
        files = [str(file) for file in sorted(path.iterdir()) if file.suffix.lower() in _READERS]
        hint = f"name one of its files: {', '.join(files[:5])}" if files else f"and it holds no file of {kinds}"
        raise ValueError(f"cannot read prompts from {str(path)!r}: it is a folder; {hint}")
    if path.is_file():
        packed = path.suffix.lower() in (".gz", ".zip", ".bz2", ".xz", ".zst")
        hint = "unpack it first" if packed else "save it as one of these"
        raise ValueError(f"cannot read prompts from {str(path)!r}: files are {kinds}; {hint}")
    if "/" not in str(path) or path.is_absolute():
        raise ValueError(
            f"cannot read prompts from {str(path)!r}: not a file of a known kind ({kinds}), "
            f"not a hub id, and not one of {', '.join(HUB_SETS)}"
        )


def _table_of(source: Any) -> dict[str, list[Any]] | None:
    """The columns of a table; None for a list, an array or one column of prompts."""
    names = getattr(source, "columns", None)
    if names is None:
        names = getattr(source, "column_names", None)  # of the library ``datasets``
    if names is None and isinstance(source, Mapping):
        names = list(source)
    if names is not None and hasattr(source, "__getitem__"):
        _require_different(list(map(str, names)), f"the {type(source).__name__}")
        table = {str(name): list(source[name]) for name in names}
        if len({len(column) for column in table.values()}) > 1:
            lengths = ", ".join(f"{name!r} {len(column)}" for name, column in table.items())
            raise ValueError(f"the columns of the {type(source).__name__} have different numbers of rows: {lengths}")
        return table
    if isinstance(source, set | frozenset):
        raise ValueError("a set has no order, so that prompts would change from run to run: pass sorted(prompts)")
    if not hasattr(source, "__iter__"):
        raise ValueError(
            f"cannot read prompts from a {type(source).__name__}: pass a file, the id of a data set, a table, a list "
            "of strings or a PromptSet"
        )
    rows = list(source)
    return _columns(rows, "the list of rows") if rows and all(isinstance(row, Mapping) for row in rows) else None


def _split_of(source: Any, split: str | None) -> Any:
    """One split of several that come together, as ``datasets`` gives them; anything else as it is."""
    if not isinstance(source, Mapping) or not source:
        return source
    if not all(hasattr(part, "column_names") or hasattr(part, "columns") for part in source.values()):
        return source
    if split not in source:
        given = "give split=" if split is None else f"there is no split {split!r}"
        raise ValueError(f"a {type(source).__name__} holds several splits, {', '.join(map(repr, source))}: {given}")
    return source[split]


def _require_different(names: list[str], what: str) -> None:
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{what} has {names.count(twice[0])} columns named {twice[0]!r}; rename them")


def _key(name: str) -> str:
    """A column's name as it is compared: without case, spaces, underscores, hyphens and a plural's s."""
    return "".join(c for c in name.casefold() if c not in " _-\t\ufeff").removesuffix("s")


def _named(table: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """The columns with one of these names, in the order of the names."""
    return [column for name in known for column in table if _key(column) == _key(name)]


def _rows_where(table: dict[str, list[Any]], where: Mapping[str, Any], label: str) -> dict[str, list[Any]]:
    for column, value in where.items():
        if column not in table and isinstance(value, str):
            # On the command line COLUMN=VALUE is split at the first sign, which may be part of the name.
            cuts = [i for i, sign in enumerate(value) if sign == "="]
            column, value = next(
                ((name, value[i + 1 :]) for i in cuts if (name := f"{column}={value[:i]}") in table), (column, value)
            )
        if column not in table:
            raise ValueError(f"{label!r} has no column {column!r}; columns: {', '.join(map(repr, table)) or 'none'}")
        keep = [str(entry) == str(value) for entry in table[column]]
        if not any(keep):
            values = list(dict.fromkeys(map(repr, table[column])))
            raise ValueError(f"no row of {label!r} has {column} {value!r}; there are {', '.join(values[:10])}")
        table = {
            name: [entry for entry, kept in zip(entries, keep, strict=True) if kept] for name, entries in table.items()
        }
    return table


def _from_table(
    table: dict[str, list[Any]], column: str | None, responses: str | None, label: str, categories: str | None = None
) -> PromptSet:
    has = ", ".join(map(repr, table)) or "none"
    if column is None:
        guess = _named(table, PROMPT_COLUMNS)
        if not guess and len(table) == 1:
            guess = list(table)
        if not guess:
            raise ValueError(
                f"cannot tell which column of {label!r} holds the prompts: name it; columns: {has} "
                "(column=, or --column)"
            )
        column = guess[0]
    if column not in table:
        raise ValueError(f"{label!r} has no column {column!r}; columns: {has}")
    table = _filled(table)
    prompts, replies = read_cells(table[column], column, label)
    answers = _answers(table, column, responses, replies, label)
    prompts = _with_context(prompts, table, column, label)
    kinds = _categories(table, column, categories, label)
    if answers is None:
        return PromptSet(label, tuple(prompts), categories=kinds)
    return _answered(prompts, answers, label, kinds)


def _categories(table: dict[str, list[Any]], column: str, named: str | None, label: str) -> tuple[str, ...] | None:
    """Each row's category as text; None if no column holds them."""
    if named == "":
        return None
    if named is not None and named not in table:
        has = ", ".join(map(repr, table)) or "none"
        raise ValueError(f"{label!r} has no column {named!r} for the categories; columns: {has}")
    guess = named or next((name for name in _named(table, CATEGORY_COLUMNS) if name != column), None)
    if guess is None:
        return None
    cells = ["" if is_missing(cell) else str(cell).strip() for cell in table[guess]]
    if lacking := cells.count(""):
        if lacking == len(cells) and named is None:
            return None
        notify(
            f"{lacking} of the {len(cells)} rows of {label!r} have nothing in their column {guess!r} and are of the "
            f"category {NO_CATEGORY!r}"
        )
    return tuple(cell or NO_CATEGORY for cell in cells)


def _with_context(prompts: list[str], table: dict[str, list[Any]], column: str, label: str) -> list[str]:
    """The prompts with what stands beside them in a column of its own."""
    names, form = next((how for known, how in CONTEXT_COLUMNS.items() if _key(known) == _key(column)), ((), "{prompt}"))
    beside = next((name for name in _named(table, names) if name != column), None)
    if beside is None:
        unread = [name for name in _named(table, ("context", "contextstring")) if name != column]
        filled = [name for name in unread if not all(map(is_missing, table[name]))]
        if filled:
            notify(f"column {filled[0]!r} of {label!r} is not read: the prompts are column {column!r} alone")
        return prompts
    contexts, _ = read_cells(table[beside], beside, label)
    return [
        form.format(prompt=prompt, context=context) if context.strip() else prompt
        for prompt, context in zip(prompts, contexts, strict=True)
    ]


def _answers(
    table: dict[str, list[Any]], column: str, responses: str | None, replies: list[str] | None, label: str
) -> list[str] | None:
    """The texts in the column of the responses, or else the replies of the chats in ``column``; None for none."""
    if responses == "":
        return None
    if responses is not None and responses not in table:
        has = ", ".join(map(repr, table)) or "none"
        raise ValueError(f"{label!r} has no column {responses!r} for the responses; columns: {has}")
    guess = [name for name in _named(table, RESPONSE_COLUMNS) if name != column]
    answers = replies
    if name := responses or next(iter(guess), None):
        texts, inside = read_cells(table[name], name, label)
        answers = inside or texts
    if answers is None or any(map(str.strip, answers)):
        return answers
    if responses is None:
        return None
    raise ValueError(f"column {responses!r} of {label!r} has no response in any row")


def _filled(table: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The table without rows in which every cell is empty, as spreadsheets leave them at the end."""
    keep = [not all(map(is_missing, row)) for row in zip(*table.values(), strict=True)]
    return {name: [cell for cell, kept in zip(cells, keep, strict=True) if kept] for name, cells in table.items()}


def _answered(prompts: list[str], answers: list[str], label: str, kinds: tuple[str, ...] | None = None) -> PromptSet:
    """The rows that have a response; a notice about the others."""
    rows = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer.strip()]
    if kinds is not None:
        kinds = tuple(kind for kind, answer in zip(kinds, answers, strict=True) if answer.strip())
    if lacking := len(prompts) - len(rows):
        first = next(prompt for prompt, answer in zip(prompts, answers, strict=True) if not answer.strip())
        notify(
            f"{lacking} of the {len(prompts)} rows of {label!r} {'has' if lacking == 1 else 'have'} no response and "
            f"{'is' if lacking == 1 else 'are'} left out: {first[:60]!r}{', …' if lacking > 1 else ''}"
        )
    return PromptSet(label, tuple(prompt for prompt, _ in rows), tuple(answer for _, answer in rows), kinds)


def _is_ours(source: str | Path | PromptSet) -> bool:
    return str(source).startswith(("organism:", "requests:"))


def _ours(source: str, split: str) -> PromptSet:
    """The embedded language's prompts, or requests in ordinary English, each of a kind."""
    language, _, kind = source.partition(":")
    if language == "requests":
        return generate.prompts(kind, split)  # type: ignore[arg-type]  # checked there
    if kind not in KINDS:
        raise ValueError(f"the embedded language has no {kind!r} prompts; there are {', '.join(KINDS)}")
    if split not in get_args(Split):
        raise ValueError(f"split is {' or '.join(map(repr, get_args(Split)))}, not {split!r}")
    chosen: tuple[Kind, Split] = (kind, split)  # type: ignore[assignment]  # both checked above
    return organism.prompts(*chosen)


def _read_file(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise ValueError(f"there is no prompt file {str(path)!r}")
    try:
        return _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read prompts from {str(path)!r}: save it as UTF-8 ({error})") from error
    except (json.JSONDecodeError, csv.Error, OSError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read prompts from {str(path)!r}: {error}") from error


def _read_delimited(path: Path, delimiter: str | None = None) -> dict[str, list[Any]]:
    known = _KNOWN
    rows = _rows(path, delimiter or ",")
    if delimiter is None and len(rows[0]) == 1:
        for other in _OTHER_DELIMITERS:
            split = _rows(path, other)
            widths = set(map(len, split[:-1]))
            if len(split[0]) > 1 and (known & set(map(_key, split[0])) or len(widths) == 1):
                rows = split
                break
    if rows.pop() != [_END]:
        raise ValueError(f"row {len(rows) + 1} of {str(path)!r} has a quotation mark that is never closed")
    if not rows:
        return {"prompt": []}
    header, width = rows[0], max(map(len, rows))
    if width == 1 and _key(header[0]) not in known:
        # One column without a name we know: a bare list, unless the first line is a single word among sentences.
        bare = len(header[0].split()) > 1 or len(rows) == 1
        return {"prompt": [row[0] for row in (rows if bare else rows[1:])]}
    uneven = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if uneven is not None:
        raise ValueError(
            f"row {uneven + 1} of {str(path)!r} has {len(rows[uneven])} fields, the header {len(header)}; "
            "a field with the delimiter in it must be in quotation marks"
        )
    names = [name.strip() for name in header]
    _require_different([name for name in names if name], repr(str(path)))
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(names)}


def _rows(path: Path, delimiter: str) -> list[list[str]]:
    """The rows that are not blank, and then ``[_END]``, which a quotation mark that is never closed would swallow."""
    with path.open(newline="", encoding="utf-8-sig") as file, _cells_of_any_size():
        return [row for row in csv.reader(chain(file, [_END]), delimiter=delimiter) if any(map(str.strip, row))]


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Python reads cells of at most 131,072 characters unless it is told otherwise, once for the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _lines(path: Path) -> list[str]:
    """The lines that are not blank; only a line feed ends one, since texts may hold the others that Unicode has."""
    return [line for line in _read_text(path).split("\n") if line.strip()]


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        data = _parsed(_read_text(path), path)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        return _read_jsonl(path)  # often called .json, too
    if isinstance(data, dict) and (found := _of_pandas(data, path)) is not None:
        return found
    if isinstance(data, dict) and data and all(isinstance(column, list) for column in data.values()):
        if len(set(map(len, data.values()))) > 1:
            lengths = ", ".join(f"{name!r} {len(column)}" for name, column in data.items())
            raise ValueError(f"the columns of {str(path)!r} are not of one length: {lengths}")
        return data
    if not isinstance(data, list):
        raise ValueError(f"{str(path)!r} holds neither a list of rows nor a table of columns")
    return _columns(data, path)


def _parsed(text: str, path: Path) -> Any:
    """JSON; a ValueError for an object that has one name twice, of which Python would keep the last."""

    def different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _require_different([name for name, _ in pairs], f"an object in {str(path)!r}")
        return dict(pairs)

    return parse_json(text, different)


def _of_pandas(data: dict[str, Any], path: Path) -> dict[str, list[Any]] | None:
    """The columns of a table as ``DataFrame.to_json`` writes it, in any of its shapes that are objects; else None."""
    if set(data) == {"schema", "data"} and isinstance(data["data"], list):  # orient="table"
        return _columns(data["data"], path)
    if set(data) == {"columns", "index", "data"}:  # orient="split"
        names, rows = list(map(str, data["columns"])), data["data"]
        _require_different(names, repr(str(path)))
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}
    inner = list(data.values())
    if not inner or not all(isinstance(part, dict) and part for part in inner):
        return None
    labels = list(inner[0])
    by_column = any(_key(name) in _KNOWN for name in data) or not any(_key(name) in _KNOWN for name in labels)
    if not by_column:  # orient="index"
        return _columns(inner, path)
    if any(list(part) != labels for part in inner):
        raise ValueError(f"the columns of {str(path)!r} do not have the same rows")
    return {name: list(part.values()) for name, part in data.items()}


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    rows = []
    for line in _lines(path):
        try:
            rows.append(_parsed(line, path))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"cannot read prompts from {str(path)!r}: row {len(rows) + 1} is no JSON ({error.msg}): {line[:60]!r}"
            ) from error
    return _columns(rows, path)


def _columns(rows: list[Any], path: Path | str) -> dict[str, list[Any]]:
    if all(isinstance(row, str) for row in rows):
        return {"prompt": rows}
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"cannot read prompts from {str(path)!r}: every row must be an object with named fields, or every row a "
            "string"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow has many kinds, which do not name the file
        raise ValueError(f"cannot read prompts from {str(path)!r}: {' '.join(str(error).split())}") from error
    _require_different(list(map(str, frame.columns)), repr(str(path)))
    return {str(name): frame[name].tolist() for name in frame.columns}


def _read_lines(path: Path) -> dict[str, list[Any]]:
    return {"prompt": _lines(path)}


_OTHER_DELIMITERS = ";\t|"
"""Of csv files whose header no comma splits."""
_END = "\x00"
_KNOWN = frozenset(map(_key, (*PROMPT_COLUMNS, *RESPONSE_COLUMNS)))

_READERS: dict[str, Callable[[Path], dict[str, list[Any]]]] = {
    ".csv": _read_delimited,
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
}
