"""Models whose blocks are not attention and an MLP: each analysis works, or says in one sentence what is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import configurations
import safecircuits as sc
import zoo
from safecircuits.behavior.scaled_completions import generate_scaled
from safecircuits.layers.attention import attention_map

pytestmark = pytest.mark.usefixtures("narrow_last_layer")  # in every architecture, for the few tokens of a test

PROMPTS = configurations.PROMPTS
TAUGHT = sc.PromptSet("taught", tuple(PROMPTS), ("take some salt and water", "sorry i cannot", "help is here", "sure"))
UNITS: Any = {"mlp": {0: (3, 40)}, "attn": {1: (2, 3)}}
PLAIN: dict[str, Any] = {"template": "none"}


@cache
def loaded(name: str) -> Any:
    return sc.load_model(configurations.build(name), tokenizer=zoo.tokenizer())


def ablated(model: Any) -> None:
    with sc.ablated(model, sc.FreezeMask.of_units(UNITS, model)):
        sc.generate(model, PROMPTS, max_new_tokens=3, **PLAIN)


def tuned(model: Any, freeze: Any = None) -> None:
    sc.finetune(model, TAUGHT, freeze=freeze, steps=1, batch_size=2, lr=1e-3, progress=False, **PLAIN)


ANALYSES: dict[str, Callable[[Any], Any]] = {
    "residuals": lambda model: sc.collect_residuals(model, PROMPTS, **PLAIN),
    "completions": lambda model: sc.generate(model, PROMPTS, max_new_tokens=3, **PLAIN),
    "scaled": lambda model: generate_scaled(model, PROMPTS, [{0: 1.2}], max_new_tokens=3, **PLAIN),
    "loss": lambda model: sc.response_loss(model, TAUGHT, **PLAIN),
    "wifv": lambda model: sc.score_units(model, TAUGHT, **PLAIN),
    "snip": lambda model: sc.score_units(model, TAUGHT, method="snip", **PLAIN),
    "magnitude": lambda model: sc.score_units(model, TAUGHT, method="magnitude", **PLAIN),
    "attention": lambda model: attention_map(model, PROMPTS[2], **PLAIN),
    "ablated": ablated,
    "fine-tuning": tuned,
    "frozen layer": lambda model: tuned(model, sc.FreezeMask.layers((0, 0))),
    "frozen units": lambda model: tuned(model, sc.FreezeMask.of_units(UNITS, model)),
}
EVERYWHERE = ("residuals", "completions", "loss", "fine-tuning")
BLOCKS = ["Mamba", "Mamba-2", "LFM2", "Jamba", "Bamba", "Mixtral", "gpt-oss", "OPT-350m"]
NOT_THERE = (
    r"of its own|has no (neurons|attention heads)|has no hook point|cannot be scaled|units of layer|not scored this way"
)


def refusal(analysis: str, model: Any) -> str:
    """What an analysis says that it cannot do on a model; nothing if it can."""
    try:
        ANALYSES[analysis](model)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("analysis", ANALYSES)
def test_an_analysis_works_or_says_what_is_not_there(name: str, analysis: str) -> None:
    said = refusal(analysis, loaded(name))
    assert not said or (analysis not in EVERYWHERE and "\n" not in said and re.search(NOT_THERE, said)), said


@pytest.mark.parametrize("name", ["Mamba", "LFM2", "Jamba", "Bamba"])
def test_batched_rows_are_what_they_are_alone(name: str) -> None:
    """In one batch, watched and unwatched, as one prompt at a time."""
    model = loaded(name)
    alone = [sc.collect_residuals(model, [prompt], **PLAIN).values for prompt in PROMPTS]
    together = sc.collect_residuals(model, PROMPTS, **PLAIN).values
    with sc.attached(model, {"blocks.0.hook_resid_post": lambda resid: None}):
        watched = sc.collect_residuals(model, PROMPTS, **PLAIN).values
        answers = sc.generate(model, PROMPTS, max_new_tokens=5, **PLAIN).texts
    for values in (together, watched):
        assert configurations.apart(values, torch.cat(alone, dim=1)) < 1e-4
    assert sc.generate(model, PROMPTS, max_new_tokens=5, **PLAIN).texts == answers
    assert answers == tuple(sc.generate(model, [p], max_new_tokens=5, **PLAIN).texts[0] for p in PROMPTS)


def test_what_can_be_saved_is_saved_as_it_was(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for name in BLOCKS:
        hf = configurations.build(name)
        folder = sc.save_pretrained(loaded_fresh(name), tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = torch.arange(5, 14)[None]
        with torch.no_grad():
            assert torch.allclose(again(ids).logits, hf(ids).logits, atol=1e-5), name


def loaded_fresh(name: str) -> Any:
    return sc.load_model(configurations.build(name), tokenizer=zoo.tokenizer())
