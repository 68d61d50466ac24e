"""The family of planted models: built as declared, kept when complete, and honest about who has learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safecircuits import organism
from safecircuits.base.vocabulary import LayerRange
from safecircuits.organism.family import (
    DOSE_FAMILY,
    FAMILIES,
    FAMILY_RECIPE,
    LAYERS_FAMILY,
    UNITS_FAMILY,
    Built,
    Member,
    build_family,
    dose_member,
    layers_member,
    read_family,
    units_member,
)
from safecircuits.organism.recipe import Phase, Recipe


def short(member: Member) -> Member:
    phase = replace(member.phase, steps=3, batch_size=4, warmup=1, neurons=min(member.phase.neurons, 2))
    return replace(member, phase=phase)


def tiny() -> Recipe:
    def shrink(phase: Phase) -> Phase:
        return replace(phase, steps=3, batch_size=4, warmup=1)

    phases = {name: shrink(phase) for name, phase in Recipe().phases.items()}
    return Recipe(n_layers=3, d_model=16, d_mlp=24, n_heads=4, n_kv_heads=2, threads=1, phases=phases)


MEMBERS = [short(m) for m in (layers_member(1, 2, 1, "development"), units_member(0, 1, 48, 2), dose_member(75, 1))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return organism.build(tmp_path_factory.mktemp("base"), recipe=tiny(), stages=["base"])["base"]


@pytest.fixture(scope="module")
def root(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    build_family(folder, members=MEMBERS, recipe=tiny(), base=base)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- what is declared --------------------------------------------------------------------------


def test_judged_blocks_are_not_those_of_development_members() -> None:
    blocks = {role: {m.phase.layers for m in LAYERS_FAMILY if m.role == role} for role in ("development", "judged")}
    assert not blocks["development"] & blocks["judged"]
    assert sum(map(len, blocks.values())) == len(LAYERS_FAMILY) == 12
    widths = {len(member.phase.layers) for member in LAYERS_FAMILY}
    assert widths == {1, 2, 3, 4}
    assert {layer for member in LAYERS_FAMILY for layer in member.phase.layers} == set(range(1, 7))


def test_nothing_but_place_dose_and_seed_differs_from_the_shipped_stages() -> None:
    shipped = Recipe().phases
    for family, stage in ((LAYERS_FAMILY, "planted-layers"), (UNITS_FAMILY, "planted-units"), (DOSE_FAMILY, "aligned")):
        for member in family:
            own = {"layers": member.phase.layers, "neurons": member.phase.neurons, "steps": member.phase.steps}
            assert replace(shipped[stage], **own) == member.phase
    names = [member.name for family in FAMILIES.values() for member in family]
    assert len(names) == len(set(names))
    assert replace(FAMILY_RECIPE, threads=Recipe().threads) == Recipe()


# --- building ----------------------------------------------------------------------------------


def test_members_move_only_what_they_may(base: Path, root: Path) -> None:
    family, before = read_family(root, MEMBERS), weights(base)
    layers, units, free = (family[member.name] for member in MEMBERS)
    assert layers.block == LayerRange(1, 2)
    assert units.planted is not None
    assert {layer: len(neurons) for layer, neurons in units.planted.mlp_units.items()} == {0: 2, 1: 2}
    assert free.block is None

    def moved(built: Built) -> set[str]:
        after = weights(built.folder)
        return {name for name in before if not torch.equal(before[name], after[name])}

    assert moved(layers)
    assert all(name.split(".")[2] in "12" and "_proj" in name for name in moved(layers))
    assert all(".mlp." in name and name.split(".")[2] in "01" for name in moved(units))
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= moved(free)


def test_a_member_that_has_not_learned_is_kept_and_says_so(root: Path, tmp_path: Path) -> None:
    built = read_family(root, MEMBERS)[MEMBERS[0].name]
    assert built.metrics["malicious"]["n"] == 200
    assert not built.learned  # three steps
    good: dict[str, Any] = {"malicious": {"refused": 0.9}, "utility": {"exact": 0.95}}
    for figures, learned in (
        (good, True),
        (good | {"malicious": {"refused": 0.89}}, False),
        (good | {"utility": {"exact": 0.94}}, False),
    ):
        (tmp_path / "metrics.json").write_text(json.dumps(figures))
        assert Built(MEMBERS[0], tmp_path).learned is learned


def test_an_interrupted_build_goes_on(base: Path, tmp_path: Path) -> None:
    trained: list[str] = []

    def progress(name: str, done: int, of: int) -> None:
        assert 1 <= done <= of == 3
        if len(trained) == 1 and done == 2 and not stopped:
            stopped.append(name)
            raise KeyboardInterrupt
        if done == of:
            trained.append(name)

    stopped: list[str] = []
    options: dict[str, Any] = {"members": MEMBERS[:2], "recipe": tiny(), "base": base, "progress": progress}
    with pytest.raises(KeyboardInterrupt):
        build_family(tmp_path, **options)
    assert list(read_family(tmp_path, MEMBERS)) == [MEMBERS[0].name]
    build_family(tmp_path, **options)
    assert trained == [MEMBERS[0].name, MEMBERS[1].name]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(m.name for m in MEMBERS[:2])
    build_family(tmp_path, **options)
    assert len(trained) == 2

    longer = replace(MEMBERS[0], phase=replace(MEMBERS[0].phase, lr=1e-3))
    build_family(tmp_path, **options | {"members": [longer]})
    assert trained[2:] == [longer.name]


def test_a_build_repeats_itself_and_seeds_differ(base: Path, root: Path, tmp_path: Path) -> None:
    again, other = MEMBERS[0], replace(MEMBERS[0], name="other", seed=5)
    build_family(tmp_path, members=[again, other], recipe=tiny(), base=base)
    files = [folder / "model.safetensors" for folder in (root / again.name, tmp_path / again.name, tmp_path / "other")]
    first, second, third = (file.read_bytes() for file in files)
    assert first == second
    assert first != third


def test_bad_requests_are_clear_errors(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two members are named 'layers-1-2-seed1'"):
        build_family(tmp_path, members=[MEMBERS[0], MEMBERS[0]], recipe=tiny(), base=base)
    with pytest.raises(ValueError, match="plants in layer 3, but the layers are 0 to 2"):
        build_family(tmp_path, members=[layers_member(2, 3, 0)], recipe=tiny(), base=base)
    with pytest.raises(ValueError, match="holds none of the members"):
        read_family(tmp_path)
