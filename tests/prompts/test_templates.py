"""A tokenizer's chat template is the authority: tokens are those of apply_chat_template, over many shapes.

The templates here have the shapes of known models'; the words are their own.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import safecircuits as sc
from safecircuits.layers.attention import attention_map
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.prompts.rendering import PINNED, chat_text, render
from safecircuits.prompts.templates import Template, resolve_template, stop_string

OURS = "You are the lamp of the house."
PUT = "{% for m in messages %}"
LLAMA3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set said = '' %}{%- endif %}"
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '1 Jan 2020' %}{%- endif %}"
    "{%- endif %}{{- bos_token + '<|head|>system<|/head|>\n\nToday: ' + date_string + '\n\n' + said + '<|eot|>' }}"
    "{%- for m in messages %}{{- '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\n\n' }}{%- endif %}"
)
CHATML = (
    PUT + "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\n" + OURS + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = {
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        + PUT
        + "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim "
        "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "phi3": (
        PUT + "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "llama3": LLAMA3,
    "chatml": CHATML,
    "qwen": CHATML.replace("m['role'] != 'system'", "messages[0]['role'] != 'system'"),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}{% set turns = messages[1:] %}"
        "{% else %}{% set said = '" + OURS + "' %}{% set turns = messages %}{% endif %}"
"{% for m in turns %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + ('<<SYS>>\n' + said + '\n<</SYS>>\n\n' if loop.first else '') }}"
        "{{ m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}" + PUT + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}{{ m['content'] + '\n\n' }}"
        "{% endif %}{% endfor %}"
    ),
    "zephyr": (
        PUT + "{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
    ),
    "thinking": (  # the prompt opens a thought, which turns that are over no longer have
        "{{ bos_token }}" + PUT + "{% if m['role'] == 'assistant' %}"
        "{{ '<A>' + m['content'].split('</think>')[-1] + eos_token }}{% else %}{{ '<U>' + m['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"
    ),
    "answered empty thought": (
        PUT + "{{ '<|im_start|>' + m['role'] + '\n' + ('<think>\n\n</think>\n\n' if m['role'] == 'assistant' else '') "
        "+ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "sealed": (  # GLM's and Cohere's way: something besides the beginning of sequence comes first
        "[gMASK]<sop>" + PUT + "{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}<|user|>{% endif %}"
    ),
}  # fmt: skip
INJECTS = ("chatml", "qwen", "llama2")
SPECIAL = (
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|head|>", "<|/head|>",
    "<|eot|>", "<|im_start|>", "<|im_end|>", "<U>", "<A>", "[gMASK]", "<sop>",
)  # fmt: skip
ASKED = ("find a lamp", "how do i kill the process?", "  spaces around  ", "two\n\nlines", "é", "<|weird|> [x]")
REPLIES = ("sure", "Sorry, I cannot.", "\n\nafter lines", "  two  ", "ends in space ", "1\n2\n", "a" * 40)


def make_tokenizer(chat_template: str | None, *, adds: str = "bos", merges: bool = True) -> Any:
    """Bytes, two of which are one token where both are line breaks or 'su'; BOS and EOS added as ``adds`` says."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(ByteLevel.alphabet())
    pairs = [("Ċ", "Ċ"), ("s", "u"), ("Ġ", "s")] if merges else []
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet, *("".join(pair) for pair in pairs)])}
    made = Tokenizer(BPE(vocab=vocab, merges=pairs))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = Decoder()
    single = {"bos": "<s> $A", "both": "<s> $A </s>", "eos": "$A </s>", "none": "$A"}[adds]
    made.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=chat_template,
        additional_special_tokens=list(SPECIAL),
    )  # fmt: skip


TOKENIZERS = {name: make_tokenizer(text) for name, text in SHAPES.items()}


def reference(tokenizer: Any, messages: list[tuple[str, str]], generation: bool) -> list[int]:
    said = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=generation)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    direct = tokenizer.apply_chat_template(said, tokenize=True, add_generation_prompt=generation)
    assert list(getattr(direct, "input_ids", None) or direct["input_ids"]) == ids
    return ids


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "llama3"])
def test_prompt_and_response_are_both_turns_of_the_template(shape: str) -> None:
    tokenizer = TOKENIZERS[shape]
    for reply in REPLIES:
        data = PromptSet("d", ASKED, (reply,) * len(ASKED))
        alone, both = encode(tokenizer, data), encode(tokenizer, data, with_responses=True)
        for prompt, asked, whole in zip(ASKED, alone, both, strict=True):
            assert list(asked.ids) == reference(tokenizer, [("user", prompt)], generation=True)
            want = reference(tokenizer, [("user", prompt), ("assistant", reply)], generation=False)
            assert list(whole.ids) == want
            assert whole.ids.count(0) == asked.ids.count(0) <= 1
            response = tokenizer.decode(whole.ids[whole.response_start :])
            assert reply.strip() in response
            assert prompt.strip() not in response
            if reply == "sure":  # nothing joins the prompt's end: the response starts behind the whole of it
                begins = whole.ids[: whole.response_start] == asked.ids
                assert begins or shape == "thinking"


