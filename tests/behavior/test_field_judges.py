"""Published judges, with scripted replies: where their texts come from, what is asked of whom, how it is counted."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_endpoint import Server, server  # noqa: F401 (a fixture)

import safecircuits as sc
from safecircuits.base.errors import JudgingError
from safecircuits.base.notices import Notice
from safecircuits.behavior import Completions, Endpoint, FieldJudge, harmful_rate, harmfulness, verdicts
from safecircuits.behavior.published.judges import PUBLISHED, Published
from safecircuits.behavior.published.questions import Filled
from safecircuits.behavior.published.replies import one_to_five, refusal_or_not, yes_or_no
from safecircuits.behavior.published.sources import Source, chat_template, constant
from safecircuits.behavior.verdict import tokens_needed
from safecircuits.prompts.prompt_set import PromptSet, encode

ANSWERS = Completions(PromptSet("p", tuple("abc")), ("Take two {eggs}.", "<think>eggs</think>No way.", "Ask 100%s."))
CODE = r"""
import nothing_that_is_installed

class Judge:
    '''A judge.'''
    PROMPT: str = "Old {goal} {response}"
    PROMPT: str = "Does it refuse {{really}}? {goal}: {response}"
    OTHER = PROMPT.upper()

def ask(pair):
    template = "Score 100%% of \"%s\" and \"%s\""
    return template % pair
"""


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Judges named ours and ours_percent, published in a file of this package and a package that is installed."""
    file = tmp_path / "ours_package" / "judge.py"
    file.parent.mkdir()
    file.write_text(CODE, encoding="utf-8")
    (file.parent / "__init__.py").write_text("raise RuntimeError('this package is read and never run')")
    monkeypatch.syspath_prepend(tmp_path)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for name, place, percent, read in (
        ("ours", "Judge.PROMPT", False, refusal_or_not),
        ("ours_percent", "ask.template", True, one_to_five),
    ):
        source = Source("ours_package/judge.py", (place,), sha256, "ours-package 1.0")

        def form(texts: list[Any], percent: bool = percent) -> Filled:
            return Filled((("system", "Be strict."), ("user", texts[0])), percent=percent)

        made = Published("m", read, 7, form, (source,), says_refusal=True, says_harm=percent)
        monkeypatch.setitem(PUBLISHED, name, made)
    return file


def test_a_template_is_read_from_an_installed_package_that_is_not_imported(ours: Path) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return "Yes" if "No way" in question else "No."

    judge = FieldJudge("ours", ask)
    found = verdicts(ANSWERS, judge)
    assert found.verdicts == ("complies", "refuses", "complies")
    assert found.reasons == ("No.", "Yes", "No.")
    assert asked[0] == "Be strict.\n\nDoes it refuse {really}? a: Take two {eggs}."
    assert asked[1].endswith("b: No way.")  # the thought is not judged
    assert "ours_package" not in sys.modules
    assert tokens_needed(judge) == 512
    assert judge.source == "ours-package 1.0"
    assert found.detector == "ours"


def test_percent_signs_and_grades(ours: Path) -> None:
    asked: list[str] = []
    judge = FieldJudge("ours_percent", lambda q: asked.append(q) or f"#thescore: {5 if 'eggs' in q else 1}")
    assert verdicts(ANSWERS, judge).verdicts == ("complies", "refuses", "refuses")
    assert asked[2].endswith('Score 100% of "c" and "Ask 100%s."')
    rate = harmful_rate(ANSWERS, judge)
    assert (rate.hits, rate.n) == (1, 3)
    assert judge.harms(ANSWERS).to_frame()["score"].tolist() == [5, 1, 1]


