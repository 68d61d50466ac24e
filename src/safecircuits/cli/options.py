"""Options that commands share, and how what is typed becomes what the library takes."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.declared import Of
from safecircuits.cli.folded import FOLDED

if TYPE_CHECKING:
    from safecircuits.base.vocabulary import LayerRange

RUN_PANEL, SETS_PANEL, ANSWERS_PANEL = "Model and output", "Sets of prompts", "Answers and template"
EVERY_PANEL, PROMPT_PANEL = FOLDED


class Dtype(StrEnum):
    """Precision of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


_SOURCE = "A file (csv, tsv, json, jsonl, parquet, txt), organism:KIND, requests:KIND, or a hub data set."

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="A hub id, a folder, a GGUF file, organism:NAME or smollm2:NAME (organism list has them).",
        rich_help_panel=RUN_PANEL,
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", help="Folder of the run; made if missing.", rich_help_panel=RUN_PANEL)
]
SeedOption = Annotated[int, typer.Option("--seed", help="Decides every random choice.", rich_help_panel=EVERY_PANEL)]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, …; a GPU if there is one.", rich_help_panel=EVERY_PANEL),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="float32 on a CPU, else the checkpoint's own.", rich_help_panel=EVERY_PANEL),
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="Instead of --device: auto spreads the model over all devices, as Accelerate does. For reading alone "
        "where a part is left to the CPU.",
        rich_help_panel=EVERY_PANEL,
    ),
]
QuantizationOption = Annotated[
    Any,
    Of(
        "model.quantised:Quantization",
        "Quantise while loading, for reading alone. A quantised checkpoint needs no option.",
        optional=True,
        panel=EVERY_PANEL,
    ),
]
BackendOption = Annotated[
    Any, Of("model.load:load_model.backend", "TransformerBridge or HookedTransformer.", panel=EVERY_PANEL)
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print what was found as JSON on stdout: answer, findings, main table.",
        rich_help_panel=EVERY_PANEL,
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace an earlier run in --out.", rich_help_panel=EVERY_PANEL)
]


def prompt_option(name: str, holds: str) -> Any:
    """A set of prompts."""
    return typer.Option(name, help=f"{holds} {_SOURCE}", rich_help_panel=SETS_PANEL)


_NORMAL = prompt_option("--normal", "Harmless prompts.")
_MALICIOUS = prompt_option("--malicious", "Harmful prompts.")
_OVER_REJECTION = prompt_option("--over-rejection", "Harmless prompts that sound dangerous.")
NormalOption = Annotated[str, _NORMAL]
MaliciousOption = Annotated[str, _MALICIOUS]
OverRejectionOption = Annotated[str, _OVER_REJECTION]
MaybeNormal = Annotated[str | None, _NORMAL]
MaybeMalicious = Annotated[str | None, _MALICIOUS]
MaybeOverRejection = Annotated[str | None, _OVER_REJECTION]
MaybeUtility = Annotated[str | None, prompt_option("--utility", "Prompts with known answers.")]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="Column of the prompts; guessed from usual names (prompt, question, messages, …). SET=COLUMN, as "
        "malicious=goal, is of one set alone; =COLUMN of all, where the name has a = in it. May be repeated.",
        rich_help_panel=PROMPT_PANEL,
    ),
]
ResponsesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--responses",
        help="Column of the known answers; guessed from usual names (answer, …); SET=COLUMN likewise.",
        rich_help_panel=PROMPT_PANEL,
    ),
]
CategoriesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--categories",
        help="Column of the prompts' categories, by which rates are counted, too; guessed from usual names (category, "
        "…); SET=COLUMN likewise, SET= for none.",
        rich_help_panel=PROMPT_PANEL,
    ),
]
CountOption = Annotated[
    list[str] | None,
    typer.Option(
        "--n",
        help="Take the first N prompts of each set; SET=N, as malicious=100, of one set alone. May be repeated.",
        rich_help_panel=RUN_PANEL,
    ),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        help="COLUMN=VALUE: keep these rows of each set; SET:COLUMN=VALUE, as normal:label=safe, of one set alone; "
        ":COLUMN=VALUE, where the name has a colon in it. May be repeated.",
        rich_help_panel=PROMPT_PANEL,
    ),
]
TemplateOption = Annotated[
    str,
    typer.Option(
        "--template",
        help="auto, chat, alpaca, alpaca-short, none, or a text with {instruction}.",
        rich_help_panel=ANSWERS_PANEL,
    ),
]
SystemOption = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="A system prompt; '' for none, also where the chat template has one.",
        rich_help_panel=PROMPT_PANEL,
    ),
]
DateOption = Annotated[
    str | None,
    typer.Option(
        "--date",
        help="YYYY-MM-DD: today, to chat templates that write the date; always the same unless given.",
        rich_help_panel=PROMPT_PANEL,
    ),
]
ChatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        help="NAME=VALUE for the chat template, as enable_thinking=false; may be repeated.",
        rich_help_panel=PROMPT_PANEL,
    ),
]
DetectorOption = Annotated[
    str,
    typer.Option(
        "--detector",
        help="What counts as a refusal: opening, qi2023, wei2024, jailbreakbench, xstest, larf, paper-llama2, …",
        rich_help_panel=ANSWERS_PANEL,
    ),
]
TokensOption = Annotated[
    int, typer.Option("--max-new-tokens", help="Length of a completion.", min=1, rich_help_panel=ANSWERS_PANEL)
]
TokensOrNeededOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        help="Length of a completion: as many as the detector needs unless given (24 where it looks at the start, 256 "
        "where it reads whole answers), and 16 for utility.",
        rich_help_panel=ANSWERS_PANEL,
        min=1,
    ),
]
ComponentsOption = Annotated[Any, Of("hooks.scale:scaled.components", "Which matrices are scaled.")]


