"""The data sets that the two papers and their follow-ups use, by short name: where they are and on what terms."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from safecircuits.base.progress import console

SEE_CARD = "see the data set's card"


@dataclass(frozen=True)
class HubSet:
    """A data set on the Hugging Face hub: its id and licence, and what of it is read unless the user says otherwise.

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


_XSTEST = HubSet("walledai/XSTest", "CC BY 4.0", split="test", column="prompt", responses="", categories="type")

# Licences are those that the card or the repository of the data set states; where neither was seen to, it says so.
HUB_SETS = {
    "advbench": HubSet("walledai/AdvBench", "MIT", column="prompt", responses="target"),
    "alpaca": HubSet("tatsu-lab/alpaca", "CC BY-NC 4.0", column="instruction", responses="output"),
    "dolly": HubSet("databricks/databricks-dolly-15k", "CC BY-SA 3.0", column="instruction", responses="response"),
    "finance-alpaca": HubSet("gbharti/finance-alpaca", SEE_CARD, column="instruction", responses="output"),
    "gsm8k": HubSet("openai/gsm8k", "MIT", config="main", column="question", responses="answer"),
    "harmbench": HubSet("walledai/HarmBench", "MIT", config="standard", column="prompt", responses=""),
    "jbb-benign": HubSet("JailbreakBench/JBB-Behaviors", "MIT", "behaviors", "benign", "Goal", "Target"),
    "jbb-harmful": HubSet("JailbreakBench/JBB-Behaviors", "MIT", "behaviors", "harmful", "Goal", "Target"),
    "or-bench": HubSet("bench-llm/or-bench", "CC BY 4.0", config="or-bench-hard-1k", column="prompt", responses=""),
    "xstest": _XSTEST,
    "xstest-safe": replace(_XSTEST, where=(("label", "safe"),)),
    "xstest-unsafe": replace(_XSTEST, where=(("label", "unsafe"),)),
}
"""By short name, as ``load_prompts`` takes it. The safe half of XSTest is the one that measures over-rejection; the
targets of AdvBench and JBB are compliant openings, not answers."""

_announced: set[str] = set()
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
    """The columns of a hub data set; the first use of each in a process prints its licence on stderr.

    Args:
        name: its id, unless it is a ``known`` one.

    Raises:
        ValueError: if it can neither be downloaded nor read from the cache of ``datasets``.
    """
    from datasets import load_dataset

    known = known or next((s for s in HUB_SETS.values() if s.id.lower() == name.lower()), HubSet(name, SEE_CARD))
    split = split or known.split
    announce(known.id, known.licence)
    try:
        data = load_dataset(known.id, known.config, split=split)
    except Exception as error:  # the hub client raises many kinds
        offline = any(os.environ.get(flag, "0").upper() in ("1", "TRUE", "YES", "ON") for flag in _OFFLINE)
        why = "the hub is switched off (HF_HUB_OFFLINE)" if offline else "the hub did not give it"
        raise ValueError(
            f"cannot load the data set {known.id!r} (split {split!r}) from the hub: it is not in the cache, and {why}. "
            "Load it once with a connection (after `hf auth login` if its page asks for that), or download it and give "
            f"the file's path. The client says: {str(error).strip()}"
        ) from error
    return {column: list(data[column]) for column in data.column_names}


def announce(name: str, licence: str) -> None:
    """Print the licence of a data set on stderr, once in a process."""
    if name not in _announced:
        _announced.add(name)
        line = f"data set {name}: licence {licence}, https://huggingface.co/datasets/{name}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
