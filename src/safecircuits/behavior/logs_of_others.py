"""Completions in the logs of Inspect (``.eval``, ``.json``) and of lm-evaluation-harness (``samples_TASK_….jsonl``)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from safecircuits.base.notices import notify
from safecircuits.base.reading import LARGEST, parse_json
from safecircuits.prompts.cells import is_missing
from safecircuits.prompts.tables import CATEGORY_COLUMNS, PROMPT_COLUMNS, column_key

Row = dict[str, Any]
"""``prompt``, ``completion``, and where they are known ``ended``, ``tokens``, ``category``: as runs keep them."""

_STOPPED = {"stop": True, "max_tokens": False, "model_length": False}
"""Inspect's reasons to stop, those that say whether the model ended its text."""


def inspect_log(path: Path, log: Mapping[str, Any] | None = None) -> list[Row]:
    """The answers of an Inspect log, one row a sample and epoch; samples that failed are left out, with a notice.

    Args:
        log: what a log in JSON holds; an ``.eval`` file is read from ``path``.

    Raises:
        ValueError: for a log without answers, an ``.eval`` file whose compression this Python cannot read, and samples
            whose input is no single question.
    """
    samples = _packed(path) if log is None else (log.get("samples") or [])
    answered = [one for one in samples if (one.get("output") or {}).get("choices")]
    if lacking := len(samples) - len(answered):
        notify(f"{lacking} of the {len(samples)} samples of {str(path)!r} have no answer and are left out")
    if not answered:
        raise ValueError("the log has no samples with answers (was it written without them?)")
    return _known([_of_sample(sample) for sample in answered])


def is_inspect_log(log: Any) -> bool:
    """Whether this is what Inspect writes as JSON."""
    return isinstance(log, Mapping) and "eval" in log and ("samples" in log or "status" in log)


def _packed(path: Path) -> list[Any]:
    """The samples of an ``.eval`` file, in the order of its summaries."""
    with suppress(ImportError):
        import_module("zipfile_zstd")  # which teaches zipfile what Python 3.14 knows of itself
    try:
        with zipfile.ZipFile(path) as file:
            if sum(one.file_size for one in file.infolist()) > LARGEST:
                raise ValueError(f"it holds more than {LARGEST} bytes")
            names = [name for name in file.namelist() if name.startswith("samples/") and name.endswith(".json")]
            read = [parse_json(file.read(name).decode("utf-8")) for name in names]
            listed = "summaries.json" in file.namelist()
            order = parse_json(file.read("summaries.json").decode("utf-8")) if listed else []
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"this is no log of Inspect's, which are zip files, or a damaged one ({error})") from error
    except NotImplementedError as error:
        raise ValueError(
            "its compression (zstd) is one that Python reads from 3.14 on: pip install zipfile-zstd, or convert the "
            "log, inspect log convert --to json"
        ) from error
    place = {(str(one["id"]), one["epoch"]): i for i, one in enumerate(order)}
    return sorted(read, key=lambda one: place.get((str(one["id"]), one["epoch"]), len(place)))


def _of_sample(sample: Mapping[str, Any]) -> Row:
    what = f"sample {sample.get('id')!r}"
    attached = sample.get("attachments") or {}
    output, asked = sample["output"], sample["input"]
    if not isinstance(asked, str):
        users = [one for one in asked if one.get("role") == "user"]
        if len(users) != 1 or any(one.get("role") not in ("user", "system") for one in asked):
            roles = ", ".join(str(one.get("role")) for one in asked)
            raise ValueError(f"the input of {what} is a chat of {roles}; a completion answers one question")
        asked = _text(users[0]["content"], attached, what)
    first = output["choices"][0]
    written = output.get("completion") or _text(first["message"]["content"], attached, what)
    row: Row = {"prompt": _resolved(asked, attached), "completion": _resolved(written, attached)}
    if first.get("stop_reason") in _STOPPED:
        row["ended"] = _STOPPED[first["stop_reason"]]
    if (usage := output.get("usage")) and usage.get("output_tokens") is not None:
        row["tokens"] = int(usage["output_tokens"])
    return row | _category(sample.get("metadata") or {})


def _text(content: Any, attached: Mapping[str, str], what: str) -> str:
    """Content of a message, which is a text or a list of parts; reasoning is no part of what is said."""
    if isinstance(content, str):
        return _resolved(content, attached)
    parts = [part for part in content if part.get("type") != "reasoning"]
    if other := [part["type"] for part in parts if part.get("type") != "text"]:
        raise ValueError(f"{what} holds a part of type {other[0]!r}, which is no text")
    return "\n".join(_resolved(part["text"], attached) for part in parts)


def _resolved(text: str, attached: Mapping[str, str]) -> str:
    """Long texts stand apart in a log, by their digest."""
    return attached.get(text.removeprefix("attachment://"), text) if text.startswith("attachment://") else text


def harness_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The answers of a harness's file of samples (``--log_samples``), one row a document and repeat.

    A prompt is the document's own question where one of its fields has a usual name, otherwise what the model was
    given, examples and template included. Of several filters the first is read: they share the answers.

    Raises:
        ValueError: for a task that compares likelihoods, in which nothing is written.
    """
    listed = list(rows)
    found = []
    for row in listed:
        if row.get("filter") != listed[0].get("filter"):
            continue
        given = row["arguments"]["gen_args_0"]
        if not isinstance(given.get("arg_1"), Mapping):
            raise ValueError(f"document {row.get('doc_id')} is of a task that compares likelihoods: nothing is written")
        doc = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
        asked = _usual(doc, PROMPT_COLUMNS)
        said = row["resps"][0]
        for text in said if isinstance(said, list) else [said]:
            prompt = asked if isinstance(asked, str) else str(given["arg_0"])
            found.append({"prompt": prompt, "completion": str(text)} | _category(doc))
    return _known(found)


def is_harness_row(row: Any) -> bool:
    """Whether this is a line of a harness's file of samples."""
    return isinstance(row, Mapping) and {"doc_id", "arguments", "resps"} <= set(row)


def _usual(table: Mapping[str, Any], known: Iterable[str]) -> Any:
    """What stands in the first field of a usual name, if anything does."""
    by_key = {column_key(name): value for name, value in reversed(list(table.items())) if not is_missing(value)}
    return next((by_key[key] for name in known if (key := column_key(name)) in by_key), None)


def _category(about: Mapping[str, Any]) -> Row:
    found = _usual(about, CATEGORY_COLUMNS)
    return {"category": str(found)} if isinstance(found, str | int) else {}


def _known(rows: list[Row]) -> list[Row]:
    """Rows with what is known of all of them."""
    return [{name: value for name, value in row.items() if all(name in other for other in rows)} for row in rows]
