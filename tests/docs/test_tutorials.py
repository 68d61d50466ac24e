"""Every tutorial runs from its source, and the notebook kept beside it was made from that source."""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import pytest
from tutorials.execute import FOLDER, executed, sources

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_tutorial_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent / "src"), str(FOLDER.parent)]))
    notebook = executed(source, tmp_path)
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_kept_notebook_is_of_this_source(source: Path) -> None:
    kept, written = jupytext.read(source.with_suffix(".ipynb")), jupytext.read(source)
    assert [cell.source for cell in kept.cells] == [cell.source for cell in written.cells], (
        f"{source.name} was changed after {source.stem}.ipynb was made: run make tutorials"
    )
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "kept without having been run"
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any("site-packages" in output.get("text", "") for output in outputs), "names a folder of one machine"
