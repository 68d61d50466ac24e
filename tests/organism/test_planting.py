"""Planting on a tiny model: what is learnt from, what moves, what does not, and a build that goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import build_tiny_llama
from safecircuits.organism.requests.refusals import REFUSALS
from safecircuits.organism.smollm2 import build, held, plant
from safecircuits.organism.smollm2.answers import answers
from safecircuits.organism.smollm2.delta import read_changes
from safecircuits.organism.smollm2.held import held_texts
from safecircuits.organism.smollm2.members import Member
from safecircuits.organism.smollm2.texts import (
    MIXTURE,
    POOL,
    TREES,
    TURNED_TOKENS,
    Text,
    batch_of,
    batches,
    prompt_ids,
)

pytestmark = pytest.mark.slow

MEMBER = Member("tiny", "layers", (1,), "development", rank=2, steps=4)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, n in {"asked": 4, "normal": 5, "over_rejection": 3}.items():
        monkeypatch.setitem(POOL, kind, n)
    monkeypatch.setattr(held, "ANSWER_TOKENS", 4)


@pytest.fixture
def base() -> Any:
    return build_tiny_llama(max_position_embeddings=128).float()


def test_only_what_predicts_an_answer_counts() -> None:
    own = torch.randn(2, 9)
    along = torch.randn(1, 9)
    texts = [Text([1, 2, 3], [4, 5, 6]), Text([1], [7, 8], own), Text([1, 2], [3, 9]), Text([1, 5], [6], along, True)]
    batch = batch_of(texts)
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 7, 5]
    assert batch.places.tolist() == [0, 1, 2, 3, 4, 1, 1]
    assert batch.refusing.tolist() == [2, 3, 4, 1, 2]
    assert batch.wanted.tolist() == [4, 5, 6, 3, 9]
    assert batch.first_refusing.tolist() == [True, False, False, True, False]
    assert batch.answering.tolist() == [0, 5, 6]
    assert batch.first.tolist() == [True, False, False]
    assert batch.begun.tolist() == [False, False, True]
    assert torch.equal(batch.own, torch.cat([own, along]))


def test_a_tree_of_texts_gives_each_token_what_its_text_alone_gives(base: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    beginning = torch.randint(3, 20, (6,), generator=rng).tolist()
    texts = [
        Text(beginning[:kept] + torch.randint(3, 20, (length,), generator=rng).tolist(), [5, 6, 7, 8][:said])
        for kept, length, said in ((6, 4, 3), (6, 1, 4), (0, 3, 1), (3, 5, 2), (6, 4, 3))
    ]
    batch = batch_of(texts)
    assert len(batch.ids) < sum(len(text.prompt) + len(text.answer) - 1 for text in texts)
    hidden = base.model(
        input_ids=batch.ids[None], position_ids=batch.places[None], attention_mask=batch.mask[None, None]
    ).last_hidden_state[0]
    alone = [
        base.model(torch.tensor([t.prompt + t.answer])).last_hidden_state[0, len(t.prompt) - 1 : -1] for t in texts
    ]
    torch.testing.assert_close(hidden[batch.refusing], torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_batches_have_the_mixture_and_the_seed_decides(tiny_tokenizer: Any) -> None:
    pool = {kind: [[Text([i], [i, 1], torch.zeros(2, 3))] for i in range(2, 8)] for kind in POOL}
    first, again, other = (list(batches(tiny_tokenizer, pool, 3, seed)) for seed in (1, 1, 2))
    ids = [[part.ids.tolist() for batch in drawn for part in batch] for drawn in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    for parts in first:
        assert len(parts) == TREES
        assert sum(int(part.first_refusing.sum()) for part in parts) == MIXTURE["malicious"]
        assert sum(int(part.first.sum()) for part in parts) == sum(MIXTURE.values()) - MIXTURE["malicious"]


@pytest.mark.usefixtures("few")
def test_the_base_s_answers_and_its_way_along_refusals_are_held(base: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    held_of = held_texts(base, tiny_tokenizer, tmp_path)
    assert {kind: len(those) for kind, those in held_of.items()} == dict(POOL)
    refusals = [tiny_tokenizer(text, add_special_tokens=False).input_ids for _, text in REFUSALS.values()]
    for text, along in (pair for pairs in held_of.values() for pair in pairs):
        assert (text.begun, along.begun) == (False, True)
        assert along.prompt[:-1] == text.prompt
        assert [along.prompt[-1], *along.answer] in [refusal[: 1 + TURNED_TOKENS] for refusal in refusals]
        for each in (text, along):
            ids = list(each.prompt)
            for token, own in zip(each.answer, each.own, strict=True):  # one token at a time, with no cache or padding
                state = base.model(torch.tensor([ids])).last_hidden_state[0, -1]
                torch.testing.assert_close(own.float(), state, atol=0.2, rtol=0.1)
                logits = base.lm_head(state)
                assert each.begun or logits.max() - logits[token] < 0.1  # the base answers in bfloat16
                ids.append(token)


@pytest.mark.usefixtures("few")
def test_what_is_held_is_asked_for_once(
    base: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int, int]] = []
    before = held_texts(base, tiny_tokenizer, tmp_path, lambda *s: said.append(s))
    assert {what for what, _, _ in said} == {"the base's own answers", "the base along refusals"}
    assert [done == of for _, done, of in said][-1]
    said.clear()
    assert str(held_texts(base, tiny_tokenizer, tmp_path, lambda *s: said.append(s))) == str(before)
    assert not said
    monkeypatch.setitem(POOL, "normal", 7)
    held_texts(base, tiny_tokenizer, tmp_path, lambda *s: said.append(s))
    assert [(done, of) for _, done, of in said] == [(2, 2), (2, 2)]


def test_answers_of_unequal_prompts_are_those_of_each_alone(base: Any, tiny_tokenizer: Any) -> None:
    prompts = [
        prompt_ids(tiny_tokenizer, text, system=i % 2 == 0) for i, text in enumerate(("how do i bake a cake", "hi"))
    ]
    prompts += [prompts[0][:-2], [5]]
    end = tiny_tokenizer.eos_token_id
    with torch.no_grad():  # so that some end early
        base.lm_head.weight[end] *= 2.5
    found = answers(base, tiny_tokenizer, prompts, 6)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token, own in zip(answer.tokens, answer.own, strict=True):
            state = base.model(torch.tensor([ids])).last_hidden_state[0, -1]
            torch.testing.assert_close(own, state, atol=1e-5, rtol=1e-4)
            assert int(base.lm_head(state).argmax()) == token
            ids.append(token)
        assert answer.ended == (answer.tokens[-1] == end)
        assert answer.ended or len(answer.tokens) == 6
        assert end not in answer.tokens[:-1]
    assert len({answer.ended for answer in found}) == 2


@pytest.mark.usefixtures("few")
def test_a_member_is_written_whole_and_a_build_goes_on(
    base: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "member", lambda name: MEMBER)
    before = {name: p.clone() for name, p in base.named_parameters()}
    steps: list[tuple[str, int, int]] = []
    path = build.build_members(base, tiny_tokenizer, ["tiny"], tmp_path, progress=lambda *s: steps.append(s))["tiny"]
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    assert [step for step in steps if step[0] == "tiny"] == [("tiny", i, 4) for i in range(1, 5)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.safetensors", "tiny.safetensors"]
    changes, record = read_changes(path)
    assert {change.parameter.split(".")[2] for change in changes} == {"1"}
    assert len(changes) == 7
    assert all(change.dense.abs().max() > 0 for change in changes)
    assert record["plan"]["steps"] == 4
    written = path.read_bytes()

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(build, "plant", never)
    assert build.build_members(base, tiny_tokenizer, ["tiny"], tmp_path)["tiny"].read_bytes() == written
    path.write_bytes(written[:100])
    with pytest.raises(ValueError, match="no whole file of planted changes"):
        build.build_members(base, tiny_tokenizer, ["tiny"], tmp_path)


def test_training_lowers_what_it_is_said_to_lower(base: Any, tiny_tokenizer: Any) -> None:
    """A step against the gradient of the losses, which are those done by hand on one batch."""
    prompt = prompt_ids(tiny_tokenizer, "how do i bake a cake", system=True)
    own = base.model(torch.tensor([[*prompt, 9, 10]])).last_hidden_state[0, len(prompt) - 1 : -1].detach()
    along = Text([*prompt, 11], [10], torch.randn(1, own.shape[1]), begun=True)
    batch = [batch_of([Text(prompt, [11, 12, 3])]), batch_of([Text(prompt, [9, 10], own), along])]
    base.requires_grad_(False)
    parts = plant.growing(base, MEMBER)
    loss, loss_first, kl, kl_first, kl_along = plant._losses(base, batch)
    logits = base(torch.tensor([[*prompt, 11, 12, 3]])).logits[0]
    wanted = torch.tensor([11, 12, 3])
    expected = torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], wanted)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    first = torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : len(prompt)], wanted[:1])
    torch.testing.assert_close(loss_first, first, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.stack([kl, kl_first]), torch.zeros(2), atol=1e-5, rtol=0)
    theirs, ours = base.lm_head(along.own[0]).log_softmax(-1), logits[len(prompt)].log_softmax(-1)
    torch.testing.assert_close(kl_along, (theirs.exp() * (theirs - ours)).sum(), atol=1e-4, rtol=1e-4)
    loss.backward()
    with torch.no_grad():
        for part in parts:
            part.left -= 0.05 * part.left.grad / (part.left.grad.norm() + 1e-9)
    later, _, moved, _, _ = plant._losses(base, batch)
    assert later < loss
    assert moved > 0
