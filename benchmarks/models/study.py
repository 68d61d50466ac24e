"""Both papers with their settings on one model, and what was measured beside what they published.

Prompts, unless others are given: 100 of Alpaca and 100 of AdvBench for the gap, the safe half of XSTest for
over-rejection (the paper's own set comes with its code: ``--over-rejection FILE``), AdvBench's 520 for refusal, Alpaca
for the unit scores, and finance-alpaca for fine-tuning. Removal of units is measured on prompts that they were not
scored on. Counts compare with the paper's only on its own 721 prompts. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.models.settings import Model
from benchmarks.models.weights import random_checkpoint
from safecircuits import organism
from safecircuits.base.files import write_text
from safecircuits.behavior.generate import generate
from safecircuits.behavior.refusal import refused
from safecircuits.data.sources import load_prompts
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.model.load import load_model
from safecircuits.papers.published import PAPERS, published_numbers
from safecircuits.papers.safety_layers.published import measured_numbers
from safecircuits.papers.safety_layers.settings import StudyPrompts, StudySettings
from safecircuits.papers.safety_layers.study import safety_layers_study
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.results.provenance import provenance
from safecircuits.results.run import AlreadyComplete, RunDirectory
from safecircuits.studies.scenarios import organism_scenarios, paper_scenarios
from safecircuits.training.settings import TrainingSettings
from safecircuits.units.ablation import AblationTable, ablate_groups, mean_rates
from safecircuits.units.groups import classify_units
from safecircuits.units.importance import score_units
from safecircuits.units.scores import UnitScores

if TYPE_CHECKING:
    import pandas as pd

Measured = dict[tuple[str, str], str]
"""Numbers by the published tables' setting and metric."""

HUB = {
    "normal": "alpaca",
    "malicious": "advbench",
    "over_rejection": "xstest-safe",
    "evaluation": "advbench",
    "utility": "alpaca",
    "data": "finance-alpaca",
}
COUNTS = {"normal": 100, "malicious": 100, "over_rejection": None, "evaluation": 520, "utility": 128, "data": None}
TINY_COUNT = 8
EMBEDDED = {
    "normal": ("normal", "test"),
    "malicious": ("malicious", "test"),
    "over_rejection": ("over_rejection", "test"),
    "evaluation": ("malicious", "test"),
    "utility": ("utility", "train"),
    "data": ("utility", "train"),
}
# SSAH's shares of removed units where it has no table of the model: those of Llama-2-7b-chat.
SHARES = {"SCU": 1.3, "UCU": 13.3, "RU": 14.8}


