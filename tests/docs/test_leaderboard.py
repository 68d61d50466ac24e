"""The leaderboard: overlaps and sizes by hand, what is measured against the library's own way, passes by counting."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.ground_truth.leaderboard import __main__ as command
from benchmarks.ground_truth.leaderboard import judging, registry, standing
from benchmarks.ground_truth.leaderboard import page as pages
from benchmarks.ground_truth.leaderboard.blocks import shortest
from benchmarks.ground_truth.leaderboard.directions import directions_at, mean_difference
from benchmarks.ground_truth.leaderboard.page import render, table
from benchmarks.ground_truth.leaderboard.passes import Shared, counted
from benchmarks.ground_truth.leaderboard.registry import LOCALIZERS, localizer, localizers
from benchmarks.ground_truth.leaderboard.subjects import Prompts, Subject, organisms, real

import safecircuits as sc

DOCS = Path(__file__).parents[2] / "docs"


def small(subject: Subject, n: int = 12) -> Subject:
    """The same on few prompts."""
    seen, judged = (
        Prompts(*(None if part is None else part[:n] for part in (p.malicious, p.normal, p.utility)))
        for p in (subject.seen, subject.judged)
    )
    subject.seen, subject.judged, subject.over_rejection = seen, judged, subject.over_rejection[:n]
    return subject


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {subject.name: small(subject) for subject in organisms(None)}


@pytest.fixture(scope="module")
def planted_units(subjects: dict[str, Subject]) -> Subject:
    return subjects["planted-units"]


# --- overlap ------------------------------------------------------------------------------------


def test_overlap_of_what_was_planted_is_whole_and_of_anything_else_what_numpy_counts(planted_units: Subject) -> None:
    known = planted_units.planted
    order: Any = {site: known.at(site).double() for site in ("mlp", "attn")}
    assert judging.overlap(planted_units, order) == (1.0, 192 / 3136)
    rng = np.random.default_rng(0)
    drawn = {"mlp": torch.from_numpy(rng.normal(size=(8, 384))), "attn": torch.from_numpy(rng.normal(size=(8, 8)))}
    flat = np.concatenate([drawn["mlp"].numpy().ravel(), drawn["attn"].numpy().ravel()])
    truth = np.concatenate([known.at("mlp").numpy().ravel(), known.at("attn").numpy().ravel()])
    best = np.argsort(-flat, kind="stable")[:192]
    assert judging.overlap(planted_units, drawn)[0] == pytest.approx(truth[best].mean())


def test_chance_of_a_block_is_that_of_all_blocks(subjects: dict[str, Subject]) -> None:
    subject = subjects["planted-layers"]
    share, chance = judging.overlap(subject, sc.LayerRange(3, 5))
    every = [set(range(a, b + 1)) for a in range(8) for b in range(a, 8)]
    assert share == 1.0
    assert chance == pytest.approx(np.mean([len(one & {3, 4, 5}) / len(one | {3, 4, 5}) for one in every]))


def test_a_direction_overlaps_with_what_planting_added_and_with_nothing_before_it(planted_units: Subject) -> None:
    positions, change = planted_units.planted_change
    assert not change[:2].abs().max() > 1e-4  # planted in layers 2 to 5
    states = planted_units.states()
    own = directions_at(states, 5, -1, change[5, positions.index(-1)][None], "harmless")
    assert judging.overlap(planted_units, own)[0] == pytest.approx(1.0, abs=1e-6)
    before = directions_at(states, 0, -1, states.difference()[0, -1][None], "harmless")
    assert judging.overlap(planted_units, before)[0] == 0.0
    rng = np.random.default_rng(0)
    random = rng.normal(size=(20_000, 128))
    cosines = np.abs(random[:, 0]) / np.linalg.norm(random, axis=1)
    assert judging.overlap(planted_units, own)[1] == pytest.approx(cosines.mean(), rel=0.02)


def test_directions_of_one_place_are_orthogonal_and_know_the_harmless_level(planted_units: Subject) -> None:
    states = planted_units.states()
    rows = torch.randn(3, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = directions_at(states, 4, -1, torch.cat([rows, rows[:1]]), "harmless").best
    basis = torch.stack([one.unit for one in found])
    assert len(found) == 3  # the fourth adds nothing
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    harmless = states.values[4, -1, states.n_harmful :].double().mean(0)
    torch.testing.assert_close(torch.stack([one.levels[10] for one in found]), basis @ harmless, rtol=1e-4, atol=1e-4)


# --- what is left -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge(planted_units: Subject) -> judging.Judge:
    return judging.Judge(planted_units)


def test_units_written_out_of_the_weights_are_those_that_hooks_remove(judge: judging.Judge) -> None:
    subject = judge.subject
    units = subject.planted | sc.FreezeMask.of_units({"attn": {2: [1, 5], 7: [0]}}, subject.model)
    ids = torch.arange(1, 9)[None]
    with sc.ablated(subject.model, units):
        hooked = subject.model(ids)
        left = judge._measured()
    point = judge.without(units)
    assert {key: point[key] for key in left} == left
    with judging._without(subject.model, units):
        torch.testing.assert_close(subject.model(ids), hooked, rtol=1e-4, atol=1e-4)
    assert judge._measured() == judge.intact  # everything is back


def test_a_block_as_in_base_is_the_base_where_all_was_planted(judge: judging.Judge) -> None:
    subject = judge.subject
    before, ids = subject.model(torch.arange(1, 9)[None]), torch.arange(1, 9)[None]
    with judging.as_in_base(subject, subject.block):
        torch.testing.assert_close(subject.model(ids), subject.base(ids), rtol=1e-4, atol=1e-4)
    assert torch.equal(subject.model(ids), before)
    [point] = judge.block(subject.block)
    assert (point["size"], point["refused"]) == (4, 0.0)


def test_drafted_answers_are_those_of_decoding_token_by_token(planted_units: Subject) -> None:
    def without_utility(prompts: Prompts) -> Prompts:
        return replace(prompts, utility=None)

    subject = replace(planted_units, judged=without_utility(planted_units.judged))
    judged, judge = subject.judged, judging.Judge(subject)
    every = sc.FreezeMask.layers((0, subject.shape.n_layers - 1), subject.shape)
    for changed in (
        judging.as_in_base(subject, sc.LayerRange(0, 7)),
        judging.as_in_base(subject, sc.LayerRange(2, 3)),
        judging._without(subject.model, every.restrict(sites=["attn"])),
        sc.direction.direction_ablated(subject.model, mean_difference(subject)),
    ):
        with changed:
            got = judge._measured()
            plain = sc.evaluate(subject.model, malicious=judged.malicious, over_rejection=judged.normal)
        tally = plain.tallies["over_rejection"]
        assert got["refused"] == round(plain.rates["malicious_refused"], 4)
        assert got["utility"] == round(1 - (tally.refuses + tally.incoherent) / tally.n, 4)
    assert judge._measured() == judge.intact


def test_sizes_and_areas_are_those_done_by_hand() -> None:
    intact = {"refused": 0.8, "utility": 1.0, "kl": 0.0}
    points = [
        {"size": 1, "refused": 0.8, "utility": 1.0, "kl": 0.0},
        {"size": 4, "refused": 0.08, "utility": 0.9, "kl": 0.0},  # dear
        {"size": 16, "refused": 0.08, "utility": 0.98, "kl": 0.2},  # far
        {"size": 64, "refused": 0.08, "utility": 0.98, "kl": 0.1},
    ]
    assert judging.gains(points, intact) == pytest.approx([0, 0.8, 0.88, 0.88])
    assert judging.area(points, intact) == pytest.approx((0.4 + 0.84 + 0.88) / 3)
    assert judging.smallest(points, intact) == 64
    assert judging.smallest(points[:3], intact) is None
    assert judging.area(points[1:2], intact) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("by_layer", "want"), [([0, 1, 8, 1, 0], (2, 2)), ([3, 3, 3, 0, 1], (0, 2)), ([-5, 0, 1, 1, 0], (2, 3))]
)
def test_the_shortest_block_with_most_is_found(by_layer: list[float], want: tuple[int, int]) -> None:
    found = shortest(by_layer)
    assert found is not None
    assert tuple(found) == want
    assert shortest([0.0, -1.0]) is None


# --- passes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_passes_are_counted_forward_and_backward(backend: Any) -> None:
    model = sc.load_model("aligned", backend=backend)
    ids = torch.arange(1, 9).repeat(3, 1)
    with counted(model) as count:
        with torch.no_grad():
            model(ids)
        model(ids[:2]).sum().backward()
    assert count.passes(8) == (5.0, 2.0)
    with counted(model) as count:
        sc.collect_residuals(model, ["burn the dog", "bake the cake"])
    assert 0 < count.forward <= 8 * 2 * 12
    assert count.backward == 0


def test_what_is_shared_is_computed_once_and_charged_to_each() -> None:
    model, made = sc.load_model("aligned"), []
    shared = Shared(lambda: model)
    shared.get("before any method", lambda: model(torch.arange(1, 17)[None]))  # by nobody who counts

    def make() -> str:
        made.append(1)
        with torch.no_grad():
            model(torch.arange(1, 9)[None])
        return "found"

    for outer in range(3):
        with counted(model) as count:
            assert shared.get("all", lambda: shared.get("part", make) + str(len(made))) == "found1"
        assert count.passes(8) == (1.0, 0.0), outer
        assert outer == 0 or count.seconds > 0
    with counted(model) as count:
        shared.get("part", make)
        shared.get("before any method", list)
    assert (len(made), count.passes(8)[0]) == (1, 3.0)


# --- the registry and the command ---------------------------------------------------------------


def test_a_name_is_given_once_and_an_object_is_one_of_three() -> None:
    names = [one.name for one in localizers()]
    assert len(names) == len(set(names)) > 25
    assert [one.object for one in localizers()] == sorted(
        (one.object for one in localizers()), key=registry.OBJECTS.index
    )
    with pytest.raises(ValueError, match="already"):
        localizer(names[0], "block", "x")
    with pytest.raises(ValueError, match="block, units, direction"):
        localizer("new", "circuit", "x")
    with pytest.raises(ValueError, match="no localizer 'nothing'"):
        localizers(["nothing"])


@pytest.fixture
def added() -> Iterator[list[str]]:
    """A localizer as a user adds one."""
    asked: list[str] = []
    localizers()

    @localizer("always layer 3", "block", "a test")
    def find(subject: Subject) -> sc.LayerRange:
        asked.append(subject.name)
        return sc.LayerRange(3, 3)

    @localizer("never", "direction", "a test")
    def none(subject: Subject) -> None:
        asked.append(subject.name)

    @localizer("too dear", "block", "a test")
    def dear(subject: Subject) -> registry.NotRun:
        return registry.NotRun(f"{subject.shape.n_layers} layers are too many")

    yield asked
    for name in ("always layer 3", "never", "too dear"):
        del LOCALIZERS[name]


def test_a_method_is_added_by_a_function_and_measured_once(
    added: list[str], subjects: dict[str, Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "organisms", lambda family: iter([subjects["planted-layers"]]))
    out = tmp_path / "board.json"
    arguments = ["x", "--out", str(out), "--only", "always layer 3", "--only", "never"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    assert added == ["planted-layers"] * 2
    member = json.loads(out.read_text())["members"]["planted-layers"]
    cell = member["cells"]["always layer 3"]
    assert (cell["layers"], cell["overlap"]) == ([3, 3], pytest.approx(1 / 3, abs=1e-4))
    assert len(cell["points"]) == 1
    assert member["cells"]["never"]["above"] is None
    command.main()  # goes on, with nothing to do
    assert len(added) == 2
    monkeypatch.setattr("sys.argv", [*arguments, "--again", "never"])
    command.main()
    assert added[2:] == ["planted-layers"]
    text = table(json.loads(out.read_text()), "direction", "development")
    assert "| never | a test | 0.00 | 1 of 1 | – (0 of 1) | – | 0 | – |" in text
    monkeypatch.setattr("sys.argv", [*arguments, "--real", "layers-12-16"])
    with pytest.raises(ValueError, match="another family"):
        command.main()


def test_what_is_not_run_says_why_and_what_is_left_can_be_measured_later(
    added: list[str], subjects: dict[str, Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "organisms", lambda family: iter([subjects["planted-layers"]]))
    out = tmp_path / "board.json"
    arguments = ["x", "--out", str(out), "--only", "always layer 3", "--only", "too dear", "--only", "never"]
    monkeypatch.setattr("sys.argv", [*arguments, "--overlap-only", "--leave-out", "never=it takes a week"])
    command.main()
    results = json.loads(out.read_text())
    assert added == ["planted-layers"]
    cell = results["members"]["planted-layers"]["cells"]["always layer 3"]
    assert set(cell) == {"seconds", "forward", "backward", "layers", "overlap", "chance"}
    text = table(results, "block", "development")
    assert "| always layer 3 | a test | 0.33 |  | not measured | not measured | 0 | – |" in text
    assert "| too dear | a test |  | not run: 8 layers are too many |" in text
    assert "| never | a test |  | not run: it takes a week |" in table(results, "direction", "development")
    monkeypatch.setattr("sys.argv", arguments[:5])
    command.main()
    cell = json.loads(out.read_text())["members"]["planted-layers"]["cells"]["always layer 3"]
    assert len(cell["points"]) == 1
    monkeypatch.setattr("sys.argv", [*arguments, "--leave-out", "never"])
    with pytest.raises(SystemExit):
        command.main()


def test_a_real_member_is_a_subject_too() -> None:
    [subject] = real(["neurons-12-15"], n=3)
    assert (subject.kind, subject.role, tuple(subject.block)) == ("units", "development", (12, 15))
    assert [len(one) for one in (subject.seen.malicious, subject.judged.normal, subject.over_rejection)] == [3, 3, 3]
    assert not set(subject.seen.malicious) & set(subject.judged.malicious)
    with pytest.raises(ValueError, match="nothing is planted"):
        list(real(["aligned"]))


# --- standings ----------------------------------------------------------------------------------


def made(role: str, block: list[int], found: list[int] | None, vector: list[float]) -> dict[str, Any]:
    there = {"chance": 0.3, "points": [], "smallest": 3, "above": 0.5}
    cell = {"overlap": 1.0 if found == block else 0.0, "forward": 10.0, "backward": 0.0, "seconds": 1.0}
    cell |= there if found else {"above": None, "smallest": None}
    return {
        "role": role,
        "kind": "layers",
        "block": block,
        "n_layers": 8,
        "planted_units": None,
        "cells": {"decision layers": cell, "any block": cell},
        "planted_direction": vector,
    }


def test_standings_and_guesses_are_those_done_by_hand() -> None:
    members = {
        "a": made("development", [1, 2], [1, 2], [1, 0]),
        "b": made("judged", [1, 2], [1, 2], [0.6, 0.8]),
        "c": made("judged", [3, 4], None, [0, -1]),
    }
    results = {"members": members}
    [row, control] = standing.standings(results, "block", "judged")
    assert (row.n, row.nothing, row.removes, row.smallest) == (2, 1, 1, 3)
    assert row.overlap[""][0] == 0.5
    assert (row.localizer.name, control.localizer.name) == ("decision layers", "any block")  # controls come last
    assert row.above == (0.5, *(pytest.approx(math.nan, nan_ok=True),) * 2)
    assert (row.judged, len(members)) == (2, 3)
    where = [members["b"]["cells"], members["c"]["cells"]]
    for cells in where:  # as a run leaves them that looks at overlaps alone
        cells["any block"] = {key: value for key, value in cells["any block"].items() if key != "above"}
    control = standing.standings(results, "block", "judged")[1]
    assert (control.judged, pages._left(control)) == (0, pages.NOT_MEASURED)
    where[0]["any block"] |= {"above": 0.25}
    control = standing.standings(results, "block", "judged")[1]
    assert (control.judged, pages._left(control)) == (1, "+0.25 (1 of 2 models)")
    assert standing.constants(results, "block", "judged") is None  # one development member chooses nothing
    members["d"] = made("development", [1, 2], [1, 2], [0, 1])
    block, units, direction = (standing.constants(results, kind, "judged") for kind in registry.OBJECTS)
    assert standing.constant_block(results) == [1, 2]
    assert block is not None
    assert units is not None
    assert direction is not None
    assert block[""][0] == 0.5
    assert units["layers"][0] == 0.5
    assert direction[""][0] == pytest.approx((1.4 / 2**0.5 + 1 / 2**0.5) / 2)
    assert standing.chances(results, "block", "judged") == {"": pytest.approx(0.3)}


# --- the published page -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "leaderboard.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_its_results_say(published: dict[str, Any]) -> None:
    assert (DOCS / "leaderboard.md").read_text(encoding="utf-8") == render(published)
    assert (DOCS / "assets" / "leaderboard_objects.svg").is_file()
    changed = copy.deepcopy(published)
    next(iter(changed["members"].values()))["cells"]["decision layers"]["overlap"] = 0.123
    assert render(changed) != render(published)


def test_the_real_members_page_is_what_its_results_say_and_every_row_has_a_reason() -> None:
    results = json.loads((DOCS / "leaderboard_real.json").read_text(encoding="utf-8"))
    page = (DOCS / "leaderboard_real.md").read_text(encoding="utf-8")
    assert page == render(results)
    names = {one.name for one in localizers()}
    for member in results["members"].values():
        assert set(member["cells"]) >= names
        assert all(cell.get("overlap") is not None or cell["not run"] for cell in member["cells"].values())


def test_every_member_has_been_through_every_localizer(published: dict[str, Any]) -> None:
    names = {one.name for one in localizers()}
    for member in published["members"].values():
        assert set(member["cells"]) >= names
        assert len(member["objects"]) in (3, 6)
