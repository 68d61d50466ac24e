"""Starting a program in several processes on this machine's loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent.parent / "src"


def launch(processes: int, *program: str | Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Run ``python PROGRAM …`` (a script, or ``-m`` and a module) in several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    module = [] if str(program[0]) != "-m" else ["-m"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={port}", *module, "--"]  # what follows is the program's
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.run(
        [*launcher, *map(str, program[len(module) :])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
