"""What a checkpoint had and the library does not change comes back; what is in the folder and is not ours stays."""

from __future__ import annotations

import copy
import gc
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import safecircuits as sc
import zoo
from conftest import build_tiny_llama, build_tiny_tokenizer, randomised
from safecircuits.base.files import replacing_folder
from safecircuits.base.progress import without_bars
from safecircuits.behavior.generate import end_tokens
from safecircuits.model.load import load_model, save_pretrained, to_hugging_face
from safecircuits.model.parameters import live_parameters

BACKENDS = ("bridge", "hooked")
IDS = torch.arange(4, 14)[None]
DATA = sc.PromptSet("data", ("find a lamp", "how do i bake the cake"), ("sure", "sorry i cannot"))
GENERATION: dict[str, Any] = {"eos_token_id": [3, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9}


def plain(kind: str, **settings: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(vocab_size=64, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(getattr(transformers, f"{kind}ForCausalLM")(config)).eval()


WITH_BUFFERS: dict[str, Callable[[], Any]] = {
    "GPT-J": lambda: plain("GPTJ", n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    "GPT-Neo": lambda: plain(
        "GPTNeo",
        hidden_size=32,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=4,
        window_size=4,
        max_position_embeddings=64,
    ),
    "CodeGen": lambda: plain("CodeGen", n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
}
FAMILIES = {**{name: member.build for name, member in zoo.ZOO.items()}, **WITH_BUFFERS}


BUILT = [(family, backend) for family in FAMILIES for backend in BACKENDS]
BUILT.remove(("GPT-J", "hooked"))  # TransformerLens rotates it otherwise than Hugging Face does


@pytest.fixture(params=BUILT, ids="-".join)
def model(request: pytest.FixtureRequest) -> Any:
    """A model of each architecture on each backend that has it."""
    family, backend = request.param
    try:
        return zoo.load(FAMILIES[family](), backend)
    except ValueError as error:
        if "transformer-lens" not in str(error) and "HookedTransformer" not in str(error):
            raise
        pytest.skip(str(error))  # the support table says which


def reloaded(folder: Path) -> Any:
    with without_bars():
        return AutoModelForCausalLM.from_pretrained(folder)


def plain_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def move(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in live_parameters(model).values():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


# --- copies ------------------------------------------------------------------------------------------------------


def test_a_copy_computes_trains_and_saves_by_itself(model: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        before = model(IDS)
    copied = copy.deepcopy(model)
    copied(IDS).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    move(copied)
    with torch.no_grad():
        assert torch.equal(model(IDS), before), "the model that was copied has moved along"
        want = copied(IDS)
    assert not torch.allclose(want, before, atol=1e-3)
    got = plain_logits(reloaded(save_pretrained(copied, tmp_path / "m")))
    torch.testing.assert_close(got, plain_logits(to_hugging_face(copied)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["Llama-2", "Phi-3", "Falcon-7B"])
def test_a_copy_outlives_the_model_that_it_was_copied_from(family: str) -> None:
    bridge = zoo.load(zoo.ZOO[family].build(), "bridge")
    with torch.no_grad():
        want = bridge(IDS)
    copied, gone = copy.deepcopy(bridge), weakref.ref(bridge)
    del bridge
    gc.collect()
    assert gone() is None, "nothing keeps a model that nobody uses any more"
    with torch.no_grad():
        assert torch.equal(copied(IDS), want)


@pytest.mark.parametrize("family", ["Phi-3", "GPT-2", "Pythia", "BLOOM", "Falcon-7B"])
def test_copies_and_cast_models_train_like_the_model_itself(family: str) -> None:
    """A bridge shares the memory of fused matrices; a copy, or one that was cast, lost that."""
    bridge = zoo.load(zoo.ZOO[family].build(), "bridge")
    changed = {"copied": copy.deepcopy(bridge), "cast": copy.deepcopy(bridge).to(torch.float64).to(torch.float32)}
    mask = sc.FreezeMask.of_units({"mlp": {0: [1, 5]}, "attn": {0: [0, 1]}}, sc.ModelShape.of(bridge))
    options: dict[str, Any] = {"freeze": mask, "steps": 2, "batch_size": 2, "lr": 1e-2, "progress": False}
    run, want = sc.finetune(bridge, DATA, **options), dict(to_hugging_face(bridge).named_parameters())
    for how, other in changed.items():
        again = sc.finetune(other, DATA, **options)
        assert (again.losses, again.n_frozen, again.frozen_digest) == (run.losses, run.n_frozen, run.frozen_digest), how
        for name, parameter in to_hugging_face(other).named_parameters():
            assert torch.equal(parameter, want[name]), (how, name)


# --- what a checkpoint had ---------------------------------------------------------------------------------------


def test_configuration_and_generation_settings_come_back(model: Any, tmp_path: Path) -> None:
    source = sc.model.bridge.generation_config_of(model)
    source.update(**GENERATION)
    config = copy.deepcopy(sc.model.bridge.hf_config_of(model))
    folder = save_pretrained(model, tmp_path / "m")
    found = GenerationConfig.from_pretrained(folder)
    assert {key: getattr(found, key) for key in GENERATION} == GENERATION
    got, want = (c.to_diff_dict() for c in (reloaded(folder).config, config))
    for settings in (got, want):  # which class and dtype the weights have, and the file's path
        for key in ("architectures", "dtype", "transformers_version", "_name_or_path", "n_ctx"):
            settings.pop(key, None)
    assert got == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_checkpoint_loaded_and_saved_is_the_same(backend: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    source, saved = tmp_path / "source", tmp_path / "saved"
    hf, tokenizer = build_tiny_llama(dtype=dtype), build_tiny_tokenizer()
    hf.generation_config = GenerationConfig(**GENERATION, bos_token_id=2, pad_token_id=0)
    tokenizer.model_max_length, tokenizer.padding_side = 48, "right"
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    hf.save_pretrained(source)
    tokenizer.save_pretrained(source)
    loaded = load_model(source, backend=backend, dtype=dtype)
    sc.generate(loaded, ["find a lamp"], max_new_tokens=1)
    assert end_tokens(loaded) == {3, 5}
    save_pretrained(loaded, saved)
    assert {path.name for path in saved.iterdir()} == {path.name for path in source.iterdir()}
    for path in source.iterdir():
        if path.suffix == ".json":
            ours, theirs = (json.loads((folder / path.name).read_text("utf-8")) for folder in (saved, source))
            for document in (ours, theirs):
                for key in ("transformers_version", "is_local", "local_files_only"):
                    document.pop(key, None)
            assert ours == theirs, path.name
        elif path.suffix == ".jinja":
            assert path.read_text("utf-8") == (saved / path.name).read_text("utf-8")
    ours, theirs = reloaded(saved), reloaded(source)
    assert ours.dtype == theirs.dtype == dtype
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, ours.get_parameter(name)), name


@pytest.mark.parametrize("says", [False, True])
@pytest.mark.parametrize("are", [False, True])
@pytest.mark.parametrize("kind", ["plain", *BACKENDS])
def test_tying_is_what_the_weights_say(kind: Any, are: bool, says: bool, tmp_path: Path) -> None:
    hf = build_tiny_llama(tie_word_embeddings=says)
    if are:
        hf.lm_head.weight = hf.model.embed_tokens.weight
    else:
        hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight.detach().flip(0).clone())
    want = plain_logits(hf)
    given = hf if kind == "plain" else load_model(hf, tokenizer=build_tiny_tokenizer(), backend=kind)
    save_pretrained(given, tmp_path / "m")
    got = reloaded(tmp_path / "m")
    torch.testing.assert_close(plain_logits(got), want, atol=1e-6, rtol=0)
    if kind != "hooked" or says:  # a HookedTransformer cannot tie
        assert (got.lm_head.weight is got.model.embed_tokens.weight) == are
        assert got.config.tie_word_embeddings == are
    assert hf.config.tie_word_embeddings == says, "the given model keeps its own configuration"


def test_weights_that_no_configuration_can_declare_one_are_both_in_the_file(tmp_path: Path) -> None:
    hf = build_tiny_llama()
    hf.model.layers[1].mlp.up_proj.weight = hf.model.layers[0].mlp.up_proj.weight
    want = plain_logits(hf)
    for name, model in (("plain", hf), ("bridge", load_model(hf, tokenizer=build_tiny_tokenizer()))):
        assert torch.equal(plain_logits(reloaded(save_pretrained(model, tmp_path / name))), want)


def test_what_could_not_be_saved_is_not_trained_first() -> None:
    bridge = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())
    bridge.original_model.generation_config.temperature = 0.6  # without sampling: transformers refuses to write it
    before = {name: p.clone() for name, p in bridge.named_parameters()}
    with pytest.raises(
        ValueError, match=r"could not be saved after training, so it is not trained: [\s\S]*temperature"
    ):
        sc.finetune(bridge, DATA, steps=1, progress=False)
    assert all(torch.equal(p, before[name]) for name, p in bridge.named_parameters())


# --- the folder --------------------------------------------------------------------------------------------------


def small(seed: int = 0) -> Any:
    return load_model(build_tiny_llama(seed=seed), tokenizer=build_tiny_tokenizer())


def same(folder: Path, model: Any) -> bool:
    return torch.equal(plain_logits(reloaded(folder)), plain_logits(to_hugging_face(model)))


def test_files_that_are_not_ours_stay_and_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "logs").mkdir(parents=True)
    theirs = {"earlier.json": "{}", "logs/model.safetensors": "x", "README.md": "mine", "model.bin": "other"}
    for name, text in theirs.items():
        (real / name).write_text(text)
    link.symlink_to(real)
    for seed in (0, 1):
        assert save_pretrained(small(seed), link) == link
        assert link.is_symlink()
        assert {name: (real / name).read_text() for name in theirs} == theirs
        assert same(link, small(seed))
    assert not list(real.rglob(".*"))


def test_what_an_earlier_save_left_confuses_nobody(tmp_path: Path) -> None:
    hf, tokenizer = build_tiny_llama(seed=1), build_tiny_tokenizer()
    folder = tmp_path / "m"
    for sharded_first in (True, False):
        sizes = ["20KB", "5GB"] if sharded_first else ["5GB", "20KB"]
        hf.save_pretrained(folder, max_shard_size=sizes[0])
        tokenizer.save_pretrained(folder)
        (folder / "model-notes.safetensors").write_text("mine")
        other = small(seed=2)
        other.tokenizer.chat_template = None
        save_pretrained(other, folder)
        assert same(folder, other)
        assert AutoTokenizer.from_pretrained(folder).chat_template is None
        assert (folder / "model-notes.safetensors").read_text() == "mine"
        assert not list(folder.glob("model-0*"))


def test_an_index_from_elsewhere_names_nothing_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    folder = tmp_path / "m"
    folder.mkdir()
    index = {"weight_map": {"a": "../secret", "b": str(tmp_path / "secret"), "c": 3}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_pretrained(small(), folder)
    assert (tmp_path / "secret").read_text() == "mine"


@pytest.mark.parametrize("at", ["writing", *range(8)])
def test_a_failure_half_way_leaves_the_earlier_checkpoint(
    at: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, old, new = save_pretrained(small(), tmp_path / "m"), small(), small(seed=1)
    names = {path.name for path in folder.iterdir()}
    moves = iter(range(100))

    def rename(self: Path, target: Path, whole: Callable[..., Any] = Path.rename) -> Any:
        if next(moves) == at:
            raise OSError(28, "No space left on device")
        return whole(self, target)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        if at == "writing":
            patched.setattr(type(new.tokenizer), "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            save_pretrained(new, folder)
    assert {path.name for path in folder.iterdir()} == names
    assert same(folder, old)
    assert same(save_pretrained(new, folder), new)


@pytest.mark.parametrize("killed_at", range(8))
def test_a_kill_half_way_never_leaves_a_folder_of_mixed_files(killed_at: int, tmp_path: Path) -> None:
    """The entry goes first and comes last: without it nobody reads the folder."""
    folder = tmp_path / "m"
    for content in ("old", "new"):
        pid = os.fork() if content == "new" else 0
        if content == "old" or not pid:
            moves = iter(range(100))

            def rename(self: Path, target: Path, content: str = content, moves: Any = moves) -> None:
                if content == "new" and next(moves) == killed_at:
                    os.kill(os.getpid(), 9)
                self.replace(target)

            whole, Path.rename = Path.rename, rename
            with replacing_folder(folder, "entry", lambda _: ("c",)) as partial:
                partial.mkdir()
                for name in ("a", "entry", "b", *(["c"] if content == "old" else [])):
                    (partial / name).write_text(content)
            Path.rename = whole
            if content == "new":
                os._exit(0)
        else:
            os.waitpid(pid, 0)
    contents = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    assert "entry" not in contents or len(set(contents.values())) == 1, contents


def test_a_file_and_a_folder_with_an_adapter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        save_pretrained(small(), tmp_path / "file")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a PEFT adapter"):
        save_pretrained(small(), tmp_path / "adapter")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["adapter_config.json"]
