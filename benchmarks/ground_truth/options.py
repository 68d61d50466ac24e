"""What each detail that SSAH leaves open does to the result, one line an option, on models whose answer is known.

    python -m benchmarks.ground_truth.options --out docs/ssah_options.json --page docs/ssah_options.md

All options but one are at their defaults in each setting. Prints the page, and writes it with ``--page``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safecircuits as sc
from benchmarks.ground_truth.direction import BENIGN, MALICIOUS
from benchmarks.ground_truth.options_page import render
from benchmarks.ground_truth.units import planted_units
from safecircuits.files import write_text
from safecircuits.hooks.ablate import Units
from safecircuits.organism import prompts
from safecircuits.progress import track
from safecircuits.provenance import provenance
from safecircuits.sites import HookedModel
from safecircuits.studies.arms import Arm, full
from safecircuits.studies.scenarios import organism_new_task
from safecircuits.studies.ssah_arms import as_many_random, rewound_arm, scu_all_cu, scu_top_cu
from safecircuits.units.groups import NORMALISATIONS
from safecircuits.units.removals import Removals
from safecircuits.units.selection import count_units

MODELS = ("aligned", "planted-units")
COUNTS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
SHARES: dict[str, Any] = {"scu": 0.013, "ucu": 0.133, "ru": 0.148}
"""SSAH's for Llama-2-7b-chat."""
CALIBRATION = 128
STEPS = (2, 4, 6, 8, 10)


@dataclass(frozen=True)
class Setting:
    """One value of an option and what came of it, by figure; of a model's figures the model's name comes first."""

    value: str
    default: bool
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Line:
    """An option of ours, what the paper says about it, and its settings."""

    topic: str
    option: str
    argument: str
    paper: str
    settings: tuple[Setting, ...]


# --- the reasoning direction -------------------------------------------------------------------------------------

PROBE: tuple[tuple[str, str, str, tuple[tuple[str, dict[str, Any]], ...]], ...] = (
    ("state", "probe_direction(pool=)", "not said", (("last", {}), ("mean", {"pool": "mean"}))),
    (
        "where the suffix goes",
        "Suffixes(where=)",
        "not said",
        (("answer", {}), ("prompt", {"suffixes": sc.Suffixes(BENIGN, MALICIOUS, "prompt")})),
    ),
    (
        "suffixes a side",
        "Suffixes(benign=, malicious=)",
        "one example a side",
        (
            ("two and one", {}),
            ("first of each", {"suffixes": sc.Suffixes(BENIGN[:1], MALICIOUS)}),
            ("second and first", {"suffixes": sc.Suffixes(BENIGN[1:], MALICIOUS)}),
        ),
    ),
    ("baseline", "probe_direction(baseline=)", "none; reviewers ask", (("none", {}), ("query", {"baseline": "query"}))),
    ("ended texts", "probe_direction(ended=)", "not said", (("hold", {}), ("omit", {"ended": "omit"}))),
)


