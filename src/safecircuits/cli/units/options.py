"""Options of the commands about units, and how units are scored and classified by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.declared import Of
from safecircuits.cli.earlier import digest, result_folder
from safecircuits.cli.options import TemplateOption, prompt_option, whole_numbers

if TYPE_CHECKING:
    from safecircuits.cli.frame import Run
    from safecircuits.model.sites import HookedModel
    from safecircuits.prompts.prompt_set import PromptSet
    from safecircuits.units.candidates import Candidate
    from safecircuits.units.groups import UnitGroups
    from safecircuits.units.scores import UnitScores


SafetyOption = Annotated[str, prompt_option("--safety", "Harmful prompts with refusals.")]
AnsweredOption = Annotated[str, prompt_option("--utility", "Harmless prompts with answers.")]
ReferenceOption = Annotated[
    str | None, prompt_option("--reference", "Normal prompts that an attribution compares with.")
]
GroupsOption = Annotated[Path, typer.Option("--groups", help="The run directory of units classify.")]


@dataclass(frozen=True)
class Scoring:
    """How units are scored."""

    method: Annotated[
        str,
        typer.Option("--method", help="wifv, ifv, wifn, wanda, wrms, magnitude, random, snip, taylor, …"),
    ] = "wifv"
    tokens: Annotated[
        Any,
        Of(
            "units.importance:score_units.tokens",
            "Whose activations count; unless given, all tokens, or what the method itself asks for.",
        ),
    ] = None
    template: TemplateOption = "auto"
    count_beginning: Annotated[
        bool,
        typer.Option(
            "--count-beginning",
            help="Count what every prompt begins with too, as published (template, first position).",
        ),
    ] = False

    @property
    def options(self) -> dict[str, Any]:
        """As ``score_units`` takes them."""
        plain = {"method": self.method, "tokens": self.tokens, "template": self.template}
        return plain | {"count_beginning": self.count_beginning}


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How many units each group gets, and on which scale they are compared."""

    scu: Annotated[Any, Of("papers.ssah.settings:SsahSettings.scu", "Share of safety-critical units.")]
    ucu: Annotated[Any, Of("papers.ssah.settings:SsahSettings.ucu", "Share of utility-critical units.")]
    ru: Annotated[Any, Of("papers.ssah.settings:SsahSettings.ru", "Share of redundant units.")]
    normalize: Annotated[
        Any, Of("units.groups:classify_units.normalize", "What is done to scores before they are subtracted.")
    ]

    @property
    def options(self) -> dict[str, Any]:
        """As ``classify_units`` takes them."""
        return vars(self)


ShareOfOption = Annotated[Any, Of("units.groups:classify_units.share_of", "What the shares count.")]


def scores_of(
    run: Run,
    model: HookedModel,
    sets: dict[str, PromptSet],
    reference: PromptSet | None,
    scoring: Scoring,
) -> dict[str, UnitScores]:
    """Scores on each set; those of an attribution are of one and the same choice between refusing and answering."""
    from safecircuits.units.answer_tokens import find_answer_tokens
    from safecircuits.units.importance import score_units
    from safecircuits.units.score_methods import ATTRIBUTION_METHODS

    options = {**scoring.options, "seed": run.seed, "progress": True}
    if scoring.method in ATTRIBUTION_METHODS and reference is not None:
        first = next(iter(sets.values()))
        options["answers"] = find_answer_tokens(model, first, reference, template=scoring.template)
        options["reference"] = reference
    return {name: score_units(model, data, **options) for name, data in sets.items()}


def groups_of(run: Run, path: Path) -> UnitGroups:
    """The classification in a run directory, or in the folder of a result; its contents are an input of the run."""
    from safecircuits.units.groups import UnitGroups

    folder = result_folder(path, "groups")
    if not folder.is_dir():
        raise ValueError(f"--groups {str(path)!r} is no folder: give the --out of safecircuits units classify")
    if not (folder / "result.json").is_file():
        raise ValueError(f"{str(path)!r} holds no classification: give the --out of safecircuits units classify")
    found = UnitGroups.load(folder)
    run.inputs["groups"] = {"source": str(path), "sha": digest(folder)}
    return found


def scores_in(run: Run, path: Path) -> tuple[UnitScores, UnitScores]:
    """The safety and utility scores in the run directory of ``units classify``."""
    from safecircuits.units.scores import UnitScores

    folders = [path / "results" / f"{name}_scores" for name in ("safety", "utility")]
    if not all((folder / "result.json").is_file() for folder in folders):
        raise ValueError(f"{str(path)!r} holds no scores: give the --out of safecircuits units classify")
    safety, utility = (UnitScores.load(folder) for folder in folders)
    run.inputs["scores"] = {"source": str(path), "sha": digest(*folders)}
    return safety, utility


def candidates_of(texts: list[str]) -> tuple[Candidate, ...]:
    """``METHOD[:TOKENS[:NORMALIZE[:CONTRAST]]]`` as ways to rank units."""
    from safecircuits.units.candidates import Candidate
    from safecircuits.units.score_methods import ATTRIBUTION_METHODS, DEFAULT_TOKENS, METHODS

    found = []
    for text in texts:
        method, *rest = text.split(":")
        if method not in METHODS or len(rest) > 3:
            raise ValueError(
                f"--score is METHOD[:TOKENS[:NORMALIZE[:CONTRAST]]] with METHOD of {', '.join(METHODS)}, not {text!r}"
            )
        usual = ("", "none", "safety" if method in ATTRIBUTION_METHODS else "difference")
        tokens, normalize, contrast = (given or usual[i] for i, given in enumerate([*rest, "", "", ""][:3]))
        found.append(Candidate(method, tokens or DEFAULT_TOKENS[method], normalize, contrast))  # type: ignore[arg-type]
    if len(set(found)) < len(found):
        raise ValueError(f"--score names one way to rank units twice: {', '.join(texts)}")
    return tuple(found)


def counts_of(text: str) -> tuple[int, ...]:
    """``1,2,4`` as numbers of units."""
    return whole_numbers(text, "--counts is numbers of units with commas between them, as 1,2,4")


def require_own(found: UnitGroups | UnitScores, model: HookedModel, what: str = "the classification") -> None:
    """A ValueError unless what --groups holds is of this model's shape."""
    from safecircuits.model.sites import ModelShape

    found.shape.require_same(ModelShape.of(model), f"{what} in --groups")
