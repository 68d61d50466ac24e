"""The pages about speed say what the committed rows say, and what the benchmarks find is told from what they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.performance import results

    return results


def test_the_pages_are_the_rendering_of_the_rows(results: Any) -> None:
    document = json.loads((ROOT / results.ROWS).read_text(encoding="utf-8"))
    for page in results.PAGES:
        message = "run python -m benchmarks.performance --write"
        assert (ROOT / page).read_text(encoding="utf-8") == results.render(document), message


def test_every_operation_has_equal_results_and_missed_aims_have_a_reason() -> None:
    rows = json.loads((ROOT / "docs/performance.json").read_text(encoding="utf-8"))["rows"]
    for word in ("residuals", "WIFV", "localization", "SNIP", "cosine", "tiny model"):
        assert any(word in row["operation"] for row in rows), word
    assert all(row["equal"] is not False for row in rows)
    assert all(row.get("why") for row in rows if row["met"] is False)


def test_the_command_writes_rows_and_pages(results: Any, tmp_path: Path) -> None:
    from benchmarks.performance.timing import faster, growth, within

    rows = [
        faster("sorting", "by hand", 1.0, 2.5, 3.0, True) | {"why": "hands are quick"},
        within("sorting, memory", "by hand", 3.0, 2.0, 1.6, None),
        growth("sorting", "cards", [10, 100, 1000], [0.1, 1.0, 10.0], 1.1),
    ]
    written = results.write_results({"rows": rows, "machine": {"processor": "abacus"}}, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [results.ROWS, *results.PAGES]
    page = written[1].read_text(encoding="utf-8")
    assert "| sorting | by hand | 2.50 | at least 3 x faster | **no** | yes |" in page
    assert "| sorting, memory | by hand | 1.50 | at most 1.6 x its cost | yes |  |" in page
    assert "| sorting | growth with cards, 10 to 1,000 | 1.00 | exponent at most 1.1 | yes |  |" in page
    assert "hands are quick" in page
    assert "abacus" in page


def test_one_part_measured_again_leaves_the_others(results: Any, tmp_path: Path) -> None:
    def document(load: str, version: str = "1", **ratios: float) -> dict[str, Any]:
        rows = [{"part": part, "operation": part, "ratio": ratio} for part, ratio in ratios.items()]
        return {"rows": rows, "machine": {"torch": version, results.LOAD: load}}

    stored = tmp_path / results.ROWS
    stored.parent.mkdir()
    stored.write_text(json.dumps(document("1.0", sorting=2.0, collecting=3.0)), encoding="utf-8")
    made = results.completed(document("0.1", sorting=2.5), tmp_path)
    assert {row["part"]: row["ratio"] for row in made["rows"]} == {"collecting": 3.0, "sorting": 2.5}
    assert made["machine"][results.LOAD] == "1.0; sorting measured again at 0.1"
    with pytest.raises(ValueError, match=r"torch 1, these with 2: measure all parts, without --only"):
        results.completed(document("0.1", "2", sorting=2.5), tmp_path)


def test_rows_that_cannot_be_written_leave_the_earlier_ones(
    monkeypatch: pytest.MonkeyPatch, results: Any, tmp_path: Path
) -> None:
    from benchmarks.performance import __main__ as command
    from benchmarks.performance import collection
    from benchmarks.performance.timing import faster

    written = tmp_path / "rows.json"
    written.write_text("earlier", encoding="utf-8")
    monkeypatch.setattr(collection, "rows", lambda quick: [faster("sorting", "by hand", 1.0, 2.5, None, True)])
    monkeypatch.setattr("sys.argv", ["performance", "--only", "collection", "--json", str(written)])
    whole = Path.write_text

    def half(path: Path, text: str, **options: Any) -> int:
        whole(path, text[: len(text) // 2], **options)
        raise OSError("no space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="no space left"):
            command.main()
    assert written.read_text(encoding="utf-8") == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
    assert command.main() == 0
    assert json.loads(written.read_text(encoding="utf-8"))["rows"][0]["operation"] == "sorting"


def test_the_page_of_real_scale_is_the_rendering_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.performance import at_scale

    columns = json.loads((ROOT / at_scale.ROWS).read_text(encoding="utf-8"))
    assert (ROOT / at_scale.PAGE).read_text(encoding="utf-8") == at_scale.render(columns)
    empty = at_scale.render({})
    assert empty.count("Not run. It would measure:") == len(at_scale.SCALES)
    assert "|  |" not in empty


def test_every_operation_at_scale_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.performance import at_scale

    few = replace(at_scale.SCALES["tiny"], gap=3, blocks=2, prompts=3, texts=2, text_tokens=24, steps=1, batch=2)
    found = dict(at_scale.measure(few))
    assert set(found) == set(at_scale.OPERATIONS)
    assert all(row["seconds"] > 0 and 0.05 < row["gigabytes"] < 16 for row in found.values())