def probe_lines(n: int) -> Iterable[Line]:
    """Blocks that lean as the model answers, and agreement of the verdict with the answer, after 2 to 10 tokens."""
    malicious = prompts("malicious", "test", n)
    stages = {name: sc.load_model(name) for name in ("aligned", "unaligned")}

    def probed(changes: dict[str, Any]) -> dict[str, sc.DirectionProbe]:
        options: dict[str, Any] = {"suffixes": sc.Suffixes(BENIGN, MALICIOUS), "steps": STEPS} | changes
        return {name: sc.probe_direction(model, malicious, **options) for name, model in stages.items()}

    def figures(probes: dict[str, sc.DirectionProbe], step: int = STEPS[-1]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name, probe in probes.items():
            gap = probe.gap(step)
            found[f"{name}: blocks to refusing"] = gap.leaning.count(1)
            found[f"{name}: blocks to answering"] = gap.leaning.count(-1)
            measured = bool(probe.measured(step=step).any())
            found[f"{name}: agreement"] = probe.agreement(step=step).rate if measured else None
        return found

    default = probed({})
    for option, argument, paper, values in PROBE:
        settings = [Setting(v, not change, figures(probed(change) if change else default)) for v, change in values]
        yield Line("probe", option, argument, paper, tuple(settings))
    settings = [Setting(str(step), step == STEPS[-1], figures(default, step)) for step in STEPS]
    yield Line("probe", "generated tokens", "probe_direction(steps=)", "2 to 10", tuple(settings))


# --- scores and groups -------------------------------------------------------------------------------------------


@dataclass
class Subject:
    """A model with its planted units, and removals that are measured once each."""

    name: str
    model: HookedModel
    planted: Units | None
    sets: dict[str, Any]

    def __post_init__(self) -> None:
        self.zeroing = Removals(self.model, **self.sets)

    def scores(self, **changes: Any) -> tuple[sc.UnitScores, sc.UnitScores]:
        """Safety and utility scores; ``utility``, ``n`` and ``seed`` choose the data, the rest is ``score_units``'."""
        n, seed, kind = changes.pop("n", CALIBRATION), changes.pop("seed", 0), changes.pop("utility", "utility")
        safety, utility = prompts("malicious", "train", n, seed), prompts(kind, "train", n, seed)
        return sc.score_units(self.model, safety, **changes), sc.score_units(self.model, utility, **changes)

    def order(self, groups: sc.UnitGroups, removals: Removals | None = None) -> dict[str, float | None]:
        """How many units of highest S − U must go until refusal is halved, and what is left of utility then."""
        n_units = sum(labels.numel() for labels in groups.labels.values())
        counts = [count for count in COUNTS if count <= n_units]
        found: dict[str, float | None] = halving(removals or self.zeroing, groups, counts)
        if self.planted:
            n = min(count_units(self.planted), n_units)
            hit = {(s, i, j) for s, rows in groups.top(n).items() for i, units in rows.items() for j in units}
            there = {(s, i, j) for s, rows in self.planted.items() for i, units in rows.items() for j in units}
            found["planted found"] = len(hit & there) / len(there)
        return {f"{self.name}: {key}": value for key, value in found.items()}

    def cut(self, groups: sc.UnitGroups) -> dict[str, float | None]:
        """Neurons and heads of SCU, and what the model does without them."""
        units = groups.members("SCU")
        rates = self.zeroing.without(units).rates
        names = {"mlp": "SCU neurons", "attn": "SCU heads"}
        found = {names[site]: float(count_units({site: rows})) for site, rows in units.items()}
        found |= {"refused": rates["malicious_refused"], "utility": rates["utility"]}
        return {f"{self.name}: {key}": value for key, value in found.items()}


def halving(removals: Any, groups: Any, counts: Sequence[int] = COUNTS) -> dict[str, float | None]:
    """The first count whose removal leaves at most half of the refusals, with the utility left; None if none does."""
    enough = removals.intact.rates["malicious_refused"] / 2
    for count in counts:
        rates = removals.without(groups.top(count)).rates
        if rates["malicious_refused"] <= enough:
            return {"units": count, "utility": rates["utility"]}
    return {"units": None, "utility": None}


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
        {name: ordered(tokens=name) if name != "response" else ordered() for name in ("response", "prompt", "all")},
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
        "rule",
        "classify_units or set_difference",
        "S − U; Wei et al.: set difference",
        {"S − U": cut(), "set difference": by_sets},
    )


# --- freezing ----------------------------------------------------------------------------------------------------


