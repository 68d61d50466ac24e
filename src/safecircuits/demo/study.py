"""The main job end to end on the embedded models: find, prove, protect, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from safecircuits import organism
from safecircuits.demo.layers import BEHAVIOR, GAPS, LOCATED, NORMAL, OPENED, PLANTED_LOCATED
from safecircuits.demo.overview import plot_overview
from safecircuits.demo.protecting import FINETUNING, FROZEN_LAYERS
from safecircuits.demo.settings import SUBJECT, Demo, DemoSettings, demo_prompts
from safecircuits.demo.units import ABLATION, CURVE, PLANTED_UNITS, PROFILES, UNITS
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import ModelShape
from safecircuits.papers.part import Subject
from safecircuits.results.provenance import provenance
from safecircuits.results.run import AlreadyComplete, RunDirectory


class DemoStudy(Demo):
    """All parts of the demo, in order: what ``run_demo`` gives.

    Examples:
        >>> study = sc.demo.run_demo("demo")  # doctest: +SKIP
        >>> [entry["effect"] for entry in study.conclusions() if entry["shows"] == "no"]  # doctest: +SKIP
    """

    behavior = BEHAVIOR
    normal = NORMAL
    opened = OPENED
    gaps = GAPS
    located = LOCATED
    planted_located = PLANTED_LOCATED
    frozen_layers = FROZEN_LAYERS
    groups = UNITS
    profiles = PROFILES
    ablation = ABLATION
    planted_groups = PLANTED_UNITS
    planted_units = CURVE
    finetuning = FINETUNING

    @property
    def mask(self) -> FreezeMask:
        """The located layers, if any were located, and the safety-critical units of the ``aligned`` model."""
        critical = self.groups["SCU"]
        return FreezeMask.layers(self.located.layers) | critical if self.located.located else critical

    def page(self, provenance: Mapping[str, Any], *, with_completions: bool = False) -> tuple[str, dict[str, Figure]]:
        """With the overview among the figures, which is for other places than the page."""
        html, figures = super().page(provenance, with_completions=with_completions)
        return html, {"overview": plot_overview(self), **figures}


@dataclass(frozen=True)
class DemoSubject(Subject):
    """The model of the demo and its settings."""

    shape: ModelShape
    n_parameters: int
    settings: DemoSettings

    def empty(self, **more: Any) -> DemoStudy:
        """The demo before anything is found."""
        s, sets = self.settings, demo_prompts(self.settings)
        about = {"shape": self.shape, "n_parameters": self.n_parameters, "settings": s, "sets": sets}
        return DemoStudy(source=SUBJECT, name=SUBJECT, **about, **more)  # type: ignore[arg-type]

    def study(self, folder: Path) -> DemoStudy:
        return self.empty().again(folder)


def run_demo(out: str | Path, settings: DemoSettings | None = None) -> DemoStudy:
    """Run the whole chain in a run directory (see ``safecircuits.results.run``): an interrupted one goes on.

    Beside what every run has it holds the report and ``freeze.safetensors``, the mask of the located layers and the
    safety-critical units of the ``aligned`` model.

    Returns:
        What was found; of a run that was complete before, what it found.

    Raises:
        ValueError: if the folder holds another run, or files that are none.

    Examples:
        >>> study = sc.demo.run_demo("demo", sc.demo.DemoSettings())  # doctest: +SKIP
        >>> study.located.layers  # doctest: +SKIP
        LayerRange(first=0, last=7)
    """
    settings = settings or DemoSettings()
    try:
        run = RunDirectory.open(out, "demo", asdict(settings), inputs=demo_inputs(settings))
    except AlreadyComplete:
        return DemoSubject.load(Path(out) / "results" / "subject").study(Path(out))
    with run:
        return demo_into(run, settings)


def demo_inputs(settings: DemoSettings) -> dict[str, Any]:
    """Fingerprints of the prompts and models that the demo reads, by name."""
    sets = {
        f"{kind} {split}": {"n": len(prompts), "sha": prompts.fingerprint}
        for (kind, split), prompts in demo_prompts(settings).items()
    }
    return sets | {f"model organism:{stage}": fingerprint_checkpoint(stage) for stage in organism.STAGES}


def demo_into(run: RunDirectory, settings: DemoSettings) -> DemoStudy:
    """The chain in a run directory that is open."""
    with _one_thread():
        model = settings.load(SUBJECT)
        size = sum(p.numel() for p in checkpoint_parameters(model).values())
        subject = DemoSubject(ModelShape.of(model), size, settings)
        study = run.kept("subject", DemoSubject, lambda: subject).empty(_model=model)
        del model
        study.go(run)
    study.mask.save(run.file("freeze.safetensors"))
    sets = {f"{kind} {split}": prompts for (kind, split), prompts in study.sets.items()}
    study.write(provenance(command="safecircuits demo", seed=settings.seed, datasets=sets, settings=asdict(settings)))
    return study


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums add up in the same order however many cores there are, so that the figures do not depend on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