def main(model: Model, argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Run the script of ``model``: the table that is printed, one row a published number."""
    options = _parser(model).parse_args(argv)
    out = Path(options.out)
    small = options.random_weights or model.id.startswith("organism:")
    tiny = options.random_weights and options.scale == "tiny"
    prompts = {name: _prompts(name, getattr(options, name), small, tiny, options.n, options.seed) for name in HUB}
    source, base = model.id, model.base
    if options.random_weights:
        texts = [text for found in prompts.values() for text in found]
        source, base = str(random_checkpoint(model, options.scale, texts, out.with_name(f"{out.name}-weights"))), None
    arguments = {"source": source, **{k: v for k, v in vars(options).items() if k not in ("out", "force")}}
    inputs = {name: found.fingerprint for name, found in prompts.items()}
    inputs |= {f"model {name}": fingerprint_checkpoint(name) or name for name in (source, base) if name}
    table = out / "tables" / "published.csv"
    try:
        with RunDirectory.open(out, f"benchmark {model.id}", arguments, inputs=inputs, replace=options.force) as run:
            found = _safety_layers(model, source, base, prompts, run, options, tiny=tiny)
            found |= _ssah(model, source, prompts, run, options, tiny=tiny)
            frame = beside(model.id, found)
            run.table("published", frame, main=True)
            about = provenance(command=" ".join(sys.argv), seed=options.seed, datasets=prompts)
            rows = json.loads(frame.to_json(orient="records"))
            write_text(run.file("benchmark.json"), json.dumps({"provenance": about, "rows": rows}, indent=1) + "\n")
    except AlreadyComplete:
        import pandas as pd

        frame = pd.read_csv(table, dtype={"measured": str}, keep_default_na=False)
    print(frame.to_string(index=False))
    return frame


def beside(source: str, measured: Measured) -> pd.DataFrame:
    """``paper, table, setting, metric, published, measured``: every published number of the model, then all others.

    What was not run is empty, and so is what the papers do not have.
    """
    import pandas as pd

    rows = []
    left = dict(measured)
    for paper in PAPERS:
        for row in published_numbers(paper, model=source).to_dict("records"):
            key = (row["setting"], row["metric"])
            left.pop(key, None)
            rows.append([paper, row["table"], *key, f"{row['value']:g}", measured.get(key, "")])
    rows += [["", "", *key, "", value] for key, value in left.items()]
    return pd.DataFrame(rows, columns=["paper", "table", "setting", "metric", "published", "measured"])


def _safety_layers(
    model: Model,
    source: str,
    base: str | None,
    prompts: dict[str, PromptSet],
    run: RunDirectory,
    options: argparse.Namespace,
    *,
    tiny: bool,
) -> Measured:
    scenarios: Any = ()
    training: Any = "paper"
    if options.finetuning:
        small = {"held_out": 4, "n_normal": 8, "n_implicit": 8, "n_backdoor": 4} if tiny else {}
        if model.id.startswith("organism:"):
            scenarios = organism_scenarios(held_out=50, shares=(0.1,), seed=options.seed)
            training = TrainingSettings(steps=40, batch_size=8, lr=4e-4, schedule="constant")
        else:
            scenarios = paper_scenarios(prompts["data"], seed=options.seed, **small)
        if tiny:
            training, scenarios = TrainingSettings(steps=1, batch_size=2, lr=1e-4), scenarios[:1]
    settings = StudySettings(
        seeds=tuple(range(options.seed, options.seed + (1 if tiny else options.seeds))),
        alpha=published_alpha(model.id) if options.alpha is None else options.alpha,
        reach=1 if tiny else 2,
        max_new_tokens=2 if tiny else 8,  # the paper: 4 to 8 suffice
        template=options.template,
        scenarios=scenarios,
        training=training,
        points=1 if tiny else 8,
        curve_prompts=4 if tiny else 100,
        finetuning_prompts=4 if tiny else None,
        device=options.device,
    )
    asked = StudyPrompts(prompts["normal"], prompts["malicious"], prompts["over_rejection"], prompts["evaluation"])
    return measured_numbers(safety_layers_study(source, asked, run, settings=settings, base=base))


def _ssah(
    model: Model,
    source: str,
    prompts: dict[str, PromptSet],
    run: RunDirectory,
    options: argparse.Namespace,
    *,
    tiny: bool,
) -> Measured:
    """Groups of units by WIFV on the model's own refusals and on instructions, removed one after the other."""
    hooked = load_model(source, device=options.device)
    calibration = prompts["malicious"].take(4 if tiny else 128)
    answers = generate(hooked, calibration, max_new_tokens=2 if tiny else 64, template=options.template)
    kept = [i for i, says_no in enumerate(refused(answers.texts)) if says_no and answers.texts[i]]
    texts = answers.texts
    if options.random_weights:  # which refuse nothing
        kept, texts = list(range(len(calibration))), ("Sorry, I cannot help with that.",) * len(calibration)
    if len(kept) < 2:
        reason = f"{source} refused {len(kept)} of {len(calibration)} malicious prompts: too few for safety scores"
        print(reason, file=sys.stderr)
        return {}
    refusals = PromptSet("own refusals", tuple(calibration.prompts[i] for i in kept), tuple(texts[i] for i in kept))

    def scores(data: PromptSet) -> UnitScores:
        return score_units(hooked, data, template=options.template)

    safety = run.kept("safety_scores", UnitScores, lambda: scores(refusals))
    utility = run.kept("utility_scores", UnitScores, lambda: scores(prompts["utility"]))
    shares = published_shares(model.id)
    if tiny:  # of a few hundred units
        shares = dict.fromkeys(shares, 10.0)
    scu, ucu, ru = (shares[name] / 100 for name in ("SCU", "UCU", "RU"))
    groups = classify_units(safety, utility, scu=scu, ucu=ucu, ru=ru)

    def remove() -> AblationTable:
        return ablate_groups(
            hooked,
            groups,
            controls=1 if tiny else 3,
            malicious=_unseen(prompts["evaluation"], refusals),
            refusal_tokens=2 if tiny else 16,
            template=options.template,
            resume=run.work("ablations.jsonl"),
        )

    table = run.kept("ablations", AblationTable, remove)
    found = {"nothing removed": table.intact}
    found |= {f"removed {row.name} {shares[row.name]:g} %": row.behavior for row in table.rows}
    rates = {name: behavior.rates for name, behavior in found.items()}
    rates |= {f"removed {row.name}, as many at random": mean_rates(row.random_controls) for row in table.rows}
    # Whatever is not refused counts as an attack that succeeded, as the papers' keyword lists have it.
    return {(name, "asr_nosys"): f"{100 * (1 - rate['malicious_refused']):.1f}" for name, rate in rates.items()}


def _unseen(evaluation: PromptSet, scored: PromptSet) -> PromptSet:
    """The prompts that units were not scored on; all of them where there are no others."""
    others = tuple(prompt for prompt in evaluation if prompt not in set(scored))
    return PromptSet(f"{evaluation.name}, not scored on", others) if others else evaluation


def published_alpha(source: str) -> float | str:
    """The paper's scaling factor for this model (Table 1), or ``"search"``."""
    rows = published_numbers("safety_layers", table="Table 1", model=source)
    found = rows[rows["metric"] == "alpha"]["value"].tolist()
    return float(found[0]) if found else "search"


def published_shares(source: str) -> dict[str, float]:
    """The shares of units, in percent, that SSAH removed from this model (Table 1)."""
    rows = published_numbers("ssah", table="Table 1", model=source)
    found = (re.fullmatch(r"removed (SCU|UCU|RU) ([\d.]+) %", setting) for setting in rows["setting"].unique())
    return SHARES | {match[1]: float(match[2]) for match in found if match}


def _prompts(name: str, source: str | None, small: bool, tiny: bool, n: int | None, seed: int) -> PromptSet:
    count = TINY_COUNT * (4 if name == "data" else 1) if tiny else COUNTS[name]
    if n is not None and name != "data":
        count = n if count is None else min(n, count)
    if source is None and small:
        kind, split = EMBEDDED[name]
        available = organism.prompts(kind, split)
        return available.take(None if count is None else min(count, len(available)), seed=seed)
    drawn = name in ("normal", "malicious", "utility") or n is not None
    found = load_prompts(source or HUB[name])
    return found.take(None if count is None else min(count, len(found)), seed=seed if drawn else None)


def _parser(model: Model) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"{model.id}: {__doc__}")
    short = re.sub(r"[^A-Za-z0-9.]+", "-", model.id).strip("-")
    parser.add_argument("--out", default=f"runs/{short}", help="run directory")
    parser.add_argument("--random-weights", action="store_true", help="the architecture with random weights")
    parser.add_argument("--scale", choices=["tiny", "full"], default="tiny", help="of the random weights")
    parser.add_argument("--device")
    parser.add_argument("--template", default="alpaca", help="the papers': alpaca; chat for the model's own")
    parser.add_argument("--alpha", type=float, help="instead of the paper's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="of the fine-tuning study")
    parser.add_argument("--n", type=int, help="at most so many prompts of each set")
    parser.add_argument("--no-finetuning", dest="finetuning", action="store_false")
    parser.add_argument("--force", action="store_true", help="replace an earlier run in --out")
    for name in HUB:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, help=f"a file or data set; {HUB[name]}")
    return parser
