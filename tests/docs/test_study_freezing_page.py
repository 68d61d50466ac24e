"""The page about freezing says what the committed numbers say, and its maker works on a grid of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.freezing import render

    return render


def test_the_page_is_the_rendering_of_the_numbers(render: Any) -> None:
    record = json.loads(render.NUMBERS.read_text(encoding="utf-8"))
    assert render.PAGE.read_text(encoding="utf-8") == render.page(record)


def test_the_page_follows_the_numbers(render: Any) -> None:
    record = json.loads(render.NUMBERS.read_text(encoding="utf-8"))
    for cell in record["cells"]:
        for run in cell["runs"]:
            frozen = run["arm"] != "full"
            run["figures"]["malicious_refused"] = 0.9 if frozen else 0.2
            for point in run["curve"][1:]:
                point["malicious_refused"] = 0.3 if frozen else 0.8
    page = render.page(record)
    frame = render.grid_of(record).to_frame()
    equal, matched = (frame[frame["at"] == at] for at in ("equal steps", "matched loss"))
    assert set(equal["verdict"]) == {"helps"}
    assert f"| equal steps | {len(equal)} | {len(equal)} | 0 | 0 | 0 |" in page
    assert (matched["verdict"] == "harms").any()
    assert "+70 [+70, +70]<br>helps" in page


def test_the_grid_runs_in_small_and_resumes(render: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.freezing import grid

    out = tmp_path / "grid.json"
    grid.main(["--out", str(out), "--quick"])
    first = json.loads(out.read_text())
    assert {cell["model"] for cell in first["cells"]} == {"aligned-250", "planted-layers"}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "grid.json.work/runs/runs").iterdir()}
    grid.main(["--out", str(out), "--quick"])
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert json.loads(out.read_text())["cells"] == first["cells"]
    assert first["provenance"]["command"] == f"python -m benchmarks.freezing.grid --out {out} --quick"
    with pytest.raises(ValueError, match="no field 'block' in the setup"):
        grid.main(["--out", str(out), "--set", "block=[[3,5]]"])
    assert grid.changed(grid.Setup(), ["blocks=[[1,2]]", "steps=3"]) == replace(grid.Setup(), blocks=((1, 2),), steps=3)
    render.main(["--numbers", str(out), "--out", str(tmp_path / "page.md")])
    assert "# When does freezing help?" in (tmp_path / "page.md").read_text()
