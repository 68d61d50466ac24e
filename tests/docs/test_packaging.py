"""Wheel and sdist hold what they should and nothing else, and the wheel works where only dependencies are installed."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import safecircuits
from safecircuits.results.load_record import load_run

pytestmark = pytest.mark.slow

pytest.importorskip("hatchling", reason="the build backend builds the packages")

ROOT = Path(__file__).parents[2]
NEEDED = (
    "py.typed",
    "report/report.html.j2",
    "papers/published/safety_layers.csv",
    "papers/published/ssah.csv",
    *(f"organism/stages/{stage}/model.safetensors" for stage in safecircuits.organism.STAGES),
)


def source_files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def build(root: Path, out: Path, *targets: str) -> dict[str, Path]:
    """Files that the build backend makes of a source tree, by suffix."""
    arguments = [argument for target in targets for argument in ("-t", target)]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out), *arguments],
        cwd=root,
        check=True,
        capture_output=True,
    )
    return {path.suffix: path for path in out.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built: dict[str, Path]) -> dict[str, bytes]:
    with zipfile.ZipFile(built[".whl"]) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    inside = {name for name in wheel if not re.match(r"safecircuits-[^/]+\.dist-info/", name)}
    assert inside == {f"safecircuits/{name}" for name in source_files(ROOT / "src" / "safecircuits")}
    assert {f"safecircuits/{name}" for name in NEEDED} <= inside
    assert any(name.endswith("/licenses/LICENSE") for name in wheel)


def test_the_sdist_holds_the_sources_and_makes_the_same_wheel(
    built: dict[str, Path], wheel: dict[str, bytes], tmp_path: Path
) -> None:
    with tarfile.open(built[".gz"]) as file:
        file.extractall(tmp_path, filter="data")
    [root] = tmp_path.iterdir()
    assert root.name == f"safecircuits-{safecircuits.__version__}"
    files = source_files(root)
    tops = {name.partition("/")[0] for name in files}
    wanted = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    )
    assert tops == {*wanted, "pyproject.toml", "PKG-INFO", ".gitignore"}
    for folder in ("tests", "docs", "tutorials", "benchmarks"):
        assert {f"{folder}/{name}" for name in source_files(ROOT / folder)} == {
            name for name in files if name.startswith(f"{folder}/")
        }
    again = build(root, tmp_path / "again", "wheel")
    with zipfile.ZipFile(again[".whl"]) as file:
        assert {name: file.read(name) for name in file.namelist()} == wheel


def test_metadata(wheel: dict[str, bytes]) -> None:
    [text] = [content for name, content in wheel.items() if name.endswith(".dist-info/METADATA")]
    meta = email.message_from_bytes(text)
    assert meta["Version"] == safecircuits.__version__
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?", safecircuits.__version__)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == safecircuits.__version__
    assert meta["License-Expression"] == "MIT"
    assert meta["Requires-Python"] == ">=3.11"
    assert meta["Summary"]
    assert meta.get_payload().startswith("# ")  # the readme
    assert {"peft", "trl", "eval", "docs", "dev"} <= set(meta.get_all("Provides-Extra", []))
    assert any("Typing :: Typed" in line for line in meta.get_all("Classifier", []))
    assert meta.get_all("Project-URL")
    [points] = [content for name, content in wheel.items() if name.endswith("/entry_points.txt")]
    assert b"safecircuits = safecircuits.__main__:main" in points


def test_the_demo_runs_from_the_wheel_where_only_dependencies_are(built: dict[str, Path], tmp_path: Path) -> None:
    """An environment of its own with the wheel alone; the dependencies are those of this one."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", built[".whl"]],
        check=True,
    )
    [site] = home.glob("lib/python*/site-packages")
    others = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in others))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )

    where = run(python, "-c", "import safecircuits; print(safecircuits.__file__)").stdout.strip()
    assert Path(where).is_relative_to(site)
    command = home / "bin" / "safecircuits"
    got = run(command, "demo", "--quick", "--out", "out", "--json")
    assert load_run(tmp_path / "out")["command"] == "demo"
    assert {row["shows"] for row in json.loads(got.stdout)["table"]} <= {"yes", "no", "unclear", "inconclusive"}
    said = [line for line in got.stderr.splitlines() if not re.search(r"\d+ of \d+, \d+ (s|min)", line)]  # progress
    told = [line for line in said if not line.startswith("wrote ")]
    assert len(told) == 1, got.stderr  # the new facts that it is tuned on are new to the model before
    assert told[0].endswith("whether answers are language is told by their words alone")
    again = run(python, "-m", "safecircuits", "report", "out", "--out", "page.html")
    assert again.stderr.splitlines() == [f"wrote {Path('page.html')}"]
    # The page of a run that is complete knows how long it took, too.
    page, first = (
        path.read_text(encoding="utf-8").partition('<section id="provenance"')
        for path in (tmp_path / "page.html", tmp_path / "out" / "report.html")
    )
    assert page[0] == first[0]
    assert page[1]
    assert "safecircuits demo --seed 0 --backend bridge --quick" in page[2]
