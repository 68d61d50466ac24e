"""The memory estimate against the tensors that are really alive in a run, and what is said where memory is short."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import safecircuits as sc
import support
import zoo
from conftest import TEXT, WORDS, build_tiny_tokenizer
from safecircuits import units
from safecircuits.behavior.sampling import sample
from safecircuits.hooks.patching import CachedRun
from safecircuits.model import memory
from safecircuits.model.load import load_model
from safecircuits.model.memory import Task, estimate_memory
from safecircuits.prompts import batching
from safecircuits.prompts.prompt_set import encode
from safecircuits.units.answer_tokens import _first_tokens
from safecircuits.weights import output_spaces, score_weights, sparse_gpt

PROMPTS = sc.PromptSet(
    "long",
    tuple(" ".join(WORDS[(i + j) % len(WORDS)] for j in range(60)) for i in range(16)),
    (" ".join(WORDS[:8]),) * 16,
)
LOW, HIGH = 0.8, 2.0
"""Between which shares of what a run really holds the estimate lies."""


class Alive(TorchDispatchMode):
    """The bytes of all tensors that are alive, the model's included, at their most."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        for parameter in model.parameters():
            self.see(parameter)

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return out


def wider(name: str, dtype: torch.dtype) -> Any:
    """A member of the zoo in sizes at which its tensors outweigh what a run holds beside them."""
    from transformers import AutoModelForCausalLM

    config = zoo.ZOO[name].config()
    changes = {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 600, "max_position_embeddings": 128}
    changes |= {"intermediate_size": 352} if getattr(config, "intermediate_size", None) else {}
    changes |= {"head_dim": 32} if getattr(config, "head_dim", None) else {}
    for key, value in changes.items():
        setattr(config, key, value)
    if getattr(config, "layer_types", None):
        config.layer_types = (config.layer_types * 2)[:4]
    return load_model(AutoModelForCausalLM.from_config(config).to(dtype).eval(), tokenizer=build_tiny_tokenizer())


@pytest.mark.parametrize("task", memory.TASKS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Llama-3", torch.float32),
        ("Llama-3", torch.bfloat16),
        ("Gemma-2", torch.bfloat16),
        ("Phi-3", torch.float32),
        ("GPT-2", torch.float32),
        ("Pythia", torch.bfloat16),
    ],
)
def test_the_estimate_is_near_what_a_run_holds(name: str, dtype: torch.dtype, task: Task) -> None:
    model = wider(name, dtype)
    rows = 4
    with Alive(model) as alive:
        if task == "residuals":
            sc.collect_residuals(model, PROMPTS)
        elif task == "generate":
            sc.generate(model, PROMPTS, max_new_tokens=8)
        elif task == "scores":
            sc.score_units(model, PROMPTS)
        else:
            sc.finetune(model, PROMPTS, steps=2, batch_size=rows, lr=1e-4)
    if task == "finetune":
        width = max(len(example) for example in encode(model.tokenizer, PROMPTS, with_responses=True))
        estimate = estimate_memory(model, tokens=(rows, width), task=task)
    else:
        estimate = estimate_memory(model, PROMPTS, task=task, max_new_tokens=8)
    assert LOW * alive.peak <= estimate.total + estimate.results <= HIGH * alive.peak, f"{alive.peak} B, {estimate}"


