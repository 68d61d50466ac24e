"""What pages say in passing is so: names exist, messages are the code's, the quickstart runs."""

from __future__ import annotations

import ast
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import safecircuits as sc

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_name_of_the_package_on_a_page_exists(page: Path) -> None:
    for name in sorted(set(re.findall(r"\bsc\.([A-Za-z_][\w.]*\w)", page.read_text(encoding="utf-8")))):
        reduce(getattr, name.split("."), sc)


def test_the_quickstart_runs() -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "quickstart.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, "quickstart.md", "exec"), names)
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
