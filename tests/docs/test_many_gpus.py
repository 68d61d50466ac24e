"""The page "on many GPUs" is followed line by line, with two CPU processes."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import safecircuits as sc

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "many-gpus.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))
    for block in re.findall(r"^    (torchrun (?:.*\\\n)*.*)$", PAGE, flags=re.MULTILINE)
]
SCRIPTS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "your-model" not in block]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
]


def follow(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, sys.path)]),
        "PET_MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def test_there_is_something_to_follow() -> None:
    assert len(COMMANDS) == 2
    assert all(command[0] == "torchrun" and "--nproc-per-node" in command for command in COMMANDS)
    assert len(SCRIPTS) == 2


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[6:8]))
def test_a_command_runs_as_it_stands(command: list[str], tmp_path: Path) -> None:
    done = follow(command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / command[command.index("--out") + 1]
    assert sc.load_run(run)
    assert (run / "report.html").exists()
    lines = done.stdout.splitlines()
    assert len(lines) == len(set(lines))  # said by one process


def test_the_script_runs_as_it_stands(tmp_path: Path) -> None:
    """Both of its parts, the second of which one process runs alone."""
    (tmp_path / "analysis.py").write_text("\n".join(SCRIPTS), encoding="utf-8")
    done = follow(["torchrun", "--nproc-per-node", "2", "analysis.py"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    onset, answer = done.stdout.splitlines()
    assert re.fullmatch(r"\[\d, \d\]", onset)
    assert answer.startswith("(")
