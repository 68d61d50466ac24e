"""Prompts from anywhere: a file, a hub data set, a table, a list, or the embedded language."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, get_args

from safecircuits import organism
from safecircuits.base.arguments import checked, whole
from safecircuits.data.files import READERS, read_file
from safecircuits.data.hub import HUB_SETS, known_set, read_hub
from safecircuits.organism.grammar import KINDS, Kind, Split
from safecircuits.organism.requests import generate
from safecircuits.prompts.chat_set import ChatSet, TrainingData
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set
from safecircuits.prompts.sources import listed, split_of, table_of
from safecircuits.prompts.tables import from_table, rows_where
from safecircuits.prompts.whole_chats import chats_in, whole_chats

if TYPE_CHECKING:
    import pandas as pd


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
        n, seed: take ``n`` prompts: the first, or drawn with a seed. A data set that is streamed is read no further
            than ``n`` prompts without a seed need, unless rows are chosen by ``where``.
        split: of the embedded language (``"test"`` by default) or of a hub data set (``"train"``, or what its short
            name says); a ``DatasetDict`` of several needs one. What has no splits cannot be asked for one.
        where: keep the rows of a table that have these values: ``where={"label": "safe"}``. What has no columns (the
            embedded language, a list, a PromptSet) cannot be asked for them.

    Hub data sets are kept in the cache of ``datasets`` and read from it without a connection; the first use of each
    prints its licence on stderr.

    Raises:
        ValueError: for a source that cannot be read, a column that is not there (names those that are) or of what has
            none, an empty set.

    Examples:
        >>> rows = [{"prompt": "name a fruit .", "response": "apple"}, {"prompt": "name a tool .", "response": "saw"}]
        >>> prompts = sc.load_prompts(rows, name="names")
        >>> prompts.prompts, prompts.responses
        (('name a fruit .', 'name a tool .'), ('apple', 'saw'))
        >>> advbench = sc.load_prompts("advbench", n=100)  # doctest: +SKIP
    """
    source = listed(source)
    if _streamed(source, n, seed, where):
        source = _as_far(source, n, lambda table: from_table(table, column, responses, "table", "").prompts)
    named = {"column": column, "responses": responses, "categories": categories}
    if isinstance(source, PromptSet) or is_ours(source):
        what = repr(source) if isinstance(source, str) else "a PromptSet"
        if where:
            raise ValueError(f"{what} has no columns, so that no rows can be chosen by {', '.join(map(repr, where))}")
        _require_unnamed(what, named)
        if isinstance(source, PromptSet):
            split_of(source, split)
        prompts = source if isinstance(source, PromptSet) else _ours(source, split or "test")
        prompts = replace(prompts, responses=None) if responses == "" else prompts
        prompts = replace(prompts, categories=None) if categories == "" else prompts
        return prompts.take(n, seed=seed)
    read = _table(source, split, where, name)
    if read is None:
        _require_unnamed(f"a {type(source).__name__} of prompts", named)
        texts: list[Any] = list(source)  # type: ignore[arg-type]  # no file and no table
        return as_prompt_set(texts, name or "prompts").take(n, seed=seed)
    return _prompts_in(read, column, responses, categories).take(n, seed=seed)