def torch_dtype(chosen: Dtype | None) -> Any:
    """``--dtype`` as PyTorch's, or None."""
    from safecircuits.base.dtypes import torch_dtype as by_name

    return by_name(chosen)


def torch_device(name: str | None) -> Any:
    """``--device``, or None; a ValueError where this machine has no such device."""
    import torch

    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        usable = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"there is no device {name!r} here; there is {', '.join(usable)}") from error
    return device


def conditions(texts: list[str]) -> dict[str, dict[str, str]]:
    """``--where`` by set: values by column; those of every set under an empty name."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        part, colon, column = place.partition(":")  # with nothing before it the column itself has one
        part, column = (part.strip().replace("-", "_"), column.strip()) if colon else ("", place.strip())
        if not (equals and column):
            raise ValueError(f"--where is given as COLUMN=VALUE or SET:COLUMN=VALUE, not {text!r}")
        if column in found.setdefault(part, {}):
            raise ValueError(f"--where gives column {column!r} twice; rows must have one value")
        found[part][column] = value.strip()
    return found


BY_SET = ("n", "column", "responses", "categories")
"""Options that are given for every set of prompts, or for one by its name."""


def by_set(texts: list[str], option: str) -> dict[str, str]:
    """``VALUE`` and ``SET=VALUE`` as values by set; that of every set under an empty name."""
    found: dict[str, str] = {}
    for text in texts:
        part, equals, value = text.partition("=")
        part, value = (part.strip().replace("-", "_"), value.strip()) if equals else ("", text)
        if equals and not (part or value):
            raise ValueError(f"{option} is given as VALUE, SET=VALUE or =VALUE, not {text!r}")
        if part in found:
            of = f"the set {part!r}" if part else "every set; name one by SET=VALUE"
            raise ValueError(f"{option} gives both {found[part]!r} and {value!r} for {of}")
        found[part] = value
    return found


def counts(values: dict[str, str]) -> dict[str, int]:
    """``--n`` by set as numbers."""
    for text in values.values():
        if not text.strip().isdecimal() or int(text) < 1:
            raise ValueError(f"--n is a number of prompts from 1 on, not {text!r}")
    return {name: int(text) for name, text in values.items()}


def as_recorded(key: str, values: list[str] | None) -> Any:
    """An option of ``BY_SET`` as a run keeps it: one value that is of every set by itself."""
    if not values or len(values) > 1 or "=" in values[0]:
        return values or None
    return int(values[0]) if key == "n" and values[0].strip().isdecimal() else values[0]


def whole_numbers(text: str, expected: str, least: int = 0) -> tuple[int, ...]:
    """``1,2,4`` as numbers; a ValueError that begins with what was ``expected``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ValueError(f"{expected}, not {text!r}")
    return tuple(map(int, parts))


def layer_range(text: str) -> LayerRange:
    """``3,5`` or ``3-5`` as the layers 3 to 5."""
    from safecircuits.base.vocabulary import LayerRange

    found = re.fullmatch(r"\[?\s*(\d+)\s*[,-]\s*(\d+)\s*\]?", text)
    if not found:
        raise ValueError(f"layers are given as FIRST,LAST, both counted from 0 and inclusive, not {text!r}")
    return LayerRange(int(found[1]), int(found[2]))


def named(texts: list[str], what: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping; a value alone is its own name."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name, value = (name.strip(), value.strip()) if equals else (text, text)
        if not name or not value:
            raise ValueError(f"{what} is given as NAME=VALUE, not {text!r}")
        if name in pairs:
            raise ValueError(f"{what} {name!r} is given twice; choose different names")
        pairs[name] = value
    return pairs


def template_options(texts: list[str] | None) -> dict[str, Any]:
    """``--template-option`` as values by name: what is JSON is read as such, the rest is text."""
    found: dict[str, Any] = {}
    for name, value in named(texts or [], "--template-option").items():
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def alpha_option(text: str) -> Any:
    """``--alpha`` as ``localize`` takes it."""
    if text == "search":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--alpha is a number or search, not {text!r}") from None
