"""Templates that never end, or fill the memory, are refused in seconds; others pass, also where no process starts."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from typing import Any

import pytest
from tests.prompts.test_templates import SHAPES

from safecircuits.base.notices import Notice
from safecircuits.prompts import trial
from safecircuits.prompts.prompt_set import encode
from safecircuits.prompts.trial import UnboundedTemplate, try_template

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BOMBS = {
    "loops": LOOPS,
    "a text that doubles": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}"
    ),
    "one product": "{{ 'x' * 10000000000 }}",
    "a padded number": "{{ '%2000000000d' % 1 }}",
    "a filter": "{{ 'x' | center(3000000000) }}",
    "one power": "{{ 10 ** (10 ** 9) }}",
    "output piece by piece": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "long prompts alone": (
        "{% if messages[0].content | length > 99 %}" + LOOPS + "{% endif %}{{ messages[0].content }}"
    ),
    "answered turns alone": "{% if messages[1:] %}" + LOOPS + "{% endif %}{{ messages[0].content }}",
}


def with_template(tokenizer: Any, template: str) -> Any:
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    return made


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limits to set; a limit of time holds")
@pytest.mark.parametrize("kind", sorted(BOMBS))
def test_a_template_that_does_not_end_is_one_line(kind: str, tiny_tokenizer: Any) -> None:
    began = time.perf_counter()
    with pytest.raises(UnboundedTemplate, match="loops without end, or builds far more") as raised:
        encode(with_template(tiny_tokenizer, BOMBS[kind]), ["make tea"], template="chat")
    assert "\n" not in str(raised.value)
    assert time.perf_counter() - began < trial.SECONDS


def test_where_the_system_sets_no_limits_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.5)
    with pytest.raises(UnboundedTemplate):
        try_template("{# another #}" + LOOPS)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_the_templates_of_known_models_pass_and_are_tried_once(
    shape: str, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    run = trial._run
    monkeypatch.setattr(trial, "_run", lambda given: started.append(given) or run(given))
    tokenizer = with_template(tiny_tokenizer, f"{{# tried with {shape} #}}" + SHAPES[shape])
    encode(tokenizer, ["make tea", "find the dog"], template="chat")
    encode(copy.deepcopy(tokenizer), ["bake a cake"], template="chat")
    assert len(started) == 1


def test_where_no_process_starts_it_says_so_and_goes_on(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = encode(tiny_tokenizer, ["make tea"], template="chat")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("no processes here")

    monkeypatch.setattr(subprocess, "run", refuse)
    tokenizer = with_template(tiny_tokenizer, "{# not tried #}" + tiny_tokenizer.chat_template)
    with pytest.warns(Notice, match="was not tried for loops without end, as no process can start: no processes here"):
        assert encode(tokenizer, ["make tea"], template="chat") == right