def test_the_last_token_of_a_response_is_the_one_that_the_template_closes_a_turn_with() -> None:
    closing = {"gemma": "<end_of_turn>\n", "phi3": "<|end|>\n</s>", "chatml": "<|im_end|>\n", "llama3": "<|eot|>",
               "mistral": "</s>", "llama2": " </s>", "zephyr": "</s>\n"}  # fmt: skip
    for shape, end in closing.items():
        for reply in ("sure", "sure" + end.strip(), "sure" + end, "sure</s>", f"sure{end.strip()}</s>"):
            [example] = encode(TOKENIZERS[shape], PromptSet("d", ("x",), (reply,)), with_responses=True)
            assert TOKENIZERS[shape].decode(example.ids[example.response_start :]).lstrip() == f"sure{end}"


def test_a_template_that_closes_an_answer_by_nothing(tiny_tokenizer: Any) -> None:
    [example] = encode(tiny_tokenizer, PromptSet("d", ("find a lamp",), ("sure take it",)), with_responses=True)
    assert example.ids[-1] == tiny_tokenizer.eos_token_id != example.ids[-2]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_system_prompt_is_none(shape: str) -> None:
    tokenizer = TOKENIZERS[shape]
    text = render(tokenizer, "find a lamp", system="")
    assert OURS not in text
    assert text.count("find a lamp") == 1
    if shape in INJECTS:
        assert OURS in render(tokenizer, "find a lamp")
        want = {"llama2": "<s>[INST] find a lamp [/INST]"}
        chatml = "<|im_start|>user\nfind a lamp<|im_end|>\n<|im_start|>assistant\n"
        assert text == want.get(shape, chatml)
        data = PromptSet("d", ("find a lamp",), ("sure",))
        [alone] = encode(tokenizer, data, system="")
        [both] = encode(tokenizer, data, system="", with_responses=True)
        assert tokenizer.decode(alone.ids) == text
        assert both.ids[: both.response_start] == alone.ids
    else:
        assert text == render(tokenizer, "find a lamp")


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("gemma", "thinking")])
def test_a_system_prompt_is_the_template_s_own(shape: str) -> None:
    tokenizer = TOKENIZERS[shape]
    text = render(tokenizer, "find a lamp", system="Be careful.")
    assert text.count("Be careful.") == 1
    assert OURS not in text
    data = PromptSet("d", ("find a lamp",), ("sure",))
    [both] = encode(tokenizer, data, template=Template(system="Be careful."), with_responses=True)
    if shape != "llama3":
        turns = [("system", "Be careful."), ("user", "find a lamp"), ("assistant", "sure")]
        assert list(both.ids) == reference(tokenizer, turns, generation=False)


def test_system_prompts_that_a_template_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"does not take a system prompt \(no system here\)"):
        render(TOKENIZERS["gemma"], "x", system="Be careful.")
    deaf = make_tokenizer(PUT + "{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}")
    with pytest.raises(ValueError, match=r"leaves out the system prompt 'Be careful\.'"):
        render(deaf, "x", system="Be careful.")
    tangled = make_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}Be kind.{% endif %}"
        + PUT
        + "{{ '(' + loop.index|string + m['role'] + m['content'] + ')' }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="a system prompt of its own, which cannot be told from the rest"):
        render(tangled, "x", system="")
    assert "Be kind." in render(tangled, "x")


