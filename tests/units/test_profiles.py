"""What drives a unit and what it writes, against Hugging Face's own modules, one prompt at a time, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import safecircuits as sc
from safecircuits.model.beginning import template_beginning
from safecircuits.prompts.prompt_set import PromptSet, encode
from safecircuits.units.profiles import UnitProfiles
from zoo import ZOO, backends, hooked_model, hugging_face, pairs, tokenizer

HARMFUL = PromptSet("harmful", ("how to rob a bank", "how to hide a body in here", "who"))
HARMLESS = PromptSet("harmless", ("name a fruit", "how to rob a bank"))
UNITS = {"mlp": {0: [3, 40], 1: [7]}, "attn": {0: [1], 1: [0, 3]}}
STRAIGHT = [pair for pair in pairs() if pair[0] in ("Llama-3", "GPT-2", "Pythia", "Gemma-1", "Qwen2.5", "BLOOM")]
BENT = [pair for pair in pairs() if pair[0] in ("Gemma-2", "OLMo-2")]


def profiles(model: Any, prompts: Any = None, **options: Any) -> UnitProfiles:
    units = sc.FreezeMask.of_units(UNITS, model)
    sets = {"harmful": HARMFUL, "harmless": HARMLESS}
    return sc.units.unit_profiles(model, units, prompts or sets, template="none", **options)


def inputs_of(hf: Any, module: nn.Module, ids: Sequence[int]) -> Tensor:
    """What enters a module for one prompt, ``[pos, channel]``."""
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    with torch.no_grad():
        hf(input_ids=torch.tensor([list(ids)]))
    handle.remove()
    return kept[0].reshape(len(ids), -1).double()


def written(hf: Any, name: str, site: str, layer: int, unit: int, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The unit along a prompt, and what it writes at each token ``[pos, d_model]``."""
    module = ZOO[name].module(hf, layer, "out" if site == "mlp" else "o")
    weight = module.weight.detach().double()
    weight = weight if ZOO[name].transposed else weight.T  # channel, d_model
    entered = inputs_of(hf, module, ids)
    if site == "mlp":
        return entered[:, unit], entered[:, unit, None] * weight[unit]
    width = len(weight) // int(hf.config.num_attention_heads)
    rows = slice(unit * width, (unit + 1) * width)
    writes = entered[:, rows] @ weight[rows]
    return writes.norm(dim=1), writes


def frozen_norm(hf: Any, ids: Sequence[int], direction: Tensor) -> Tensor:
    """A direction behind the final norm at a prompt's last token, with the norm's scale as it is there."""
    norm = next(m for path, m in hf.named_modules() if path.endswith(("model.norm", "ln_f", "final_layer_norm")))
    x, weight = inputs_of(hf, norm, ids)[-1], norm.weight.detach().double()
    if isinstance(norm, nn.LayerNorm):
        return weight * (direction - direction.mean()) / (x.var(unbiased=False) + norm.eps).sqrt()
    eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", 0.0)
    gain = 1 + weight if "Gemma" in type(norm).__name__ else weight
    return gain * direction / (x.square().mean() + eps).sqrt()


@pytest.mark.parametrize(("name", "backend"), STRAIGHT)
def test_values_along_the_tokens_and_logits_are_those_of_hugging_face(name: str, backend: str) -> None:
    model, hf = hooked_model(name, backend), hugging_face(name)
    found = profiles(model, shown=2, n_tokens=5)
    examples = [encode(tokenizer(), one, template="none") for one in (HARMFUL, HARMLESS)]
    ids = [example.ids for of in examples for example in of]
    begins = max(1, len(template_beginning(tokenizer(), "none")))
    head = hf.get_output_embeddings().weight.detach().double()
    for row, (site, layer, unit) in enumerate(found.units):
        along = [written(hf, name, site, layer, unit, one)[0] for one in ids]
        peaks = [values[begins:].abs().max() if len(values) > begins else torch.zeros(()) for values in along]
        assert found.peaks[row].abs().double() == pytest.approx(torch.stack(peaks), rel=1e-3, abs=1e-5)
        first = int(found.strongest[row, 0])
        assert first == max(range(len(ids)), key=lambda i: float(peaks[i])) or peaks.count(max(peaks)) > 1
        profile = found.of(site, layer, unit)
        assert profile.tokens[0] == tuple(tokenizer().decode([i]) for i in ids[first])
        assert torch.tensor(profile.along[0])[begins:].double() == pytest.approx(
            along[first][begins:], rel=1e-3, abs=1e-5
        )
        adds = [
            head @ frozen_norm(hf, one, written(hf, name, site, layer, unit, one)[1][-1]) for one in ids[: len(HARMFUL)]
        ]
        mean = torch.stack(adds).mean(0)
        mean = mean - mean.mean()
        high, low = mean.topk(5), (-mean).topk(5)
        assert found.promoted_logits[row].double() == pytest.approx(high.values, rel=1e-3, abs=1e-5)
        assert found.suppressed_logits[row].double() == pytest.approx(-low.values, rel=1e-3, abs=1e-5)
        assert profile.promoted[0][0] == tokenizer().decode([int(high.indices[0])])


