"""``safecircuits demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safecircuits.cli.frame import Run, run_command


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app, prompts=False, model=False, out=Path("demo"), trains=True)(demo)


def demo(
    run: Run,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="A planted real model, such as smollm2:layers-12-16; the embedded models unless given."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts and steps: to see that it runs.")] = False,
) -> None:
    """Run the whole chain on models whose answer is known: find, prove, protect, report.

    On the embedded models it takes about five minutes on two cores, on a real one longer. Interrupted, the same command
    goes on where it stopped.

    Example: safecircuits demo --model smollm2:layers-12-16 --out demo-real
    """
    device = "cpu" if run.torch_device is None else str(run.torch_device)
    placing = {"backend": run.backend, "device": device, "dtype": None if run.dtype is None else run.dtype.value}
    if model is not None:
        from safecircuits.demo.real.settings import RealDemoSettings
        from safecircuits.demo.real.study import real_demo_inputs, real_demo_into
        from safecircuits.organism.smollm2.catalog import member

        chosen = RealDemoSettings(member=member(model).name, seed=run.seed, **placing)
        chosen = chosen.quick() if quick else chosen
        run.inputs |= real_demo_inputs(chosen)
        real_demo_into(run.begin(), chosen)
        return
    from safecircuits.demo.settings import DemoSettings
    from safecircuits.demo.study import demo_inputs, demo_into

    settings = DemoSettings(**placing, seed=run.seed)
    settings = settings.quick() if quick else settings
    run.inputs |= demo_inputs(settings)
    demo_into(run.begin(), settings)
