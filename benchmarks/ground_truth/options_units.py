"""The open options of scores, groups and transfer, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import safecircuits as sc
from benchmarks.ground_truth.options_common import CALIBRATION, SHARES, Line, Setting, Subject
from safecircuits.organism import prompts
from safecircuits.units.groups import NORMALISATIONS
from safecircuits.units.removals import Removals


def score_lines(subjects: Sequence[Subject]) -> Iterable[Line]:
    """Options of scores and groups, on every subject."""
    ready = {subject.name: subject.scores() for subject in subjects}

    def line(
        option: str, argument: str, paper: str, values: dict[str, Callable[[Subject], dict[str, float | None]]]
    ) -> Line:
        """One option; its default is the first value."""
        first = next(iter(values))
        settings = []
        for value, measure in values.items():
            figures: dict[str, float | None] = {}
            for subject in subjects:
                figures |= measure(subject)
            settings.append(Setting(value, value == first, figures))
        return Line("units", option, argument, paper, tuple(settings))

    def ordered(normalize: Any = "none", **changes: Any) -> Callable[[Subject], dict[str, float | None]]:
        def measure(subject: Subject) -> dict[str, float | None]:
            scores = subject.scores(**changes) if changes else ready[subject.name]
            return subject.order(sc.classify_units(*scores, **SHARES, normalize=normalize))

        return measure

    def filled(by: int | None) -> Callable[[Subject], dict[str, float | None]]:
        def measure(subject: Subject) -> dict[str, float | None]:
            scores = ready[subject.name]
            removals = None if by is None else Removals(subject.model, to=scores[by].mean, **subject.sets)
            return subject.order(sc.classify_units(*scores, **SHARES), removals)

        return measure

    def cut(**changes: Any) -> Callable[[Subject], dict[str, float | None]]:
        return lambda subject: subject.cut(sc.classify_units(*ready[subject.name], **{**SHARES, **changes}))

    def detected(detector: str) -> Callable[[Subject], dict[str, float | None]]:
        return lambda subject: replace(
            subject, sets={**subject.sets, "detector": detector, "refusal_tokens": None}
        ).cut(sc.classify_units(*ready[subject.name], **SHARES))

    def causal(subject: Subject) -> dict[str, float | None]:
        normal = prompts("normal", "train", CALIBRATION)
        malicious = prompts("malicious", "train", CALIBRATION)
        found = sc.score_units(subject.model, malicious, method="attribution", reference=normal)
        return subject.cut(sc.classify_units(*ready[subject.name], **SHARES, scu_by=found))

    def by_sets(subject: Subject) -> dict[str, float | None]:
        return subject.cut(sc.set_difference(*ready[subject.name], p=0.05, result=SHARES["scu"]))

    yield line(
        "normalisation",
        "classify_units(normalize=)",
        "not said; scores of layers differ by orders of magnitude",
        {name: ordered(normalize=name) for name in NORMALISATIONS},
    )
    yield line(
        "tokens",
        "score_units(tokens=)",
        "not said; Wei et al.: response",
        {"all": ordered()} | {name: ordered(tokens=name) for name in ("response", "prompt")},
    )
    yield line(
        "sites",
        "score_units(sites=)",
        "not said whether heads shrink alike",
        {"both": ordered(), "neurons": ordered(sites=("mlp",)), "heads": ordered(sites=("attn",))},
    )
    yield line(
        "utility data",
        "classify_units(utility)",
        "simple questions; filtered Alpaca inferred",
        {"questions with one answer": ordered(), "open requests": ordered(utility="normal")},
    )
    yield line(
        "calibration prompts",
        "score_units(data)",
        "not said; Wei et al.: 128",
        {str(CALIBRATION): ordered()} | {str(n): ordered(n=n) for n in (16, 32, 64, 256)},
    )
    yield line(
        "which calibration prompts",
        "calibration_subsets(seed=)",
        "no sensitivity shown",
        {"seed 0": ordered()} | {f"seed {seed}": ordered(seed=seed) for seed in (1, 2)},
    )
    yield line(
        "removal",
        "ablate_units(to=)",
        "structured pruning; bias compensation is FLAP's",
        {"zero": filled(None), "mean on utility data": filled(1), "mean on safety data": filled(0)},
    )
    yield line(
        "shares count",
        "classify_units(share_of=)",
        "not said",
        {"units": cut(), "parameters": cut(share_of="parameters")},
    )
    yield line(
        "share of SCU",
        "classify_units(scu=)",
        "1.3 to 2 %, by a sweep",
        {f"{100 * share:g} %": cut(scu=share) for share in (0.013, 0.005, 0.03, 0.06, 0.12)},
    )
    yield line(
        "refusals by",
        "evaluate(detector=)",
        "keywords; Qi et al.'s list inferred",
        {"opening": cut()} | {name: detected(name) for name in ("qi2023", "wei2024", "jailbreakbench")},
    )
    yield line(
        "rule",
        "classify_units(scu_by=), set_difference",
        "S − U; Wei et al.: set difference",
        {"S − U": cut(), "set difference": by_sets, "attribution": causal},
    )


def transfer_lines() -> Iterable[Line]:
    """What is left out of the flows from base to aligned."""
    base, aligned = (sc.load_model(name) for name in ("base", "aligned"))
    safety, utility = (prompts(kind, "train", CALIBRATION) for kind in ("malicious", "utility"))
    found = sc.units.attribute_transfer(base, aligned, safety, utility, **SHARES)
    settings = []
    for threshold in (0.001, 0.0, 0.01):
        drawn, dropped = found.flows(threshold)
        figures: dict[str, float | None] = {"flows drawn": len(drawn), "dropped": sum(f.share for f in dropped)}
        settings.append(Setting(f"{100 * threshold:g} %", threshold == 0.001, figures))
    yield Line("transfer", "flows dropped under", "AttributeTransfer.flows(threshold=)", "0.1 %", tuple(settings))
