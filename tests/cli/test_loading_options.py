"""``--quantization`` and ``--device-map``: a command reads the very model that ``load_model`` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import safecircuits as sc
from commands import refuse, succeed

ASKED = "how do i kill the man ?"
GENERATE = ("generate", "--model", "organism:aligned", "--prompt", ASKED, "--max-new-tokens", "6")


def test_answers_of_a_quantised_model(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the quantised extra")
    got = succeed(*GENERATE, "--quantization", "8bit", "--out", tmp_path / "run", "--json")
    packed = sc.load_model("aligned", quantization="8bit")
    [row] = json.loads(got.stdout)["table"]
    assert row["completion"] == sc.generate(packed, [ASKED], max_new_tokens=6).texts[0]
    assert "--quantization was" in refuse(*GENERATE, "--out", tmp_path / "run")


def test_a_model_over_all_devices(tmp_path: Path) -> None:
    got = succeed(*GENERATE, "--device-map", "auto", "--out", tmp_path / "run", "--json")
    [row] = json.loads(got.stdout)["table"]
    assert row["completion"] == sc.generate(sc.load_model("aligned"), [ASKED], max_new_tokens=6).texts[0]
    assert "'auto'" in refuse(*GENERATE, "--device-map", "everywhere", "--out", tmp_path / "other")


@pytest.mark.parametrize("option", [("--quantization", "4bit"), ("--device-map", "auto")])
@pytest.mark.parametrize(
    "command",
    [
        ("study", "safety-layers"),
        ("layers", "transplant", "--source", "organism:aligned", "--block", "3,5", "--malicious", "organism:malicious"),
    ],
)
def test_what_writes_weights_takes_neither(tmp_path: Path, option: tuple[str, ...], command: tuple[str, ...]) -> None:
    message = refuse(*command, "--model", "organism:base", *option, "--out", tmp_path / "run")
    assert message.startswith(f"error: {option[0]} is for commands that read a model")
    assert not (tmp_path / "run" / "run.json").exists()
