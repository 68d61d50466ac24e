"""A run's folder from somebody else is data: no payload runs, no name leads out of it, and bad parts are one line."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from browser import opened
from commands import refuse, succeed
from hostile import MARK, PAYLOADS, SHAPE, SVG, WORDS, folder_of, hostile_run, record
from safecircuits.base.files import write_text
from safecircuits.base.settings_file import read_settings
from safecircuits.model.sites import ModelShape
from safecircuits.papers.safety_layers.study import StudySubject
from safecircuits.plots.style import RC
from safecircuits.plots.svg import inline_saved, inline_svg
from safecircuits.results.load_record import load_run
from safecircuits.results.result import Result
from safecircuits.results.run import RunDirectory

HARMLESS = {
    "ul",
    *("svg", "g", "defs", "path", "use", "rect", "image", "text", "clippath", "pattern"),
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "div",
        "header",
        "p",
        "h1",
        "h2",
        "dl",
        "dt",
        "dd",
        "nav",
        "ol",
    ),
    *(
        "ol",
        "li",
        "a",
        "main",
        "section",
        "figure",
        "figcaption",
        "details",
        "summary",
        "table",
        "caption",
        "thead",
        "tbody",
    ),
    *("tr", "th", "td", "footer"),
    *("circle", "script"),  # of values; and the page's own, of which there is one
}


class Seen(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(key, value or "") for key, value in attrs]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tmp_path_factory.mktemp("sent") / "run")


@pytest.fixture(scope="module")
def page(sent: Path) -> str:
    succeed("report", sent)
    return (sent / "report.html").read_text(encoding="utf-8")


class TestPage:
    def test_it_has_elements_and_attributes_of_a_report_alone(self, page: str) -> None:
        seen = Seen(page)
        assert seen.tags <= HARMLESS
        assert not [key for key, _ in seen.attributes if key.startswith("on") or key in ("src", "srcdoc", "action")]
        links = [value for key, value in seen.attributes if "href" in key]
        assert all(link.startswith("#") for link in links)
        assert page.count('class="chart"') == len(PAYLOADS) + 3

    def test_its_policy_forbids_scripts_and_the_network(self, page: str) -> None:
        [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
        assert policy.startswith("default-src 'none';")
        assert policy.count("script") == 1
        assert "script-src 'sha256-" in unescape(policy)
        assert page.index("Content-Security-Policy") < page.index("<title>")

    def test_words_are_shown_as_they_are(self, page: str) -> None:
        assert WORDS not in page
        assert "{{ 7 * 7 }}" in page
        assert "&lt;script&gt;" in page

    def test_nothing_of_theirs_runs_in_a_browser(self, page: str, tmp_path: Path) -> None:
        with opened(write_text(tmp_path / "page.html", page)) as shown:
            shown.page.wait_for_timeout(300)
            assert shown.complaints == []
            assert shown.page.title().startswith("safecircuits layers gap")
            assert shown.page.locator("svg.chart").count() == len(PAYLOADS) + 3

    def test_the_browser_would_run_them(self, tmp_path: Path) -> None:
        """The payloads are live: without the sanitiser and the policy the title is theirs."""
        figures = "".join(SVG.format(SHAPE + PAYLOADS[kind]) for kind in ("script", "image of HTML"))
        with opened(write_text(tmp_path / "raw.html", f"<!DOCTYPE html><title>mine</title>{figures}")) as shown:
            shown.page.wait_for_timeout(300)
            assert shown.page.title() == MARK

    def test_the_policy_alone_stops_them_too(self, page: str, tmp_path: Path) -> None:
        [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page)
        figures = "".join(SVG.format(SHAPE + payload) for kind, payload in PAYLOADS.items() if kind != "refresh")
        path = write_text(tmp_path / "raw.html", f"<!DOCTYPE html>{policy}<title>mine</title>{figures}")
        with opened(path) as shown:
            shown.page.wait_for_timeout(300)
            assert shown.page.title() == "mine"

    def test_several_runs(self, sent: Path, tmp_path: Path) -> None:
        hostile_run(tmp_path / "other")
        succeed("report", sent, tmp_path / "other", "--out", tmp_path / "both.html")
        seen = Seen((tmp_path / "both.html").read_text(encoding="utf-8"))
        assert seen.tags <= HARMLESS
        assert not [key for key, _ in seen.attributes if key.startswith("on")]


class TestFigures:
    @pytest.mark.parametrize("kind", PAYLOADS)
    def test_a_payload_leaves_the_shapes_alone(self, kind: str) -> None:
        shown = inline_saved(SVG.format(SHAPE + PAYLOADS[kind]), "name", "label")
        seen = Seen(shown)
        assert seen.tags <= {"svg", "g", "path", "rect", "use", "image", "text"}
        assert not [a for a in seen.attributes if a[0].startswith("on") or MARK in a[1]]
        assert 'style="fill: none; stroke: var(--blue, #0072b2)"' in shown
        assert 'id="name-line"' in shown

    def test_a_figure_of_matplotlib_keeps_all_it_is_drawn_with(self) -> None:
        """Its elements and attributes are those of the file, as another parser reads it, but for ids and colours."""
        import xml.etree.ElementTree as Xml
        from io import StringIO

        import matplotlib as mpl
        import numpy as np

        with mpl.rc_context(RC):
            figure = Figure()
            left, right = figure.subplots(1, 2)
            figure.colorbar(left.imshow(np.arange(16).reshape(4, 4)))
            right.fill_between([1, 2], [1, 2], [2, 3], hatch="//", alpha=0.4, label="a < b & “c”")
            right.scatter([1, 2], [2, 1], marker="s")
            right.legend()
            written = StringIO()
            figure.savefig(written, format="svg")
        root = Xml.fromstring(written.getvalue())
        dropped = {"metadata", "style", "RDF", "Work", "type", "date", "format", "creator", "Agent", "title"}
        wanted = sorted(
            (tag.lower(), sorted(key.rpartition("}")[2].lower() for key in element.attrib))
            for element in root.iter()
            if (tag := str(element.tag).rpartition("}")[2]) not in {*dropped, "svg"}
        )
        shown: list[tuple[str, list[str]]] = []

        class Elements(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                if tag != "svg":
                    shown.append((tag, sorted(key for key, _ in attrs)))

        Elements().feed(inline_saved(written.getvalue(), "x", "y"))
        assert sorted(shown) == wanted
        text = inline_svg(figure, "x", "y")
        assert "a &lt; b &amp; “c”" in text
        assert "Arial" in text

    def test_depth_and_size(self, tmp_path: Path) -> None:
        deep = SVG.format(SHAPE + "<g>" * 100_000)
        assert inline_saved(deep, "name", "label").count("<g>") == 100_000
        run = folder_of(tmp_path / "run", record())
        (run / "figures").mkdir()
        with (run / "figures" / "gap.svg").open("wb") as file:
            file.truncate(2**25 + 1)
        assert "at most 33554432 are read" in refuse("report", run)
        (run / "figures" / "gap.svg").write_text("<svg></svg>")
        assert "no viewBox" in refuse("report", run)


OUTSIDE = ("../secret.csv", "tables/../../secret.csv", "/etc/passwd")
NAMES = ("../../x", "..", "", ".", "/tmp/x", "a/../../x", "a\0b")


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_run_writes_inside_its_folder_alone(self, tmp_path: Path, name: str) -> None:
        run = RunDirectory.open(tmp_path / "home" / "run", "mine", {})
        frame = pd.DataFrame({"a": [1]})
        steps: dict[str, Any] = {
            "table": lambda: run.table(name, frame),
            "main table": lambda: run.table(name, frame, main=True),
            "figure": lambda: run.figure(name, Figure()),
            "file": lambda: run.file(name),
            "work": lambda: run.work(name),
            "kept": lambda: run.kept(name, Result, lambda: pytest.fail("made")),
        }
        if name in ("", ".", ".."):  # with an ending, these are names of files, if odd ones
            steps = {key: steps[key] for key in ("file", "work", "kept")}
        for step in steps.values():
            with pytest.raises(ValueError, match="does not lie in"):
                step()
        run.abandon()
        assert sorted(path.name for path in tmp_path.rglob("*")) in (["home"], ["home", "run"])

    def test_the_record_is_no_file_of_the_run(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ValueError, match=r"run\.json' is the run's own record"),
            RunDirectory.open(tmp_path / "run", "mine", {}) as run,
        ):
            run.file("run.json")

    @pytest.mark.parametrize(
        "name", ["../secret.csv", "tables/../../secret.csv", "/etc/passwd", "tables/x.txt", 5, ["a"]]
    )
    def test_the_main_table_lies_in_the_run(self, tmp_path: Path, name: object) -> None:
        (tmp_path / "secret.csv").write_text("password\nhunter2\n")
        run = folder_of(tmp_path / "run", record(main_table=name))
        for words in (["report", run], ["report", run, "--json"]):
            text = refuse(*words)
            assert "hunter2" not in text
        with pytest.raises(ValueError, match=r"main_table|does not lie in"):
            load_run(run)

    @pytest.mark.parametrize("place", ["tables/gap.csv", "figures/gap.svg", "results/gap/result.json"])
    def test_a_link_out_of_the_run_is_not_followed(self, tmp_path: Path, place: str) -> None:
        secret = tmp_path / "secret"
        secret.write_text("password\nhunter2\n")
        runs = [folder_of(tmp_path / name, record()) for name in ("run", "other")]
        for run in runs:
            (run / place).parent.mkdir(parents=True)
            (run / place).symlink_to(secret)
        text = refuse("report", *runs, "--out", tmp_path / "page.html")
        assert "does not lie in" in text
        assert "hunter2" not in text

    def test_replacing_a_run_removes_nothing_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "thesis.tex").write_text("years of work")
        run = folder_of(tmp_path / "run", record(files=["link/thesis.tex"]))
        (run / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="does not lie in"):
            RunDirectory.open(run, "other", {}, replace=True)
        assert (tmp_path / "elsewhere" / "thesis.tex").exists()


WRONG = {
    "no command": record(command=None),
    "command": record(command=5),
    "arguments": record(arguments=[1]),
    "inputs": record(inputs="x"),
    "started": record(started=5),
    "finished": record(finished=[1]),
    "seconds": record(seconds="1"),
    "files": record(files="abc"),
    "files of numbers": record(files=[5]),
    "findings": record(findings={"a": 1}),
    "finding": record(findings=[["a"]]),
    "provenance": record(provenance=[]),
    "provenance without a version": record(provenance={}),
    "no files": record(files=None),
    "deep": '{"format": "safecircuits-run", "version": 1, "arguments": ' + '{"a":' * 100_000 + "1" + "}" * 100_001,
    "digits": '{"format": "safecircuits-run", "version": ' + "9" * 10_000 + "}",
    "list": "[1, 2]",
    "cut": '{"format": "safecirc',
    "not UTF-8": "utf-16",
    "large": "large",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_record_that_no_run_has_is_one_line(tmp_path: Path, kind: str) -> None:
    run = folder_of(tmp_path / "run", WRONG[kind])
    if kind == "not UTF-8":
        (run / "run.json").write_bytes(json.dumps(record()).encode("utf-16"))
    if kind == "large":
        with (run / "run.json").open("wb") as file:
            file.truncate(2**25 + 1)
    with pytest.raises(ValueError, match=r"run\.json"):
        load_run(run)
    text = refuse("report", run)
    assert len(text.strip().splitlines()) == 1
    assert sorted(path.name for path in run.iterdir()) == ["run.json"]


RESULTS = {
    "a module": {"$class": "safecircuits.__main__:main", "fields": {}},
    "a class of another package": {"$class": "subprocess:Popen", "fields": {"args": ["true"]}},
    "a class of this package": {
        "$class": "safecircuits.results.run:RunDirectory",
        "fields": {"folder": "x", "record": {}},
    },
    "no class": {"$class": ["x"], "fields": {}},
    "a number": 5,
    "deep": None,
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_names_classes_of_results_alone(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    text = json.dumps(RESULTS[kind])
    if kind == "deep":  # JSON of this depth can be read, but what is made of it needs more of the stack
        text = '{"$tuple": [' * 450 + "]}" * 450
    (tmp_path / "result.json").write_text(f'{{"format": "safecircuits-result", "version": 1, "result": {text}}}')
    save_file({}, tmp_path / "tensors.safetensors")
    with pytest.raises(ValueError, match=r"result|class"):
        Result.load(tmp_path)


def test_findings_do_not_steer_the_terminal(tmp_path: Path) -> None:
    run = folder_of(tmp_path / "run", record(findings=["\x1b]52;c;cm0gLXJm\x07 Größe\tα\u3000x", "\x9b2J"]))
    assert succeed("report", run).stdout == "\\x1b]52;c;cm0gLXJm\\x07 Größe\tα\u3000x\n\\x9b2J\n"


def test_a_study_of_other_parts_is_one_line(tmp_path: Path) -> None:
    """A run is a study if its subject is one, whatever its record says; and what the subject misses is said."""
    with RunDirectory.open(tmp_path / "run", "study ssah", {}) as run:
        shape = ModelShape(architecture="a", n_layers=2, d_model=4, d_mlp=8, n_heads=2, n_kv_heads=2)
        run.result("subject", StudySubject("organism:aligned", shape, None))
    assert "results/behavior' holds no readable result" in refuse("report", tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
    subject = tmp_path / "run" / "results" / "subject" / "result.json"
    text = subject.read_text()
    for old, new in (('"planted"', '"plan"'), ('"source"', '"shape"'), ('"n_layers"', '"layers"')):
        subject.write_text(text.replace(old, new))
        assert len(refuse("report", tmp_path / "run").strip().splitlines()) == 1


MERGES = "".join(f"{new}: &{new} {{<<: [*{old}, *{old}]}}\n" for old, new in ("ab", "bc"))
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIGS = {
    "aliases.yaml": (ALIASES, "aliases"),
    "merges.yaml": ("a: &a {n: 1}\n" + MERGES, "aliases"),
    "nested.yaml": (f"draws: {'[' * 5000}{']' * 5000}\n", "nested too deeply"),
    "lists.yaml": ("draws: [[1], [2]]\n", "one value or a list of values"),
    "object.yaml": ("draws: !!python/object/apply:os.system ['true']\n", "constructor"),
    "twice.yaml": ("draws: 1\ndraws: 2\n", "has 'draws' 2 times"),
    "twice_spelled.yaml": ("final-norm: true\nfinal_norm: false\n", "'final_norm' twice"),
    "yes.yaml": ("draws: yes\n", "'draws' is True there"),
    "yes.toml": ("draws = true\n", "'draws' is True there"),
    "nested.toml": (f"draws = {'[' * 5000}{']' * 5000}\n", "nested too deeply"),
    "large.yaml": ("#" * (2**20 + 1), "at most 1048576 are read"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_files_are_bounded(tmp_path: Path, name: str) -> None:
    text, message = CONFIGS[name]
    (tmp_path / name).write_text(text)
    found = refuse("layers", "similarity", "--config", tmp_path / name, "--out", tmp_path / "out")
    assert message in found
    assert not (tmp_path / "out").exists()


def test_what_is_written_in_a_configuration_is_what_is_read(tmp_path: Path) -> None:
    """YAML reads 6:14 in sixties and 010 in eights."""
    (tmp_path / "c.yaml").write_text("layers: 6:14\nseed: 010\ndate: 2026-01-31\nlr: 1e-3\njson: yes\nout: null\n")
    want = {"layers": "6:14", "seed": "010", "date": "2026-01-31", "lr": "1e-3", "json": True, "out": None}
    assert read_settings(tmp_path / "c.yaml") == want
