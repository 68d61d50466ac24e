"""What pages say in passing is so: names exist, messages are the code's, the quickstart runs."""

from __future__ import annotations

import ast
import re
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import typer

import safecircuits as sc
from safecircuits.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_name_of_the_package_on_a_page_exists(page: Path) -> None:
    for name in sorted(set(re.findall(r"\bsc\.([A-Za-z_][\w.]*\w)", page.read_text(encoding="utf-8")))):
        reduce(getattr, name.split("."), sc)


def test_the_quickstart_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    page = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == page.count("```python")
    for block, told in blocks:
        exec(compile(block, "quickstart.md", "exec"), names)
        printed = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
        assert OutputChecker().check_output(told, printed, ELLIPSIS | NORMALIZE_WHITESPACE), printed
    assert names["decided"].layers == sc.LayerRange(3, 5)
    assert names["run"].frozen_bit_identical


def messages() -> str:
    """All text in the source, adjacent pieces of a message joined as they are when it is raised."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_that_troubleshooting_explains_is_one_of_ours() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\*\*`(.+?)`\*\*", page, flags=re.MULTILINE)
    ours = messages()
    assert len(explained) > 10
    assert [message for message in explained if message not in ours] == []


def lines_with_commands(page: Path) -> list[str]:
    """What pages show of ``safecircuits …``: in a line of code, in a block, or in words."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    blocks = re.findall(r"^(?: {4}|\$ |\.venv/bin/)+(?:\.venv/bin/)?safecircuits (.+)$", text, flags=re.MULTILINE)
    return [line for line in blocks + re.findall(r"`safecircuits ([^`]+)`", text) if not line.startswith("…")]


def required(command: Any) -> set[str]:
    """Options without which a command ends at once; a line with ``--out`` is one to be typed as it stands."""
    return {one.opts[0] for one in command.params if one.required and one.opts[0].startswith("--")}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    group = typer.main.get_command(app)
    for line in lines_with_commands(page):
        command: Any = group
        words = line.split("#")[0].split()
        while words and hasattr(command, "commands") and re.fullmatch(r"[a-z][a-z-]*", words[0]):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        given = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
        assert set(given) <= known | {"--help", "--install-completion", "--show-completion"}, line
        assert "--config" in given or "--out" not in given or required(command) <= set(given), line


def test_what_tables_of_expectations_name_exists() -> None:
    """Options that stand there alone are ones of some command."""
    text = (DOCS / "expectations.md").read_text(encoding="utf-8")
    here = " ".join(line.split("|")[2] for line in text.splitlines() if line.startswith("| ") and line.count("|") == 3)
    options = {word.split()[0] for word in re.findall(r"`(--[a-z][^`]*)`", here)}

    def of(command: Any) -> set[str]:
        inner = getattr(command, "commands", {}).values()
        return {name for one in command.params for name in one.opts}.union(*map(of, inner))

    assert len(options) > 8
    assert options <= of(typer.main.get_command(app))
