"""Completions in what lm-evaluation-harness writes with ``--log_samples``: ``samples_TASK_….jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from safecircuits.behavior.logs_of_others import Row, category_in, known, left_out, usual
from safecircuits.prompts.cells import is_missing
from safecircuits.prompts.tables import PROMPT_COLUMNS
from safecircuits.prompts.turns import is_chat, turns_of


def harness_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The answers of a harness's file of samples, one row a document and repeat.

    A prompt is the document's own question where one of its fields has a usual name, otherwise what the model was
    given: of chats the last question, of texts all of it, examples and template included. Of several filters the first
    of a document is read: they share the answers. Repeats that are missing are left out, with a notice.

    Raises:
        ValueError: for a task that compares likelihoods, in which nothing is written, and for answers that are no text.
    """
    filters: dict[str, Any] = {}
    found, lacking = [], 0
    for row in rows:
        which = json.dumps([row["doc_id"], row.get("doc"), row["arguments"]], sort_keys=True)
        if filters.setdefault(which, row.get("filter")) != row.get("filter"):
            continue
        answers, empty = _answers(row)
        found += answers
        lacking += empty
    left_out(lacking, lacking + len(found), "repeats")
    if not found:
        raise ValueError("no document has an answer")
    return known(found)


def is_harness_row(row: Any) -> bool:
    """Whether this is a line of a harness's file of samples."""
    return isinstance(row, Mapping) and {"doc_id", "arguments", "resps"} <= set(row)


def _answers(row: Mapping[str, Any]) -> tuple[list[Row], int]:
    """The answers to a document, and how many are missing."""
    what = f"document {row['doc_id']!r}"
    doc = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
    given, said = _requests(row["arguments"], what), row["resps"]
    if not isinstance(said, list):
        raise ValueError(f"{what} has a {type(said).__name__} for its answers, expected a list")
    asked = usual(doc, PROMPT_COLUMNS) if len(given) == 1 else None
    found, lacking = [], int(not said)
    for context, texts in zip(given, said, strict=False):
        repeats = texts if isinstance(texts, list) else [texts]
        lacking += int(not repeats) + repeats.count(None)
        for text in repeats:
            if text is None:
                continue
            if not isinstance(text, str):
                raise ValueError(f"{what} has an answer that is no text: {str(text)[:60]}")
            prompt = asked if isinstance(asked, str) else _question(context, what)
            found.append({"prompt": prompt, "completion": text} | category_in(doc))
    return found, lacking


def _requests(arguments: Any, what: str) -> list[Any]:
    """What the model was given in each request; a ValueError where likelihoods are compared."""
    pairs = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    given = [list(pair.values()) if isinstance(pair, Mapping) else pair for pair in pairs]
    if not given or not all(isinstance(pair, list) and pair for pair in given):
        raise ValueError(f"{what} has no arguments that are a request: {str(arguments)[:60]}")
    if not all(len(pair) > 1 and isinstance(pair[1], Mapping) for pair in given):
        raise ValueError(f"{what} is of a task that compares likelihoods: nothing is written")
    return [pair[0] for pair in given]


def _question(context: Any, what: str) -> str:
    """The last question of a chat, which the harness gives as JSON in a list; a text as it is."""
    text = context[0] if isinstance(context, list) and len(context) == 1 else context
    if not isinstance(text, str) or is_missing(text):
        raise ValueError(f"{what} has no text for what the model was given: {str(context)[:60]}")
    try:
        chat = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError:
        chat = None
    if not is_chat(chat):
        return text
    users = [turn.content for turn in turns_of(chat, what, "arguments") if turn.role == "user"]
    if not users:
        raise ValueError(f"{what} was given a chat without a question")
    return users[-1]
