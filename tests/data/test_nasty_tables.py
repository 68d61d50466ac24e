"""Tables as nobody would write them and everybody has them: read right, or refused in one sentence, never otherwise."""

from __future__ import annotations

import io
import itertools
import json
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value

from safecircuits.base.notices import Notice
from safecircuits.data.sources import load_chats, load_prompts, load_training_data
from safecircuits.prompts.prompt_set import PromptSet, as_prompt_set

F = pd.DataFrame
A, R = ["a", "b"], ["c", "d"]
BOTH = {"prompt": A, "response": R}
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]
OTHER = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "d"}]
LONG = [*CHAT, *OTHER]
TWO = pd.MultiIndex.from_tuples([("x", "prompt"), ("x", "response")])
CLASSES = Features({"prompt": Value("string"), "category": ClassLabel(names=["safe", "harm"])})


def endless() -> Any:
    return ({"prompt": str(i), "output": "x" if i % 2 else ""} for i in itertools.count())


def uneven() -> Any:
    return iter([{"prompt": "a"}, {"prompt": "b", "id": 1}])


READ: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "columns of two levels, named": (F([A], columns=TWO), {"column": "('x', 'prompt')"}, (["a"], None)),
    "columns that are numbers": (F([["a", "c"], ["b", "d"]]), {"column": 0, "responses": "1"}, (A, R)),
    "a label that is NaN": (F([["z", "a"]], columns=[np.nan, "prompt"]), {}, (["a"], None)),
    "a label that is bytes": (F([["z", "a"]], columns=[b"x", "prompt"]), {}, (["a"], None)),
    "an index twice the same": (F(BOTH, index=[5, 5]), {}, (A, R)),
    "an index of two levels": (F(BOTH, index=pd.MultiIndex.from_tuples([(0, 1), (0, 2)])), {}, (A, R)),
    "prompts in the index": (F(BOTH).set_index("prompt"), {}, (A, R)),
    "an index by the name of a column": (F(BOTH, index=pd.Index(["x", "y"], name="prompt")), {}, (A, R)),
    "categorical": (F({"prompt": pd.Categorical(A), "response": pd.Categorical(R)}), {}, (A, R)),
    "Arrow's strings": (F({"prompt": pd.array(A, dtype="string[pyarrow]"), "response": R}), {}, (A, R)),
    "sparse": (F({"prompt": pd.arrays.SparseArray(A), "response": R}), {}, (A, R)),
    "numbers beside what is missing": (
        F({"prompt": ["p", "q", "r"], "answer": [5, None, 7]}), {}, (["p", "r"], ["5", "7"]),
    ),
    "fractions beside what is missing": (
        F({"prompt": ["p", "q", "r"], "answer": [5.5, None, 7]}), {}, (["p", "r"], ["5.5", "7.0"]),
    ),
    "rows chosen by a number that pandas made a fraction": (
        F({"prompt": A, "label": [1, None]}), {"where": {"label": 1}}, (["a"], None),
    ),
    "numpy's texts": ({"prompt": np.array(A), "response": np.array(R)}, {}, (A, R)),
    "an array of texts": (np.array(A), {}, (A, None)),
    "an array of records": (F(BOTH).to_records(index=False), {}, (A, R)),
    "named tuples": (list(F(BOTH).itertuples(index=False)), {}, (A, R)),
    "a series": (pd.Series(A, index=[3, 4], name="x"), {}, (A, None)),
    "a series of chats": (pd.Series([CHAT, OTHER]), {}, (A, R)),
    "a list of chats": ([CHAT, OTHER], {}, (A, R)),
    "a table of Arrow": (pa.table(BOTH), {}, (A, R)),
    "a batch of Arrow": (pa.record_batch(BOTH), {}, (A, R)),
    "an array of Arrow": (pa.array(A), {}, (A, None)),
    "rows with numbers for names": ([{1: "x", "prompt": "a"}], {}, (["a"], None)),
    "one row": ({"prompt": "hello", "response": "x"}, {}, (["hello"], ["x"])),
    "DataFrame.to_dict()": (F(BOTH).to_dict(), {}, (A, R)),
    "DataFrame.to_dict('index')": (F(BOTH).to_dict("index"), {}, (A, R)),
    "DataFrame.to_dict('list')": (F(BOTH).to_dict("list"), {}, (A, R)),
    "DataFrame.to_dict('series')": (F(BOTH).to_dict("series"), {}, (A, R)),
    "DataFrame.to_dict('split')": (F(BOTH).to_dict("split"), {}, (A, R)),
    "DataFrame.to_dict('tight')": (F(BOTH).to_dict("tight"), {}, (A, R)),
    "only one split": (DatasetDict({"train": Dataset.from_dict(BOTH)}), {}, (A, R)),
    "only one split, streamed": (
        datasets.IterableDatasetDict({"train": Dataset.from_dict(BOTH).to_iterable_dataset()}), {}, (A, R),
    ),
    "a data set of that split": (Dataset.from_dict(BOTH, split="train"), {"split": "train"}, (A, R)),
    "columns that are hidden": (Dataset.from_dict(BOTH).with_format("numpy", columns=["prompt"]), {}, (A, None)),
    "a transform": (
        Dataset.from_dict(BOTH).with_transform(lambda rows: {"prompt": [t.upper() for t in rows["prompt"]]}),
        {}, (["A", "B"], None),
    ),
    "rows chosen by a tensor": (
        Dataset.from_dict({**BOTH, "label": [1, 2]}).with_format("torch"), {"where": {"label": 1}}, (["a"], ["c"]),
    ),
    "rows chosen by the name of a class": (
        Dataset.from_dict({"prompt": A, "category": [0, 1]}, CLASSES), {"where": {"category": "harm"}}, (["b"], None),
    ),
    "streamed, not known what": (IterableDataset.from_generator(uneven), {}, (A, None)),
    "streamed without an end": (
        IterableDataset.from_generator(endless), {"n": 2}, (["1", "3"], ["x", "x"]),
    ),
    "chats as sequences": ({"messages": [{"role": ["user", "assistant"], "content": ["a", "c"]}]}, {}, (["a"], ["c"])),
    "chats in objects": ({"conversation": [{"messages": CHAT}, {"messages": OTHER}]}, {}, (A, R)),
}  # fmt: skip


