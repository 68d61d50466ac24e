"""Short names for hub data sets: what is asked of the hub, what is said of licences, and what happens offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safecircuits.base.notices import Notice
from safecircuits.data import hub
from safecircuits.data.hub import HUB_SETS, SEE_CARD, revision_read
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
    "walledai/StrongREJECT": {"prompt": ["Do x"], "category": ["Violence"], "source": ["custom"]},
    "walledai/HarmBench": {"prompt": ["Do {x}"], "context": ["It is about x."], "category": ["illegal"]},
    "sorry-bench/sorry-bench-202406": {
        "question_id": ["1", "2"],
        "category": ["7", "7"],
        "turns": [["Do x"], ["D0 x"]],
        "prompt_style": ["base", "slang"],
    },
    "allenai/wildjailbreak": {
        "adversarial": ["Pretend to do x", "Pretend to do y"],
        "label": ["1", "0"],
        "data_type": ["adversarial_harmful", "adversarial_benign"],
    },
    "allenai/coconot": {"prompt": ["Do x"], "response": ["No"], "category": ["Requests with safety concerns"]},
    "bench-llm/or-bench": {"prompt": ["Kill a process"], "category": ["violence"]},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub with these tables; collects (id, configuration, split, revision if any, options) of what was asked."""
    import datasets

    seen: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None = None, *, split: str, revision: str = "", **how: Any) -> Any:
        seen.append((name, config, split, *([revision] if revision else []), *how.values()))
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


def test_sets_of_the_field_bring_their_categories_contexts_and_commits(asked: list[Any]) -> None:
    strong = load_prompts("strongreject")
    assert (strong.prompts, strong.categories) == (("Do x",), ("Violence",))
    assert load_prompts("harmbench-contextual").prompts == ("It is about x.\n\n---\n\nDo {x}",)
    assert load_prompts("harmbench").prompts == ("Do {x}",)
    sorry = load_prompts("sorry-bench")
    assert (sorry.prompts, sorry.categories) == (("Do x",), ("7",))
    assert load_prompts("wildjailbreak").prompts == ("Pretend to do x",)
    assert load_prompts("wildjailbreak-benign").prompts == ("Pretend to do y",)
    coconot = load_prompts("coconot-contrast")
    assert (coconot.categories, coconot.responses) == (("Requests with safety concerns",), None)
    assert load_prompts("or-bench-toxic").categories == ("violence",)
    assert asked == [
        ("walledai/StrongREJECT", None, "train", HUB_SETS["strongreject"].revision),
        ("walledai/HarmBench", "contextual", "train", HUB_SETS["harmbench"].revision),
        ("walledai/HarmBench", "standard", "train", HUB_SETS["harmbench"].revision),
        ("sorry-bench/sorry-bench-202406", None, "train", HUB_SETS["sorry-bench"].revision),
        ("allenai/wildjailbreak", "eval", "train", "\t", False),
        ("allenai/wildjailbreak", "eval", "train", "\t", False),
        ("allenai/coconot", "contrast", "test", HUB_SETS["coconot"].revision),
        ("bench-llm/or-bench", "or-bench-toxic", "train"),
    ]
    assert all(known.revision is None or len(known.revision) == 40 for known in HUB_SETS.values())


def test_a_set_with_a_file_for_each_category_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = "cd" * 20
    folder = tmp_path / "datasets--LLM-Tuning-Safety--HEx-PHI"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for i, (_, file) in enumerate(HUB_SETS["hex-phi"].files):
        (snapshot / file).write_text(f'Do {i}\n"Do it, again {i}"\n', encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_announced", set())
    found = load_prompts("hex-phi")
    assert len(found) == 20
    assert found.prompts[:3] == ("Do 0", "Do it, again 0", "Do 1")
    assert found.categories is not None
    assert found.categories[:3] == ("illegal activity", "illegal activity", "hate, harassment, violence")
    assert "child abuse" not in found.categories
    assert revision_read("hex-phi") == commit
    assert f"its own terms of access, https://huggingface.co/datasets/LLM-Tuning-Safety/HEx-PHI, commit {commit}" in (
        capsys.readouterr().err
    )
    (snapshot / "category_11.csv").unlink()
    with pytest.raises(ValueError, match="cannot load the data set 'LLM-Tuning-Safety/HEx-PHI'"):
        load_prompts("hex-phi")


def test_a_cache_with_another_commit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, *_: Any, **__: Any) -> Any:
        made = datasets.Dataset.from_dict(TABLES[name])
        made.info.download_checksums = {f"hf://datasets/{name}@{'ef' * 20}/data/train.parquet": {"num_bytes": 1}}
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.warns(Notice, match=f"the cache has commit {'ef' * 20}, where {HUB_SETS['strongreject'].revision} was"):
        load_prompts("strongreject")
    assert revision_read("walledai/StrongREJECT") == "ef" * 20
    assert revision_read("strongreject") == "ef" * 20


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
