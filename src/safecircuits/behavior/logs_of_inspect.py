"""Completions in the logs of Inspect: ``.eval``, which are zip files, and ``.json``."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from safecircuits.base.notices import notify
from safecircuits.base.reading import LARGEST, parse_json
from safecircuits.behavior.logs_of_others import Row, category_in, known, left_out

_STOPPED = {"stop": True, "max_tokens": False, "model_length": False}
"""Inspect's reasons to stop, those that say whether the model ended its text."""


def inspect_log(path: Path, log: Mapping[str, Any] | None = None) -> list[Row]:
    """The answers of an Inspect log, one row a sample, epoch and choice.

    Samples that failed or have no answer are left out, with a notice, as there is one of a log whose evaluation was
    cancelled or did not finish, and of samples that went on after the first answer.

    Args:
        log: what a log in JSON holds; an ``.eval`` file is read from ``path``.

    Raises:
        ValueError: for a log without answers, an ``.eval`` file whose compression this Python cannot read, samples
            whose input is no single question, and answers that are no text.
    """
    samples, status = _packed(path) if log is None else (log.get("samples") or [], log.get("status"))
    if not isinstance(samples, list) or not all(isinstance(one, Mapping) for one in samples):
        raise ValueError("its samples are no list of objects")
    answered = [one for one in samples if not one.get("error") and _choices(one)]
    if not answered:
        lacking = f"none of the {len(samples)} samples of the log has" if samples else "the log has no samples with"
        raise ValueError(f"{lacking} answers (was it written without them, or did the evaluation fail?)")
    left_out(len(samples) - len(answered), len(samples), f"samples of {str(path)!r}")
    if status not in (None, "success"):
        notify(f"the evaluation of {str(path)!r} has the status {status!r}: it may lack samples")
    if further := sum(map(_went_on, answered)):
        notify(
            f"{further} of the {len(samples)} samples of {str(path)!r} went on after the first answer (with tools or "
            "another question): read are their inputs and last answers"
        )
    return known([row for sample in answered for row in _of_sample(sample)])


def is_inspect_log(log: Any) -> bool:
    """Whether this is what Inspect writes as JSON."""
    return isinstance(log, Mapping) and "eval" in log and ("samples" in log or "status" in log)


def _packed(path: Path) -> tuple[list[Any], Any]:
    """The samples of an ``.eval`` file, in the order of its summaries, and the status of the evaluation."""
    with suppress(ImportError):
        import_module("zipfile_zstd")  # which teaches zipfile what Python 3.14 knows of itself
    try:
        with zipfile.ZipFile(path) as file:
            if sum(one.file_size for one in file.infolist()) > LARGEST:
                raise ValueError(f"it holds more than {LARGEST} bytes")
            names = file.namelist()
            read = [_part(file, name) for name in names if name.startswith("samples/") and name.endswith(".json")]
            order, header = (_part(file, f"{name}.json") if f"{name}.json" in names else None for name in _ABOUT)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"this is no log of Inspect's, which are zip files, or a damaged one ({error})") from error
    except NotImplementedError as error:
        raise ValueError(
            "its compression (zstd) is one that Python reads from 3.14 on: pip install zipfile-zstd, or convert the "
            "log, inspect log convert --to json"
        ) from error
    place = {_key(one): i for i, one in enumerate(order if isinstance(order, list) else [])}
    status = header.get("status") if isinstance(header, Mapping) else "started"  # it is written at the end
    return sorted(read, key=lambda one: place.get(_key(one), len(place))), status


_ABOUT = ("summaries", "header")


def _part(file: zipfile.ZipFile, name: str) -> Any:
    try:
        return parse_json(file.read(name).decode("utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"its part {name!r} is damaged: {error}") from error


def _key(one: Any) -> tuple[str, str]:
    return (str(one.get("id")), str(one.get("epoch"))) if isinstance(one, Mapping) else ("", "")


def _choices(sample: Mapping[str, Any]) -> list[Any]:
    output = sample.get("output")
    choices = output.get("choices") if isinstance(output, Mapping) else None
    return choices if isinstance(choices, list) else []


def _went_on(sample: Mapping[str, Any]) -> bool:
    """Whether more than one answer was written to the input."""
    given, said = (
        sum(isinstance(one, Mapping) and one.get("role") == "assistant" for one in messages)
        if isinstance(messages := sample.get(name), list)
        else 0
        for name in ("input", "messages")
    )
    return said > given + 1


def _of_sample(sample: Mapping[str, Any]) -> list[Row]:
    what = f"sample {sample.get('id')!r}"
    attached, asked = sample.get("attachments") or {}, sample.get("input")
    if isinstance(asked, list):
        roles = [str(one.get("role")) if isinstance(one, Mapping) else "nobody" for one in asked]
        if roles.count("user") != 1 or not {"user", "system"} >= set(roles):
            raise ValueError(f"the input of {what} is a chat of {', '.join(roles)}; a completion answers one question")
        asked = asked[roles.index("user")].get("content")
    prompt = _text(asked, attached, what)
    output, about = sample["output"], category_in(sample.get("metadata"))
    if len(choices := _choices(sample)) > 1:
        return [{"prompt": prompt} | _answer(one, None, attached, what) | about for one in choices]
    row = {"prompt": prompt} | _answer(choices[0], output.get("completion"), attached, what)
    usage = output.get("usage")
    if isinstance(usage, Mapping) and isinstance(usage.get("output_tokens"), int):
        row["tokens"] = usage["output_tokens"]
    return [row | about]


def _answer(choice: Any, completion: Any, attached: Mapping[str, str], what: str) -> Row:
    """What a choice says, and whether the model ended it."""
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise ValueError(f"an answer of {what} has no message")
    if message.get("tool_calls"):
        raise ValueError(f"the answer of {what} calls tools and is no text: leave such samples out of the log")
    row = {"completion": _text(completion or message.get("content") or "", attached, what)}
    stopped = _STOPPED.get(str(choice.get("stop_reason")))
    return row if stopped is None else row | {"ended": stopped}


def _text(content: Any, attached: Mapping[str, str], what: str) -> str:
    """Content of a message, which is a text or a list of parts; reasoning is no part of what is said."""
    if isinstance(content, str):
        return _resolved(content, attached, what)
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(f"{what} holds a {type(content).__name__} where a text or a list of parts is expected")
    parts = [part for part in content if part.get("type") != "reasoning"]
    if other := [part.get("type") for part in parts if part.get("type") != "text"]:
        raise ValueError(f"{what} holds a part of type {other[0]!r}, which is no text")
    return "\n".join(_resolved(str(part.get("text", "")), attached, what) for part in parts)


def _resolved(text: str, attached: Mapping[str, str], what: str) -> str:
    """Long texts stand apart in a log, by their digest."""
    if not text.startswith("attachment://"):
        return text
    digest = text.removeprefix("attachment://")
    if digest not in attached:
        raise ValueError(f"the log lacks the attachment {digest[:20]!r} of {what}, which holds its text")
    return attached[digest]