def freezing_lines(subject: Subject, steps: int, n: int) -> Iterable[Line]:
    """Options of freezing in fine-tuning, on the first subject: one study, an arm a setting."""
    groups = sc.classify_units(*subject.scores(), **SHARES)
    top = scu_top_cu(groups)
    arms: dict[str, Arm] = {
        "full": full(),
        "top": top,
        "random": as_many_random(top),
        "total": scu_top_cu(groups, by="total"),
        "of CU": scu_top_cu(groups, of="CU"),
        "all CU": scu_all_cu(groups),
        "longer": scu_top_cu(groups, longer=2),
        "phases": scu_top_cu(groups, longer=2, phases=True),
        "block": scu_top_cu(groups, layers=(0, 2)),
        "rewound": rewound_arm(top),
    }
    study = sc.finetuning_study(
        subject.model,
        [organism_new_task(n)],
        [replace(arm, name=name) for name, arm in arms.items()],
        malicious=subject.sets["malicious"],
        seeds=(0,),
        settings={"steps": steps, "batch_size": 16, "lr": 6e-4},
        points=1,
        evaluation={"refusal_tokens": 4, "max_new_tokens": 8},
    )
    runs = {run.arm: run for run in study.runs}

    def setting(value: str, arm: str, default: bool) -> Setting:
        run = runs[arm]
        figures: dict[str, float | None] = {
            "refused": run.figures["malicious_refused"],
            "task loss": run.figures["task_loss"],
            "frozen parameters": run.share_frozen,
        }
        return Setting(value, default, figures)

    def line(option: str, argument: str, paper: str, values: dict[str, str]) -> Line:
        settings = [setting(value, arm, i == 0) for i, (value, arm) in enumerate(values.items())]
        return Line("freezing", option, argument, paper, tuple(settings))

    six = "SCU + 6 % CU"
    yield line(
        "what is frozen",
        "scu_top_cu, scu_all_cu",
        "both; no control",
        {six: "top", "SCU + all CU": "all CU", "as many random": "random", "nothing": "full"},
    )
    yield line("top CU by", "scu_top_cu(by=)", "not said", {"S − U": "top", "S + U": "total"})
    yield line("6 % of", "scu_top_cu(of=)", "its sums fit all units", {"all units": "top", "CU": "of CU"})
    yield line("epochs of frozen runs", "scu_top_cu(longer=)", "doubled", {"as many": "top", "doubled": "longer"})
    yield line(
        "phases",
        "scu_top_cu(phases=)",
        "one epoch of all CU first",
        {"one, doubled": "longer", "two, doubled": "phases"},
    )
    yield line("layers", "scu_top_cu(layers=)", "all; Llama-3: first 12 of 32", {"all 8": "top", "first 3": "block"})
    yield line(
        "when", "rewound_arm(arm)", "in training; Wei et al.: after", {"frozen": "top", "put back after": "rewound"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON of all settings")
    parser.add_argument("--page", type=Path, help="write the page here, too")
    parser.add_argument("--prompts", type=int, default=40, help="malicious and utility test prompts each")
    parser.add_argument("--steps", type=int, default=60, help="of each fine-tuning run")
    arguments = parser.parse_args()
    began, n = time.perf_counter(), arguments.prompts
    malicious, utility = prompts("malicious", "test", n), prompts("utility", "test", n)
    sets = {"malicious": malicious, "utility": utility, "refusal_tokens": 4, "max_new_tokens": 16}
    subjects = [Subject(name, sc.load_model(name), planted_units(name), sets) for name in MODELS]
    parts = (probe_lines(n // 2), score_lines(subjects), freezing_lines(subjects[0], arguments.steps, n))
    lines = [asdict(line) for part in parts for line in track(part, "options", total=None)]
    record = {
        "provenance": provenance(
            command="benchmarks.ground_truth.options",
            datasets={"malicious": malicious, "utility": utility},
            calibration=CALIBRATION,
            steps=arguments.steps,
            probe_prompts=n // 2,
            seconds=round(time.perf_counter() - began),
        ),
        "models": {
            s.name: {"intact": s.zeroing.intact.rates, "planted": count_units(s.planted or {})} for s in subjects
        },
        "lines": lines,
    }
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")
    page = render(record)
    if arguments.page is not None:
        write_text(arguments.page, page)
    print(page)


if __name__ == "__main__":
    main()
