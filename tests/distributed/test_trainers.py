"""A FreezeCallback in Hugging Face's Trainer over two processes, which wraps the model in DDP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from launching import launch
from trainers import MIXED

from conftest import build_tiny_llama
from safecircuits.training import frozen_digest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("trainers")
    done = launch(2, Path(__file__).parent / "trainers.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, [json.loads((folder / f"trainers {rank}.json").read_text()) for rank in range(2)]


def test_ddp_leaves_both_processes_one_model_in_which_what_is_frozen_kept_its_bits(
    by_two: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, facts = by_two
    digest = frozen_digest(build_tiny_llama(), MIXED)
    for found in facts:
        assert found["ddp"] == {"digest": digest, "now": digest, "steps": 3}
    first, second = (load_file(folder / f"ddp {rank}") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    start = dict(build_tiny_llama().named_parameters())
    assert any(not torch.equal(value, start[name]) for name, value in first.items())
