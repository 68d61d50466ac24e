"""The benchmark script of each model, on tiny random weights of its architecture."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.models import any_model
from benchmarks.models.settings import Model
from benchmarks.models.study import _unseen, beside, main, published_alpha, published_shares
from benchmarks.models.weights import random_checkpoint

import zoo
from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.prompts.prompt_set import PromptSet

SCRIPTS = {
    "llama3_8b_instruct": ("LlamaForCausalLM", 8_030_261_248),
    "llama2_7b_chat": ("LlamaForCausalLM", 6_738_415_616),
    "gemma_2b_it": ("GemmaForCausalLM", 2_506_172_416),
    "phi3_mini_4k_instruct": ("Phi3ForCausalLM", 3_821_079_552),
    "mistral_7b_instruct": ("MistralForCausalLM", 7_241_732_096),
    "embedded": ("LlamaForCausalLM", None),
}
"""Architecture, and the parameters that the published checkpoint has."""
TINY = ["--random-weights", "--scale", "tiny"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_on_tiny_random_weights(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script: Any = importlib.import_module(f"benchmarks.models.{name}")
    out = tmp_path / "run"
    # Fine-tuning is the longest part and the same for all.
    options = [*TINY, "--alpha", "1.1", *([] if name == "phi3_mini_4k_instruct" else ["--no-finetuning"])]
    frame = main(script.MODEL, [*options, "--out", str(out)])
    hf, _ = load_checkpoint(tmp_path / "run-weights", None, "cpu", None)
    assert type(hf).__name__ == SCRIPTS[name][0]
    cells = {(row.setting, row.metric): row.measured for row in frame.itertuples()}
    assert cells["model", "n_layers"] == "4"
    assert 0 <= float(cells["nothing removed", "asr_nosys"]) <= 100
    assert cells["unscaled", "over_rejected"].isdigit()
    if name == "phi3_mini_4k_instruct":
        assert float(cells["D_N SPPFT", "harmful_rate_%"]) >= 0
    known = frame[frame["published"] != ""]
    assert known.empty == (name == "embedded")
    if not known.empty:
        assert (known["measured"] == "").any(), "what was not run stays empty"
    saved = json.loads((out / "benchmark.json").read_text())
    assert [row["measured"] for row in saved["rows"]] == frame["measured"].tolist()
    assert "asr_nosys" in capsys.readouterr().out
    if name == "embedded":
        again = main(script.MODEL, [*options, "--out", str(out)])
        assert again["measured"].tolist() == frame["measured"].tolist()


@pytest.mark.parametrize("name", [name for name, (_, size) in SCRIPTS.items() if size])
def test_the_configuration_is_the_models_own(name: str) -> None:
    import transformers

    from safecircuits.model.memory import estimate_memory

    script: Any = importlib.import_module(f"benchmarks.models.{name}")
    kind, settings = script.MODEL.config
    config = getattr(transformers, kind)(**settings)
    assert estimate_memory(config, tokens=(1, 1)).weights == 4 * SCRIPTS[name][1]


def test_any_model_by_its_folder(tmp_path: Path) -> None:
    zoo.ZOO["Qwen3"].build().save_pretrained(tmp_path / "m")
    frame = any_model.run(
        [str(tmp_path / "m"), *TINY, "--alpha", "1.1", "--no-finetuning", "--out", str(tmp_path / "run")]
    )
    assert set(frame["published"]) == {""}
    hf, _ = load_checkpoint(tmp_path / "run-weights", None, "cpu", None)
    assert type(hf).__name__ == "Qwen3ForCausalLM"


def test_random_weights_are_those_that_are_asked_for(tmp_path: Path) -> None:
    model = Model("m", config=("LlamaConfig", {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 96}))
    texts = ["make tea", "find a lamp"]

    def made(scale: str, **sizes: int) -> Any:
        changed = replace(model, config=("LlamaConfig", {**model.config[1], "num_hidden_layers": 2, **sizes}))
        return load_checkpoint(random_checkpoint(changed, scale, texts, tmp_path / "w"), None, "cpu", None)[0].config

    assert made("tiny").hidden_size == 32
    written = (tmp_path / "w" / "model.safetensors").stat().st_mtime_ns
    assert made("tiny").hidden_size == 32
    assert (tmp_path / "w" / "model.safetensors").stat().st_mtime_ns == written, "made once"
    assert made("full").hidden_size == 64
    assert made("full", num_hidden_layers=3).num_hidden_layers == 3
    assert not [p for p in tmp_path.iterdir() if p.name != "w"]


def test_removal_is_measured_on_prompts_that_were_not_scored() -> None:
    evaluation, scored = (PromptSet(n, p) for n, p in (("e", ("a", "b", "c")), ("s", ("b", "z"))))
    assert _unseen(evaluation, scored).prompts == ("a", "c")
    assert _unseen(scored, scored) is scored


def test_published_settings() -> None:
    assert published_alpha("google/gemma-2b-it") == 1.1
    assert published_alpha("mistralai/Mistral-7B-Instruct-v0.2") == "search"
    assert published_shares("meta-llama/Llama-2-7b-chat-hf")["SCU"] == 1.3


def test_a_published_number_stands_beside_the_measured_one() -> None:
    frame = beside("google/gemma-2b-it", {("alpha", "alpha"): "1.1", ("own", "number"): "3"})
    row = frame[(frame["table"] == "Table 1") & (frame["metric"] == "alpha")].iloc[0]
    assert (row["published"], row["measured"]) == ("1.1", "1.1")
    assert frame.iloc[-1].tolist() == ["", "", "own", "number", "", "3"]
    assert (frame["measured"] == "").sum() == len(frame) - 2
