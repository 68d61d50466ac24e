"""What every command keeps to, command by command: stdout, stderr, JSON, the page, and what help says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from benchmarks.performance.commands import COMMANDS
from test_cli import run

from safecircuits.cli import app

N = 8
NO_RUN = ("doctor", "organism list", "mask combine", "mask show", "mask convert", "report")
SETS = {"malicious": "organism:malicious", "normal": "organism:normal", "over": "organism:over_rejection",
        "refusals": "organism:malicious", "utility": "organism:utility"}  # fmt: skip
OPTIONS = {"malicious": "--malicious", "normal": "--normal", "over": "--over-rejection"}
# Made quick: the point is what is printed.
INSTEAD = {
    "probe": "--model {real} --compare base={base} --malicious {malicious} --benign-suffix 'i cannot' "
    "--malicious-suffix 'take the' --state mean",
    "units stability": "--model {real} --safety {refusals} --utility {utility} --subset 3 --draws 2",
    "direction find": "--model {real} {on_malicious} {on_normal} --rule bypass --ablation affine",
    "layers grid": "--model {real} --over-rejection {over} --alpha 1.2 --max-new-tokens 2",
    "audit": "{real} {real} --malicious {malicious} --utility {utility}",  # a model is as safe as itself: exit code 0
    "finetune": "--model {real} --data {utility} --batch-size 2 --steps 2",
}


class Done:
    """Each command once, on the embedded models, with what it said, and once more with ``--json``."""

    def __init__(self, out: Path) -> None:
        self.out = out
        values = {**SETS, "real": "organism:aligned", "base": "organism:base", "block": "3,5", "out": str(out)}
        values |= {f"on_{name}": f"{option} {SETS[name]}" for name, option in OPTIONS.items()}
        self.lines: dict[str, list[str]] = {}
        self.said: dict[str, Any] = {}
        for command, options in {**COMMANDS, **INSTEAD}.items():
            line = [*command.split(), *shlex.split(options.format(**values))]
            if command in RUNS:
                takes_n = any("--n" in one.opts for one in ALL[command].params)
                line += [*(["--n", str(N)] if takes_n else []), "--out", str(self.folder(command))]
            self.lines[command] = line

    def folder(self, command: str) -> Path:
        return self.out / command.replace(" ", "-")

    def of(self, command: str) -> Any:
        if command not in self.said:
            for other in re.findall(rf"{re.escape(str(self.out))}/([a-z]+-?[a-z]*)", " ".join(self.lines[command])):
                before = other.replace("-", " ") if other.replace("-", " ") in COMMANDS else None
                if before is not None and before != command:
                    self.of(before)
            if any("both.safetensors" in one for one in self.lines[command]) and command != "mask combine":
                self.of("mask combine")
            self.said[command] = run(*self.lines[command])
        return self.said[command]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("commands"))


def walk(command: Any, words: tuple[str, ...] = ()) -> dict[str, Any]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return {" ".join(words): command}
    return {name: one for word, part in inner.items() for name, one in walk(part, (*words, word)).items()}


ALL = walk(typer.main.get_command(app))
ELSEWHERE = (
    "demo",
    "study ssah",
    "study safety-layers",
    "study attack",
    "study landscape",
    "organism build",
    "organism get",
    "judge completions",
)
"""Which take minutes, a download or a server: their own tests run them."""
RUNS = [command for command in COMMANDS if command not in (*NO_RUN, *ELSEWHERE)]


def test_the_table_has_every_command() -> None:
    assert set(COMMANDS) | set(ELSEWHERE) == set(ALL)


@pytest.mark.parametrize("command", RUNS)
def test_results_go_to_stdout_what_was_written_to_stderr_and_the_page_comes_last(command: str, done: Done) -> None:
    said, folder = done.of(command), done.folder(command)
    assert said.exit_code == 0, said.output
    assert said.stdout.strip()
    assert "wrote " not in said.stdout
    assert said.stderr.splitlines()[-1] == f"wrote {folder / 'report.html'}"
    assert (folder / "report.html").stat().st_size > 1000
    record = json.loads((folder / "run.json").read_text())
    for line in record["findings"]:
        assert line in said.stdout
        assert line not in said.stderr
    again = run(*done.lines[command], "--json")
    assert again.exit_code == 0, again.output
    answer = json.loads(again.stdout)
    assert set(answer) == {"command", "answer", "findings", "table"}
    assert answer["command"] == command
    assert answer["answer"], "an answer by name"
    assert answer["findings"] == record["findings"]
    assert again.stderr.splitlines()[-1] == f"its page is {folder / 'report.html'}"


@pytest.mark.parametrize("command", NO_RUN)
def test_the_others_say_on_stderr_what_they_wrote(command: str, done: Done) -> None:
    said = done.of(command)
    assert said.exit_code == 0, said.output
    assert "wrote " not in said.stdout
    if "--out" in done.lines[command]:
        path = done.lines[command][done.lines[command].index("--out") + 1]
        assert said.stderr.splitlines()[-1] == f"wrote {path}"
        assert Path(path).is_file()
    else:
        assert said.stdout.strip()


@pytest.mark.parametrize("command", ALL)
def test_help_has_an_example(command: str) -> None:
    said = " ".join((ALL[command].help or "").split())
    assert f"Example: safecircuits {command} " in f"{said} "


def test_no_bar_of_another_library_goes_into_a_log() -> None:
    """Reading a GGUF file, say: without a terminal its bar would be hundreds of lines."""
    code = (
        "from safecircuits.cli.manners import quiet\nwith quiet():\n from tqdm.auto import tqdm\n list(tqdm(range(3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