@pytest.mark.parametrize(("name", "backend"), BENT)
def test_a_unit_behind_a_norm_has_no_tokens_and_still_its_prompts(name: str, backend: str) -> None:
    found = profiles(hooked_model(name, backend))
    assert set(found.promoted) == set(found.suppressed) == {()}
    assert "none writes its row" in found.verdict
    assert (found.peaks != 0).any()


def test_all_units_the_embedding_and_the_biases_add_up_to_the_logits() -> None:
    """Nothing of a model is left out: the sum over every unit, with what none of them writes, is its own output."""
    for backend in backends():
        model = sc.load_model("organism:aligned", backend=backend)
        one = PromptSet("one", sc.load_prompts("organism:malicious").prompts[:1])
        everything = sc.FreezeMask.layers((0, 7), model)
        n_tokens = int(model.cfg.d_vocab)
        found = sc.units.unit_profiles(model, everything, one, n_tokens=n_tokens)
        assert len(found.units) == everything.n_units()
        vocabulary = {model.tokenizer.decode([i]): i for i in range(n_tokens)}
        assert len(vocabulary) == n_tokens
        total = torch.zeros(n_tokens, dtype=torch.float64)
        for words, logits in zip(found.promoted, found.promoted_logits, strict=True):
            total[[vocabulary[word] for word in words]] += logits.double()
        hf = sc.load_model("organism:aligned", backend="bridge").original_model
        [example] = encode(model.tokenizer, one)
        with torch.no_grad():
            out = hf(input_ids=torch.tensor([example.ids]), output_hidden_states=True)
        last = inputs_of(hf, hf.model.norm, example.ids)[-1]
        scale = (last.square().mean() + hf.model.norm.variance_epsilon).sqrt()
        weight = hf.lm_head.weight.detach().double()
        embedded = weight @ (hf.model.norm.weight.detach().double() * out.hidden_states[0][0, -1].double() / scale)
        logits = out.logits[0, -1].double()
        ours = total + embedded - embedded.mean()
        assert ours == pytest.approx(logits - logits.mean(), abs=2e-2 * float(logits.std()))


def test_several_batches_order_and_names(tmp_path: Path) -> None:
    model = hooked_model("Llama-3", "bridge")
    whole, parts = profiles(model), profiles(model, max_tokens=8)
    assert parts.peaks == pytest.approx(whole.peaks, abs=1e-5)
    assert UnitProfiles.load(whole.save(tmp_path / "found")).equals(whole)
    assert whole.sets == ("harmful",) * 3 + ("harmless",) * 2
    assert whole.by_set()["harmless"] == pytest.approx(whole.peaks[:, 3:].mean(1))
    frame = whole.to_frame()
    assert frame["unit"].tolist() == [3, 40, 7, 1, 0, 3]
    scores = sc.score_units(model, HARMFUL, method="wifn", tokens="prompt", template="none")
    ordered = profiles(model, scores=scores)
    assert ordered.scores.tolist() == sorted(ordered.scores.tolist(), reverse=True)


def test_what_cannot_be_looked_at() -> None:
    model = hooked_model("Llama-3", "bridge")
    none = sc.FreezeMask.of_units({}, model)
    with pytest.raises(ValueError, match="no units to look at"):
        sc.units.unit_profiles(model, none, HARMFUL)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        profiles(model, shown=0)
    with pytest.raises(ValueError, match="no prompts"):
        sc.units.unit_profiles(model, sc.FreezeMask.of_units(UNITS, model), {})
    with pytest.raises(ValueError, match="is not among the 6 units"):
        profiles(model).of("mlp", 0, 0)
