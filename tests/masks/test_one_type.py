"""A set of units has one type: every function that takes units takes it, and refuses all else in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.base.vocabulary import SITES
from safecircuits.baselines.rewinding import entries_of, rewind, rewound
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.training.freeze import frozen_digest
from safecircuits.units.removals import Removals
from safecircuits.units.selection import top

SHAPE = sc.ModelShape("LlamaForCausalLM", n_layers=3, d_model=32, d_mlp=48, n_heads=4, n_kv_heads=2)
PROMPTS = sc.PromptSet("p", ("make the cake", "find a lamp"), ("sure take it .", "here it is ."))

sets = st.fixed_dictionaries(
    {site: st.dictionaries(st.integers(0, 2), st.sets(st.integers(0, SHAPE.n_units(site) - 1))) for site in SITES}
)


# --- the type ----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(a=sets, b=sets, layers=st.sets(st.integers(0, 2)))
def test_is_the_set_of_its_units(a: Any, b: Any, layers: set[int]) -> None:
    """Against Python's sets of (site, layer, unit)."""

    def members(mask: FreezeMask) -> set[tuple[str, int, int]]:
        return {(site, k, unit) for site in SITES for k, row in mask.members(site).items() for unit in row}

    one, other = (FreezeMask.of_units(units, SHAPE) for units in (a, b))
    mine, theirs = ({(s, k, u) for s, rows in x.items() for k, row in rows.items() for u in row} for x in (a, b))
    block = {(s, k, u) for s in SITES for k in layers for u in range(SHAPE.n_units(s))}
    assert (members(one), members(other)) == (mine, theirs)
    assert members(one | other) == mine | theirs
    assert members(one & other) == mine & theirs
    assert members(one - other) == mine - theirs
    assert members(one | FreezeMask.layers(layers)) == mine | block
    assert members(FreezeMask.layers(layers) - one) == block - mine
    assert len(members(~one)) == 3 * 52 - len(mine)
    assert (one == other) == (mine == theirs)
    assert bool(one) == bool(mine)
    assert (one.n_units(), one.n_units("mlp")) == (len(mine), sum(site == "mlp" for site, _, _ in mine))
    for rebuilt in (
        FreezeMask.of_units({site: one.members(site) for site in SITES}, SHAPE),
        FreezeMask.where({site: one.at(site) for site in SITES}, SHAPE),
    ):
        assert rebuilt == one
        assert rebuilt.fingerprint == one.fingerprint


@settings(max_examples=60)
@given(units=sets, seed=st.integers(0, 1000), per_layer=st.booleans())
def test_a_control_is_of_equal_size_and_drawn_by_its_seed(units: Any, seed: int, per_layer: bool) -> None:
    like = FreezeMask.of_units(units, SHAPE)
    drawn = FreezeMask.random_units(like, seed=seed, per_layer=per_layer)
    assert drawn == FreezeMask.random_units(like, SHAPE, seed, per_layer=per_layer)
    for site in SITES:
        assert drawn.n_units(site) == like.n_units(site)
        if per_layer:
            assert torch.equal(drawn.at(site).sum(1), like.at(site).sum(1))


