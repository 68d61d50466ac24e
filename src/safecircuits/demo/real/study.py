"""The main job on a real language model whose answer is known: find, hold against the answer, protect, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from safecircuits.demo.real.behavior import ANSWERS
from safecircuits.demo.real.layers import DECISION, GAPS, OPENED, found_block
from safecircuits.demo.real.overview import plot_overview
from safecircuits.demo.real.protecting import FINETUNING
from safecircuits.demo.real.settings import BASE, RealDemo, RealDemoSettings, real_demo_prompts
from safecircuits.demo.real.units import REMOVED, SCORES
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.model.sites import ModelShape
from safecircuits.papers.part import Subject
from safecircuits.results.provenance import provenance
from safecircuits.results.run import AlreadyComplete, RunDirectory
from safecircuits.studies.subject import plain_name


class RealDemoStudy(RealDemo):
    """All parts of the demo on a real model, in order: what ``run_real_demo`` gives.

    Examples:
        >>> study = sc.demo.run_real_demo("demo-real")  # doctest: +SKIP
        >>> study.decision.layers, study.planted_layers  # doctest: +SKIP
    """

    answers = ANSWERS
    opened = OPENED
    gaps = GAPS
    decision = DECISION
    scores = SCORES
    removed = REMOVED
    finetuning = FINETUNING

    @property
    def mask(self) -> FreezeMask:
        """The layers that were found, as a user without the answer would freeze them."""
        return FreezeMask.layers(found_block(self), self.shape)

    def page(self, provenance: Mapping[str, Any], *, with_completions: bool = False) -> tuple[str, dict[str, Figure]]:
        """With the overview among the figures, which is for other places than the page."""
        html, figures = super().page(provenance, with_completions=with_completions)
        return html, {"overview": plot_overview(self), **figures}


@dataclass(frozen=True)
class RealDemoSubject(Subject):
    """The model of the demo and its settings."""

    shape: ModelShape
    n_parameters: int
    settings: RealDemoSettings

    def empty(self, **more: Any) -> RealDemoStudy:
        """The demo before anything is found."""
        s = self.settings
        about: dict[str, Any] = {"shape": self.shape, "n_parameters": self.n_parameters, "settings": s}
        return RealDemoStudy(
            source=s.source, name=plain_name(s.source), others={BASE: BASE}, sets=real_demo_prompts(s), **about, **more
        )

    def study(self, folder: Path) -> RealDemoStudy:
        return self.empty().again(folder)


def run_real_demo(out: str | Path, settings: RealDemoSettings | None = None) -> RealDemoStudy:
    """Run the chain on a planted real model in a run directory: an interrupted one goes on.

    Beside what every run has it holds the report and ``freeze.safetensors``, the mask of the layers that were found.

    Raises:
        ValueError: if the base is not on this machine (says how to fetch it), and as ``run_demo``.

    Examples:
        >>> study = sc.demo.run_real_demo("demo-real", sc.demo.RealDemoSettings())  # doctest: +SKIP
        >>> study.decision.layers  # doctest: +SKIP
    """
    settings = settings or RealDemoSettings()
    inputs = real_demo_inputs(settings)
    try:
        run = RunDirectory.open(out, "demo", asdict(settings), inputs=inputs)
    except AlreadyComplete:
        return RealDemoSubject.load(Path(out) / "results" / "subject").study(Path(out))
    with run:
        return real_demo_into(run, settings)


def real_demo_inputs(settings: RealDemoSettings) -> dict[str, Any]:
    """Fingerprints of the prompts and models that the demo reads, by name."""
    sets = {
        name: {"n": len(prompts), "sha": prompts.fingerprint} for name, prompts in real_demo_prompts(settings).items()
    }
    return sets | {f"model {source}": fingerprint_checkpoint(source) for source in (BASE, settings.source)}


def real_demo_into(run: RunDirectory, settings: RealDemoSettings) -> RealDemoStudy:
    """The chain in a run directory that is open."""
    model = settings.load(settings.source)
    size = sum(p.numel() for p in checkpoint_parameters(model).values())
    subject = RealDemoSubject(ModelShape.of(model), size, settings)
    study = run.kept("subject", RealDemoSubject, lambda: subject).empty(_model=model)
    del model
    study.go(run)
    study.mask.save(run.file("freeze.safetensors"))
    command = f"safecircuits demo --model {settings.source}"
    study.write(provenance(command=command, seed=settings.seed, datasets=study.sets, settings=asdict(settings)))
    return study
