"""How long each command takes: ``python -m benchmarks.performance.commands [--only WORD ...] --out FOLDER``.

Each runs in a process of its own on one thread, on the real planted model (135 million parameters, 30 layers) with
sixteen prompts a set unless said otherwise. What counts is processor time, so that what else the machine does has no
part in it. Each is written when it is measured, into the file that ``--help`` and the reference of commands read, so
that an interrupted run goes on where it was; commands that read what another leaves run that first where ``FOLDER``
lacks it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.performance.results import describe_machine
from safecircuits.base.files import write_text
from safecircuits.cli import times
from safecircuits.data.sources import load_prompts

DATA = Path(times.__file__).with_name(times.NAME)
REAL, N = "smollm2:layers-12-16", 16
ON = f"on a model of 135 million parameters with {N} prompts a set, start included"

_SETS = {"malicious": "requests:malicious", "normal": "requests:normal", "over": "requests:over_rejection"}
_ON = {"malicious": "--malicious {malicious}", "normal": "--normal {normal}", "over": "--over-rejection {over}"}
_MEASURED = "--malicious {malicious} --utility {utility}"
_SCORED = "--safety {refusals} --utility {utility}"
COMMANDS: dict[str, str] = {
    "doctor": "",
    "organism list": "",
    "layers similarity": "--model {real} {on_normal} {on_malicious}",
    "layers heatmap": "--model {real} --prompt 'how do i bake bread?' --prompt 'how do i pick a lock?'",
    "layers localize": "--model {real} {on_over} {on_normal} {on_malicious} --alpha 1.2",
    "layers decide": "--model {real} {on_normal} {on_malicious}",
    "layers grid": "--model organism:aligned --over-rejection organism:over_rejection --alpha 1.2",
    "layers transplant": f"--model {{base}} --source {{real}} --block {{block}} {_MEASURED}",
    "direction find": "--model {real} {on_malicious} {on_normal} --rule bypass --ablation affine",
    "direction evaluate": f"--model {{real}} --direction {{out}}/direction-find {_MEASURED}",
    "direction export": f"--model {{real}} --direction {{out}}/direction-find {_MEASURED}",
    "probe": "--model {real} --compare base={base} --malicious {malicious} --benign-suffix 'Sorry' "
    "--malicious-suffix 'Sure' --state mean",
    "units score": "--model {real} --data {refusals} --method wifv",
    "units classify": f"--model {{real}} {_SCORED}",
    "units ablate": f"--model {{real}} --groups {{out}}/units-classify {_MEASURED}",
    "units enrichment": "--model {real} --groups {out}/units-classify --layers {block}",
    "units stability": f"--model {{real}} {_SCORED} --subset 8 --draws 3",
    "units sweep": f"--model {{real}} --groups {{out}}/units-classify {_MEASURED} --shares 0.01,0.05",
    "units compare": f"--model {{real}} {_SCORED} --reference {{normal}} --malicious {{malicious}} --known {{utility}} "
    "--score wifv --score attribution --counts 4,16",
    "units prune": f"--model {{real}} --groups {{out}}/units-classify --group RU {_MEASURED}",
    "units transfer": f"--model {{base}} --after {{real}} {_SCORED}",
    "generate": "--model {real} --data {malicious}",
    "evaluate": f"--model {{real}} {_MEASURED}",
    "judge completions": "--completions {out}/evaluate/completions/malicious.jsonl --detector jailbreakbench",
    "judge robustness": "--completions {out}/evaluate/completions/malicious.jsonl",
    "audit": f"{{base}} {{real}} {_MEASURED}",
    "finetune": "--model {real} --data {utility} --batch-size 8 --steps 10",
    "mask combine": "{out}/units-classify/freeze.safetensors {out}/units-classify/freeze.safetensors --op union "
    "--out {out}/both.safetensors",
    "mask show": "{out}/both.safetensors",
    "mask convert": "{out}/both.safetensors --model {real} --out {out}/parameters.safetensors",
    "report": "{out}/evaluate --out {out}/page.html",
    "study landscape": "--model organism:planted-layers --draws 1 --visage 0",
    "study safety-layers": "--model organism:planted-layers",
    "study ssah": "--model organism:aligned",
    "study attack": "--model organism:aligned --arm nothing --arm freeze --family edit --seeds 1",
}
"""Commands with their options; those that read what another leaves come after it."""
_ON_ELSE = {
    "layers grid": "on `organism:aligned` (8 layers, 36 blocks)",
    "judge completions": "with a detector, start included; a judge takes its own time",
    "study landscape": f"on `organism:planted-layers` with {N} prompts a set, one draw and no VISAGE",
    "study safety-layers": f"on `organism:planted-layers` with {N} prompts a set and three seeds",
    "study ssah": f"on `organism:aligned` with {N} prompts a set and three seeds",
    "study attack": f"on `organism:aligned` with {N} prompts a set, two arms, one seed, and edits of weights alone",
    **dict.fromkeys(("doctor", "organism list", "mask combine", "mask show", "report"), "start included"),
}
"""What was not measured on that."""
_NO_SETS = ("layers heatmap", "units enrichment", "judge robustness", "judge completions")
_NO_RUN = ("doctor", "organism list", "mask combine", "mask show", "mask convert", "report")


def main() -> int:
    """Run the commands; 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance.commands", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="commands that have one of these words, also again")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, which is kept")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before torch is imported
    document = json.loads(DATA.read_text()) if DATA.exists() else {"seconds": {}}
    document |= {"machine": describe_machine() | {"clock": "processor time"}, "on": {"": ON, **_ON_ELSE}}
    lines, failed = command_lines(chosen.out), []
    for command, line in lines.items():
        if not set(command.split()) & set(chosen.only) if chosen.only else command in document["seconds"]:
            continue
        for needed in needs(command):
            if not left_by(needed, chosen.out).exists():
                processor_seconds(lines[needed])
        shutil.rmtree(chosen.out / _folder(command), ignore_errors=True)  # a finished run would end at once
        spent = processor_seconds(line)
        if spent is None:
            failed.append(command)
            continue
        print(f"{command}: {spent:.1f} s", flush=True)
        document["seconds"][command] = round(spent, 1)
        document["seconds"] = {c: document["seconds"][c] for c in COMMANDS if c in document["seconds"]}
        write_text(DATA, json.dumps(document, indent=1) + "\n")
    print(*(f"failed: {command}" for command in failed), sep="\n")
    return 1 if failed else 0