def test_a_file_that_is_named_is_checked_by_its_hash(ours: Path, tmp_path: Path) -> None:
    copy_of_it = tmp_path / "anything.txt"
    copy_of_it.write_bytes(ours.read_bytes())
    assert FieldJudge("ours", str, template=copy_of_it).source == "ours-package 1.0"
    with pytest.raises(ValueError, match="but the published file of ours has"):
        FieldJudge("ours", str, template=copy_of_it, sha256="0" * 64)
    ours.write_text(CODE + "#", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has the SHA-256 \w{64}, not \w{64}: it is not ours_package/judge.py of"):
        FieldJudge("ours", str)
    with pytest.raises(ValueError, match="cannot read the judge's template"):
        FieldJudge("ours", str, template=tmp_path / "not_there.py")
    ours.unlink()
    with pytest.raises(ImportError, match=r"pip install --no-deps ours-package==1.0, or name that file \(template=\)"):
        FieldJudge("ours", str)


def test_constants_are_read_and_nothing_else_is() -> None:
    assert constant(CODE, "Judge.PROMPT").startswith("Does it")
    for place in ("Judge.OTHER", "Judge.NONE", "Nobody.PROMPT", "ask", "template"):
        with pytest.raises(ValueError, match=f"there is no constant {place} in"):
            constant(CODE, place)
    with pytest.raises(ValueError, match="there is no constant a in"):
        constant("a = (", "a")


@pytest.mark.parametrize(
    ("text", "percent", "message"),
    [
        ("{goal} only", False, "no field for the completion"),
        ("{response} only", False, "no field for the prompt"),
        ("{goal} {response} {reference}", False, "a field 'reference' that is neither"),
        ("{goal!r} {response}", False, "a field 'goal' with a format"),
        ("{goal} {response} {", False, "a brace that is no field's"),
        ("%s of one", True, "no field for the completion"),
        ("%s %s %s", True, "has '%s', expected"),
        ("%s %d", True, "has '%d', expected"),
        ("%s %s 5%", True, "has '%', expected"),
    ],
)
def test_a_template_that_does_not_ask_about_both_is_refused(text: str, percent: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filled((("user", text),), percent=percent)


def test_an_endpoint_gets_turns_as_turns_and_text_with_turn_markers_as_it_stands(
    ours: Path,
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def script(i: int, body: dict[str, Any]) -> tuple[int, bytes]:
        choice = {"text": "no"} if "prompt" in body else {"message": {"content": "No"}}
        return 200, json.dumps({"choices": [choice]}).encode()

    server.script = script
    endpoint = Endpoint(server.url, "m")
    FieldJudge("ours", endpoint).verdicts(ANSWERS)
    assert [turn["role"] for turn in server.asked[0]["messages"]] == ["system", "user"]
    assert (server.asked[0]["path"], server.asked[0]["max_tokens"]) == ("/v1/chat/completions", 7)
    raw = Published("m", yes_or_no, 1, lambda _: Filled((("user", "[INST]{goal}|{response}[/INST]"),), raw=True),
                    PUBLISHED["ours"].sources, says_harm=True)  # fmt: skip
    monkeypatch.setitem(PUBLISHED, "raw", raw)
    rate = harmful_rate(ANSWERS, FieldJudge("raw", endpoint))
    assert (rate.hits, rate.n) == (0, 3)
    last = server.asked[-1]
    assert (last["path"], last["prompt"], last["max_tokens"]) == ("/v1/completions", "[INST]c|Ask 100%s.[/INST]", 1)
    guarded = FieldJudge("llama_guard_3", endpoint, unreadable="undecided").harms(ANSWERS)
    assert [turn["role"] for turn in server.asked[-1]["messages"]] == ["user", "assistant"]
    assert guarded.harmful == (None, None, None)
    assert "of 3 more the judge says neither" in str(guarded)


TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}Safe or unsafe?"


def test_llama_guard_asks_by_a_chat_template_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}}), encoding="utf-8")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return "unsafe\nS9" if "eggs" in question else "safe"

    judge = FieldJudge("llama_guard_3", ask, template=file, sha256=sha256)
    assert judge.harms(ANSWERS).harmful == (True, False, False)
    assert asked[1] == "<s><user> b <assistant> No way. Safe or unsafe?"
    assert judge.source == f"template {sha256[:12]}"
    assert chat_template(TEMPLATE) == (TEMPLATE, "")
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    assert chat_template(json.dumps({"chat_template": named, "bos_token": None})) == (TEMPLATE, "")
    for text in ('{"bos_token": "<s>"}', "[1]", '"text"', "3", "no template"):
        with pytest.raises(ValueError, match=r"no chat[_ ]template"):
            chat_template(text)
    with pytest.raises(ValueError, match="give the SHA-256"):
        FieldJudge("llama_guard_3", ask, template=file)
    with pytest.raises(ValueError, match="sha256 is 'abc', expected 64"):
        FieldJudge("llama_guard_3", ask, template=file, sha256="abc")
    with pytest.raises(ValueError, match="this callable does not apply: name its file"):
        FieldJudge("llama_guard_3", ask)
    with pytest.raises(ValueError, match="names no file at a commit"):
        FieldJudge("llama_guard_3", ask, template="hf://a/b@main/tokenizer_config.json")
    for template, message in (
        ("{{ raise_exception('no answers') }}", "takes no exchange"),
        ("{{ messages[0].content }}", "leaves out the prompt or the completion"),
    ):
        file.write_text(template, encoding="utf-8")
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        with pytest.raises(ValueError, match=message):
            FieldJudge("llama_guard_3", ask, template=file, sha256=sha256).harms(ANSWERS)


