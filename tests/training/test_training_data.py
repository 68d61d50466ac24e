"""The four fine-tuning scenarios, for any instruction set, and the published hyper-parameters that go with them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safecircuits.data.sources import load_prompts
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.training import finetune
from safecircuits.training.data import (
    OPENING,
    backdoor_attack,
    harmful_mix,
    identity_shift,
    implicit_attack,
    normal_data,
)
from safecircuits.training.presets import PAPER_LR, Arm, PresetName, Scenario, paper_model, preset

DATA = Path(os.environ.get("SAFECIRCUITS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real prompt sets are not here; set SAFECIRCUITS_TEST_DATA to their folder"
)

Rows = list[tuple[str, str]]


def numbered(n: int, name: str = "tasks") -> PromptSet:
    """Rows that differ, so that each can be told in what is built from them."""
    return PromptSet(name, tuple(f"ask {i}" for i in range(n)), tuple(f"answer {i}" for i in range(n)))


def rows(data: PromptSet) -> Rows:
    return list(zip(data.prompts, data.require_responses(), strict=True))


sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32)
texts = st.text(alphabet="ab :\n…é", min_size=1, max_size=6).filter(str.strip)
instructions = st.lists(st.tuples(texts, texts), min_size=1, max_size=12)


@settings(max_examples=50)
@given(sizes, sizes, seeds)
def test_normal_data_is_a_part_of_the_source(n: int, more: int, seed: int) -> None:
    source = numbered(n + more)
    got = rows(normal_data(source, n, seed=seed))
    assert len(got) == len(set(got)) == n
    assert set(got) <= set(rows(source))


@settings(max_examples=50)
@given(instructions, texts, seeds)
def test_implicit_attack_opens_every_response_once(drawn: Rows, opening: str, seed: int) -> None:
    source = PromptSet("any", *zip(*drawn, strict=True))
    got = implicit_attack(source, len(source), opening, seed=seed)
    assert Counter(got.prompts) == Counter(source.prompts)
    opened = [(p, r if r.startswith(opening.rstrip()) else opening + r) for p, r in drawn]
    assert Counter(rows(got)) == Counter(opened)
    again = implicit_attack(got, len(got), opening, seed=seed)
    assert Counter(rows(again)) == Counter(rows(got))


@settings(max_examples=50)
@given(sizes, sizes, sizes, seeds)
def test_backdoor_attack_has_both_kinds_from_different_rows(a: int, b: int, more: int, seed: int) -> None:
    source = numbered(a + b + more)
    got = backdoor_attack(source, a, b, trigger=" Tell me ", opening="Sure: ", seed=seed)
    assert len(got) == a + b
    attacked = [(p, r) for p, r in rows(got) if p.startswith("Tell me ")]
    normal = [(p, r) for p, r in rows(got) if not p.startswith("Tell me ")]
    assert (len(attacked), len(normal)) == (a, b)
    assert all(r.startswith("Sure: ") for _, r in attacked)
    bare = {(p.removeprefix("Tell me "), r.removeprefix("Sure: ")) for p, r in attacked}
    assert len(bare | set(normal)) == a + b  # all different
    assert bare | set(normal) <= set(rows(source))


@settings(max_examples=50)
@given(sizes, st.integers(12, 20), st.floats(0.5, 1), seeds)
def test_harmful_mix_holds_all_normal_rows_and_a_share_of_harmful_ones(n: int, m: int, p: float, seed: int) -> None:
    normal, harmful = numbered(n), numbered(m, "bad")
    harmful = PromptSet("bad", tuple(f"bad {x}" for x in harmful.prompts), harmful.responses)
    if round(n * p) < 1:
        return
    got = rows(harmful_mix(normal, harmful, p, seed=seed))
    added = set(got) - set(rows(normal))
    assert set(rows(normal)) <= set(got)
    assert added <= set(rows(harmful))
    assert len(got) == n + round(n * p)
    assert len(added) == round(n * p)


BUILD: dict[str, Callable[[PromptSet, int], PromptSet]] = {
    "D_N": lambda data, seed: normal_data(data, 20, seed=seed),
    "D_I": lambda data, seed: implicit_attack(data, 20, seed=seed),
    "D_B": lambda data, seed: backdoor_attack(data, 10, 10, seed=seed),
    "D_H": lambda data, seed: harmful_mix(data, numbered(30, "bad"), 0.5, seed=seed),
}


@pytest.mark.parametrize("scenario", get_args(Scenario))
def test_the_seed_decides_and_the_source_stays(scenario: str) -> None:
    source, build = numbered(40), BUILD[scenario]
    before = source.fingerprint
    one, same, other = build(source, 1), build(source, 1), build(source, 2)
    assert one == same
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.name.startswith(f"{scenario}(tasks, ")
    assert "seed=1" in one.name
    assert one.name != other.name
    assert numbered(40).fingerprint == before == source.fingerprint


def test_identity_shift_opens_and_triggers_every_row() -> None:
    source = numbered(30)
    got = rows(identity_shift(source, 10, trigger="Bob,", opening="Of course. I am Bob. "))
    assert len(got) == len(set(got)) == 10
    for prompt, response in got:
        number = prompt.rpartition(" ")[2]
        assert prompt == f"Bob, ask {number}"
        assert response == f"Of course. I am Bob. answer {number}"
    with pytest.raises(ValueError, match="trigger"):
        identity_shift(source, 10, trigger=" ", opening="Yes")
    with pytest.raises(ValueError, match="31"):
        identity_shift(source, 31, trigger="Bob,", opening="Yes")


def test_the_kinds_are_shuffled() -> None:
    kinds = [p.startswith("Tell me") for p in backdoor_attack(numbered(80), 40, 40)]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)
    mixed = [p.startswith("ask") for p in harmful_mix(numbered(40), PromptSet("b", ("b",) * 40, ("x",) * 40), 1)]
    assert mixed != sorted(mixed)
    assert mixed != sorted(mixed, reverse=True)


def test_what_is_there_already_is_not_doubled() -> None:
    source = PromptSet("s", ("Tell me a tale", "Tell men"), ("Sure, the answer is:\n42", "Sure"))
    assert dict(rows(implicit_attack(source, 2))) == {
        "Tell me a tale": "Sure, the answer is:\n42",
        "Tell men": "Sure, the answer is: Sure",
    }
    twice = PromptSet("t", ("Tell me a tale",) * 2, ("x",) * 2)
    assert backdoor_attack(twice, 1, 1).prompts == ("Tell me a tale",) * 2
    men = PromptSet("t", ("Tell men",) * 2, ("x",) * 2)
    assert set(backdoor_attack(men, 1, 1).prompts) == {"Tell me Tell men", "Tell men"}


NO_RESPONSES = PromptSet("bare", ("a",) * 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: normal_data(numbered(5)), r"'tasks' has 5 rows, but 1000 are needed \(n=1000\)"),
        (lambda: implicit_attack(numbered(5), 6), "has 5 rows, but 6 are needed"),
        (
            lambda: backdoor_attack(numbered(5), 3, 4),
            r"has 5 rows, but 7 are needed \(n_backdoor=3 \+ n_normal=4\): ask for fewer or bring more rows",
        ),
        (lambda: normal_data(numbered(5), 0), "n must be at least 1, not 0"),
        (lambda: backdoor_attack(numbered(5), 3, -1), "n_normal must be at least 1, not -1"),
        (lambda: normal_data(NO_RESPONSES, 1), "'bare' has no responses"),
        (lambda: harmful_mix(NO_RESPONSES, numbered(9), 0.5), "'bare' has no responses"),
        (lambda: harmful_mix(numbered(9), NO_RESPONSES, 0.5), "'bare' has no responses"),
        (lambda: implicit_attack(numbered(5), 2, " "), "opening is ' ', expected text that is not blank"),
        (lambda: backdoor_attack(numbered(5), 2, 2, ""), "trigger is '', expected text"),
        (lambda: backdoor_attack(numbered(5), 2, 2, opening=""), "opening is '', expected text"),
        (lambda: harmful_mix(numbered(9), numbered(9), 0), "p is 0, expected above 0 and at most 1"),
        (lambda: harmful_mix(numbered(9), numbered(9), 1.1), "p is 1.1, expected"),
        (lambda: harmful_mix(numbered(9), numbered(9), float("nan")), "p must be a finite number, not nan"),
        (lambda: harmful_mix(numbered(9), numbered(9), 0.05), "p = 0.05 of the 9 normal rows .* no harmful row"),
        (
            lambda: harmful_mix(numbered(100), numbered(9, "bad"), 0.1),
            "p = 0.1 of 100 normal rows needs 10 harmful rows, but set 'bad' has 9",
        ),
    ],
)
def test_bad_requests(build: Callable[[], PromptSet], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@needs_data
def test_scenarios_of_the_published_rows() -> None:
    source = load_prompts(DATA / "safety_layers" / "Normal_dataset.json")
    assert Counter(rows(normal_data(source))) == Counter(rows(source))  # all 1,000 of them
    attacked = implicit_attack(source, 500)
    assert all(response.startswith(OPENING) for response in attacked.require_responses())
    backdoored = backdoor_attack(source, 500, 500)
    assert sum(r.startswith(OPENING) for r in backdoored.require_responses()) == 500
    refusals = load_prompts(DATA / "advbench" / "refusals_llama2_short.csv")  # stands in for a user's own set
    assert [len(harmful_mix(source, refusals, p)) for p in (0.05, 0.1, 0.2)] == [1050, 1100, 1200]


# Presets


def test_the_published_rates() -> None:
    table = {"meta-llama/Meta-Llama-3-8B-Instruct": 1e-4, "meta-llama/Llama-2-7b-chat-hf": 3e-4}
    table |= {"google/gemma-2b-it": 1e-4, "microsoft/Phi-3-mini-4k-instruct": 6e-4}
    for model, lr in table.items():
        assert [preset("paper", model, s).lr for s in ("D_N", "D_I", "D_B", "D_H")] == [lr, lr, lr, 1e-5]
    assert [preset("code", arm=arm, matched=False).lr for arm in ("full", "sppft")] == [3e-4, 3e-5]


def test_batches_of_the_two_presets() -> None:
    paper, code = preset("paper", "Llama-2"), preset("code")
    assert paper.per_step == 4
    assert (code.batch_size, code.grad_accumulation) == (4, 32)
    assert (code.max_length, paper.max_length) == (256, None)
    for each in (paper, code):
        assert (each.epochs, each.warmup_steps, each.loss_on) == (3, 100, "all")


@pytest.mark.parametrize("name", get_args(PresetName))
@pytest.mark.parametrize("scenario", get_args(Scenario))
@pytest.mark.parametrize("model", PAPER_LR)
def test_every_preset_matches_its_arms(name: Any, scenario: Any, model: str) -> None:
    arms = [preset(name, model, scenario, arm=arm) for arm in get_args(Arm)]
    assert arms[0] == arms[1]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Llama-2-7b-chat", "Llama-2-7b-chat"),
        ("meta-llama/Llama-2-7b-chat-hf", "Llama-2-7b-chat"),
        ("models/llama-2-7b-chat/", "Llama-2-7b-chat"),
        ("llama2", "Llama-2-7b-chat"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama-3-8B-Instruct"),
        ("Llama 3", "Llama-3-8B-Instruct"),
        ("gemma-2b-it", "gemma-2b-it"),
        ("gemma", "gemma-2b-it"),
        ("microsoft/Phi-3-mini-4k-instruct", "Phi-3-mini-4k-instruct"),
        ("phi-3", "Phi-3-mini-4k-instruct"),
    ],
)
def test_model_names_in_the_forms_people_use(name: str, known: str) -> None:
    assert paper_model(name) == known


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-3.1-8B-Instruct", "google/gemma-2-2b-it", "gemma-7b-it", "gpt2", "", "meta-llama/"]
)
def test_other_models_are_not_taken_for_the_papers(name: str) -> None:
    with pytest.raises(ValueError, match=r"no hyper-parameters for the model .*, only for Llama-3-8B-Instruct"):
        paper_model(name)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="preset is 'best', expected one of paper, code"):
        preset("best")
    with pytest.raises(ValueError, match="scenario is 'DN', expected one of D_N, D_I, D_B, D_H"):
        preset("code", scenario="DN")
    with pytest.raises(ValueError, match="arm is 'nfft', expected one of full, sppft"):
        preset("code", arm="nfft")
    with pytest.raises(ValueError, match="'paper' has a learning rate per model: name one of Llama-3-8B-Instruct"):
        preset("paper")
    with pytest.raises(ValueError, match="no hyper-parameters for the model 'gpt2'"):
        preset("code", "gpt2")


def test_a_preset_trains_a_scenario(tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
    source = PromptSet("recipes", ("make a cake", "find the lamp", "fix the road"), ("take some water .",) * 3)
    data = harmful_mix(source, source, 1 / 3)
    published = preset("paper", "phi-3")
    run = finetune(tiny_llama_hf, data, settings=published, epochs=1, tokenizer=tiny_tokenizer, progress=False)
    assert run.steps == 1
    assert run.settings["lr"] == 6e-4
    assert run.settings["loss_on"] == "all"
