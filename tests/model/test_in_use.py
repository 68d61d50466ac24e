"""Two threads on one model: an analysis beside another one is right, or it is refused; nothing is left on the model."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.layers import attention_map
from safecircuits.model.attach import hooks_in_force
from safecircuits.model.in_use import used_alone
from safecircuits.weights import choose_weights, score_weights, without_weights

PROMPTS = ("how do i make the cake", "find a lamp", "how do i fix the road and the house with some water")
DATA = sc.PromptSet("data", PROMPTS, ("sorry", "here is the lamp", "you take some wood"))
UNITS: Any = {"mlp": {0: (1, 5, 9), 1: tuple(range(30))}, "attn": {2: (0,)}}

both = pytest.mark.parametrize("backend", ["bridge", "hooked"])


def scaled_texts(model: Any) -> Any:
    with sc.scaled(model, (0, 2), 1.5):
        return sc.generate(model, PROMPTS, max_new_tokens=3).texts


def ablated_residuals(model: Any) -> Any:
    with sc.ablated(model, sc.FreezeMask.of_units(UNITS, model)):
        return sc.collect_residuals(model, PROMPTS).values


def loss_without_weights(model: Any) -> Any:
    chosen = choose_weights(score_weights(model, DATA, method="magnitude"), share=0.5)
    with without_weights(model, chosen):
        return sc.response_loss(model, DATA).nats


ANALYSES: dict[str, Callable[[Any], Any]] = {
    "residuals": lambda m: sc.collect_residuals(m, PROMPTS).values,
    "wifv": lambda m: sc.score_units(m, DATA).scores["mlp"],
    "snip": lambda m: sc.score_units(m, DATA, method="snip").scores["mlp"],
    "texts": lambda m: sc.generate(m, PROMPTS, max_new_tokens=3).texts,
    "loss": lambda m: sc.response_loss(m, DATA).nats,
    "attention": lambda m: attention_map(m, PROMPTS[0]).values,
    "scaled": scaled_texts,
    "ablated": ablated_residuals,
    "without weights": loss_without_weights,
}


def build(backend: Any) -> Any:
    return sc.load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer(), backend=backend)


def same(a: Any, b: Any) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6) if isinstance(a, Tensor) else bool(a == b)


@both
def test_every_pair_is_right_or_refused(backend: Any) -> None:
    model = build(backend)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    alone = {name: analysis(model) for name, analysis in ANALYSES.items()}
    finished = refused = 0
    for first, second in itertools.combinations_with_replacement(ANALYSES, 2):
        start = threading.Barrier(2)

        def work(name: str, start: threading.Barrier = start) -> Any:
            start.wait()
            try:
                return ANALYSES[name](model)
            except RuntimeError as error:
                if "is using this model" not in str(error):
                    raise
                return None

        with ThreadPoolExecutor(2) as pool:
            got = list(pool.map(work, (first, second)))
        for name, result in zip((first, second), got, strict=True):
            finished, refused = finished + (result is not None), refused + (result is None)
            assert result is None or same(result, alone[name]), f"{name}: {first}, {second}"
        assert hooks_in_force(model) == (False, True)
    assert finished
    assert refused
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@both
@pytest.mark.parametrize("name", ANALYSES)
def test_none_runs_within_the_block_of_another_thread(name: str, backend: Any) -> None:
    model = build(backend)
    with sc.scaled(model, (0, 2), 1.5), ThreadPoolExecutor(1) as pool:
        running = pool.submit(ANALYSES[name], model)
        with pytest.raises(RuntimeError, match=r"thread 'MainThread' is using this model, and thread 'ThreadPool"):
            running.result()
        ANALYSES["residuals"](model)  # the block's hooks have to fire, in its own thread
    with ThreadPoolExecutor(1) as pool:
        assert same(pool.submit(ANALYSES[name], model).result(), ANALYSES[name](model)), "afterwards it may"


def test_bridges_of_one_model_share_their_parameters_flags() -> None:
    hf, tokenizer = build_tiny_llama(), build_tiny_tokenizer()
    one, two = (sc.load_model(hf, tokenizer=tokenizer) for _ in range(2))
    with used_alone(one), ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="is using this model"):
        pool.submit(ANALYSES["snip"], two).result()
    other = sc.load_model(copy.deepcopy(hf), tokenizer=tokenizer)
    with used_alone(one), ThreadPoolExecutor(1) as pool:
        pool.submit(ANALYSES["snip"], other).result()


def test_training_has_its_model_alone_and_its_callbacks_may_measure() -> None:
    model = build("bridge")
    seen: list[Any] = []

    def callback(model: Any, step: int) -> dict[str, float]:
        seen.append(sc.response_loss(model, DATA).nats.mean())
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="is using this model"):
            pool.submit(sc.collect_residuals, model, PROMPTS).result()
        return {"loss": 0.0}

    sc.finetune(model, DATA, steps=2, callbacks=[callback], eval_every=1, progress=False)
    assert len(seen) == 2


def test_a_block_that_a_thread_never_left_holds_nobody_up() -> None:
    model = build("bridge")
    left = threading.Thread(target=lambda: sc.scaled(model, (0, 1), 1.5).__enter__())
    left.start()
    left.join()
    model.reset_hooks()
    sc.collect_residuals(model, PROMPTS)


def test_threads_that_run_the_modules_themselves_are_not_held_up() -> None:
    """As DataParallel's replicas and a trainer's own passes do."""
    model = build("bridge")
    ids = torch.arange(6)[None]
    with torch.no_grad(), sc.scaled(model, (0, 2), 1.5), ThreadPoolExecutor(2) as pool:
        want = model.original_model(input_ids=ids).logits
        for got in pool.map(lambda _: model.original_model(input_ids=ids).logits.detach(), range(4)):
            torch.testing.assert_close(got, want)


def test_models_that_are_saved_at_once_are_all_whole(tmp_path: Path) -> None:
    """And what is made afterwards has memory: what makes a model without weights acts on every thread."""
    models = [sc.load_model(build_tiny_llama(seed=i), tokenizer=build_tiny_tokenizer()) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: sc.save_pretrained(models[i], tmp_path / str(i)), range(4)))
    assert not torch.nn.Linear(2, 2).weight.is_meta
    ids = torch.arange(5, 15)[None]
    for i in range(4):
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / str(i))
        assert torch.equal(saved(ids).logits, build_tiny_llama(seed=i)(ids).logits)
