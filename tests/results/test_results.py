"""Results survive the disk as they were, and a file that is not one is refused without running anything."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

import safecircuits as sc
from safecircuits.results.register import HOMES, MODULES
from safecircuits.results.result import Result

KEPT = Path(__file__).parents[1] / "stored"

PROMPTS = sc.PromptSet("p", ("find a lamp", "make the tea", "fix the road"), ("here it is", "sure", "with wood"))


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    from conftest import build_tiny_llama, build_tiny_tokenizer

    model = sc.load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())
    scores = sc.score_units(model, PROMPTS)
    groups = sc.classify_units(scores, scores.rescore("wifv"), scu=0.1, ucu=0.1, ru=0.1)
    made: list[Result] = [
        sc.collect_residuals(model, PROMPTS),
        sc.layer_gap(model, PROMPTS, PROMPTS),
        sc.localize(model, PROMPTS, (0, 1), alpha=1.2, reach=1, max_new_tokens=2),
        scores,
        groups,
        sc.evaluate(model, malicious=PROMPTS),
        sc.ablate_groups(model, groups, names=["SCU"], controls=1, utility=PROMPTS),
    ]
    return {type(result).__name__: result for result in made}


def test_every_result_comes_back_as_it_was(results: dict[str, Result], tmp_path: Path) -> None:
    assert len(results) == 7
    for name, result in results.items():
        back = type(result).load(result.save(tmp_path / name))
        assert back.equals(result)
        assert back is not result
    assert {p.name for p in tmp_path.iterdir()} == set(results)


def test_what_comes_back_still_works(results: dict[str, Result], tmp_path: Path) -> None:
    found = results["Localization"]
    assert isinstance(found, sc.Localization)
    back = sc.Localization.load(found.save(tmp_path / "found"))
    assert back.verdict == found.verdict
    assert back.to_frame().equals(found.to_frame())


def test_saving_again_replaces_a_result_but_nothing_else(results: dict[str, Result], tmp_path: Path) -> None:
    gap = results["LayerGap"]
    gap.save(tmp_path / "a")
    gap.save(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        gap.save(tmp_path / "b")
    assert (tmp_path / "b" / "thesis.tex").exists()


def test_equals_sees_a_single_changed_value(results: dict[str, Result]) -> None:
    gap: Any = results["LayerGap"]
    changed = replace(gap, gap_deg=gap.gap_deg + torch.tensor([0.0, 0.0, 1e-9], dtype=torch.float64))
    assert not gap.equals(changed)


def test_files_that_are_no_result(results: dict[str, Result], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no readable result"):
        sc.LayerGap.load(tmp_path)
    folder = results["LayerGap"].save(tmp_path / "gap")
    with pytest.raises(ValueError, match="holds a LayerGap, not a Localization"):
        sc.Localization.load(folder)
    document = json.loads((folder / "result.json").read_text())
    for kind in ("subprocess:Popen", "safecircuits.layers.similarity:LayerGap", "load_model", ["LayerGap"], None):
        document["result"]["$class"] = kind
        (folder / "result.json").write_text(json.dumps(document))
        with pytest.raises(ValueError, match="not a result class of safecircuits"):
            sc.LayerGap.load(folder)
    document["version"] = 99
    (folder / "result.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="version 99; this reads safecircuits-result version 2"):
        sc.LayerGap.load(folder)
    (folder / "tensors.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="holds no readable result"):
        sc.LayerGap.load(folder)


def test_files_of_version_2_load_whatever_was_imported_before() -> None:
    """Two results as they were saved when a file first named its classes by short names."""
    code = (
        "from safecircuits.results.result import Result\n"
        f"gap, found = (Result.load({str(KEPT)!r} + '/' + name) for name in ('gap', 'localization'))\n"
        "print(gap.verdict); print(found.verdict)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    gap, found = sc.LayerGap.load(KEPT / "gap"), sc.Localization.load(KEPT / "localization")
    assert printed.splitlines() == [*gap.verdict.splitlines(), *found.verdict.splitlines()]
    assert gap.nn.mean.tolist() == pytest.approx([0.6707, 0.5962, 0.7577], abs=1e-4)
    assert gap.provenance["normal"] == {"name": "p", "n": 3, "sha": "4e1ab07ab2ff3a19"}
    assert [point.layers for point in found.upper.points] == [
        sc.LayerRange(0, 0),
        sc.LayerRange(0, 1),
        sc.LayerRange(0, 2),
    ]
    assert found.upper.points[0].refused.tolist() == [False, False, False]
    assert found.baseline.completions.prompts == PROMPTS


def test_every_class_of_a_saved_result_is_registered_where_it_lives() -> None:
    for module in pkgutil.walk_packages(sc.__path__, "safecircuits."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert len(MODULES) == sum(map(len, HOMES.values()))  # names are unique
    assert {kind.__name__: kind.__module__ for kind in _classes_in_files()} == dict(MODULES)


def _classes_in_files() -> set[type]:
    """Every Result class of the package, and every dataclass that a field of one can hold."""
    found: set[type] = set()
    ours = [kind for kind in _below(Result) if kind.__module__.startswith("safecircuits.")]
    left = [kind for kind in ours if is_dataclass(kind) or not kind.__subclasses__()]  # others are only built on
    while left:
        if (kind := left.pop()) not in found:
            found.add(kind)
            hints = get_type_hints(kind)
            left += [inner for field in fields(kind) for inner in _dataclasses_in(hints[field.name])]
    return found


def _below(kind: type) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from _dataclasses_in(part)


def test_a_class_that_no_file_could_name_is_not_saved(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class LayerGap(Result):
        x: int

    with pytest.raises(TypeError, match="LayerGap is not among the classes of which saved results are made"):
        LayerGap(1).save(tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_a_result_is_shown_in_a_line(results: dict[str, Result]) -> None:
    for name, result in results.items():
        assert repr(result).startswith(f"{name}(")
        assert len(repr(result)) < 1000
    assert "values=float32[3, 3, 32]" in repr(results["Residuals"])
    assert "prompts=<PromptSet>" in repr(results["Residuals"])


def test_a_notebook_shows_verdict_and_table_with_text_escaped(results: dict[str, Result]) -> None:
    found = results["Localization"]
    assert isinstance(found, sc.Localization)
    shown = found._repr_html_()
    assert escape(found.verdict) in shown
    assert f"<td>{found.baseline.count}</td>" in shown
    named = replace(found, provenance={"detector": "<script>alert(1)</script>"})
    assert "<script>" not in named._repr_html_()
    for result in results.values():
        assert type(result).__name__ in result._repr_html_()
