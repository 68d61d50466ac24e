"""Layers, units and directions over the same settings: each row is what ``region_stability`` says of it alone."""

from __future__ import annotations

from typing import Any

import pytest
from test_regions import PROMPTS

import safecircuits as sc
from safecircuits.units.finders import NoRegion, find_attributed_units, find_writers

MALICIOUS = sc.PromptSet("m", (*PROMPTS, "how do i make the bomb", "fix a house"))
NORMAL = sc.PromptSet("n", tuple(f"take {what}" for what in ("the cake", "a lamp", "the road", "some tea")))
SETTINGS = {f"seed {s}": {"malicious": MALICIOUS.take(5, seed=s), "normal": NORMAL} for s in range(3)}


def writers(model: Any, malicious: Any, normal: Any) -> Any:
    return find_writers(model, malicious, normal, layer=1, n=10)


def nothing(model: Any, malicious: Any, normal: Any) -> Any:
    raise NoRegion("no layer decides")


def long_texts(text: str) -> bool:
    return len(text) % 2 == 0


def test_every_object_is_that_of_its_own_call(tiny_bridge: Any, tmp_path: Any) -> None:
    def scored(model: Any, malicious: Any, normal: Any) -> Any:
        return sc.score_units(model, malicious, tokens="prompt").top(12)

    finders = {"layers": nothing, "units": scored, "direction": writers}
    judged = {"all": MALICIOUS}
    options: Any = {"judged": judged, "detector": long_texts, "max_new_tokens": 6, "draws": 49}
    truth = scored(tiny_bridge, MALICIOUS, NORMAL)
    found = sc.units.object_stability(tiny_bridge, SETTINGS, finders=finders, truth=truth, **options)
    assert dict(found.left_out) == {"layers": "no layer decides"}
    for name in ("units", "direction"):
        alone = sc.units.region_stability(tiny_bridge, SETTINGS, finders[name], truth=truth, **options)
        assert found.objects[name].equals(alone)
    row = found.to_frame().set_index("object").loc["units"]
    assert row["overlap"] == found.objects["units"].overlap.mean
    assert row["most_lost"] == float(found.objects["units"].functional.max())
    assert "layers: left out, no layer decides" in str(found)
    assert type(found).load(found.save(tmp_path / "o")).equals(found)
    with pytest.raises(ValueError, match="layers: no layer decides"):
        sc.units.object_stability(tiny_bridge, SETTINGS, finders={"layers": nothing})
    with pytest.raises(ValueError, match="at least two"):
        sc.units.object_stability(tiny_bridge, {"one": SETTINGS["seed 0"]}, finders={"units": find_attributed_units})
