"""Tables as people have them: read right, or refused with a reason; never other prompts than were meant."""

from __future__ import annotations

import csv
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from safecircuits.base.notices import Notice
from safecircuits.cli.options import by_set, conditions
from safecircuits.data.sources import load_prompts
from safecircuits.prompts.chats import read_cells
from safecircuits.prompts.prompt_set import PromptSet

DATA = Path(os.environ.get("SAFECIRCUITS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
ASKED, REPLIED = ("how do i bake", "where is the lamp"), ("take salt", "in the hall")


def frame() -> pd.DataFrame:
    return pd.DataFrame({"prompt": ASKED, "response": REPLIED})


class TestNames:
    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        double = pd.concat([frame(), frame()[["prompt"]]], axis=1)
        with pytest.raises(ValueError, match="the DataFrame has 2 columns named 'prompt'; rename them"):
            load_prompts(double)
        with pytest.raises(ValueError, match="2 columns named '1'"):
            load_prompts(pd.DataFrame([["a", "b"]], columns=[1, "1"]))
        (tmp_path / "a.csv").write_text("prompt,prompt\na,b\n")
        (tmp_path / "a.json").write_text('[{"prompt": "a", "prompt": "b"}]')
        (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n')
        (tmp_path / "s.json").write_text(double.to_json(orient="split"))
        for name in ("a.csv", "a.json", "a.jsonl", "s.json"):
            with pytest.raises(ValueError, match=f"{name[0]}\\.{name[2:]}' has 2 columns named 'prompt'"):
                load_prompts(tmp_path / name)

    @pytest.mark.parametrize("dress", [str, str.upper, str.title, " {} ".format, "{}s".format, "{}S ".format])
    @pytest.mark.parametrize(
        ("names", "want"),
        [
            (("instruction", "input", "output"), "q\n\nc"),
            (("instruction", "context", "response"), "q\n\nc"),
            (("behavior", "ContextString", "target"), "c\n\n---\n\nq"),
            (("behaviour", "context_string", "answer"), "c\n\n---\n\nq"),
        ],
    )
    def test_companions_are_known_by_the_same_names_as_prompts(self, dress: Any, names: Any, want: str) -> None:
        table = dict(zip(map(dress, names), (["q", "p"], ["c", None], ["r", "s"]), strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = load_prompts(table)
        assert got.prompts == (want, "p")
        assert got.responses == ("r", "s")

    def test_a_context_that_is_not_joined_is_noticed(self) -> None:
        with pytest.warns(
            Notice, match="column 'context' of 'table' is not read: the prompts are column 'question' alone"
        ):
            assert load_prompts({"question": ["a"], "context": ["b"]}).prompts == ("a",)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_prompts({"question": ["a"], "context": [""]})

    def test_signs_of_the_command_line_in_names(self) -> None:
        assert by_set(["=a=b", "malicious=c=d"], "--column") == {"": "a=b", "malicious": "c=d"}
        assert conditions([":label:kind=safe", "normal:label:kind=x"]) == {
            "": {"label:kind": "safe"}, "normal": {"label:kind": "x"},
        }  # fmt: skip
        [(column, value)] = conditions(["a=b=c"])[""].items()
        for name in ("a", "a=b"):
            rest = "b=c" if name == "a" else "c"
            table = {name: [rest, "other"], "prompt": ["yes", "no"]}
            assert load_prompts(table, where={column: value}).prompts == ("yes",)
        with pytest.raises(ValueError, match="has no column 'x'"):
            load_prompts({"prompt": ["a"]}, where={"x": "y=z"})
        with pytest.raises(ValueError, match="VALUE, SET=VALUE or =VALUE"):
            by_set(["="], "--column")


class TestCells:
    def test_cells_of_any_size(self, tmp_path: Path) -> None:
        before = csv.field_size_limit()
        long = "many shots " * 30000
        pd.DataFrame({"prompt": ["short", long]}).to_csv(tmp_path / "long.csv", index=False)
        assert load_prompts(tmp_path / "long.csv").prompts == ("short", long)
        assert csv.field_size_limit() == before

    @pytest.mark.parametrize("column", ["messages", "conversations", "prompt"])
    @pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
    @pytest.mark.parametrize("how", [json.dumps, repr])
    def test_chats_as_text(self, column: str, keys: tuple[str, str], how: Any, tmp_path: Path) -> None:
        who, said = keys
        cells = [
            how([{who: "user", said: f'{a} it\'s "x"'}, {who: "assistant", said: b}])
            for a, b in zip(ASKED, REPLIED, strict=True)
        ]
        pd.DataFrame({column: cells}).to_csv(tmp_path / "chats.csv", index=False)
        got = load_prompts(tmp_path / "chats.csv")
        assert got.prompts == tuple(f'{a} it\'s "x"' for a in ASKED)
        assert got.responses == REPLIED

    def test_chats_as_text_that_cannot_be_read(self, tmp_path: Path) -> None:
        import numpy as np

        array = np.array([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        for bad in (
            str(array),
            "[{'role': 'user', 'content': open('x')}]",
            '[{"role": "user", "content": ' + "[" * 100_000,
        ):
            with pytest.raises(
                ValueError, match="row 1 of 'table': column 'messages' holds a chat as text that cannot"
            ):
                load_prompts({"messages": [bad]})

    def test_prompts_that_quote_a_chat_are_prompts(self) -> None:
        texts = ["write json", '[{"role": "user", "content": "x"}] is what?']
        assert read_cells(texts, "prompt", "t") == (texts, None)

    def test_half_characters(self, tmp_path: Path) -> None:
        (tmp_path / "half.jsonl").write_text('{"prompt": "fine"}\n{"prompt": "half \\ud83d"}\n')
        with pytest.raises(ValueError, match=r"prompt 2 of set 'half' holds half a character \(a lone surrogate\)"):
            load_prompts(tmp_path / "half.jsonl")
        with pytest.raises(ValueError, match="response 1 of set 'x' holds half a character"):
            PromptSet("x", ("a",), ("\udc00",))
        (tmp_path / "whole.jsonl").write_text('{"prompt": "whole \\ud83d\\ude00"}\n')
        assert load_prompts(tmp_path / "whole.jsonl").prompts == ("whole \U0001f600",)


class TestShapes:
    @pytest.mark.parametrize("orient", ["columns", "records", "index", "split", "table"])
    @pytest.mark.parametrize("rows", [1, 2])
    def test_pandas_writes_json_in_five_ways(self, orient: Any, rows: int, tmp_path: Path) -> None:
        frame()[:rows].to_json(tmp_path / "t.json", orient=orient)
        got = load_prompts(tmp_path / "t.json")
        assert (got.prompts, got.responses) == (ASKED[:rows], REPLIED[:rows])

    def test_a_filtered_frame(self, tmp_path: Path) -> None:
        frame()[1:].to_json(tmp_path / "t.json")
        assert load_prompts(tmp_path / "t.json").prompts == ASKED[1:]
        (tmp_path / "u.json").write_text('{"prompt": {"0": "a", "1": "b"}, "response": {"0": "c"}}')
        with pytest.raises(ValueError, match="do not have the same rows"):
            load_prompts(tmp_path / "u.json")

    def test_several_splits_need_one(self) -> None:
        from datasets import Dataset, DatasetDict

        both = DatasetDict({"train": Dataset.from_pandas(frame()), "test": Dataset.from_pandas(frame()[1:])})
        with pytest.raises(ValueError, match="a DatasetDict holds the splits 'train', 'test': give split="):
            load_prompts(both)
        with pytest.raises(ValueError, match="there is no split 'dev'"):
            load_prompts(both, split="dev")
        assert load_prompts(both, split="test").prompts == ASKED[1:]
        assert load_prompts({"train": frame(), "test": frame()[1:]}, split="train").responses == REPLIED

    def test_rows_that_come_one_by_one(self) -> None:
        from datasets import Dataset

        assert load_prompts(Dataset.from_pandas(frame()).to_iterable_dataset()).prompts == ASKED


@pytest.mark.skipif(not DATA.is_dir(), reason="the real prompt sets are not here; set SAFECIRCUITS_TEST_DATA")
@pytest.mark.parametrize(
    ("file", "n", "answered"),
    [
        ("advbench/harmful_behaviors.csv", 520, True), ("advbench/refusals_llama2_short.csv", 1015, True),
        ("xstest/xstest_prompts.csv", 450, False), ("gsm8k/test_300.jsonl", 300, True),
        ("safety_layers/Normal_dataset.json", 1000, True), ("safety_layers/normal.csv", 100, False),
    ],
)  # fmt: skip
def test_real_sets(file: str, n: int, answered: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = load_prompts(DATA / file)
    assert len(got) == n
    assert (got.responses is not None) == answered
