"""The data sets that the two papers and their follow-ups use, by short name: where they are and on what terms."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safecircuits.base.notices import notify
from safecircuits.base.progress import console
from safecircuits.data.files import read_file
from safecircuits.prompts.sources import table_of

SEE_CARD = "see the data set's card"


@dataclass(frozen=True)
class HubSet:
    """A data set on the Hugging Face hub: its id and licence, and what of it is read unless the user says otherwise.

    Args:
        revision: the commit that is read; the newest where it is None, and which one that was is said and kept.
        options: how its files are read, where ``datasets`` does not guess it.
        renamed: columns by another name, by which it is known what stands beside them (``CONTEXT_COLUMNS``).
        files: categories and their files of one column, where it has a file for each.

    Examples:
        >>> advbench = sc.data.known_set("advbench")
        >>> advbench.id, advbench.licence, advbench.column
        ('walledai/AdvBench', 'MIT', 'prompt')
    """

    id: str
    licence: str
    config: str | None = None
    split: str = "train"
    column: str | None = None
    responses: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    categories: str | None = None
    revision: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()


_HARMBENCH = HubSet(
    "walledai/HarmBench",
    "MIT",
    config="standard",
    column="prompt",
    responses="",
    revision="a777536ffc60bc8317b06380da5b2acf8d6491fd",
)
_OR_BENCH = HubSet("bench-llm/or-bench", "CC BY 4.0", config="or-bench-hard-1k", column="prompt", responses="")
_COCONOT = HubSet(
    "allenai/coconot",
    SEE_CARD,
    config="original",
    split="test",
    column="prompt",
    responses="",
    revision="3e9839f59dbfcc4a20d7891ed33d191d1d2bfaa4",
)
_WILDJAILBREAK = HubSet(
    "allenai/wildjailbreak",
    "ODC-BY, and its terms of access",
    config="eval",
    column="adversarial",
    responses="",
    where=(("data_type", "adversarial_harmful"),),
    options=(("delimiter", "\t"), ("keep_default_na", False)),
)
_HEX_PHI = (
    *("illegal activity", "child abuse", "hate, harassment, violence", "malware", "physical harm", "economic harm"),
    *("fraud, deception", "adult content", "political campaigning", "privacy violation", "tailored financial advice"),
)
_XSTEST = HubSet("walledai/XSTest", "CC BY 4.0", split="test", column="prompt", responses="", categories="type")

# Licences are those that the card or the repository of the data set states; where neither was seen to, it says so.
HUB_SETS = {
    "advbench": HubSet("walledai/AdvBench", "MIT", column="prompt", responses="target"),
    "alpaca": HubSet("tatsu-lab/alpaca", "CC BY-NC 4.0", column="instruction", responses="output"),
    "coconot": _COCONOT,
    "coconot-contrast": replace(_COCONOT, config="contrast"),
    "dolly": HubSet("databricks/databricks-dolly-15k", "CC BY-SA 3.0", column="instruction", responses="response"),
    "finance-alpaca": HubSet("gbharti/finance-alpaca", SEE_CARD, column="instruction", responses="output"),
    "gsm8k": HubSet("openai/gsm8k", "MIT", config="main", column="question", responses="answer"),
    "harmbench": _HARMBENCH,
    "harmbench-contextual": replace(
        _HARMBENCH, config="contextual", column="behavior", renamed=(("prompt", "behavior"),)
    ),
    "harmbench-copyright": replace(_HARMBENCH, config="copyright"),
    "hex-phi": HubSet(
        "LLM-Tuning-Safety/HEx-PHI",
        "its own terms of access",
        column="prompt",
        categories="category",
        # the second category was withdrawn by its authors
        files=tuple((of, f"category_{i}.csv") for i, of in enumerate(_HEX_PHI, 1) if i != 2),
    ),
    "jbb-benign": HubSet("JailbreakBench/JBB-Behaviors", "MIT", "behaviors", "benign", "Goal", "Target"),
    "jbb-harmful": HubSet("JailbreakBench/JBB-Behaviors", "MIT", "behaviors", "harmful", "Goal", "Target"),
    "or-bench": _OR_BENCH,
    "or-bench-80k": replace(_OR_BENCH, config="or-bench-80k"),
    "or-bench-toxic": replace(_OR_BENCH, config="or-bench-toxic"),
    "sorry-bench": HubSet(
        "sorry-bench/sorry-bench-202406",
        "its own terms of access",
        column="turns",
        responses="",
        where=(("prompt_style", "base"),),
        revision="b34822276edde97592eda99c0b56d306f8830469",
    ),
    "strongreject": HubSet(
        "walledai/StrongREJECT",
        "MIT",
        column="prompt",
        responses="",
        revision="df54272b395ce9e584d2f8140519935425d8549f",
    ),
    "wildjailbreak": _WILDJAILBREAK,
    "wildjailbreak-benign": replace(_WILDJAILBREAK, where=(("data_type", "adversarial_benign"),)),
    "xstest": _XSTEST,
    "xstest-safe": replace(_XSTEST, where=(("label", "safe"),)),
    "xstest-unsafe": replace(_XSTEST, where=(("label", "unsafe"),)),
}
"""By short name, as ``load_prompts`` takes it. WildJailbreak, HEx-PHI and SORRY-Bench are given to those whom their
authors let in (``hf auth login``). ``harmbench-contextual`` has each behaviour's context before it. The safe half of
XSTest is the one that measures over-rejection; the targets of AdvBench and JBB are compliant openings, not answers."""

_announced: set[str] = set()
_revisions: dict[str, str] = {}
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def known_set(name: str) -> HubSet | None:
    """The data set that a short name stands for, or None.

    Examples:
        >>> sc.data.known_set("advbench").id
        'walledai/AdvBench'
        >>> sc.data.known_set("my_own") is None
        True
    """
    return HUB_SETS.get(name.lower())


def read_hub(name: str, known: HubSet | None = None, split: str | None = None) -> dict[str, list[Any]]:
    """The columns of a hub data set; the first use of each in a process prints commit and licence on stderr.

    Args:
        name: its id, unless it is a ``known`` one.

    Raises:
        ValueError: if it can neither be downloaded nor read from the cache of ``datasets``.
    """
    known = known or next((s for s in HUB_SETS.values() if s.id.lower() == name.lower()), HubSet(name, SEE_CARD))
    split = split or known.split
    try:
        table, revision = _by_files(known) if known.files else _by_datasets(known, split)
    except Exception as error:  # the hub client raises many kinds
        offline = any(os.environ.get(flag, "0").upper() in ("1", "TRUE", "YES", "ON") for flag in _OFFLINE)
        why = "the hub is switched off (HF_HUB_OFFLINE)" if offline else "the hub did not give it"
        raise ValueError(
            f"cannot load the data set {known.id!r} (split {split!r}) from the hub: it is not in the cache, and {why}. "
            "Load it once with a connection (after `hf auth login` if its page asks for that), or download it and give "
            f"the file's path. The client says: {str(error).strip()}"
        ) from error
    if revision is not None:
        _revisions[known.id.lower()] = revision
        if known.revision not in (None, revision):
            notify(f"data set {known.id}: the cache has commit {revision}, where {known.revision} was asked for")
    announce(known.id, known.licence, revision)
    names = dict(known.renamed)
    return {names.get(column, column): entries for column, entries in table.items()}


def revision_read(source: str) -> str | None:
    """The commit of a hub data set that was read in this process, by its id or short name; None where none is known.

    Examples:
        >>> sc.data.revision_read("advbench") is None  # it was not read yet
        True
    """
    known = known_set(source)
    return _revisions.get((known.id if known is not None else source).lower())


def _by_datasets(known: HubSet, split: str) -> tuple[dict[str, list[Any]], str | None]:
    """Columns, and the commit that they are of, if ``datasets`` kept it."""
    from datasets import load_dataset

    pinned: dict[str, Any] = {} if known.revision is None else {"revision": known.revision}
    data = load_dataset(known.id, known.config, split=split, **pinned, **dict(known.options))
    urls = getattr(data.info, "download_checksums", None) or {}
    commits = {found[1] for url in urls if (found := re.search(r"@([0-9a-f]{40})/", str(url)))}
    revision = commits.pop() if len(commits) == 1 else None
    return table_of(data) or {}, revision


def _by_files(known: HubSet) -> tuple[dict[str, list[Any]], str | None]:
    """The prompts of each category's file, and the commit by the folder that the hub's cache has them in."""
    from huggingface_hub import hf_hub_download

    prompts: list[Any] = []
    categories: list[Any] = []
    commits = set()
    for category, file in known.files:
        path = Path(hf_hub_download(known.id, file, repo_type="dataset", revision=known.revision))
        commits.add(path.parent.name)
        (column,) = read_file(path).values()
        prompts += column
        categories += [category] * len(column)
    return {"prompt": prompts, "category": categories}, commits.pop() if len(commits) == 1 else None


def announce(name: str, licence: str, revision: str | None = None) -> None:
    """Print the licence of a data set on stderr, once in a process, and its commit if that is known."""
    if name not in _announced:
        _announced.add(name)
        at = f", commit {revision}" if revision else ""
        line = f"data set {name}: licence {licence}, https://huggingface.co/datasets/{name}{at}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