def test_weights_cache_gradients_and_optimizer_are_exact(make_tiny_model: Any) -> None:
    hf = make_tiny_model("hf")
    estimate = estimate_memory(hf.config, tokens=(3, 20), task="generate", max_new_tokens=5, dtype=torch.float32)
    assert estimate.weights == sum(p.numel() * 4 for p in hf.parameters())
    ids = torch.ones(3, 24, dtype=torch.long)
    with torch.no_grad():
        cache = hf(ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert (estimate.rows, estimate.width, estimate.kv_cache) == (3, 24, held)
    hf(ids).logits.sum().backward()
    optimizer = torch.optim.AdamW(hf.parameters())
    optimizer.step()
    tuned = estimate_memory(hf, tokens=(3, 24), task="finetune")
    assert tuned.gradients == sum(p.grad.nbytes for p in hf.parameters() if p.grad is not None)
    state = [v.nbytes for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    assert tuned.optimizer == sum(state)
    half = estimate_memory(hf, tokens=(3, 24), task="finetune", trained=0.5)
    assert (half.gradients, half.optimizer) == (round(tuned.gradients / 2), 2 * round(tuned.gradients / 2))


@pytest.mark.parametrize(("kind", "setting"), [("GPT2Config", "n_inner"), ("FalconConfig", "ffn_hidden_size")])
def test_a_width_of_the_mlp_of_its_own_counts(kind: str, setting: str) -> None:
    import transformers

    def activations(**width: int) -> int:
        config = getattr(transformers, kind)(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, **width)
        return sc.model.estimate_memory(config, tokens=(2, 8), task="scores").activations

    assert activations(**{setting: 256}) == activations(), "four times d_model unless something else is said"
    rows, itemsize = 2 * 8, 4
    grown = activations(**{setting: 2**15}) - activations(**{setting: 2**14})
    assert grown == rows * (6 * itemsize + 8) * 2**14


def test_a_configuration_needs_no_weights() -> None:
    """Llama-3-8B: 8.03 billion parameters, 16 GB in bfloat16; 128 kB of cache a token."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    found = estimate_memory(config, tokens=(1, 1), task="generate", max_new_tokens=1, dtype=torch.bfloat16)
    assert found.weights == 16_060_522_496
    assert found.kv_cache == 131072
    assert "16.1 GB" in str(found)


class TestTooLittle:
    def test_a_run_that_does_not_fit(self, tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
        estimate = estimate_memory(tiny_bridge, [TEXT] * 9, task="generate")
        with pytest.raises(torch.OutOfMemoryError, match=r"does not fit into the 1 kB that are free on cpu: use a sm"):
            estimate.require("cpu")
        tuned = estimate_memory(tiny_bridge, tokens=(2, 8), task="finetune")
        with pytest.raises(torch.OutOfMemoryError, match="smaller batch_size with grad_accumulation"):
            tuned.require("cpu")

    def test_a_run_that_fits(self, tiny_bridge: Any) -> None:
        estimate_memory(tiny_bridge, [TEXT]).require("cpu", loaded=False)

    def test_a_checkpoint_that_does_not_fit_is_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "free_memory", lambda device: 10**6)
        with pytest.raises(torch.OutOfMemoryError, match=r"the weights take .* MB, but cpu has 1 MB free: use dtype="):
            load_model("aligned", device="cpu")

    def test_the_free_memory_of_this_machine(self) -> None:
        free = memory.free_memory("cpu")
        assert free is None or free > 10**6


FEW = sc.PromptSet("short", tuple(" ".join(WORDS[i : i + 12]) for i in range(4)), (" ".join(WORDS[:4]),) * 4)
COMPARED: dict[str, Any] = {"reference": FEW, "answers": sc.units.AnswerTokens((5,), (6,)), "steps": 2}
ANALYSES: dict[str, Callable[[Any], Any]] = {
    "wifv": lambda model: sc.score_units(model, FEW),
    "snip": lambda model: sc.score_units(model, FEW, method="snip"),
    "taylor": lambda model: sc.score_units(model, FEW, method="taylor"),
    "attribution": lambda model: sc.score_units(model, FEW, method="attribution", **COMPARED),
    "integrated": lambda model: sc.score_units(model, FEW, method="integrated", **COMPARED),
    "weights, Wanda": lambda model: score_weights(model, FEW, method="wanda"),
    "weights, SNIP": lambda model: score_weights(model, FEW, method="snip"),
    "coupled": lambda model: units.coupled_scores(model, FEW),
    "output spaces": lambda model: output_spaces(model, FEW),
    "SparseGPT": lambda model: sparse_gpt(model, FEW, 0.5),
    "patched residuals": lambda model: CachedRun.of(model, encode(model.tokenizer, FEW), 1),
    "first tokens": lambda model: _first_tokens(model, FEW, "auto", None),
    "a judge": lambda model: sc.JudgeDetector(
        model, question="is this a {completion}", yes=("the",), no=("a",), template="none"
    ).verdicts(FEW.prompts),
    "harmfulness": lambda model: sc.behavior.harmfulness(sc.Completions(FEW, FEW.prompts), model, max_new_tokens=2),
    "pressure": lambda model: sc.behavior.pressure(model, FEW, max_new_tokens=2),
    "sampling": lambda model: sample(model, FEW, max_new_tokens=2),
    "direction probe": lambda model: sc.probe_direction(
        model, FEW, suffixes=sc.direction.Suffixes(("the cake",), ("a lamp",)), steps=(1,), max_new_tokens=2
    ),
}


@pytest.mark.parametrize("analysis", list(ANALYSES))
def test_every_analysis_fits_its_batches_to_the_free_memory(
    analysis: str, make_tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made = make_tiny_model("hooked" if analysis == "output spaces" else "bridge"), list[int]()
    plain = batching.pad_left

    def counted(examples: Any, rows: Any = None) -> Any:
        made.append(len(examples))
        return plain(examples, rows)

    for module in ("direction.probe", "behavior.harm", "behavior.judge", "behavior.conditions"):
        importlib.import_module(f"safecircuits.{module}")  # imported later, it would take the counting one along
    monkeypatch.setattr(batching, "pad_left", counted)
    ANALYSES[analysis](model)
    assert max(made) > 1
    made.clear()
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    ANALYSES[analysis](model)
    assert max(made) == 1


@pytest.mark.parametrize("name", ["Llama-3", "Gemma-2", "Phi-3", "GPT-2", "Pythia"])
@pytest.mark.parametrize("method", ["wifv", "taylor", "snip", "attribution", "coupled"])
def test_a_batch_stays_within_the_free_memory(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wider(name, torch.float32)
    width = max(len(example) for example in encode(model.tokenizer, PROMPTS, with_responses=method != "attribution"))
    fitting = partial(memory.fitting_tokens, model, width, gradients=method != "wifv")
    weights = Alive(model).peak
    free = 10**6
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    while fitting() < 4 * width:
        free = int(1.1 * free)
    assert fitting() < 8 * width
    with Alive(model) as alive:
        if method == "coupled":
            units.coupled_scores(model, PROMPTS)
        else:
            sc.score_units(model, PROMPTS, method=method, **(COMPARED if method == "attribution" else {}))
    used = (alive.peak - weights) / free
    assert 0.2 < used <= 1


def test_bad_input(tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match="residuals, generate, scores, finetune, not 'train'"):
        estimate_memory(tiny_bridge, ["find a lamp"], task="train")
    with pytest.raises(ValueError, match="either prompts or tokens"):
        estimate_memory(tiny_bridge)
    with pytest.raises(ValueError, match="no tokenizer: give tokens"):
        estimate_memory(tiny_bridge.original_model.config, ["find a lamp"])
    with pytest.raises(ValueError, match="between 0 and 1, not 2"):
        estimate_memory(tiny_bridge, ["find a lamp"], trained=2)


def test_the_lines_of_the_how_to_page(
    tiny_llama_hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (support.REFERENCE.parent / "how-to" / "your-model.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tiny_llama_hf.save_pretrained("your-model")
    [lines] = [block for block in page.split("```")[1::2] if "estimate_memory" in block]
    exec(compile(lines.removeprefix("python\n"), "your-model.md", "exec"), {"sc": sc})
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == list(memory.TASKS)