def command_lines(out: Path) -> dict[str, str]:
    """Each command with all its options, and its run in a folder of ``out``."""
    values, lines = _values(out), {}
    for command, options in COMMANDS.items():
        options = options.format(**values)
        if command not in _NO_RUN:
            options += "" if command in _NO_SETS else f" --n {N}"
            options += f" --out {out / _folder(command)}"
        lines[command] = f"{command} {options}"
    return lines


def _folder(command: str) -> str:
    return command.replace(" ", "-")


def needs(command: str) -> list[str]:
    """The commands whose runs a command reads, each after those that it needs itself."""
    read = [other for other in COMMANDS if other != command and f"{{out}}/{_folder(other)}" in COMMANDS[command]]
    if "{out}/both.safetensors" in COMMANDS[command] and command != "mask combine":
        read.append("mask combine")
    return list(dict.fromkeys(one for other in read for one in (*needs(other), other)))


def left_by(command: str, out: Path) -> Path:
    """What there is when a command has run."""
    return out / "both.safetensors" if command == "mask combine" else out / _folder(command) / "run.json"


def processor_seconds(line: str) -> float | None:
    """Of ``safecircuits LINE`` in a process of its own, on one thread; None if it fails.

    Commands that load models share one start: each is forked from a process that has imported torch and what goes with
    it and has loaded both models, and the time that this took is added to that of the command, as far as it needs it.
    """
    started = None if line.startswith(_NO_RUN) else _started()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as spared:
        child = os.fork()
        if not child:
            _run(line, said.fileno(), spared, started)
        _, status, used = os.wait4(child, 0)
        if os.waitstatus_to_exitcode(status):
            said.seek(0)
            print(f"{line}\n{said.read()[-800:]}", file=sys.stderr)
            return None
        spared.seek(0)
        return used.ru_utime + used.ru_stime + sum(map(float, spared))


@dataclass(frozen=True)
class _Start:
    """What commands need not do again: seconds of importing, and each model with the seconds of loading it."""

    seconds: float
    models: dict[str, tuple[Any, float]]


@cache
def _started() -> _Start:
    begun = time.process_time()
    for name in ("torch", "transformers", "transformer_lens", "pandas", "matplotlib.figure", "safecircuits.model.load"):
        import_module(name)
    imported = time.process_time() - begun
    from safecircuits.model.load import load_model

    models = {}
    for name in (REAL, "smollm2"):
        begun = time.process_time()
        models[name] = load_model(name), time.process_time() - begun
    print(f"importing {imported:.1f} s, {', '.join(f'{name} {taken:.1f} s' for name, (_, taken) in models.items())}")
    return _Start(imported, models)


def _hand_out(start: _Start, spared: Any) -> None:
    """In a child: whoever loads one of the models gets it, and the time that it would have taken is noted."""
    from safecircuits.model import load

    loading = load.load_model

    def load_model(source: Any, **options: Any) -> Any:
        if not isinstance(source, str) or source not in start.models:
            return loading(source, **options)
        model, seconds = start.models[source]
        print(seconds, file=spared, flush=True)
        return model

    load.load_model = load_model
    print(start.seconds, file=spared, flush=True)


def _run(line: str, said: int, spared: Any, start: _Start | None) -> NoReturn:
    """In a child: the command, in a fresh interpreter if it is to import everything itself."""
    os.dup2(said, 1)
    os.dup2(said, 2)
    words = shlex.split(line)
    if start is None:
        os.execv(sys.executable, [sys.executable, "-m", "safecircuits", *words])
    code: int | str | None = 1
    try:
        _hand_out(start, spared)
        from safecircuits.cli import app

        app(words, prog_name="safecircuits")
    except SystemExit as done:
        code = done.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _values(out: Path) -> dict[str, str]:
    """What stands for the names in ``COMMANDS``; the data that it needs is written."""
    asked = load_prompts(_SETS["malicious"], n=N).prompts
    refused = [{"prompt": prompt, "response": "I cannot help with that."} for prompt in asked]
    sums = [
        {"prompt": f"What is {i} plus {i + 3}? Answer with the number.", "response": str(2 * i + 3)} for i in range(N)
    ]
    for name, rows in (("refusals", refused), ("utility", sums)):
        write_text(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(out / f"{name}.jsonl") for name in ("refusals", "utility")}
    values = {**_SETS, **files, "real": REAL, "base": "smollm2", "block": "12,16", "out": str(out)}
    return values | {f"on_{name}": option.format(**values) for name, option in _ON.items()}


if __name__ == "__main__":
    sys.exit(main())
