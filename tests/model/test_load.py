"""Checkpoints that do not load: one clear error each; devices, precision and quantisation."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from benchmarks.models.weights import byte_level_tokenizer
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import safecircuits as sc
import support
import zoo
from conftest import build_tiny_llama
from safecircuits.base.notices import Notice
from safecircuits.model.forward import logits
from safecircuits.model.load import load_model
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

PROMPTS = sc.PromptSet("zoo", support.PROMPTS, support.ANSWERS)
REFUSED = sc.PromptSet("refused", ("make a bomb", "bake the dog"), ("sorry i cannot help", "sorry that cannot"))
NAME = "meta-llama/Meta-Llama-3-8B-Instruct"


def response(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", f"https://huggingface.co/{NAME}"))


class TestHub:
    """What the hub's own client raises, and what the user reads."""

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (lambda: hub.GatedRepoError("403", response=response(403)), r"is gated: accept its licence at .*hf auth"),
            (lambda: hub.RepositoryNotFoundError("404", response=response(404)), r"the hub has no model .*spelling"),
            (lambda: hub.RevisionNotFoundError("404", response=response(404)), r"has no revision 'v9'"),
            (lambda: hub.LocalEntryNotFoundError("offline"), r"cannot be reached and .* is not in the cache"),
            (lambda: hub.HfHubHTTPError("500", response=response(500)), r"specific connection error"),
            (lambda: hub.RemoteEntryNotFoundError("404", response=response(404)), r"has no config\.json that names"),
        ],
    )
    def test_errors(self, error: Callable[[], Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(*args: Any, **kwargs: Any) -> str:
            raise error()

        monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
        with pytest.raises(ValueError, match=rf"^cannot load '{NAME}'.*{message}") as raised:
            load_model(NAME, revision="v9")
        assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "m"
    build_tiny_llama().save_pretrained(folder)
    zoo.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "m")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


class TestFolders:
    def test_a_folder_above_the_checkpoint_names_it(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"it has no config\.json; '.*m' has one"):
            load_model(str(folder.parent))

    @pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/no/where", "runs/finetune/model"])
    def test_a_path_is_no_hub_id(self, name: str) -> None:
        with pytest.raises(ValueError, match="there is no folder of this name"):
            load_model(name)

    def test_a_stage_that_is_not_embedded(self) -> None:
        with pytest.raises(ValueError, match=r"no model 'foo'\. The embedded models are base"):
            load_model("organism:foo")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: (f / "config.json").unlink(), "not a folder with a Hugging Face checkpoint: it has no config"),
            (lambda f: (f / "config.json").write_text("{"), "not a valid JSON file"),
            (lambda f: (f / "model.safetensors").unlink(), "a config.json but no weights"),
            (lambda f: cut_off(f / "model.safetensors"), "model.safetensors is damaged or cut off"),
            (
                lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n"),
                "model.safetensors is a Git LFS pointer; run `git lfs pull`",
            ),
            (lambda f: edit_config(f, model_type="nonesuch"), "has model type `nonesuch`"),
            (lambda f: edit_config(f, model_type="t5", architectures=None), "T5Config"),
            (
                lambda f: edit_weights(f, lambda state: state.pop("model.layers.1.mlp.up_proj.weight")),
                r"lacks 1 of the model's parameters, for example 'model\.layers\.1\.mlp\.up_proj\.weight'",
            ),
            (
                lambda f: edit_config(f, num_hidden_layers=2),
                r"has 9 parameters that its configuration has no place for, for example 'model\.layers\.2\.\S+'",
            ),
            (
                lambda f: edit_weights(f, lambda s: s.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})),
                r"has 1 parameters .* 'model\.layers\.0\.self_attn\.q_proj\.bias'",
            ),
            (lambda f: edit_config(f, hidden_size=40), "size mismatch|ignore_mismatched_sizes"),
            (
                lambda f: [p.unlink() for p in f.glob("tokenizer*")],
                "no tokenizer that loads .*copy tokenizer.json, .* or from Python pass tokenizer=",
            ),
        ],
        ids=[
            "no-config",
            "bad-config",
            "no-weights",
            "cut-off",
            "lfs",
            "unknown",
            "t5",
            "missing",
            "more-layers",
            "more-biases",
            "shape",
            "tokenizer",
        ],
    )
    def test_damaged(self, folder: Path, damage: Callable[[Path], Any], message: str) -> None:
        damage(folder)
        with pytest.raises(ValueError, match=message) as raised:
            load_model(folder)
        assert "\n" not in str(raised.value)

    def test_what_older_checkpoints_hold_of_what_is_computed(self, folder: Path) -> None:
        spare = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        edit_weights(folder, lambda state: state.update(spare))
        assert load_model(folder).cfg.n_layers == 3

    def test_a_missing_shard(self, tmp_path: Path) -> None:
        build_tiny_llama().save_pretrained(tmp_path / "m", max_shard_size="20KB")
        shard = sorted((tmp_path / "m").glob("*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(ValueError, match=f"a part of its weights is missing .*{shard.name}"):
            load_model(tmp_path / "m", tokenizer=zoo.tokenizer())

    def test_a_checkpoint_without_a_tokenizer_takes_one(self, folder: Path) -> None:
        for path in folder.glob("tokenizer*"):
            path.unlink()
        assert load_model(folder, tokenizer=zoo.tokenizer()).cfg.n_layers == 3

    @pytest.mark.parametrize("name", ["Qwen2", "Llama-3", "Gemma-1"])
    def test_the_tokenizer_splits_as_it_did_when_it_was_saved(self, name: str, tmp_path: Path) -> None:
        zoo.ZOO[name].build().save_pretrained(tmp_path / "m")
        zoo.tokenizer().save_pretrained(tmp_path / "m")
        text = " ".join(support.PROMPTS)
        assert load_model(tmp_path / "m").tokenizer(text).input_ids == zoo.tokenizer()(text).input_ids

    @pytest.mark.parametrize(("name", "declared"), [("Qwen2", None), ("Qwen2", "GPT2Tokenizer"), ("GPT-2", None)])
    def test_another_way_of_splitting_text_is_noticed(self, name: str, declared: str | None, tmp_path: Path) -> None:
        """By its model type, transformers makes a byte-level tokenizer of one that has a word a token."""
        zoo.ZOO[name].build().save_pretrained(tmp_path / "m")
        zoo.tokenizer().save_pretrained(tmp_path / "m")
        path = tmp_path / "m" / "tokenizer_config.json"
        settings = {k: v for k, v in json.loads(path.read_text()).items() if k != "tokenizer_class"}
        path.write_text(json.dumps(settings | ({"tokenizer_class": declared} if declared else {})))
        advice = r"as \w+Tokenizer, which splits text otherwise than its tokenizer.json.*pass tokenizer=Pre.*/m'\)$"
        with pytest.warns(Notice, match=advice):
            loaded = load_model(tmp_path / "m").tokenizer
        text = " ".join(support.PROMPTS)
        assert loaded(text).input_ids != zoo.tokenizer()(text).input_ids
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            taken = PreTrainedTokenizerFast.from_pretrained(tmp_path / "m")
            assert load_model(tmp_path / "m", tokenizer=taken).tokenizer(text) == zoo.tokenizer()(text)

    @pytest.mark.parametrize("declared", [None, "PreTrainedTokenizerFast", "Qwen2TokenizerFast"])
    def test_the_same_way_of_splitting_text_is_not(self, declared: str | None, tmp_path: Path) -> None:
        """A byte-level tokenizer stays what it is, whatever the class."""
        zoo.ZOO["Qwen2"].build().save_pretrained(tmp_path / "m")
        byte_level_tokenizer(support.PROMPTS).save_pretrained(tmp_path / "m")
        path = tmp_path / "m" / "tokenizer_config.json"
        settings = {k: v for k, v in json.loads(path.read_text()).items() if k != "tokenizer_class"}
        path.write_text(json.dumps(settings | ({"tokenizer_class": declared} if declared else {})))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            load_model(tmp_path / "m")

    def test_code_of_the_checkpoint_is_not_run(self, folder: Path) -> None:
        auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
        edit_config(folder, model_type="evil", auto_map=auto)
        (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
        with pytest.raises(ValueError, match="cannot load"):
            load_model(folder)
        assert not (folder / "ran").exists()


class TestDevices:
    @pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
    def test_a_device_map_on_the_cpu(self, device_map: Any, checkpoint: Path) -> None:
        if device_map == "auto" and torch.cuda.is_available():
            pytest.skip("puts everything on the GPU")
        batch = pad_left(encode(zoo.tokenizer(), PROMPTS))
        with torch.no_grad():
            got = logits(load_model(checkpoint, device_map=device_map), batch)
            assert torch.equal(got, logits(load_model(checkpoint, device="cpu"), batch))

    @pytest.mark.parametrize("name", ["Llama-3", "Phi-3", "GPT-2", "Gemma-2"])
    def test_a_model_that_accelerate_has_spread(self, name: str) -> None:
        """The hooks with which Accelerate moves activations between devices, here all one, work inside a bridge."""
        from accelerate import dispatch_model

        hf = zoo.ZOO[name].build(seed=3)
        plain = zoo.load(zoo.ZOO[name].build(seed=3), "bridge")
        blocks = {f"{zoo.ZOO[name].blocks}.{i}": "cpu" for i in range(zoo.LAYERS)}
        root = zoo.ZOO[name].blocks.partition(".")[0]
        others = {
            f"{root}.{n}": "cpu" for n, _ in hf.get_submodule(root).named_children() if f"{root}.{n}.0" not in blocks
        }
        spread = zoo.load(dispatch_model(hf, {**others, **blocks, "lm_head": "cpu"}, force_hooks=True), "bridge")
        assert any(hasattr(m, "_hf_hook") for m in spread.original_model.modules())
        for found in (
            lambda m: sc.collect_residuals(m, PROMPTS).values,
            lambda m: sc.score_units(m, PROMPTS).scores["mlp"],
            lambda m: sc.layer_gap(m, PROMPTS, REFUSED).gap_deg,
        ):
            assert support.relative(found(spread), found(plain)) < 1e-5
        with sc.scaled(spread, (0, 1), 1.3), sc.scaled(plain, (0, 1), 1.3):
            assert sc.generate(spread, PROMPTS).texts == sc.generate(plain, PROMPTS).texts

    def test_bad_input(self, checkpoint: Path, tiny_llama_hf: Any, tiny_tokenizer: Any) -> None:
        with pytest.raises(ValueError, match=r"give device \(cpu\) or device_map \(auto\), not both"):
            load_model(checkpoint, device="cpu", device_map="auto")
        with pytest.raises(ValueError, match="a model object is where it is"):
            load_model(tiny_llama_hf, device_map="auto", tokenizer=tiny_tokenizer)
        with pytest.raises(ValueError, match="a HookedTransformer is on one device"):
            load_model(checkpoint, device_map="auto", backend="hooked")


LOW_PRECISION = {torch.bfloat16: 0.08, torch.float16: 0.01}
"""Largest difference to float32 that is accepted, as a share of the largest value."""
MODELS = ["Llama-3", "Gemma-2", "Phi-3", "Qwen3", "OLMo-2", "GPT-2", "Pythia"]


def rounded(name: str, dtype: torch.dtype, backend: str) -> tuple[Any, Any]:
    """A model in this precision, and one in float32 with the same rounded weights."""
    hf = zoo.ZOO[name].build(seed=4)
    with torch.no_grad():  # an ordinary size of weights: the zoo's own make rounding errors grow layer by layer
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.div_(2)
    low = hf.to(dtype)
    return zoo.load(low, backend), zoo.load(copy.deepcopy(low).float(), backend)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("backend", ["bridge", "hooked"])
@pytest.mark.parametrize("name", MODELS)
def test_16_bits_give_what_32_do(name: str, backend: str, dtype: torch.dtype) -> None:
    if (name, backend) not in zoo.pairs() or (backend == "hooked" and not zoo.ZOO[name].hooked):
        pytest.skip("no such model")
    low, full = rounded(name, dtype, backend)
    tolerance = LOW_PRECISION[dtype]

    def near(find: Callable[[Any], torch.Tensor]) -> None:
        got, want = find(low), find(full)
        assert got.dtype in (torch.float32, torch.float64), "results are at least float32"
        assert support.relative(got.double(), want.double()) < tolerance

    near(lambda m: sc.collect_residuals(m, PROMPTS).values)
    near(lambda m: sc.layer_gap(m, PROMPTS, REFUSED).nm.mean)
    near(lambda m: sc.score_units(m, PROMPTS).scores["mlp"])
    near(lambda m: sc.score_units(m, PROMPTS).scores["attn"])
    near(lambda m: sc.score_units(m, PROMPTS, method="snip").scores["mlp"])
    near(lambda m: sc.layers.attention_map(m, PROMPTS.prompts[0], template="none").values)
    near(lambda m: torch.tensor(sc.response_loss(m, PROMPTS).loss))
    assert sc.localize(low, PROMPTS, (0, 1), alpha=1.1, reach=1, max_new_tokens=2).layers.last < zoo.LAYERS
    if dtype == torch.bfloat16:  # AdamW's epsilon is zero in float16
        run = sc.finetune(low, PROMPTS, freeze=sc.FreezeMask.layers(0), steps=1, batch_size=2, lr=1e-3)
        assert run.frozen_bit_identical
        assert sc.collect_residuals(low, PROMPTS).values.isfinite().all()
