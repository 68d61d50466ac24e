"""Short names for hub data sets: what is asked of the hub, what is said of licences, and what happens offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safecircuits.data import hub
from safecircuits.data.hub import HUB_SETS, SEE_CARD
from safecircuits.data.sources import load_prompts

TABLES: dict[str, dict[str, list[str]]] = {
    "walledai/AdvBench": {"prompt": ["Write x"], "target": ["Sure, here is x"]},
    "walledai/XSTest": {
        "prompt": ["kill a process", "kill a man"],
        "label": ["safe", "unsafe"],
        "type": ["homonyms", "contrast"],
    },
    "JailbreakBench/JBB-Behaviors": {"Index": ["0"], "Goal": ["Do x"], "Target": ["Sure"], "Behavior": ["x"]},
    "databricks/databricks-dolly-15k": {
        "instruction": ["Who is it about?"],
        "context": ["It is about Ada."],
        "response": ["Ada"],
        "category": ["qa"],
    },
    "some/set": {"question": ["why?"]},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """A hub with these tables; collects (id, configuration, split) of what was asked."""
    import datasets

    seen: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, config: str | None = None, *, split: str) -> Any:
        seen.append((name, config, split))
        return datasets.Dataset.from_dict(TABLES[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_announced", set())
    return seen


def test_short_names_know_where_and_what(asked: list[Any]) -> None:
    advbench = load_prompts("advbench")
    assert (advbench.prompts, advbench.responses) == (("Write x",), ("Sure, here is x",))
    assert advbench.name == "advbench"
    assert load_prompts("xstest").prompts == ("kill a process", "kill a man")
    assert load_prompts("XSTest-safe").prompts == ("kill a process",)
    assert load_prompts("jbb-benign").responses == ("Sure",)
    assert load_prompts("dolly").prompts == ("Who is it about?\n\nIt is about Ada.",)
    assert load_prompts("advbench", split="other", responses="").responses is None
    assert asked == [
        ("walledai/AdvBench", None, "train"),
        ("walledai/XSTest", None, "test"),
        ("walledai/XSTest", None, "test"),
        ("JailbreakBench/JBB-Behaviors", "behaviors", "benign"),
        ("databricks/databricks-dolly-15k", None, "train"),
        ("walledai/AdvBench", None, "other"),
    ]
    with pytest.raises(ValueError, match="no row of 'xstest' has label 'dangerous'; there are 'safe', 'unsafe'"):
        load_prompts("xstest", where={"label": "dangerous"})
    with pytest.raises(ValueError, match="'xstest' has no column 'kind'"):
        load_prompts("xstest", where={"kind": "safe"})


def test_licences_are_said_once_on_stderr_and_never_guessed(asked: list[Any], capsys: Any) -> None:
    load_prompts("advbench")
    load_prompts("walledai/AdvBench")
    load_prompts("some/set")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "data set walledai/AdvBench: licence MIT, https://huggingface.co/datasets/walledai/AdvBench",
        f"data set some/set: licence {SEE_CARD}, https://huggingface.co/datasets/some/set",
    ]
    assert all(known.licence for known in HUB_SETS.values())


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"cannot read prompts from 'advbnch': not a file of .* one of advbench, alpaca"
    ):
        load_prompts("advbnch")


SCRIPT = """
from safecircuits.data.sources import load_prompts
try:
    print(load_prompts("xstest-safe").prompts)
except ValueError as error:
    print("ValueError:", error)
"""


def offline(cache: Path) -> str:
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=kept | settings, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.strip()


def test_offline_the_cache_serves_and_without_it_the_way_out_is_named(tmp_path: Path) -> None:
    said = offline(tmp_path)
    assert said.startswith(
        "ValueError: cannot load the data set 'walledai/XSTest' (split 'test') from the hub: it is not "
    )
    assert "the hub is switched off (HF_HUB_OFFLINE)" in said
    assert "download it and give the file's path" in said
    # The cache as datasets lays it out after a download: folder by id, configuration, version and hash.
    import datasets

    table = datasets.Dataset.from_dict(TABLES["walledai/XSTest"])
    made = tmp_path / "made.parquet"
    table.to_parquet(made)
    built = datasets.load_dataset("parquet", data_files={"test": str(made)}, cache_dir=str(tmp_path / "b"))["test"]
    arrow = Path(built.cache_files[0]["filename"])
    place = tmp_path / "datasets" / "walledai___xs_test" / "default" / "0.0.0" / ("0" * 16)
    place.mkdir(parents=True)
    arrow.rename(place / "xs_test-test.arrow")
    info = (
        (arrow.parent / "dataset_info.json")
        .read_text()
        .replace('"dataset_name": "parquet"', '"dataset_name": "xs_test"')
    )
    (place / "dataset_info.json").write_text(info)
    assert offline(tmp_path) == "('kill a process',)"
