"""The documentation builds without a warning, and the reference has every public name."""

from __future__ import annotations

import importlib
import re
import zlib
from pathlib import Path

import pytest

import public_face

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    body = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split(" ")[0] for line in zlib.decompress(body).decode().splitlines()}
    public = {
        f"{module}.{name}"
        for room in public_face.ROOMS
        for name, module in public_face.homes(room).items()
        if callable(getattr(importlib.import_module(module), name))
    }
    assert public - documented == set()


def test_no_page_asks_the_network_for_anything_it_needs(site: Path) -> None:
    """Pages can be read from a disk: styles, scripts, fonts and pictures are the site's own."""
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|img|link)\b[^>]*>", page.read_text(encoding="utf-8"))
        fetched = [
            tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag) and "canonical" not in tag
        ]
        assert not fetched, f"{page.relative_to(site)} fetches {fetched}"


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "reference").glob("*-features.md")), ids=lambda path: path.stem
)
def test_every_row_of_a_feature_table_points_at_something(page: Path) -> None:
    rows = re.findall(r"\| `([\w.]+)` \| `(\w+)::(\w+)` \|", page.read_text(encoding="utf-8"))
    assert len(rows) > 30
    assert len(rows) == sum(line.count("::") for line in page.read_text(encoding="utf-8").splitlines())
    for path, file, test in rows:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(f"safecircuits.{module}"), name), path
        source = next((ROOT / "tests").rglob(f"{file}.py")).read_text(encoding="utf-8")
        assert re.search(rf"(?:def|class) {test}\b", source), f"{file}::{test}"
