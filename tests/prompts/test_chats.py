"""Chats of several turns as tokens: every answer and nothing else is a target, in many templates and files."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_templates import SHAPES, TOKENIZERS, make_tokenizer

from safecircuits.data.sources import load_chats, load_prompts, load_training_data
from safecircuits.prompts.chat_set import ChatSet
from safecircuits.prompts.chat_tokens import encode_chats
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.prompts.rendering import chat_text
from safecircuits.prompts.templates import Template

TALK = [
    {"role": "user", "content": "find a lamp"},
    {"role": "assistant", "content": "sure, take it"},
    {"role": "user", "content": "and the tea ?"},
    {"role": "assistant", "content": "Sorry, I cannot."},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "no tea here"},
]
SAID = ["sure, take it", "Sorry, I cannot.", "no tea here"]
NICE = {"role": "system", "content": "be nice to all"}


def answers(tokenizer: Any, chats: ChatSet, **options: Any) -> list[str]:
    [example] = encode_chats(tokenizer, chats, **options)
    return [tokenizer.decode(example.ids[start:stop]) for start, stop in example.answers]


# Of templates of known models: those whose own marks (as TRL has put them in) are exactly what stands between prompts,
# those that mark more than a model would have to write itself, and those that rewrite earlier turns.
SAME = (
    "cohere", "cohere2", "gemma", "gemma3", "lfm2", "lfm2_v2", "llama3", "phi3", "phi3_5", "qwen2_5_vl",
    "qwen3_instruct_2507", "qwen3_vl",
)  # fmt: skip
REWRITE = ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")


def known(name: str) -> Any:
    """A tokenizer with the template ``name`` of TRL's, whose markers are one token each."""
    pytest.importorskip("trl")
    text = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = make_tokenizer(text)
    markers = sorted(set(re.findall(r"<[|/]?[\w|/]+\|?>|<｜.*?｜>", text)))
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    return tokenizer


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("begins", [[], [NICE]], ids=["plain", "system"])
def test_answers_are_those_that_known_templates_mark(name: str, begins: list[Any]) -> None:
    if begins and name == "gemma":
        with pytest.raises(ValueError, match=r"chat 1 of set 'd': the tokenizer's chat template does not take"):
            encode_chats(known(name), ChatSet("d", [begins + TALK]))
        return
    marked = known(f"{name}_training")
    want = marked.apply_chat_template(begins + TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    [got] = encode_chats(known(name), ChatSet("d", [begins + TALK]))
    [by_marks] = encode_chats(marked, ChatSet("d", [begins + TALK]))
    targets = [int(any(start <= i < stop for start, stop in got.answers)) for i in range(len(got.ids))]
    assert known(name).decode(got.ids) == marked.decode(want["input_ids"])
    assert targets == list(want["assistant_masks"])
    assert by_marks.answers == got.answers


@pytest.mark.parametrize("name", REWRITE)
def test_a_template_that_rewrites_earlier_turns_is_refused_but_for_the_last_answer(name: str) -> None:
    with pytest.raises(ValueError, match=r"chat 1 of set 'd': .*writes earlier turns otherwise.*loss_on='last'"):
        encode_chats(known(name), ChatSet("d", [TALK]))
    [last] = answers(known(name), ChatSet("d", [TALK]), last_only=True)
    assert last.endswith("no tea here<|im_end|>\n")
    marked = answers(known(f"{name}_training"), ChatSet("d", [TALK]))
    assert [one.removeprefix("<think>\n\n</think>\n\n") for one in marked] == [f"{s}<|im_end|>\n" for s in SAID]


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "idefics3_training", "llava_next"])
def test_a_template_that_takes_no_texts_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"chat 1 of set 'd': .* chat template (leaves out|does not take)"):
        encode_chats(known(name), ChatSet("d", [TALK]))


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "thinking"])
def test_one_exchange_is_what_a_prompt_with_its_response_is(shape: str) -> None:
    data = PromptSet("d", ("find a lamp", "two\n\nlines"), ("sure", "Sorry, I cannot."))
    [one, two] = encode_chats(TOKENIZERS[shape], ChatSet.of(data))
    for got, want in zip((one, two), encode(TOKENIZERS[shape], data, with_responses=True), strict=True):
        assert (got.ids, got.response_start) == (want.ids, want.response_start)
        assert got.spans == want.spans == ((want.response_start, len(want.ids)),)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "thinking"])
def test_targets_are_the_characters_of_the_answers(shape: str) -> None:
    """By a slow way: characters from an answer's first to the beginning of what comes after its end token."""
    tokenizer = TOKENIZERS[shape]
    [example] = encode_chats(tokenizer, ChatSet("d", [TALK]))
    text = chat_text(tokenizer, TALK)
    whole = tokenizer.decode(example.ids)
    assert whole.startswith(text)
    for (start, stop), said in zip(example.answers, SAID, strict=True):
        before, answer = tokenizer.decode(example.ids[:start]), tokenizer.decode(example.ids[start:stop])
        assert answer.strip().removeprefix("<think>\n\n</think>").strip().startswith(said)
        assert len(before) <= text.index(said)
        assert not any(other["content"] in answer for other in TALK if other["content"] != said)
    assert answers(tokenizer, ChatSet("d", [TALK]), last_only=True) == [
        tokenizer.decode(example.ids[slice(*example.answers[-1])])
    ]


