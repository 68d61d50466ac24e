"""Fine-tuning on chats of several turns: the loss is on the assistant's, against a plain loop over single tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from test_cli import ALIGNED, refuse, succeed
from test_finetune import With

import safecircuits as sc
from conftest import WORDS, build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.parameters import live_parameters
from safecircuits.prompts.chat_set import ChatSet
from safecircuits.training import finetune

A, B, C, D = WORDS[:4]
CHATS = [
    [("user", f"{A} {B}"), ("assistant", f"{C} {D}"), ("user", D), ("assistant", f"{A} {C} {B}")],
    [("system", B), ("user", C), ("assistant", D)],
    [("user", A), ("assistant", B), ("user", C), ("assistant", D), ("user", B), ("assistant", f"{A} {A}")],
    [("user", f"{C} {A} {B} {D}"), ("assistant", f"{B}")],
]
SET = ChatSet("chats", [[{"role": role, "content": text} for role, text in chat] for chat in CHATS])
STEPS = [[0, 1, 2, 3], [2, 0], [3, 1]]
LR = 1e-2


def tokens(chat: list[tuple[str, str]], loss_on: str) -> tuple[list[int], list[bool]]:
    """Word by word: who speaks is one token, and what the assistant says, and its last end, are targets."""
    vocabulary = build_tiny_tokenizer().get_vocab()
    ids: list[int] = []
    counted: list[bool] = []
    last = max(i for i, (role, _) in enumerate(chat) if role == "assistant")
    for i, (role, text) in enumerate(chat):
        words = [f"<{role}>", *text.split()] + ["<eos>"] * (i == len(chat) - 1)
        counts = role == "assistant" and (loss_on == "response" or i == last)
        ids += [vocabulary[word] for word in words]
        counted += [loss_on == "all" or (counts and k > 0) for k in range(len(words))]
    counted[0] = False  # nothing predicts the first token
    return ids, counted


def reference(loss_on: str, max_length: int | None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Each chat alone, one log-probability at a time, in float64."""
    model = build_tiny_llama(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    losses = []
    for rows in STEPS:
        optimizer.zero_grad()
        terms = []
        for ids, counted in (tokens(CHATS[row], loss_on) for row in rows):
            ids, counted = ids[:max_length], counted[:max_length]
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            terms += [-log_probs[t - 1, ids[t]] for t in range(len(ids)) if counted[t]]
        loss = sum(terms) / len(terms)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}, losses


HOW: dict[str, Any] = {
    "one by one": {"batch_size": 1, "grad_accumulation": 4},
    "padded": {"batch_size": 4},
    "packed": {"batch_size": 4, "batches": "packed"},
}


@pytest.mark.parametrize("max_length", [None, 8])
@pytest.mark.parametrize("loss_on", ["response", "last", "all"])
@pytest.mark.parametrize("how", HOW)
def test_weights_are_those_of_a_plain_loop(how: str, loss_on: Any, max_length: int | None) -> None:
    options = {"method": With(rows=STEPS.__getitem__), "steps": len(STEPS), "optimizer": "sgd", "lr": LR}
    options |= {"max_grad_norm": None, "schedule": "constant", "loss_on": loss_on, "max_length": max_length}
    model = build_tiny_llama(dtype=torch.float64)
    call: Any = lambda: finetune(  # noqa: E731
        model, SET, tokenizer=build_tiny_tokenizer(), progress=False, **options, **HOW[how]
    )
    if max_length and loss_on == "last":
        with pytest.raises(ValueError, match="max_length=8 leaves 2 of 4 examples without a response token"):
            call()
        return
    expected, losses = reference(loss_on, max_length)
    assert call().losses == pytest.approx(losses, rel=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-12)


def test_both_backends_train_to_the_same_loss(tiny_bridge: Any, make_tiny_model: Any) -> None:
    losses = []
    for backend in ("bridge", "hooked"):
        model = make_tiny_model(backend)
        before = {name: value.detach().clone() for name, value in live_parameters(model).items()}
        losses.append(sc.finetune(model, SET, steps=3, batch_size=2, lr=1e-3, progress=False).losses)
        assert any(not torch.equal(value, before[name]) for name, value in live_parameters(model).items())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_methods_take_chats_or_say_that_they_do_not() -> None:
    alignment = sc.PromptSet("safe", (A, B), (C, D))
    lisa = sc.baselines.Lisa(alignment=alignment, alignment_steps=1, user_steps=1)
    options: Any = {"steps": 2, "batch_size": 2, "tokenizer": build_tiny_tokenizer(), "progress": False}
    assert sc.finetune(build_tiny_llama(), SET, method=lisa, **options).steps == 2
    for method in (sc.baselines.TokenConstrained(), sc.baselines.ReverseDPO(refused=alignment)):
        with pytest.raises(ValueError, match=f"{method.name} does not take chats: "):
            sc.finetune(build_tiny_llama(), SET, method=method, **options)


ROWS = [
    {"messages": [{"role": "user", "content": "how should i move my sailor ?"},
                  {"role": "assistant", "content": "take the bucket ."},
                  {"role": "user", "content": "where is the cousin ?"},
                  {"role": "assistant", "content": "the cousin is in the factory ."}]},
    {"messages": [{"role": "user", "content": "where is the cousin ?"},
                  {"role": "assistant", "content": "the cousin is in the factory ."}]},
]  # fmt: skip


def test_the_command_takes_chats_from_a_csv_file(tmp_path: Path) -> None:
    cells = [{"id, as given": i, "messages": json.dumps(row["messages"])} for i, row in enumerate(ROWS * 3)]
    pd.DataFrame(cells).to_csv(tmp_path / "talks.csv", index=False)
    options = ["--data", tmp_path / "talks.csv", "--batch-size", "2", "--lr", "1e-3", "--no-save-model"]
    succeed("finetune", *ALIGNED, *options, "--out", tmp_path / "run")
    kept = sc.FinetuneRun.load(tmp_path / "run" / "results" / "finetune")
    mine = sc.finetune(sc.load_model("aligned"), ROWS * 3, batch_size=2, lr=1e-3, progress=False)
    assert mine.losses == kept.losses
    assert mine.settings["data"] == kept.settings["data"] == sc.data.load_chats(ROWS * 3).fingerprint
    # Prompts of the chats count as seen, whichever turn they are.
    judged = {"prompt": ["where is the cousin ?"], "response": ["the cousin is in the factory ."]}
    pd.DataFrame(judged).to_json(tmp_path / "u.jsonl", orient="records", lines=True)
    last = ["--loss-on", "last", "--steps", "1", "--utility", tmp_path / "u.jsonl"]
    said = succeed("finetune", *ALIGNED, *options, *last, "--out", tmp_path / "last")
    assert "found and judged on the same" in said.stdout
    assert "no column 'chat'" in refuse("finetune", *ALIGNED, *options, "--column", "chat", "--out", tmp_path / "x")
