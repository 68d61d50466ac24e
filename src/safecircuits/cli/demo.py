"""``safecircuits demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safecircuits.cli.frame import Run, run_command


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app, prompts=False, model=False, out=Path("demo"))(demo)


def demo(
    run: Run,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts and steps: to see that it runs.")] = False,
) -> None:
    """Run the whole chain on the embedded models: find, prove, protect, report. About five minutes on two cores.

    Example: safecircuits demo --out demo
    """
    from safecircuits.demo.settings import DemoSettings
    from safecircuits.demo.study import demo_inputs, demo_into

    device = "cpu" if run.torch_device is None else str(run.torch_device)
    dtype = None if run.dtype is None else run.dtype.value
    settings = DemoSettings(backend=run.backend, device=device, dtype=dtype, seed=run.seed)
    settings = settings.quick() if quick else settings
    run.inputs |= demo_inputs(settings)
    demo_into(run.begin(), settings)