def test_what_the_loss_does_not_count() -> None:
    chatml = TOKENIZERS["chatml"]
    quiet = [dict(one, weight=int("Sorry" in one["content"])) for one in TALK]
    assert answers(chatml, ChatSet("d", [quiet])) == ["Sorry, I cannot.<|im_end|>\n"]
    after = [*TALK, {"role": "user", "content": "thanks"}]
    assert answers(chatml, ChatSet("d", [after])) == [f"{said}<|im_end|>\n" for said in SAID]
    [example] = encode_chats(chatml, ChatSet("d", [TALK]))
    cut = type(example)(example.ids[: example.answers[1][0] + 2], example.response_start, answers=example.answers)
    assert cut.spans == (example.answers[0], (example.answers[1][0], example.answers[1][0] + 2))


def test_system_prompts_come_from_the_chat_or_from_the_template() -> None:
    chatml, chats = TOKENIZERS["chatml"], ChatSet("d", [[NICE, *TALK]])
    [own] = encode_chats(chatml, chats)
    [given] = encode_chats(chatml, ChatSet("d", [TALK]), template=Template("chat", system="be nice to all"))
    assert (own.ids, own.answers) == (given.ids, given.answers)
    with pytest.raises(ValueError, match="chat 1 of set 'd' has a system turn, and the template a system prompt"):
        encode_chats(chatml, chats, template=Template("chat", system="other"))
    [none] = encode_chats(chatml, ChatSet("d", [TALK]), template=Template("chat", system=""))
    assert chatml.decode(none.ids).startswith("<|im_start|>user\nfind a lamp")
    with pytest.raises(ValueError, match="only a chat template can write: template 'alpaca' is for one instruction"):
        encode_chats(chatml, chats, template="alpaca")


SHARE = [{"from": {"user": "human", "assistant": "gpt"}[one["role"]], "value": one["content"]} for one in TALK]
PARTS = [{"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in TALK]


@pytest.mark.parametrize("row", [{"messages": TALK}, {"prompt": "x", "messages": TALK}, {"conversations": SHARE},
                                 {"id": 3, "messages": PARTS}, {"Messages": TALK, "tools": None}])  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".tsv"])
def test_chats_in_files(row: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    path, rows = tmp_path / f"talks{suffix}", [row, row]
    if suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif suffix in (".csv", ".tsv"):
        cells = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in one.items()} for one in rows]
        pd.DataFrame(cells).to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    got = load_training_data(path, n=1)
    assert isinstance(got, ChatSet)
    assert (got.name, got.fingerprint) == ("talks", ChatSet("any", [TALK]).fingerprint)
    assert load_chats(path).fingerprint == ChatSet("any", [TALK, TALK]).fingerprint


def test_other_shapes_of_chats() -> None:
    rows = [{"prompt": [NICE, *TALK[:3]], "completion": TALK[3:4]}]
    [chat] = load_training_data(rows)
    assert [turn.trained for turn in chat if turn.role == "assistant"] == [False, True]  # as TRL counts them
    [with_system] = load_chats([{"system": "be nice to all", "conversations": SHARE}])
    assert (with_system[0].role, with_system[0].content) == ("system", "be nice to all")
    exchanges = [{"messages": TALK[:2]}, {"messages": TALK[2:4]}]
    assert load_training_data(exchanges) == load_prompts(exchanges, name="table")
    with pytest.raises(ValueError, match=r"row 1 of 'table' is a chat of user, .*load_chats reads them"):
        load_prompts([{"messages": TALK}])
    with pytest.raises(ValueError, match=r"holds no chats: name the column .*columns: 'a'"):
        load_chats([{"a": "b"}])


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "tool", "content": "3"}], "message 1 of .* is of the role 'tool': .* calls of tools out"),
        ([TALK[0], {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], "message 2 of .*'tool_calls'"),
        ([TALK[0], dict(TALK[1], reasoning_content="hm")], "'reasoning_content' beside its content"),
        ([TALK[0], dict(TALK[1], weight=0.5)], "the weight 0.5: a turn counts"),
        ([TALK[0], dict(TALK[1], content=[{"type": "image_url"}])], "a part of type 'image_url'"),
        (TALK[1:], "begins with the assistant"),
        ([NICE], "has no turns"),
        ([TALK[0], NICE, TALK[1]], "a system turn that is not its first"),
        ([TALK[0], dict(TALK[1], weight=0)], "has no answer to train on"),
        ([TALK[0], dict(TALK[1], content=" ")], "turn 2, the assistant's, is blank"),
        ([TALK[0], dict(TALK[1], content="\ud800")], "half a character"),
        ([], "has no turns"),
    ],
)  # fmt: skip
def test_chats_that_cannot_be_trained_on(chat: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatSet("d", [chat])


def test_chats_without_an_answer_are_left_out() -> None:
    rows = [{"messages": TALK}, {"messages": TALK[:1]}, {"messages": None}]
    with pytest.warns(UserWarning, match="2 of the 3 chats of 'table' have no answer and are left out"):
        assert len(load_chats(rows)) == 1