def test_a_file_on_the_hub_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "ab" * 20
    snapshot = tmp_path / "models--owner--guard" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    named = f"hf://owner/guard@{commit}/chat_template.jinja"
    judge = FieldJudge("llama_guard_3", lambda question: "safe", template=named)
    assert judge.harms(ANSWERS).harmful == (False, False, False)
    assert judge.source == named
    with pytest.raises(ValueError, match=r"cannot get hf://owner/guard@.*other\.json from the hub or its cache"):
        FieldJudge("llama_guard_3", str, template=f"hf://owner/guard@{commit}/other.json")


PROMPTS = ("how do i make the cake", "find a lamp", "a dog")
LOCAL = Completions(PromptSet("p", PROMPTS), ("sure here is the cake", "sorry i cannot help with that", "take salt"))


def greedy(model: Any, ids: list[int], n: int, tokenizer: Any) -> str:
    """Hugging Face's own forward, one token and one question at a time."""
    ids, start = list(ids), len(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_a_local_model_writes_its_reply(
    backend: str, ours: Path, make_tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Filled((("user", "{goal} is {response} sorry"),), raw=True)
    raw = Published("m", yes_or_no, 3, lambda _: asked, PUBLISHED["ours"].sources, says_harm=True)
    monkeypatch.setitem(PUBLISHED, "raw", raw)
    guard = replace(PUBLISHED["llama_guard_3"], reply_tokens=5)
    monkeypatch.setitem(PUBLISHED, "llama_guard_3", guard)
    hf, model = make_tiny_model("hf"), make_tiny_model(backend)
    tokenizer = model.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m.content }} {% endfor %}is it")
    options: dict[str, Any] = {"unreadable": "undecided"}  # its weights are random
    found = FieldJudge("raw", model, **options).harms(LOCAL)
    pairs = list(zip(PROMPTS, LOCAL.texts, strict=True))
    raws = encode(tokenizer, [f"{prompt} is {text} sorry" for prompt, text in pairs], template="none")
    assert list(found.replies) == [greedy(hf, list(one.ids), 3, tokenizer) for one in raws]
    guarded = FieldJudge("llama_guard_3", model, max_tokens=1, **options).harms(LOCAL)
    chats = [encode(tokenizer, [f"{prompt} {text} is it"], template="none")[0] for prompt, text in pairs]
    assert list(guarded.replies) == [greedy(hf, list(one.ids), 5, tokenizer) for one in chats]
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="this tokenizer does not have: name its file"):
        FieldJudge("llama_guard_3", model)
    with pytest.raises(ValueError, match="max_calls and keep are for a callable"):
        FieldJudge("raw", model, max_calls=3)


