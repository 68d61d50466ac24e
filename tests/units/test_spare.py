"""Ablation that spares what every prompt begins with: against edited activations one prompt at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

PROMPTS = sc.PromptSet("p", ("how do i make the cake", "find a lamp", "how do i fix the road and the house", "tea"))
UNITS: Any = {"mlp": {0: (1, 7, 30), 2: (4,)}, "attn": {1: (0, 3)}}
TEMPLATE = "the salt is {instruction} ."
both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def made(backend: Any) -> Any:
    return load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer(), backend=backend)


def edited(hf_model: Any, values: Any, spare: int) -> list[Any]:
    """Hooks on plain Hugging Face that set the units from position ``spare`` on; for whole unpadded prompts."""
    handles = []
    for site, rows in UNITS.items():
        for i, units in rows.items():
            layer, width = hf_model.model.layers[i], 1 if site == "mlp" else 8

            def hook(_: Any, args: Any, key: Any = (site, i, units, width)) -> Any:
                site, i, units, width = key
                x = args[0].clone()
                for unit in units:
                    value = 0.0 if values is None else values[site][i][unit]
                    x[:, spare:, unit * width : (unit + 1) * width] = value
                return (x,)

            module = layer.mlp.down_proj if site == "mlp" else layer.self_attn.o_proj
            handles.append(module.register_forward_pre_hook(hook))
    return handles


@both
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("spare", [1, 3])
def test_logits_and_completions_of_padded_batches(backend: Any, mean: bool, spare: int) -> None:
    model = made(backend)
    scores = sc.score_units(model, PROMPTS, tokens="prompt", template=TEMPLATE)
    values = scores.mean if mean else None
    assert scores.beginning == 3
    examples = encode(model.tokenizer, PROMPTS, template=TEMPLATE)
    batch = pad_left(examples)
    with sc.ablated(model, sc.FreezeMask.of_units(UNITS, model), to=values, spare=spare):
        got = logits(model, batch)
        written = sc.generate(model, PROMPTS, template=TEMPLATE, max_new_tokens=4)
    plain = build_tiny_llama()
    handles = edited(plain, values, spare)
    for row, example in enumerate(examples):
        ids = list(example.ids)
        with torch.no_grad():
            want = plain(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(got[row, -len(ids) :], want, rtol=1e-3, atol=2e-3)
        for _ in range(4):
            with torch.no_grad():
                ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
        text = model.tokenizer.decode(ids[len(example) :], skip_special_tokens=True)
        assert written.texts[row] == text.strip() or "<eos>" in model.tokenizer.decode(ids[len(example) :])
    for handle in handles:
        handle.remove()


@both
def test_sharing_the_beginning_between_prompts_changes_nothing(backend: Any) -> None:
    """Many prompts with a template: its pass is shared, so that padding stands between it and the rest."""
    model = made(backend)
    template = "the salt is on the road and the tea is in the house and here is some wood {instruction} ."
    many = sc.PromptSet("m", PROMPTS.prompts * 3)
    with sc.ablated(model, sc.FreezeMask.of_units(UNITS, model), spare=18):
        together = sc.generate(model, many, template=template, max_new_tokens=3).texts
        alone = sc.generate(model, PROMPTS, template=template, max_new_tokens=3, max_tokens=1).texts
    assert list(together) == list(alone) * 3


@both
def test_a_call_of_ones_own(backend: Any) -> None:
    model = made(backend)
    ids = torch.tensor([encode(model.tokenizer, PROMPTS)[0].ids])
    plain = build_tiny_llama()
    handles = edited(plain, None, 2)
    with torch.no_grad(), sc.ablated(model, sc.FreezeMask.of_units(UNITS, model), spare=2):
        torch.testing.assert_close(model(ids), plain(ids).logits, rtol=1e-3, atol=2e-3)
    for handle in handles:
        handle.remove()


def test_spares_nothing_unless_asked_and_everything_at_last(tiny_bridge: Any) -> None:
    batch = pad_left(encode(tiny_bridge.tokenizer, PROMPTS))
    intact = logits(tiny_bridge, batch)
    with sc.ablated(tiny_bridge, sc.FreezeMask.of_units(UNITS, tiny_bridge), spare=64):
        assert torch.equal(logits(tiny_bridge, batch)[:, -1], intact[:, -1])
    with sc.ablated(tiny_bridge, sc.FreezeMask.of_units(UNITS, tiny_bridge)):
        assert not torch.allclose(logits(tiny_bridge, batch)[:, -1], intact[:, -1])


def test_text_that_the_model_tokenizes_itself_is_refused() -> None:
    model = made("hooked")
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="does not tell"),
        sc.ablated(model, sc.FreezeMask.of_units(UNITS, model), spare=1),
    ):
        model("find a lamp")


@pytest.mark.parametrize("spare", [-1, True, 1.5, "1"])
def test_no_number_of_positions(spare: Any, tiny_bridge: Any) -> None:
    with (
        pytest.raises(ValueError, match="spare must be "),
        sc.ablated(tiny_bridge, sc.FreezeMask.of_units(UNITS, tiny_bridge), spare=spare),
    ):
        pass


def test_measurements_that_spared_something_else_are_not_resumed(tiny_bridge: Any, tmp_path: Any) -> None:
    sets: Any = {"malicious": PROMPTS, "max_new_tokens": 2, "controls": 0, "resume": tmp_path / "r"}
    named = {"some": sc.FreezeMask.of_units(UNITS, tiny_bridge)}
    sc.ablate_units(tiny_bridge, named, spare=2, **sets)
    with pytest.raises(ValueError, match="was made with another replacement"):
        sc.ablate_units(tiny_bridge, named, **sets)
    sc.ablate_units(tiny_bridge, named, spare=2, **sets)