@checked
def load_chats(
    source: str | Path | ChatSet | pd.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    column: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    split: str | None = None,
    where: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> ChatSet:
    """Read whole chats, of any number of turns, for ``finetune``.

    Args:
        source: a file, a hub data set by its id, or a table, as ``load_prompts`` takes them.
        column: the column with the chats; ``messages`` or ``conversations`` if left out. Each is a list of messages
            with role and content, or from and value, also where a csv file has them as text. A column ``system`` is the
            system turn of chats that have none. A message's ``weight`` of 0 keeps an answer out of the loss. Where
            ``prompt`` and ``completion`` are both messages they are one chat, and the loss is on the completion.
        n, seed, split, where, name: as in ``load_prompts``, also what is streamed.

    Chats without an answer are left out, with a notice.

    Raises:
        ValueError: for a source that cannot be read or has no chats, and for a message that is no text of system, user
            or assistant (calls of tools and what tools say among them).

    Examples:
        >>> talk = [{"role": "user", "content": "name a fruit ."}, {"role": "assistant", "content": "apple"}]
        >>> sc.data.load_chats([{"messages": talk + talk}], name="talks").name
        'talks'
    """
    if isinstance(source, ChatSet):
        if where:
            raise ValueError(f"a ChatSet has no columns, so that no rows can be chosen by {', '.join(where)}")
        return _taken(source, n, seed)
    if _streamed(source, n, seed, where):
        source = _as_far(source, n, lambda table: whole_chats(table, column, "table") or ())
    read = None if is_ours(source) else _table(source, split, where, name)
    chats = None if read is None else whole_chats(read.columns, column, read.label)
    if chats is None:
        has = "" if read is None else f"; columns: {', '.join(map(repr, read.columns))}"
        what = repr(str(source)) if read is None or isinstance(source, str | Path) else f"the {type(source).__name__}"
        raise ValueError(f"{what} holds no chats: name the column with lists of messages (column=){has}")
    assert read is not None
    return _taken(ChatSet(read.label, tuple(chats)), n, seed)


@checked
def load_training_data(
    source: Any,
    *,
    column: str | None = None,
    responses: str | None = None,
    categories: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    split: str | None = None,
    where: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> TrainingData:
    """Chats where a source holds any longer than one exchange, prompts otherwise; options are those of these.

    Examples:
        >>> talk = [{"role": "user", "content": "name a fruit ."}, {"role": "assistant", "content": "apple"}]
        >>> [type(sc.data.load_training_data([{"messages": chat}])).__name__ for chat in (talk, talk + talk)]
        ['PromptSet', 'ChatSet']
    """
    source = listed(source)
    if isinstance(source, ChatSet):
        return load_chats(source, n=n, seed=seed, where=where)
    if _streamed(source, n, seed, where):
        source = _as_far(source, n, lambda table: _examples_in(table, column, responses))
    read = None
    if not (isinstance(source, PromptSet) or is_ours(source) or responses):
        read = _table(source, split, where, name)
    if read is None:
        options: Any = {"column": column, "responses": responses, "categories": categories}
        return load_prompts(source, **options, n=n, seed=seed, split=split, where=where, name=name)
    chats = None if any(read.usual) else chats_in(read.columns, column, read.label)
    if chats is None:
        return _prompts_in(read, column, responses, categories).take(n, seed=seed)
    if categories:
        raise ValueError(f"{read.label!r} holds chats, which have no categories: leave them out")
    return _taken(ChatSet(read.label, tuple(chats)), n, seed)


def _streamed(source: Any, n: int | None, seed: int | None, where: Mapping[str, Any] | None) -> bool:
    """Whether a source is a data set without a length, and the first rows of it are enough."""
    first = n is not None and seed is None and not where
    return first and hasattr(source, "take") and not hasattr(source, "__len__")


def _as_far(stream: Any, n: int | None, found: Callable[[dict[str, list[Any]]], Sized]) -> Any:
    """As many rows of a data set that is streamed as hold ``n`` of what is found in them, as a table."""
    least = wanted = whole(n, "n")
    while True:
        taken = stream.take(wanted)
        table = table_of(taken)
        if table is None or not table:
            return taken
        rows = len(next(iter(table.values())))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left out is said when the prompts are made
            enough = len(found(table)) >= least
        if enough or rows < wanted:
            return table
        wanted *= 2


def _examples_in(table: dict[str, list[Any]], column: str | None, responses: str | None) -> Sized:
    """What of a table can be trained on: chats, or prompts."""
    chats = None if responses else chats_in(table, column, "table")
    return from_table(table, column, responses, "table", "").prompts if chats is None else chats


def _taken(chats: ChatSet, n: int | None, seed: int | None) -> ChatSet:
    if n is None:
        return chats
    questions = PromptSet(chats.name, tuple(map(str, range(len(chats)))))
    return chats.subset([int(row) for row in questions.take(n, seed=seed)])


class _Read(NamedTuple):
    """The rows of a source that were asked for, its name, and the columns that a known data set is read by."""

    columns: dict[str, list[Any]]
    label: str
    usual: tuple[str | None, str | None, str | None] = (None, None, None)


def _prompts_in(read: _Read, column: str | None, responses: str | None, categories: str | None) -> PromptSet:
    """The prompts of a table, by the columns that are named, else by those of a known data set, else by usual names."""
    column, responses, categories = (
        known if given is None else given
        for given, known in zip((column, responses, categories), read.usual, strict=True)
    )
    return PromptSet(read.label, *from_table(read.columns, column, responses, read.label, categories))


def _table(source: Any, split: str | None, where: Mapping[str, Any] | None, name: str | None) -> _Read | None:
    """What a source holds in columns; None for a list, an array or one column of prompts."""
    known = None
    if isinstance(source, str | Path):
        path = Path(source)
        label = name or (path.stem if path.suffix else str(source))
        known = known_set(str(source))
        if path.suffix.lower() in READERS:
            if split is not None:
                raise ValueError(f"the file {str(path)!r} has no split {split!r}: leave split= out")
            table = read_file(path)
        else:
            if known is None:
                _require_hub_id(path)
            table = read_hub(str(source), known, split)
    else:
        label = name or "table"
        found = table_of(split_of(source, split))
        if found is None:
            if where:
                names = ", ".join(map(repr, where))
                raise ValueError(f"a {type(source).__name__} has no columns, so that no rows can be chosen by {names}")
            return None
        table = found
    if known is None:
        return _Read(rows_where(table, where or {}, label), label)
    usual = (known.column, known.responses, known.categories)
    return _Read(rows_where(table, dict(known.where) | dict(where or {}), label), label, usual)


def _require_hub_id(path: Path) -> None:
    """A ValueError for what is on this disk, or cannot be the id of a hub data set."""
    kinds = ", ".join(READERS)
    if path.is_dir():
        files = [str(file) for file in sorted(path.iterdir()) if file.suffix.lower() in READERS]
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


def is_ours(source: Any) -> TypeGuard[str]:
    """Whether a source is one of this package's own sets, which have no columns."""
    return isinstance(source, str) and source.startswith(("organism:", "requests:"))


def _require_unnamed(what: str, named: Mapping[str, str | None]) -> None:
    """Raise for a column of what has none."""
    for option, name in named.items():
        if name:
            raise ValueError(f"{what} has no columns: leave {option}={name!r} out")


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