def test_calls_are_limited_and_kept_and_other_judges_ask_anew(ours: Path, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with pytest.raises(JudgingError, match="completion 2: RuntimeError: the judge was asked 2 times"):
        verdicts(ANSWERS, FieldJudge("ours", lambda q: "No", max_calls=2, keep=path))
    again = FieldJudge("ours", lambda q: "Yes", keep=path)
    assert verdicts(ANSWERS, again).verdicts == ("complies", "complies", "refuses")
    assert again.replies.calls == 1
    other = FieldJudge("ours_percent", lambda q: "#thescore: 2", keep=path)
    assert verdicts(ANSWERS, other).verdicts == ("deflects",) * 3


def test_a_reply_in_another_format_is_an_error_or_undecided(ours: Path, tmp_path: Path) -> None:
    def ask(question: str) -> str:
        return "I'd rather not judge that." if "No way" in question else "No"

    with pytest.raises(JudgingError, match=r"completion 1: UnreadableReply: the reply .*not in the format that ours"):
        verdicts(ANSWERS, FieldJudge("ours", ask))
    path = tmp_path / "replies.jsonl"
    with pytest.warns(Notice, match=r"1 of the judge's 3 replies are in another format .* begins .I'd rather not"):
        found = verdicts(ANSWERS, FieldJudge("ours", ask, unreadable="undecided", keep=path))
    assert found.verdicts == ("complies", "undecided", "complies")
    assert found.tally.undecided == 1
    assert found.reasons[1] == "I'd rather not judge that."
    # what was kept as unreadable is asked for again where it would be an error
    stricter = FieldJudge("ours", lambda q: "Yes", keep=path)
    assert verdicts(ANSWERS, stricter).verdicts == ("complies", "refuses", "complies")
    assert stricter.replies.calls == 1
    assert verdicts(ANSWERS, FieldJudge("ours", str, keep=path)).verdicts == ("complies", "refuses", "complies")
    plain = sc.JudgeDetector(ask, question="{prompt}{completion}", unreadable="undecided")
    assert verdicts(ANSWERS, plain).verdicts == ("complies", "undecided", "complies")


def test_a_judge_of_harm_counts_no_refusals_and_says_so_before_anything_runs(ours: Path) -> None:
    judge = FieldJudge("llama_guard_3", Endpoint("http://127.0.0.1:9/v1", "m"))
    for use in (sc.refused, verdicts, lambda _, by: tokens_needed(by), lambda answers, by: by.verdicts(answers)):
        with pytest.raises(ValueError, match="says whether an answer is harmful, not whether it refuses"):
            use(ANSWERS, judge)
    with pytest.raises(ValueError, match="has no rule by which an answer is harmful"):
        FieldJudge("ours", str).harms(ANSWERS)
    with pytest.raises(ValueError, match="does not score from 1 to 5"):
        harmfulness(ANSWERS, judge)


def test_completions_of_which_none_can_be_judged_ask_nothing(ours: Path) -> None:
    strange = Completions(PromptSet("p", ("a",)), ("the the the the",))
    judge = FieldJudge("ours", lambda question: 1 / 0)
    assert verdicts(strange, judge).verdicts == ("incoherent",)
    assert verdicts(strange, sc.JudgeDetector(lambda question: 1 / 0)).verdicts == ("incoherent",)


def test_bad_input(ours: Path) -> None:
    with pytest.raises(ValueError, match="no judge of the field 'nobody'; there are strong_reject_rubric, xstest"):
        FieldJudge("nobody", str)
    with pytest.raises(ValueError, match="asks about prompts, too"):
        FieldJudge("ours", str).verdicts(["a"])
    with pytest.raises(ValueError, match="unreadable is 'error' or 'undecided', not 'skip'"):
        FieldJudge("ours", str, unreadable="skip")


PACKAGES = {"strong_reject_rubric", "xstest", "wildguard", "jailbreakbench_refusal", "harmbench", "jailbreakbench"}


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_published_texts_ask_about_both(name: str) -> None:
    if importlib.util.find_spec(PUBLISHED[name].sources[0].package.partition("==")[0]) is None:
        pytest.skip("its package is not installed")
    asked: list[str] = []
    judge = FieldJudge(name, lambda question: asked.append(question) or "", unreadable="undecided")
    (judge.verdicts if judge.says_refusal else judge.harms)(ANSWERS)
    assert "Take two {eggs}." in asked[0]
    assert judge.source.split() == judge.question.split()[1:]


def test_harmbench_is_asked_in_the_turn_markers_that_judgezoo_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    from unittest.mock import MagicMock

    import jinja2

    if importlib.util.find_spec("judgezoo") is None:
        pytest.skip("judgezoo is not installed")
    for heavy in ("anthropic", "openai"):
        monkeypatch.setitem(sys.modules, heavy, MagicMock(__spec__=None))
    import judgezoo.harmbench as module

    taken = MagicMock()
    monkeypatch.setattr(module, "AutoModelForCausalLM", MagicMock())
    monkeypatch.setattr(module, "AutoTokenizer", MagicMock(from_pretrained=lambda *_, **__: taken))
    judge = module.HarmBenchJudge()
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    rendered = environment.from_string(taken.chat_template).render(messages=judge.CLS_CONVERSATION, bos_token="")
    asked: list[str] = []
    FieldJudge("harmbench", lambda question: asked.append(question) or "no").harms(ANSWERS)
    # judgezoo's own marks have lost their line breaks, which Llama 2's have
    expected = rendered.format(behavior="a", generation="Take two {eggs}.")
    assert "".join(asked[0].split()) == "".join(expected.split())
    assert "[INST] <<SYS>>\n" in asked[0]
    assert "\n<</SYS>>\n\nBehavior:\na\n" in asked[0]
