"""Patching all layers in one pass: equal to Hugging Face one pair and one layer at a time, and counted in tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import configurations
import zoo
from conftest import build_tiny_llama
from safecircuits.hooks.patching import CachedRun
from safecircuits.hooks.plain import plain_model
from safecircuits.model.load import load_model
from safecircuits.model.modules import decoder_layers
from safecircuits.prompts.prompt_set import Encoded, encode

TEMPLATE = "take some water and salt and tea then {instruction} it is sure to"
POSITIONS = 4
NORMAL = ("find the lamp", "how do i make the cake", "a dog")
MALICIOUS = ("bake the tea with the wood and some salt", "the road", "how do i fix the house")
WORDS = [5, 11]


def read(logits: Tensor) -> Tensor:
    """Two words against each other: a number of each prompt that a normalisation of the logits does not change."""
    scores = logits[:, WORDS].double()
    return scores[:, 0] - scores[:, 1]


def examples(tokenizer: Any) -> tuple[list[Encoded], list[Encoded]]:
    return encode(tokenizer, NORMAL, template=TEMPLATE), encode(tokenizer, MALICIOUS, template=TEMPLATE)


def alone(hf: Any, layers: Any, into: list[Encoded], of: list[Encoded], positions: int = POSITIONS) -> Tensor:
    """``[layer prompt]`` by plain hooks on Hugging Face's own layers: one forward for each layer and pair."""

    def run(ids: tuple[int, ...], layer: int | None, value: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        seen: list[Tensor] = []

        def hook(at: int) -> Any:
            def put(module: Any, args: Any, out: Any) -> Any:
                stream = out[0] if isinstance(out, tuple) else out
                if at == layer:
                    stream = stream.clone()
                    stream[:, -positions:] = value
                seen.append(stream[:, -positions:].clone())
                return (stream, *out[1:]) if isinstance(out, tuple) else stream

            return put

        handles = [block.register_forward_hook(hook(at)) for at, block in enumerate(layers)]
        with torch.no_grad():
            logits = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
        for handle in handles:
            handle.remove()
        return read(logits)[0], seen

    streams = [run(example.ids, None, None)[1] for example in of]
    return torch.stack(
        [
            torch.stack([run(example.ids, at, stream[at])[0] for example, stream in zip(into, streams, strict=True)])
            for at in range(len(layers))
        ]
    )


@contextmanager
def tokens_through(layers: Any) -> Iterator[list[int]]:
    """Tokens that enter layers, one number for each pass through a layer."""
    taken: list[int] = []

    def count(module: Any, args: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        taken.append(out.shape[0] * out.shape[1])

    count.part_of_model = True  # not somebody else's, who would want whole prompts
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("name", "backend"), zoo.pairs())
def test_every_architecture_says_what_hugging_face_says_one_pair_at_a_time(name: str, backend: str) -> None:
    hf, model = zoo.hugging_face(name), zoo.hooked_model(name, backend)
    normal, malicious = examples(zoo.tokenizer())
    layers = [zoo.ZOO[name].block(hf, layer) for layer in range(zoo.LAYERS)]
    runs = [CachedRun.of(model, given, POSITIONS) for given in (normal, malicious)]
    for (into, of), (mine, other) in zip(((normal, malicious), (malicious, normal)), (runs, runs[::-1]), strict=True):
        want = alone(hf, layers, into, of)
        got = mine.patched(model, other, read)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert float((want - read(mine.logits)).abs().min(0).values.max()) > 1e-3  # patching is no idle change


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize("max_tokens", [None, 1, 60])
def test_many_layers_in_double_precision(backend: Any, max_tokens: int | None, tiny_tokenizer: Any) -> None:
    hf = build_tiny_llama(3, torch.float64, num_hidden_layers=6)  # whose norms and softmax stay in single precision
    model = load_model(hf, backend=backend, tokenizer=tiny_tokenizer)
    normal, malicious = examples(tiny_tokenizer)
    one, two = (CachedRun.of(model, given, POSITIONS, max_tokens) for given in (normal, malicious))
    want = alone(hf, hf.model.layers, normal, malicious)
    torch.testing.assert_close(one.patched(model, two, read), want, atol=1e-6, rtol=1e-4)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda activation, hook: activation)]):
        torch.testing.assert_close(one.patched(model, two, read), want, atol=1e-6, rtol=1e-4)


def test_a_run_keeps_what_hugging_face_has_at_the_last_positions(tiny_bridge: Any, tiny_llama_hf: Any) -> None:
    normal, _ = examples(tiny_bridge.tokenizer)
    run = CachedRun.of(tiny_bridge, normal, POSITIONS)
    for row, example in enumerate(normal):
        with torch.no_grad():
            plain = tiny_llama_hf(input_ids=torch.tensor([example.ids]), output_hidden_states=True)
        torch.testing.assert_close(run.logits[row], plain.logits[0, -1].double(), atol=1e-5, rtol=1e-5)
        for layer, kept in enumerate(run.residuals[:, row]):
            torch.testing.assert_close(kept, plain.hidden_states[layer + 1][0, -POSITIONS:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_one_pass_over_the_last_positions_serves_all_layers(backend: Any, tiny_tokenizer: Any) -> None:
    n_layers = 6
    model = load_model(build_tiny_llama(3, num_hidden_layers=n_layers), backend=backend, tokenizer=tiny_tokenizer)
    plain = plain_model(model)
    layers = model.blocks if plain is None else [plain.block(layer) for layer in range(n_layers)]
    normal, malicious = examples(tiny_tokenizer)
    one, two = (CachedRun.of(model, given, POSITIONS, 1) for given in (normal, malicious))  # a prompt a batch
    with tokens_through(layers) as taken:
        cached = one.patched(model, two, read)
    beginnings = sum(map(len, normal)) - len(normal) * POSITIONS  # the template is too short to be worth a pass
    rows = [1, *(layer + 1 for layer in range(1, n_layers - 1)), n_layers - 1]  # the last needs no unpatched one
    assert sum(taken) == n_layers * beginnings + len(normal) * POSITIONS * sum(rows)
    # Somebody else's hook may look at whole prompts, so it sees them: each layer costs a pass.
    with (
        model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda activation, hook: activation)]),
        tokens_through(model.blocks) as taken,
    ):
        torch.testing.assert_close(one.patched(model, two, read), cached, atol=1e-5, rtol=1e-5)
    assert sum(taken) == (n_layers - 1) * n_layers * sum(map(len, normal))


@pytest.mark.parametrize("name", ["BLOOM", "GPT-Neo", "Mamba", "LFM2", "Mistral, window", "gpt-oss"])
def test_what_cannot_be_taken_apart_runs_whole(name: str) -> None:
    """Positions that count padding, windows, recurrent states: whole prompts, and the same numbers."""
    hf = configurations.build(name)
    try:
        model = load_model(hf, tokenizer=zoo.tokenizer())
    except ValueError as error:
        pytest.skip(str(error))
    normal, malicious = examples(zoo.tokenizer())
    one, two = (CachedRun.of(model, given, POSITIONS) for given in (normal, malicious))
    with tokens_through(decoder_layers(hf)) as taken:
        got = one.patched(model, two, read)
    torch.testing.assert_close(got, alone(hf, decoder_layers(hf), normal, malicious), atol=1e-5, rtol=1e-5)
    whole = len(normal) * max(map(len, normal))
    assert not taken or taken == [whole] * 2  # none if the bridge calls layers of its own