def test_responses_that_a_template_changes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"leaves out part of the response '<think>a</think>b'"):
        encode(TOKENIZERS["thinking"], PromptSet("d", ("x",), ("<think>a</think>b",)), with_responses=True)
    other = make_tokenizer(
        "{{ messages | length }}" + PUT + "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(ValueError, match="writes a prompt otherwise once it is answered"):
        encode(other, PromptSet("d", ("x",), ("y",)), with_responses=True)


@pytest.mark.parametrize("adds", ["bos", "both", "eos", "none"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.sampled_from(["", "<s>", "<s>Q: "]), after=st.sampled_from(["", "</s>", " A:", "</s></s>"]))
def test_templates_that_spell_their_special_tokens(adds: str, before: str, after: str) -> None:
    tokenizer = make_tokenizer(None, adds=adds)
    [ids] = [e.ids for e in encode(tokenizer, ["how"], template=f"{before}{{instruction}}{after}")]
    own = tokenizer(f"{before}how{after}", add_special_tokens=False).input_ids
    begins = adds in ("bos", "both") and own[0] != 0
    assert list(ids) == ([0] if begins else []) + own  # one beginning; an end only where it is spelled
    [both] = encode(tokenizer, PromptSet("d", ("how",), ("yes</s>",)), template="none", with_responses=True)
    assert both.ids[-1] == 1 != both.ids[-2]


@pytest.mark.parametrize("adds", ["bos", "none"])
def test_a_system_prompt_does_not_push_away_the_beginning_that_a_template_spells(adds: str) -> None:
    tokenizer = make_tokenizer(None, adds=adds)
    [ids] = [e.ids for e in encode(tokenizer, ["how"], template="<s>Q: {instruction}", system="Be kind.")]
    assert list(ids) == tokenizer("<s>Be kind.\n\nQ: how", add_special_tokens=False).input_ids
    assert ids.count(0) == 1


class TestDates:
    def test_the_day_is_pinned_and_can_be_given(self) -> None:
        tokenizer = TOKENIZERS["llama3"]
        assert "Today: 26 Jul 2024\n" in render(tokenizer, "x")
        assert PINNED == "2024-07-26"
        assert "Today: 31 Jan 2026\n" in render(tokenizer, "x", Template(date="2026-01-31"))
        assert "Today: 31 Jan 2026\n\nBe careful.<|eot|>" in render(
            tokenizer, "x", Template(system="Be careful.", date="2026-01-31")
        )
        [a] = encode(tokenizer, PromptSet("d", ("x",), ("y",)), with_responses=True)
        assert "26 Jul 2024" in tokenizer.decode(a.ids)

    def test_everything_else_is_what_transformers_writes(self) -> None:
        """On the day of today the pinned template writes what apply_chat_template does."""
        from datetime import date

        today = date.today().isoformat()
        tokenizer = TOKENIZERS["llama3"]
        said = [{"role": "user", "content": " x "}, {"role": "assistant", "content": "y"}]
        want = tokenizer.apply_chat_template(said, tokenize=False)
        assert chat_text(tokenizer, said, date=today, add_generation_prompt=False) == want

    @pytest.mark.parametrize(
        "form", ["%d %b %Y", "%Y-%m-%d", "%B %d, %Y", "%A, %-d.%-m.%y", "%a %j %H:%M:%S", "%x", "no day", "100%%"]
    )
    @pytest.mark.parametrize("start", ["", "\n", "  ", "  {% if true %}\n a{% endif %}"])
    def test_formats(self, form: str, start: str) -> None:
        from datetime import datetime

        text = start + "{{ strftime_now('" + form + "') }}|" + PUT + "{{ m['content'] }}{% endfor %}"
        tokenizer = make_tokenizer(text)
        still = make_tokenizer(text.replace(f"{{{{ strftime_now('{form}') }}}}", "DAY"))
        written = render(tokenizer, "x", Template(date="2021-03-04"))
        assert written == render(still, "x").replace("DAY", datetime(2021, 3, 4).strftime(form))

    def test_a_date_that_is_none(self) -> None:
        with pytest.raises(ValueError, match=r"date is a day as 2026-01-31, not '31\.1\.2026'"):
            Template(date="31.1.2026")


class TestTemplate:
    def test_a_name_is_a_template(self, tiny_tokenizer: Any) -> None:
        assert Template("alpaca") == "alpaca"
        assert resolve_template(tiny_tokenizer, Template(system="sure")) == "chat, system prompt 'sure'"
        assert render(tiny_tokenizer, "x", Template("none", system="sure")) == "sure\n\nx"
        assert render(tiny_tokenizer, "x", Template("Q: {instruction}", system="")) == "Q: x"
        for other in (copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))):
            again = other(Template("chat", system="s", date="2021-03-04"))
            assert (again, again.name, again.system, again.date) == (
                "chat, system prompt 's', on 2021-03-04", "chat", "s", "2021-03-04",
            )  # fmt: skip

    def test_options_reach_the_chat_template(self) -> None:
        thinks = make_tokenizer(
            PUT
            + "{{ m['role'] + ':' + m['content'] + ';' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}"
            "{% if enable_thinking is defined and not enable_thinking %}{{ '(no thought)' }}{% endif %}{% endif %}"
        )
        quiet = Template("chat", options={"enable_thinking": False})
        messages = [{"role": "user", "content": "x"}]
        want = thinks.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert render(thinks, "x", quiet) == want == "user:x;assistant:(no thought)"
        assert render(thinks, "x", Template.of(quiet, "Be kind.")) == "system:Be kind.;" + want
        assert resolve_template(thinks, Template(options={"enable_thinking": False})) == "chat, enable_thinking=false"
        for other in (copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))):
            assert other(quiet).options == {"enable_thinking": False}
        with pytest.raises(ValueError, match="does not take the option 'thinking'"):
            render(thinks, "x", Template(options={"thinking": False}))
        for name in ("alpaca", "none", "Q: {instruction}"):
            with pytest.raises(ValueError, match="options are of chat templates"):
                render(thinks, "x", Template(name, options={"enable_thinking": False}))
        with pytest.raises(ValueError, match="options are of chat templates; 'alpaca'"):
            render(make_tokenizer(None), "x", Template(options={"enable_thinking": False}))

    @pytest.mark.parametrize("name", ["tokenize", "return_tensors", "chat_template", "no name", 3])
    def test_options_that_are_none(self, name: Any) -> None:
        with pytest.raises(ValueError, match="a template option is what its chat template takes"):
            Template(options={name: True})
        with pytest.raises(ValueError, match="the template option style has a value of JSON"):
            Template(options={"style": {1, 2}})

    def test_two_system_prompts_are_one_too_many(self, tiny_tokenizer: Any) -> None:
        with pytest.raises(ValueError, match="has the system prompt 'sure', but system='sorry'"):
            render(tiny_tokenizer, "x", Template(system="sure"), system="sorry")
        assert render(tiny_tokenizer, "x", Template(system="sure"), system="sure").count("sure") == 1

    def test_every_analysis_asks_with_it(self, tiny_bridge: Any) -> None:
        """With the system prompt in the template an analysis gives what it does on prompts that spell it."""
        tokens = sc.PromptSet("a", ("find a lamp", "make the cake", "a dog"), ("sure", "sorry i cannot", "help"))
        other = sc.PromptSet("b", ("how do i fix the road", "take some salt", "the water"), ("sure", "sure", "is"))
        asked = Template("none", system="sure")
        spelled = "sure\n\n{instruction}"
        for what in (
            lambda t: sc.collect_residuals(tiny_bridge, tokens, template=t).values,
            lambda t: sc.layer_gap(tiny_bridge, tokens, other, template=t).nm,
            lambda t: sc.generate(tiny_bridge, tokens, template=t).texts,
            lambda t: sc.response_loss(tiny_bridge, tokens, template=t).nats,
            lambda t: sc.score_units(tiny_bridge, tokens, template=t).scores,
            lambda t: (
                sc.scaling_grid(tiny_bridge, tokens, alpha=1.2, max_length=1, template=t).baseline.completions.texts
            ),
            lambda t: attention_map(tiny_bridge, "find a lamp", template=t).values,
        ):
            got, want, plain = str(what(asked)), str(what(spelled)), str(what("none"))
            assert got == want
            assert got != plain

    def test_a_result_keeps_it(self, tiny_bridge: Any, tmp_path: Any) -> None:
        prompts = [["find a lamp", "a dog"], ["make the cake", "the water"]]
        gap = sc.layer_gap(tiny_bridge, *prompts, template=Template("none", system="sure"))
        assert "system prompt 'sure'" in str(gap.provenance)
        assert type(gap).load(gap.save(tmp_path / "gap")).equals(gap)
        plain = sc.layer_gap(tiny_bridge, *prompts, template="none")
        assert plain.provenance != gap.provenance

    def test_a_sweep_is_not_resumed_with_another_system_prompt(self, tiny_bridge: Any, tmp_path: Any) -> None:
        options: dict[str, Any] = {"alpha": 1.2, "max_length": 1, "resume": tmp_path / "s.jsonl"}
        sc.scaling_grid(tiny_bridge, ["find a lamp"], template=Template("none", system="sure"), **options)
        with pytest.raises(ValueError, match="made with another template"):
            sc.scaling_grid(tiny_bridge, ["find a lamp"], template=Template("none", system="sorry"), **options)


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        ("alpaca", "### Instruction:"),
        ("alpaca-short", "### Instruction:"),
        ("chat", None),
        ("auto", None),
        ("none", None),
        ("Q: {instruction}\nA:", "Q:"),
        ("Be kind.\n[user] {instruction}\n[model]", "[user]"),
        ("- {instruction}", None),
        ("now {instruction} it is sure to", None),
    ],
)
def test_where_a_model_goes_on_to_ask_itself(template: str, stop: str | None) -> None:
    assert stop_string(TOKENIZERS["chatml"], template) == stop
