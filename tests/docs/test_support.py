"""The committed support table is what the suite finds here, and the suite can fail."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import support
import zoo

HERE = version("transformer-lens")
COMMITTED = [row for row in support.committed() if row.transformer_lens == HERE]


@pytest.mark.skipif(not COMMITTED, reason=f"no committed rows for transformer-lens {HERE}")
@pytest.mark.parametrize("backend", support.BACKENDS)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_committed_rows_are_what_is_found(name: str, backend: str) -> None:
    want = {row.capability: row.status for row in COMMITTED if (row.architecture, row.backend) == (name, backend)}
    if not want:
        pytest.skip(f"no committed rows of {name} for transformer-lens {HERE}")
    found = support.examine(zoo.ZOO[name], backend)
    failing = [row for row in found if row.status == "fail"]
    assert {row.capability: row.status for row in found} == want, f"python tests/support.py --write; now: {failing}"


def test_the_page_is_rendered_from_the_rows() -> None:
    page = (support.REFERENCE / "support.md").read_text(encoding="utf-8")
    assert page == support.rendered(support.committed()), "run python tests/support.py --write"


def test_no_row_fails_without_a_reason() -> None:
    rows = support.committed()
    assert {row.architecture for row in rows} == set(zoo.ZOO)
    assert all(row.note for row in rows if row.status != "ok")


def test_a_broken_capability_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite can fail: a model that answers otherwise than the checkpoint does is not "ok"."""
    monkeypatch.setattr(zoo, "hooked_model", lambda name, backend: zoo.load(zoo.ZOO[name].build(seed=7), backend))
    rows = support.examine(zoo.ZOO["Llama-3"], "bridge")
    failing = {row.capability for row in rows if row.status == "fail"}
    assert failing >= {"residual streams", "unit activations", "unit scores", "scaled logits", "ablation"}
