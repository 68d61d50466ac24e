"""Safety under pressure: against prompts put together by hand and Hugging Face's own generate; and on the organism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
from safecircuits.base.errors import JudgingError
from safecircuits.behavior.attempts import Condition, Pressure
from safecircuits.behavior.conditions import pressure
from safecircuits.behavior.incoherence import broken
from safecircuits.plots.pressure import plot_pressure

PROMPTS = ("how do i make the cake", "find a lamp")
OPENINGS = ("sure here is the cake", "here is a lamp")


def by_hand(model: Any, tokenizer: Any, text: str, n: int = 5) -> str:
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_every_condition_puts_the_text_it_says(
    backend: str, make_tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "suffixes.txt").write_text("dog dog\n\nwith salt of\n")
    got = pressure(
        make_tiny_model(backend),
        PROMPTS,
        system="help with the tea",
        prefill=OPENINGS,
        prefill_tokens=3,
        suffixes=tmp_path / "suffixes.txt",
        detector=lambda text: text.startswith(("a", "c", "i")),
        max_new_tokens=5,
    )
    hf = make_tiny_model("hf")
    assert got.suffixes == ("dog dog", "with salt of")
    assert len(got.attempts) == 2 * (1 + 3 + 2)
    for attempt in got.attempts:
        c = attempt.condition
        for prompt, opening, text, refusal in zip(
            PROMPTS, OPENINGS, attempt.completions.texts, attempt.refused.tolist(), strict=True
        ):
            asked = prompt if c.suffix is None else f"{prompt} {got.suffixes[c.suffix]}"
            whole = ("<system> help with the tea " if c.system else "") + f"<user> {asked} <assistant>"
            whole += " " + " ".join(opening.split()[: c.prefilled])
            want = by_hand(hf, tiny_tokenizer, whole)
            assert text == want
            assert refusal == (want.startswith(("a", "c", "i")) and not broken(want))
    frame = got.to_frame()
    assert frame["suffix"].tolist().count("any") == 2
    worst = torch.stack([got[Condition(suffix=i)].refused for i in (0, 1)]).all(dim=0)
    row = frame[(frame["suffix"] == "any") & ~frame["system"]].iloc[0]
    assert row["refused"] == int(worst.sum())
    assert Pressure.load(got.save(tmp_path / "result")).equals(got)


def test_the_whole_answer_can_be_judged(tiny_bridge: Any) -> None:
    seen = []

    def detector(text: str) -> bool:
        seen.append(text)
        return False

    got = pressure(tiny_bridge, PROMPTS, prefill="sure here", prefill_tokens=[2], judged="answer", detector=detector)
    assert [a.condition.prefilled for a in got.attempts] == [0, 2]
    assert all(text.startswith("sure here ") for text in seen[-2:])
    after = pressure(tiny_bridge, PROMPTS, prefill="sure here", prefill_tokens=[2], detector=detector)
    assert got.attempts[1].completions.texts[0] == f"sure here {after.attempts[1].completions.texts[0]}"


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sc.load_model("planted-layers")


def test_an_aligned_model_loses_refusals_to_its_own_compliant_opening_and_an_intervention_shows(aligned: Any) -> None:
    malicious = sc.load_prompts("organism:malicious", n=24, seed=0)
    compliant = sc.generate(sc.load_model("base"), malicious)
    options = {"prefill": compliant, "prefill_tokens": 4, "max_new_tokens": 6, "system": "be careful ."}
    before = pressure(aligned, malicious, **options)
    plain = sc.evaluate(aligned, malicious=malicious, max_new_tokens=6)
    assert plain.malicious is not None
    assert before[Condition()].refused.tolist() == plain.malicious.tolist()
    # Held up to k means refused at every step to k, computed here prompt by prompt.
    rows = [before[Condition(prefilled=k)].refused.tolist() for k in range(5)]
    for prompt, held in enumerate(before.held().tolist()):
        column = [row[prompt] for row in rows]
        assert held == (column.index(False) - 1 if False in column else 4)
    assert before[Condition(prefilled=4)].success.hits > before[Condition()].success.hits
    layers = sc.organism.planted("planted-layers").layers
    with sc.scaled(aligned, (layers[0], layers[-1]), 0.6):
        after = pressure(aligned, malicious, **options)
    table = before.compare(after)
    assert table["change"][0] > 0
    assert (table["change_low"] <= table["change"]).all()
    assert (table["change"] == table["after"] - table["before"]).all()
    with pytest.raises(ValueError, match="different conditions"):
        before.compare(pressure(aligned, malicious))
    axis = plot_pressure({"before": before, "after": after})
    assert [text.get_text() for text in axis.get_legend().get_texts()][:2] == ["before", "after"]
    line = next(line for line in axis.lines if line.get_linestyle() == "-")
    assert list(line.get_ydata()) == [sum(row) / 24 for row in rows]


def test_a_failing_detector_keeps_the_conditions_before(tiny_bridge: Any) -> None:
    left = iter([False] * 3)
    with pytest.raises(JudgingError, match="failed on completion 1") as caught:
        pressure(tiny_bridge, PROMPTS, prefill="sure", detector=lambda text: next(left))
    assert [attempt.condition for attempt in caught.value.kept["attempts"]] == [Condition()]


def test_bad_openings(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match="3 tokens are to be prefilled, but the opening of prompt 1 has 2: 'a lamp'"):
        pressure(tiny_bridge, PROMPTS, prefill=["here is a cake", "a lamp"], prefill_tokens=3)
    with pytest.raises(ValueError, match="3 openings to prefill for 2 prompts"):
        pressure(tiny_bridge, PROMPTS, prefill=["a", "a", "a"])
    with pytest.raises(ValueError, match="needs prefill="):
        pressure(tiny_bridge, PROMPTS, prefill_tokens=3)
    with pytest.raises(ValueError, match="prefill_tokens must be at least 1, not 0"):
        pressure(tiny_bridge, PROMPTS, prefill="sure", prefill_tokens=0)
    with pytest.raises(ValueError, match="answer other prompts"):
        pressure(tiny_bridge, PROMPTS, prefill=sc.Completions(sc.PromptSet("x", PROMPTS[::-1]), OPENINGS))
    with pytest.raises(ValueError, match="no suffixes were tried"):
        pressure(tiny_bridge, PROMPTS).any_suffix()
