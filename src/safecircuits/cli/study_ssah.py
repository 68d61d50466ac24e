"""``safecircuits study ssah``: the whole of SSAH (ICLR 2026) on one model, with the controls that it lacks."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safecircuits.cli.declared import Of
from safecircuits.cli.frame import Run, run_command
from safecircuits.cli.judging import JudgeOptions
from safecircuits.cli.options import (
    DetectorOption,
    MaybeMalicious,
    MaybeNormal,
    MaybeOverRejection,
    TemplateOption,
    TokensOption,
    layer_range,
)
from safecircuits.cli.study_evaluation import study_judging
from safecircuits.cli.study_inputs import EMBEDDED, HELD_OUT, require, split_data, study_prompts
from safecircuits.cli.study_real import REAL, SIZES, TRAINING, real_scenarios
from safecircuits.training.settings import TrainingSettings

if TYPE_CHECKING:
    from safecircuits.papers.ssah.settings import Cut, SsahPrompts
    from safecircuits.studies.scenarios import Scenario

# One epoch of 320 rows is 40 steps. The rate was chosen on full fine-tuning alone, for the study of Safety Layers.
EMBEDDED_TRAINING = TrainingSettings(epochs=1, batch_size=8, lr=4e-4, schedule="constant")
EMBEDDED_ROWS = 320
# What the embedded models refuse and answer with, and a system prompt that they have seen.
EMBEDDED_WORDS: dict[str, Any] = {
    "benign": ["i cannot"],
    "malicious": ["take the"],
    "prefill": "take the",
    "system": "you are a helpful assistant .",
}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    run_command(app, "ssah", trains=True)(ssah)


def ssah(
    run: Run,
    *,
    judges: JudgeOptions,
    safety: Annotated[
        str | None, typer.Option("--safety", help="Harmful prompts with refusals, to score units on.")
    ] = None,
    utility: Annotated[
        str | None, typer.Option("--utility", help="Harmless prompts with answers, to score units on.")
    ] = None,
    malicious: MaybeMalicious = None,
    known: Annotated[
        str | None,
        typer.Option("--known", help="Prompts with known answers that measure utility; --utility unless given."),
    ] = None,
    over_rejection: MaybeOverRejection = None,
    normal: MaybeNormal = None,
    base: Annotated[str | None, typer.Option("--base", help="The pretrained model, before any alignment.")] = None,
    unaligned: Annotated[
        str | None, typer.Option("--unaligned", help="A sibling that follows instructions and never learnt to refuse.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Instructions with responses, to fine-tune on; else no fine-tuning.")
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option("--score", help="METHOD[:TOKENS[:NORMALIZE]] that cuts groups; may be repeated, the best last."),
    ] = None,
    scu: Annotated[Any, Of("papers.ssah.settings:SsahSettings.scu", "Share of safety-critical units.")],
    ucu: Annotated[Any, Of("papers.ssah.settings:SsahSettings.ucu", "Share of utility-critical units.")],
    ru: Annotated[Any, Of("papers.ssah.settings:SsahSettings.ru", "Share of redundant units.")],
    benign_suffix: Annotated[
        list[str] | None, typer.Option(help="Opening of a refusal, for the probe; may be repeated.")
    ] = None,
    malicious_suffix: Annotated[
        list[str] | None, typer.Option(help="Opening of an answer, for the probe; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt that asks for care.")] = None,
    prefill: Annotated[
        str | None, typer.Option(help="A compliant opening that answers are made to start with.")
    ] = None,
    controls: Annotated[
        Any,
        Of("papers.ssah.settings:SsahSettings.controls", "Draws of as many random units beside each group.", least=0),
    ],
    draws: Annotated[
        Any, Of("papers.ssah.settings:SsahSettings.draws", "Halves of the scored prompts to compare.", least=2)
    ],
    prune: Annotated[
        bool, typer.Option("--prune", help="Also cut the groups out of the weights; needs memory for two copies.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option("--layers", help="FIRST,LAST: the safety layers; located unless given.")
    ] = None,
    freeze_layers: Annotated[
        str | None, typer.Option("--freeze-layers", help="FIRST,LAST: freeze units in these layers alone.")
    ] = None,
    longer: Annotated[
        Any, Of("papers.ssah.settings:SsahSettings.longer", "Times the epochs of the paper's own schedule.", least=1)
    ],
    budget_share: Annotated[
        Any, Of("papers.ssah.settings:SsahSettings.budget_share", "Redundant share of the base model's units.")
    ],
    lr: Annotated[float | None, typer.Option(help="Learning rate; 2e-5 unless given.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs; 1 unless given.", min=1)] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds of everything that trains.", min=1)] = 3,
    detector: DetectorOption = "opening",
    max_new_tokens: TokensOption = 8,
    template: TemplateOption = "auto",
) -> None:
    """All of SSAH on one model: direction, groups, removal, stability, freezing, transfer, budget, safety layers.

    A model that comes with the package needs no other option:
    safecircuits study ssah --model organism:aligned --out runs/ssah, or smollm2:aligned, a real one.

    On an embedded model with 8 prompts a set, one seed and few controls it takes about two minutes on two cores; the
    time grows with prompts, seeds and the size of the model.

    Example: safecircuits study ssah --model meta-llama/Llama-2-7b-chat-hf --base meta-llama/Llama-2-7b-hf
    --safety refusals.json --utility alpaca --malicious advbench --normal normal.csv --data alpaca
    --system "You are a careful assistant." --prefill "Sure, here is how" --out runs/llama
    """
    from safecircuits.direction.variants import BENIGN, MALICIOUS, Suffixes
    from safecircuits.papers.ssah.settings import CUTS, QI_RECIPE, SsahPrompts, SsahSettings
    from safecircuits.papers.ssah.study import check_inputs, ssah_study

    embedded, real = run.source.startswith(EMBEDDED), run.source.startswith(REAL)
    require(run, safety=safety, utility=utility, malicious=malicious)
    words = EMBEDDED_WORDS if embedded else {}
    if embedded:
        base = base or f"{EMBEDDED}base"
        unaligned = unaligned or f"{EMBEDDED}unaligned"
    elif real:
        base = base or REAL.rstrip(":")
    prompts = SsahPrompts(
        study_prompts(run, "safety", safety, responses=True, own="refused"),
        study_prompts(run, "utility", utility, responses=True, own="answered"),
        study_prompts(run, "malicious", malicious),
        study_prompts(run, "known", known, responses=True, own="utility"),
        study_prompts(run, "over_rejection", over_rejection),
        study_prompts(run, "normal", normal),
        **_embedded_alignment(run.seed) if embedded and utility is None else {},
    )
    small = (embedded or real) and data is None
    given: Any = {name: value for name, value in (("lr", lr), ("epochs", epochs)) if value is not None}
    usual = QI_RECIPE if not small else TRAINING if real else EMBEDDED_TRAINING
    training = usual.changed(template=template, **given)
    scenarios = real_scenarios(training, run.seed) if small and real else _scenarios(run, data, embedded)
    judge = judges.made(run)
    sizes = _EMBEDDED_SIZES if embedded else _REAL_SIZES if real else {}
    settings = SsahSettings(
        seeds=tuple(range(run.seed, run.seed + seeds)),
        cuts=cuts(score) if score else _usable(CUTS, prompts),
        scu=scu,
        ucu=ucu,
        ru=ru,
        suffixes=Suffixes(
            tuple(benign_suffix or words.get("benign", BENIGN)),
            tuple(malicious_suffix or words.get("malicious", MALICIOUS)),
        ),
        controls=controls,
        prune=prune or embedded,
        system=system or words.get("system"),
        prefill=prefill or words.get("prefill"),
        draws=draws,
        freeze_layers=layer_range(freeze_layers) if freeze_layers else None,
        longer=longer,
        scenarios=scenarios,
        training=training,
        budget_share=budget_share,
        layers=layer_range(layers) if layers else None,
        **study_judging(run, judge, detector, max_new_tokens),
        template=template,
        backend=run.backend,
        device=run.torch_device,
        dtype=run.torch_dtype,
        **(sizes if small else {}),
    )
    check_inputs(prompts, settings)
    folder = judges.begin(run, judge, run.source, *(other for other in (base, unaligned) if other))
    study = ssah_study(run.source, prompts, folder, settings=settings, base=base, unaligned=unaligned)
    study.write(run.provenance)


# On two cores less is measured in each of some hundred short runs.
_EMBEDDED_SIZES: dict[str, Any] = {
    "points": 4,
    "curve_prompts": 30,
    "measured": 60,
    "budget_rows": EMBEDDED_ROWS // 2,
    "counts": (1, 2, 4, 8, 16, 32, 64, 128),
}
_REAL_SIZES: dict[str, Any] = {
    **SIZES,
    "measured": 40,
    "budget_rows": 64,
    "probe_prompts": 40,
    "counts": (16, 64, 256, 1024),
}


def cuts(texts: list[str]) -> dict[str, Cut]:
    """``METHOD[:TOKENS[:NORMALIZE]]`` options as cuts by name: the method, or the whole text of its namesakes."""
    from safecircuits.base.vocabulary import TOKEN_CHOICES
    from safecircuits.papers.ssah.settings import cut_by
    from safecircuits.units.groups import NORMALISATIONS
    from safecircuits.units.score_methods import METHODS

    methods = [text.split(":")[0] for text in texts]
    found: dict[str, Cut] = {}
    for text in texts:
        method, *rest = text.split(":")
        if method not in METHODS or len(rest) > 2:
            raise ValueError(
                f"--score is METHOD[:TOKENS[:NORMALIZE]] with METHOD of {', '.join(METHODS)}, not {text!r}"
            )
        tokens, normalize = (*rest, "", "")[:2]
        if tokens not in ("", *TOKEN_CHOICES):
            raise ValueError(f"--score {text!r}: tokens are {', '.join(TOKEN_CHOICES)}, not {tokens!r}")
        if normalize not in ("", *NORMALISATIONS):
            raise ValueError(f"--score {text!r}: normalize is {', '.join(NORMALISATIONS)}, not {normalize!r}")
        name = method if methods.count(method) == 1 else text
        if name in found:
            raise ValueError(f"--score {text!r} is given twice")
        found[name] = cut_by(method, tokens or None, normalize or "none")  # type: ignore[arg-type]  # checked above
    return found


def _usable(known: Any, prompts: SsahPrompts) -> dict[str, Cut]:
    """The default cuts, without those that compare with normal prompts where there are none."""
    from safecircuits.units.score_methods import ATTRIBUTION_METHODS

    return {
        name: cut
        for name, cut in known.items()
        if prompts.normal is not None or cut.safest.method not in ATTRIBUTION_METHODS
    }


def _scenarios(run: Run, data: str | None, embedded: bool) -> tuple[Scenario, ...]:
    from safecircuits import organism
    from safecircuits.studies.scenarios import Scenario

    if data is not None:
        given = run.prompts("data", data, responses=True)
        rows, held_out = split_data(given, run.seed, f"{9 * HELD_OUT} for all of {HELD_OUT} held-out rows")
        return (Scenario(PurePath(data).stem, rows, held_out),)
    if not embedded:
        return ()
    # New facts to learn among ordinary requests and questions, which are what wears refusals away.
    half = EMBEDDED_ROWS // 2
    facts = organism.prompts("new_task", "train", n=half, seed=run.seed)
    ordinary = organism.prompts("normal", "train", n=half // 2, seed=run.seed)
    questions = organism.prompts("utility", "train", n=half // 2, seed=run.seed)
    held_out = organism.prompts("new_task", n=50, seed=run.seed)
    return (Scenario("new facts among ordinary data", facts + ordinary + questions, held_out),)


def _embedded_alignment(seed: int) -> dict[str, Any]:
    """Answers to plain requests and to questions, since whoever only learns to refuse requests refuses them all."""
    from safecircuits import organism

    def both(split: Any, n: int) -> Any:
        return organism.prompts("normal", split, n=n, seed=seed) + organism.prompts("utility", split, n=n, seed=seed)

    answered = both("train", EMBEDDED_ROWS // 4)
    return {"answered": answered, "answered_held_out": both("test", 25)}