@pytest.mark.parametrize("form", [None, "torch", "numpy", "pandas", "arrow"])
def test_data_sets_in_any_format(form: str | None) -> None:
    data = Dataset.from_dict({"prompt": A, "category": [0, 1]}, CLASSES).with_format(form)
    assert load_prompts(data) == PromptSet("table", tuple(A), None, ("safe", "harm"))


@pytest.mark.parametrize("case", READ)
def test_read_right(case: str) -> None:
    source, options, want = READ[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        got = load_prompts(source, **options)
    assert (got.prompts, got.responses) == (tuple(want[0]), want[1] and tuple(want[1]))
    assert all(type(text) is str for text in (*got.prompts, *(got.responses or ())))


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "columns of two levels": (F([A], columns=TWO), {}, r"which column .*: name it; columns: \"\('x', 'prompt'\)\""),
    "two columns, alike but for case": (F({"prompt": ["a"], "Prompt": ["z"]}), {}, "columns 'prompt', 'Prompt': name"),
    "1 and '1'": ([{1: "a", "1": "b", "prompt": "c"}], {}, "2 columns named '1'"),
    "only responses": (F({"response": A}), {}, "which column of 'table' holds the prompts.*'response'"),
    "no frame at all": (F(), {}, "'table' is empty: it has no columns"),
    "rows without columns": (F(index=[0, 1]), {}, "'table' is empty: it has no columns"),
    "columns without rows": (F(BOTH)[:0], {}, "'table' is empty"),
    "no splits": (DatasetDict(), {}, "'table' is empty"),
    "an empty split": (DatasetDict({"train": Dataset.from_dict(BOTH).select([])}), {}, "'table' is empty"),
    "a split that is not there": (DatasetDict({"a": Dataset.from_dict(BOTH)}), {"split": "b"}, "no split 'b'"),
    "another split": (Dataset.from_dict(BOTH, split="train"), {"split": "test"}, "no split 'test': leave split= out"),
    "a split of a frame": (F(BOTH), {"split": "train"}, "a DataFrame has no split 'train'"),
    "a split of a set": (PromptSet("x", ("a",)), {"split": "train"}, "a PromptSet has no split 'train'"),
    "NaN among prompts": (F({"prompt": ["a", np.nan], "response": R}), {}, "prompt 2 of the 2 .* is blank"),
    "NA among prompts": (F({"prompt": pd.array(["a", pd.NA], dtype="string"), "x": A}), {}, "prompt 2 .* is blank"),
    "NaN of numpy": ({"prompt": ["a", np.float32("nan")], "x": A}, {}, "prompt 2 .* is blank"),
    "NaN of decimals": ({"prompt": ["a", Decimal("nan")], "x": A}, {}, "prompt 2 .* is blank"),
    "masked": ({"prompt": np.ma.array(A, mask=[0, 1]), "x": A}, {}, "prompt 2 .* is blank"),
    "bytes": (F({"prompt": [b"a"]}), {}, "row 1 of 'table': column 'prompt' holds a bytes, not text"),
    "bytes of numpy": ({"prompt": np.array([b"a"])}, {}, "holds a bytes, not text"),
    "bytes alone": (b"how", {}, "cannot read prompts from a bytes"),
    "lists": (F({"prompt": [["a", "b"]]}), {}, "column 'prompt' holds a list, not text"),
    "objects": (F({"prompt": [{"text": "a"}]}), {}, "column 'prompt' holds a dict, not text"),
    "sets": ({"prompt": [{"a"}]}, {}, "column 'prompt' holds a set, not text"),
    "things": ({"prompt": [object()]}, {}, "holds a object, not text"),
    "dates": ({"prompt": [pd.Timestamp("2026-01-01")]}, {}, "holds a Timestamp, not text"),
    "an array of two axes": (np.array([A, R]), {}, "prompt 1 of the 2 .* is not text"),
    "an array of none": (np.array("a"), {}, "cannot read prompts from a ndarray"),
    "a list and a text": ({"prompt": ["a"], "response": "y"}, {}, "neither a list of rows nor a table of columns"),
    "rows and columns alike": ({"0": {"0": "a"}}, {}, "cannot tell which of '0' and '0' names a row"),
    "an open file": (io.StringIO("a\nb\n"), {}, "an open file: pass its path"),
    "one chat": (CHAT, {}, r"is one chat, a list of messages: pass a list of chats, \[chat\]"),
    "a set of chats": (load_chats([LONG]), {}, r"holds whole chats: pass .* chats.questions\(\)"),
    "a chat without a question": ({"messages": [CHAT[1:]]}, {}, "prompt 1 of the 1 .* is blank"),
    "categories that are lists, named": (
        {"prompt": ["a"], "category": [["x", "y"]]}, {"categories": "category"}, "column 'category' holds a list",
    ),
    "a class by its number": (
        Dataset.from_dict({"prompt": A, "category": [0, 1]}, CLASSES), {"where": {"category": 1}},
        "no row of 'table' has category 1; there are 'safe', 'harm'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case: str) -> None:
    source, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as raised:
        load_prompts(source, **options)
    assert "\n" not in str(raised.value)
    if not options:
        with pytest.raises(ValueError, match=message.replace("'table'", ".*")):
            as_prompt_set(source)


def test_what_is_left_out_is_said() -> None:
    with pytest.warns(Notice, match="1 of the 3 rows of 'table' is empty and left out: it is row 2"):
        assert load_prompts(F({"prompt": ["a", None, "b"]})).prompts == ("a", "b")
    with pytest.warns(Notice, match="categories of 'table' are not read: row 1 .* holds a dict"):
        assert load_prompts({"prompt": ["a"], "category": [{"x": True}]}).categories is None
    with pytest.warns(Notice, match="1 of the 3 rows of 'table' has no response"):
        assert load_prompts({"id": [1, 2, 3], "messages": [CHAT, [], OTHER]}).responses == ("c", "d")
    with pytest.warns(Notice, match="column 'tools' of 'table' is not read"):
        load_training_data({"messages": [LONG], "tools": [[{"name": "f"}]]})
    with pytest.warns(Notice, match="1 of the 2 chats of 'table' has no answer and is left out"):
        assert len(load_chats({"messages": [LONG, []]})) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_prompts(F({"prompt": ["a", "b", None]})).prompts == ("a", "b")  # as spreadsheets end
        load_training_data({"messages": [LONG], "tools": [None]})


TO_JSON = {
    "plain": F(BOTH),
    "filtered": F(BOTH, index=[7, 3]),
    "named index": F(BOTH, index=pd.Index(["u", "v"], name="id")),
    "with a number": F({**BOTH, "n": [1, 2]}),
    "a response missing": F({"prompt": ["a", "b", "x"], "response": ["c", "d", None]}),
    "chats": F({"messages": [CHAT, OTHER]}),
}


@pytest.mark.parametrize("table", TO_JSON)
@pytest.mark.parametrize("orient", ["split", "records", "index", "columns", "table", "values", "lines"])
@pytest.mark.filterwarnings("ignore::safecircuits.base.notices.Notice")
def test_json_of_pandas(table: str, orient: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    frame = TO_JSON[table]
    frame.to_json(path, **({"orient": "records", "lines": True} if orient == "lines" else {"orient": orient}))
    if orient == "values":  # which has no names
        with pytest.raises(ValueError, match="every row must be an object with named fields"):
            load_prompts(path)
        return
    got = load_prompts(path)
    assert (got.prompts, got.responses) == (tuple(A), tuple(R))
    if orient != "lines":
        named = load_prompts(path, column=frame.columns[0], responses="")
        assert named.prompts[:2] == tuple(A)


@pytest.mark.parametrize("orient", ["split", "records", "index", "columns", "table"])
def test_json_of_columns_that_nobody_knows(orient: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    F({"x": A, "y": R}).to_json(path, orient=orient)
    with pytest.raises(ValueError, match=r"which column of 'p' holds the prompts: name it; columns: .*'x', 'y'"):
        load_prompts(path)
    got = load_prompts(path, column="x", responses="y")
    assert (got.prompts, got.responses) == (tuple(A), tuple(R))


JSON: dict[str, tuple[str, Any]] = {
    "rows beside a version": ('{"version": 1, "data": [{"prompt": "a"}]}', ("a",)),
    "rows in an object": ('{"data": [{"prompt": "a"}]}', ("a",)),
    "one row": ('{"prompt": "a", "response": "b"}', ("a",)),
    "rows by their names": ('{"q1": {"prompt": "a"}, "q2": {"prompt": "b"}}', ("a", "b")),
    "split without an index": ('{"columns": ["prompt"], "data": [["a"], ["b"]]}', ("a", "b")),
    "split, ragged": ('{"columns": ["prompt", "x"], "index": [0], "data": [["a"]]}', "row 1 .* 1 cells, .* 2 columns"),
    "split, no rows": ('{"columns": ["prompt"], "index": [0], "data": ["abc"]}', "row 1 of .* is 'abc'"),
    "rows and columns alike": ('{"0": {"0": "a", "1": "b"}}', "cannot tell which of '0' and '0' names a row"),
    "prompts by category": ('{"violence": ["a"], "drugs": ["b"]}', "columns: 'violence', 'drugs'"),
    "lists": ('[["a", "b"]]', "every row must be an object with named fields"),
    "a text": ('"abc"', "neither a list of rows nor a table of columns: write"),
    "nothing": ("{}", "neither a list of rows nor a table of columns: write"),
    "cut off": ('{"prompt": "a"}\n{"prom', "row 2 is no JSON .*: was the file cut off"),
}  # fmt: skip


@pytest.mark.parametrize("case", JSON)
def test_json_files(case: str, tmp_path: Path) -> None:
    text, want = JSON[case]
    (tmp_path / "p.json").write_text(text)
    if isinstance(want, tuple):
        assert load_prompts(tmp_path / "p.json").prompts == want
        return
    with pytest.raises(ValueError, match=want):
        load_prompts(tmp_path / "p.json")


CSV: dict[str, tuple[list[str], Any]] = {
    "JSON": ([json.dumps(CHAT), json.dumps(OTHER)], (A, R)),
    "Python's": ([repr(CHAT), repr(OTHER)], (A, R)),
    "on lines": ([json.dumps(CHAT, indent=1)], (["a"], ["c"])),
    "in objects": ([json.dumps({"messages": CHAT})], (["a"], ["c"])),
    "another field first": ([json.dumps([{"name": "x", **CHAT[0]}, CHAT[1]])], (["a"], ["c"])),
    "one blank": ([json.dumps(CHAT), ""], (["a"], ["c"])),
    "one without messages": ([json.dumps(CHAT), "[]"], (["a"], ["c"])),
    "null for a question": ([json.dumps([{"role": "user", "content": None}, CHAT[1]])], "prompt 1 .* is blank"),
    "numpy's": ([str(np.array(CHAT, dtype=object))], "row 1 .* holds a chat as text that cannot be read"),
    "cut off": ([json.dumps(CHAT)[:40]], "row 1 .* holds a chat as text that cannot be read"),
    "one that is none": ([json.dumps(CHAT), "hello"], "row 2 .* holds a chat as text that cannot be read"),
    "several turns": ([json.dumps(LONG)], "row 1 of 'c' is a chat of user, assistant, user, assistant"),
}


@pytest.mark.parametrize("column", ["messages", "Conversations"])
@pytest.mark.parametrize("case", CSV)
@pytest.mark.filterwarnings("ignore::safecircuits.base.notices.Notice")
def test_chats_in_a_csv(case: str, column: str, tmp_path: Path) -> None:
    cells, want = CSV[case]
    F({"id": range(len(cells)), column: cells}).to_csv(tmp_path / "c.csv", index=False)
    if isinstance(want, tuple):
        got = load_prompts(tmp_path / "c.csv")
        assert (got.prompts, got.responses) == (tuple(want[0]), tuple(want[1]))
        assert load_training_data(tmp_path / "c.csv") == got
    else:
        with pytest.raises(ValueError, match=want):
            load_prompts(tmp_path / "c.csv")
        if case == "several turns":
            assert [len(chat) for chat in load_chats(tmp_path / "c.csv")] == [4]