@pytest.mark.parametrize("per_layer", [False, True])
def test_chance_draws_every_unit_alike(per_layer: bool) -> None:
    like = FreezeMask.of_units(
        {"mlp": {0: range(4), 1: range(4), 2: range(4)}, "attn": {0: [0], 1: [1], 2: [2]}}, SHAPE
    )
    drawn = [FreezeMask.random_units(like, seed=seed, per_layer=per_layer) for seed in range(600)]
    for site, share in (("mlp", 4 / 48), ("attn", 1 / 4)):
        often = torch.stack([mask.at(site) for mask in drawn]).double().mean(0)
        assert float((often - share).abs().max()) < 5 * (share * (1 - share) / 600) ** 0.5


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), n=st.integers(0, 12), proportionate=st.booleans())
def test_the_top_are_the_first_of_a_sorted_list(seed: int, n: int, proportionate: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    order: Any = {s: torch.randint(0, 5, (3, SHAPE.n_units(s)), generator=generator).double() for s in SITES}
    got = top(order, n, SHAPE, proportionate=proportionate)
    units = [(s, k, u) for s in SITES for k in range(3) for u in range(SHAPE.n_units(s))]
    ranked = sorted(units, key=lambda unit: -order[unit[0]][unit[1:]])
    if proportionate:
        heads = round(n * 12 / 156)
        ranked = [*[u for u in ranked if u[0] == "mlp"][: n - heads], *[u for u in ranked if u[0] == "attn"][:heads]]
    assert {(s, k, u) for s in SITES for k, row in got.members(s).items() for u in row} == set(ranked[:n])


@pytest.mark.parametrize("made", [FreezeMask.where, lambda rows, shape: FreezeMask(rows["mlp"], rows["attn"], shape)])
@pytest.mark.parametrize(
    ("mlp", "message"),
    [
        (torch.zeros(3, 48, dtype=torch.int8), "a boolean tensor .* not of torch.int8"),  # labels of groups
        (torch.zeros(3, 48), "a boolean tensor .* not of torch.float32"),
        (np.zeros((3, 48), dtype=bool), "a boolean tensor .* not but a ndarray"),
        ([[True] * 48] * 3, "a boolean tensor .* not but a list"),
        (torch.zeros(3, 47, dtype=torch.bool), r"the mlp units of this model are \[3, 48\], not \[3, 47\]"),
        (torch.zeros(48, dtype=torch.bool), r"the mlp units of this model are \[3, 48\], not \[48\]"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_other_tensors_are_no_units(made: Callable[..., Any], mlp: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made({"mlp": mlp, "attn": torch.zeros(3, 4, dtype=torch.bool)}, SHAPE)


def test_a_site_is_no_other_word() -> None:
    mask = FreezeMask.of_units({"mlp": {1: [3]}}, SHAPE)
    for read in (mask.at, mask.members, mask.n_units, lambda site: mask.restrict(sites=site)):
        with pytest.raises(ValueError, match="a site is one of mlp, attn, expert, shared, router, not 'heads'"):
            read("heads")


def test_sets_combine_with_sets_alone() -> None:
    for other in ({"mlp": {0: [1]}}, {1}, True):
        with pytest.raises(TypeError, match="unsupported operand"):
            FreezeMask.layers(1) | other


# --- whoever takes one -------------------------------------------------------------------------------------------


def model() -> Any:
    return sc.load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer())


def entered(context: AbstractContextManager[Any]) -> None:
    with context:
        pass


def without(mine: Any, units: Any) -> Tensor:
    with sc.ablated(mine, units):
        return sc.collect_residuals(mine, list(PROMPTS.prompts)).values


def refusing() -> dict[str, Any]:
    """What is measured: a model that a detector says refuses everything."""
    return {"malicious": PROMPTS, "utility": PROMPTS, "max_new_tokens": 1, "detector": lambda _: True}


CONSUMERS: dict[str, Callable[[Any, Any], Any]] = {
    "ablated": lambda m, units: without(m, units),
    "ablate_units": lambda m, units: sc.ablate_units(m, {"mine": units}, controls=1, **refusing()),
    "ablation_curve": lambda m, units: sc.ablation_curve(m, {1: units}, **refusing()),
    "removals": lambda m, units: Removals(m, **refusing()).without(units),
    "prune": lambda m, units: sc.units.prune_units(m, units),
    "comparison": lambda m, units: sc.score_comparison(
        m,
        PROMPTS,
        PROMPTS,
        PROMPTS,
        candidates=[sc.units.Candidate("magnitude", "all", contrast="safety")],
        counts=(1,),
        planted=units,
        **refusing(),
    ),
    "overlap": lambda m, units: sc.units.mask_overlap(units, FreezeMask.layers(0, m)),
    "overlap, second": lambda m, units: sc.units.mask_overlap(FreezeMask.layers(0, m), units),
    "random units": lambda m, units: FreezeMask.random_units(units, m),
    "frozen": lambda m, units: entered(sc.frozen(m, units)),
    "digest": frozen_digest,
    "finetune": lambda m, units: sc.finetune(m, PROMPTS, freeze=units, steps=1, progress=False),
    "phases": lambda m, units: sc.finetune(m, PROMPTS, freeze=[sc.Phase(units, steps=1)], progress=False),
    "callback": lambda m, units: sc.FreezeCallback(units).on_init_end(None, None, None, model=m),
    "rewind": lambda m, units: rewind(m, model(), units),
    "rewound": lambda m, units: entered(rewound(m, model(), units)),
    "entries": entries_of,
}

LABELS = {"mlp": torch.zeros(3, 48, dtype=torch.int8), "attn": torch.zeros(3, 4, dtype=torch.int8)}
FOREIGN: dict[str, Any] = {
    "indices": {"mlp": {1: [3, 7]}},
    "labels": LABELS,
    "groups": sc.UnitGroups(LABELS, {}, {}, SHAPE, {}),
    "name": "SCU",
    "tensor": torch.ones(3, 48, dtype=torch.bool),
}


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_consumer_takes_a_mask_with_or_without_a_shape(consumer: str) -> None:
    for units in (FreezeMask.of_units({"mlp": {1: [3, 7]}}, SHAPE), FreezeMask.layers(1)):
        CONSUMERS[consumer](model(), units)


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_consumer_refuses_all_else(consumer: str) -> None:
    mine = model()
    before = {name: parameter.clone() for name, parameter in mine.named_parameters()}
    for kind, units in FOREIGN.items():
        with pytest.raises(ValueError, match=r"FreezeMask") as refused:
            CONSUMERS[consumer](mine, units)
        assert "FreezeMask" in str(refused.value), kind
        assert len(str(refused.value)) < 1000
    other = sc.ModelShape("LlamaForCausalLM", n_layers=3, d_model=32, d_mlp=64, n_heads=4, n_kv_heads=2)
    with pytest.raises(ValueError, match=r"belongs to another model: d_mlp (64|48) there, (48|64) here"):
        CONSUMERS[consumer](mine, FreezeMask.of_units({"mlp": {1: [3]}}, other))
    if consumer not in ("overlap", "overlap, second"):
        with pytest.raises(ValueError, match="reaches layer 3, but the model's layers are 0 to 2"):
            CONSUMERS[consumer](mine, FreezeMask.layers(3))
    assert all(torch.equal(parameter, before[name]) for name, parameter in mine.named_parameters())


def test_whatever_gives_units_gives_a_mask() -> None:
    mine = model()
    scores = sc.score_units(mine, PROMPTS)
    groups = sc.classify_units(scores, scores, scu=0.1, ucu=0.1, ru=0.1)
    probe = sc.weights.head_probe(mine, PROMPTS, PROMPTS, folds=2)
    given: dict[str, tuple[Any, int]] = {
        "group": (groups["SCU"], 16),
        "top of groups": (groups.top(5), 5),
        "top of a group": (groups.top(5, "CU", "total", proportionate=True), 5),
        "top of scores": (scores.top(5), 5),
        "top heads": (probe.top(2), 2),
        "lowest": (sc.units.lowest_even(groups.total, SHAPE, neurons=4, kv_heads=1), 3 * 4 + 3 * 2),
        "random": (FreezeMask.random_units(groups["UCU"]), groups["UCU"].n_units()),
    }
    for name, (units, n) in given.items():
        assert isinstance(units, FreezeMask), name
        assert (units.shape, units.n_units()) == (SHAPE, n), name
    parts = [groups[name] for name in sc.units.GROUPS]
    assert parts[0] | parts[1] | parts[2] | parts[3] == ~FreezeMask.of_units({}, mine)
    assert not any(a & b for i, a in enumerate(parts) for b in parts[:i])


def test_units_of_a_plain_model_are_those_of_its_bridge() -> None:
    plain = build_tiny_llama()
    assert FreezeMask.of_units({"mlp": {1: [3]}}, plain) == FreezeMask.of_units({"mlp": {1: [3]}}, model())
    with pytest.raises(ValueError, match=r"not its name: pass load_model\('aligned'\)"):
        FreezeMask.of_units({"mlp": {1: [3]}}, "aligned")


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_removing_a_group_removes_what_its_members_are(backend: str) -> None:
    """Against weights with the members' columns zeroed by hand."""
    changed: Any = build_tiny_llama()
    mine = sc.load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer(), backend=backend)
    scores = sc.score_units(mine, PROMPTS)
    scu = sc.classify_units(scores, scores.rescore("wifv"), scu=0.2, ucu=0.1, ru=0.1)["SCU"]
    with torch.no_grad():
        for layer, neurons in scu.members("mlp").items():
            changed.model.layers[layer].mlp.down_proj.weight[:, list(neurons)] = 0
        for layer, heads in scu.members("attn").items():
            changed.model.layers[layer].self_attn.o_proj.weight.unflatten(1, (4, -1))[:, list(heads)] = 0

    want = sc.collect_residuals(sc.load_model(changed, tokenizer=build_tiny_tokenizer()), list(PROMPTS.prompts)).values
    torch.testing.assert_close(without(mine, scu), want, rtol=1e-4, atol=1e-4)
