"""Code that lies in a model's folder never runs: pickled weights and states, a folder's own generation, its classes."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
import support
import zoo
from conftest import build_tiny_llama

PROMPTS = sc.PromptSet("payloads", support.PROMPTS, support.ANSWERS)


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "m"
    build_tiny_llama().save_pretrained(made)
    zoo.tokenizer().save_pretrained(made)
    return made


def test_the_payload_works(mark: Path) -> None:
    """Otherwise the tests below could not fail."""
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_pickled_weights(form: str, backend: str, folder: Path, mark: Path) -> None:
    weights = build_tiny_llama().state_dict() | {"model.extra": Payload(mark)}
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if form == "plain":
        file.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match="cannot load") as raised:
        sc.load_model(folder, backend=backend)
    assert "\n" not in str(raised.value)
    assert not mark.exists()


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_pickles_beside_the_weights(backend: str, folder: Path, mark: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(Payload(mark), folder / name)
    model = sc.load_model(folder, backend=backend)
    sc.generate(model, list(PROMPTS)[:1], max_new_tokens=2)
    sc.save_pretrained(model, folder / "again")
    assert not mark.exists()


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_generation_of_the_folder_s_own(backend: str, folder: Path, mark: Path) -> None:
    (folder / "custom_generate").mkdir()
    code = f"open({str(mark)!r}, 'w')\ndef generate(model, **kwargs): open({str(mark)!r}, 'w')\n"
    (folder / "custom_generate" / "generate.py").write_text(code)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"custom_generate": str(folder)}))
    model = sc.load_model(folder, backend=backend)
    answers = sc.generate(model, list(PROMPTS)[:2], max_new_tokens=4)
    plain = sc.load_model(build_tiny_llama(), tokenizer=zoo.tokenizer())
    assert answers.texts == sc.generate(plain, list(PROMPTS)[:2], max_new_tokens=4).texts
    assert not mark.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_classes_of_the_folder_s_own(file: str, folder: Path, mark: Path) -> None:
    """Where transformers knows the model type they are passed over, else the folder is refused."""
    auto = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    path = folder / file
    if file == "tokenizer_config.json":
        auto = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto}))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with suppress(ValueError):
        sc.generate(sc.load_model(folder), list(PROMPTS)[:1], max_new_tokens=2)
    assert not mark.exists()


def test_the_optimizer_of_a_checkpoint(folder: Path, tmp_path: Path, mark: Path) -> None:
    """A training checkpoint that somebody sent: its state is read as tensors, or it is refused."""
    options: dict[str, Any] = {
        "steps": 4, "batch_size": 2, "lr": 1e-3, "progress": False, "checkpoint_every": 2,
        "checkpoint_dir": tmp_path / "ck",
    }  # fmt: skip
    sc.finetune(sc.load_model(folder), PROMPTS, **options)
    states = list((tmp_path / "ck").rglob("optimizer.pt"))
    if not states:
        pytest.fail("no state of an optimizer is kept: this test has no subject")
    for state in states:
        torch.save(Payload(mark), state)
    last = sorted({state.parent for state in states})[-1]
    for done in set(last.parent.iterdir()) - {last}:
        shutil.rmtree(done) if done.is_dir() else done.unlink()
    with pytest.raises(ValueError, match="checkpoint"):
        sc.finetune(sc.load_model(folder), PROMPTS, **options)
    assert not mark.exists()
