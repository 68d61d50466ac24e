"""What the two papers report, as tables to hold measured numbers against.

Figures only, retyped from the papers' tables: *Safety Layers* (arXiv 2408.17003 v5) and *SSAH* (version 1, as on its
project page, where SCU and UCU are called ESU and EUU). A cell that is left out or printed ambiguously is absent.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Paper = Literal["safety_layers", "ssah"]
PAPERS: tuple[Paper, ...] = ("safety_layers", "ssah")


def published_numbers(paper: Paper, *, table: str | None = None, model: str | None = None) -> pd.DataFrame:
    """Published numbers, one a row: ``table, model, setting, metric, value``.

    Rates whose metric ends in ``%`` are percentages, counts of over-rejections are out of 721 prompts, ranges of layers
    are 0-indexed and inclusive.

    Args:
        paper: ``"safety_layers"`` or ``"ssah"``.
        table: only this table, for example ``"Table 1"``.
        model: only this model, by the paper's name, a hub id or a path that ends in one; empty if it is in no table.

    Raises:
        ValueError: for an unknown paper or table.

    Examples:
        >>> rows = sc.papers.published_numbers("safety_layers", table="Table 1", model="meta-llama/Llama-2-7b-chat-hf")
        >>> list(rows)
        ['table', 'model', 'setting', 'metric', 'value']
        >>> len(sc.papers.published_numbers("ssah", model="a model of mine"))
        0
    """
    if paper not in PAPERS:
        raise ValueError(f"no published numbers of {paper!r}: expected one of {', '.join(PAPERS)}")
    frame = _read(paper)
    if table is not None:
        if table not in set(frame["table"]):
            raise ValueError(f"{paper} has no {table!r}: expected one of {', '.join(frame['table'].unique())}")
        frame = frame[frame["table"] == table]
    if model is not None:
        frame = frame[frame["model"].map(_key) == _key(model)]
    return frame.reset_index(drop=True)


@cache
def _read(paper: Paper) -> pd.DataFrame:
    import pandas as pd

    with files("safecircuits.papers.published").joinpath(f"{paper}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _key(model: str) -> str:
    """A model's name without what hubs and papers write differently: organisation, ``Meta-``, ``-hf``, case."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9]", "", name.removeprefix("meta-").removesuffix("-hf"))
