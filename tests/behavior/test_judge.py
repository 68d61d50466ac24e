"""Judges as refusal detectors: against Hugging Face's own forward; and what is kept when a detector raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
from safecircuits.base.errors import JudgingError
from safecircuits.behavior.judge import JudgeDetector, JudgeVerdicts, fill
from safecircuits.prompts.prompt_set import encode

PROMPTS = ("how do i make the cake", "find a lamp", "how do i fix the road and the house", "a dog")
TEXTS = ("sure here is the cake", "sorry i cannot help with that", "take salt", "sorry")
ANSWERS = sc.Completions(sc.PromptSet("p", PROMPTS), TEXTS)
QUESTION = "{prompt} is {completion} sorry"
WORDS = {"yes": ("sorry", "cannot"), "no": ("sure",)}


def margins_one_by_one(model: Any, tokenizer: Any, texts: tuple[str, ...] = TEXTS) -> list[float]:
    """log(Σ exp yes) − log(Σ exp no) at the last position, unpadded, by Hugging Face alone."""
    yes, no = (tokenizer.convert_tokens_to_ids(list(WORDS[key])) for key in ("yes", "no"))
    found = []
    for prompt, text in zip(PROMPTS, texts, strict=True):
        example = encode(tokenizer, [f"{prompt} is {text} sorry"])[0]
        with torch.no_grad():
            last = model(torch.tensor([example.ids])).logits[0, -1].double()
        found.append(float(last[yes].exp().sum().log() - last[no].exp().sum().log()))
    return found


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_a_model_judges_by_its_own_logits(backend: str, make_tiny_model: Any, tiny_tokenizer: Any) -> None:
    judge = JudgeDetector(make_tiny_model(backend), question=QUESTION, **WORDS)
    want = margins_one_by_one(make_tiny_model("hf"), tiny_tokenizer)
    got = judge.verdicts(ANSWERS)
    assert got.margins.tolist() == pytest.approx(want, abs=1e-4)
    assert got.refused.tolist() == [margin > 0 for margin in want]
    assert sc.refused(ANSWERS, judge).tolist() == got.refused.tolist()
    assert all(reply in tiny_tokenizer.get_vocab() for reply in got.replies)


def test_batches_do_not_change_margins_and_thresholds_and_directions_count(
    tiny_llama_hf: Any, tiny_tokenizer: Any
) -> None:
    options = {"question": QUESTION, "tokenizer": tiny_tokenizer, **WORDS}
    got = JudgeDetector(tiny_llama_hf, **options).verdicts(ANSWERS)
    alone = JudgeDetector(tiny_llama_hf, max_tokens=1, **options).verdicts(ANSWERS)
    torch.testing.assert_close(got.margins, alone.margins, atol=1e-4, rtol=0)
    middle = float(got.margins.sort().values[1:3].mean())
    above = JudgeDetector(tiny_llama_hf, threshold=middle, **options).verdicts(ANSWERS)
    assert above.refused.sum() == 2
    flipped = JudgeDetector(tiny_llama_hf, refusal="no", **options).verdicts(ANSWERS)
    assert (flipped.refused == (got.margins < 0)).all()


def test_a_callable_is_asked_the_filled_question_once(tmp_path: Path) -> None:
    asked = []

    def judge(question: str) -> str:
        asked.append(question)
        return "Yes, it declines." if "cannot" in question else "**No**"

    detector = JudgeDetector(judge)
    assert sc.refused(ANSWERS, detector).tolist() == [False, True, False, False]
    got = detector.verdicts(ANSWERS)
    assert len(asked) == len(TEXTS)
    assert "Request:\nfind a lamp\n\nReply:\nsorry i cannot help with that\n" in asked[1]
    assert got.replies[1] == "Yes, it declines."
    assert torch.isnan(got.margins).all()
    assert JudgeVerdicts.load(got.save(tmp_path / "v")).equals(got)
    assert got.to_frame()["reply"].tolist() == list(got.replies)


def test_braces_in_a_completion_are_left_alone() -> None:
    assert fill("a {prompt} b {completion}", "{completion}", "{prompt}") == "a {completion} b {prompt}"


def test_a_judge_takes_part_in_the_agreement_table() -> None:
    judge = JudgeDetector(lambda question: "yes" if "salt" in question else "no")
    table = sc.behavior.agreement(ANSWERS, {"opening": "opening", "judge": judge})
    assert table.shares["judge"].hits == 1
    assert table.shares["opening"].hits == 2
    with pytest.raises(ValueError, match="only texts are given"):
        sc.behavior.agreement(TEXTS, {"opening": "opening", "judge": judge})
    alone = JudgeDetector(lambda question: "no", question="Is this a refusal? {completion}")
    assert sc.behavior.agreement(TEXTS, {"opening": "opening", "judge": alone}).shares["judge"].hits == 0
    assert alone("anything") is False


def test_a_failing_judge_costs_only_what_is_missing() -> None:
    asked = []

    def flaky(question: str) -> str:
        asked.append(question)
        if "salt" in question and len(asked) == 3:
            raise TimeoutError("busy")
        return "no"

    judge = JudgeDetector(flaky)
    with pytest.raises(JudgingError, match="failed on completion 2: TimeoutError: busy") as caught:
        sc.refused(ANSWERS, judge)
    assert caught.value.index == 2
    assert caught.value.judged == ("no", "no")
    assert caught.value.completions is ANSWERS
    assert not sc.refused(ANSWERS, judge).any()
    assert len(asked) == 5  # 2, the failure, and the 2 that were missing


def test_bad_judges(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match=r"must contain \{completion\}"):
        JudgeDetector(str, question="yes?")
    with pytest.raises(ValueError, match="refusal is 'yes' or 'no', not 'maybe'"):
        JudgeDetector(str, refusal="maybe")
    with pytest.raises(ValueError, match="begin with the same token 'sorry'"):
        JudgeDetector(tiny_bridge, yes=["sorry"], no=["sorry sure"])
    with pytest.raises(ValueError, match="knows none of the answers"):
        JudgeDetector(tiny_bridge)
    with pytest.raises(JudgingError, match="the reply 'I would say so' begins with neither"):
        JudgeDetector(lambda question: "I would say so").verdicts(ANSWERS)
    with torch.no_grad():
        tiny_bridge.unembed.weight[0, 0] = float("nan")
    with pytest.raises(JudgingError, match="logits are not finite"):
        JudgeDetector(tiny_bridge, question=QUESTION, **WORDS).verdicts(ANSWERS)


class Breaking:
    """A detector that works a number of times and then raises."""

    def __init__(self, works: int) -> None:
        self.left = works

    def __call__(self, text: str) -> bool:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no judge today")
        return False


def test_evaluate_keeps_every_completion_when_the_detector_raises(tiny_bridge: Any) -> None:
    prompts = sc.PromptSet("p", PROMPTS, TEXTS)
    with pytest.raises(JudgingError, match="failed on completion 1") as caught:
        sc.evaluate(
            tiny_bridge,
            malicious=prompts,
            over_rejection=prompts,
            utility=prompts,
            detector=Breaking(5),
            max_new_tokens=16,
        )
    kept = caught.value.kept
    assert list(kept) == ["malicious", "over_rejection", "utility"]
    assert kept["malicious"].texts == sc.generate(tiny_bridge, prompts).texts
    assert (
        kept["utility"].texts == sc.generate(tiny_bridge, prompts, max_new_tokens=17).texts
    )  # one more, to see the end
    assert caught.value.completions is kept["over_rejection"]
    assert caught.value.judged == (False,)


@pytest.mark.parametrize("sweep", ["localize", "scaling_grid"])
def test_sweeps_keep_completions_when_the_detector_raises(sweep: str, tiny_bridge: Any, tmp_path: Path) -> None:
    def run(detector: Any, path: Path | None) -> Any:
        if sweep == "localize":
            return sc.localize(
                tiny_bridge, PROMPTS, (0, 1), alpha=1.3, reach=1, detector=detector, max_new_tokens=8, resume=path
            )
        return sc.scaling_grid(tiny_bridge, PROMPTS, alpha=1.3, detector=detector, max_new_tokens=8, resume=path)

    path = tmp_path / "sweep.jsonl"
    with pytest.raises(JudgingError, match="failed on completion 2") as caught:
        run(Breaking(4 + 4 + 2), path)
    # The unscaled model and one configuration were counted; the one that the detector failed on is on disk as well, and
    # so is what was decoded with it.
    assert caught.value.kept["points"][0].layers is None
    assert len(caught.value.kept["points"]) == 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) >= 1 + 3
    assert isinstance(caught.value.completions, sc.Completions)
    assert tuple(rows[3]["completions"]) == caught.value.completions.texts
    assert run("opening", path).equals(run("opening", None))


def test_a_sweep_whose_detector_never_works_still_keeps_the_unscaled_model(tiny_bridge: Any, tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    with pytest.raises(JudgingError, match="completion 0"):
        sc.scaling_grid(tiny_bridge, PROMPTS, alpha=1.3, detector=Breaking(0), max_new_tokens=8, resume=path)
    assert (
        tuple(json.loads(path.read_text().splitlines()[1])["completions"])
        == sc.generate(tiny_bridge, PROMPTS, max_new_tokens=8).texts
    )
