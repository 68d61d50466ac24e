"""Analyses that one process and several must agree on; also the program that several processes start with."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import safecircuits as sc
from safecircuits.base.processes import alone, is_main, rank, size
from safecircuits.layers import counting

Found = dict[str, torch.Tensor]


def sets() -> dict[str, sc.PromptSet]:
    """Numbers of prompts that neither two nor three processes share out evenly."""
    kinds = {"normal": 13, "malicious": 13, "over_rejection": 17, "utility": 11}
    return {kind: sc.load_prompts(f"organism:{kind}", n=n) for kind, n in kinds.items()}


def residuals(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    some = sc.collect_residuals(model, p["malicious"], layers=[7, 0, 3], final_norm=True)
    return {"all": sc.collect_residuals(model, p["normal"]).values, "some": some.values}


def gap(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    found = sc.layer_gap(model, p["normal"], p["malicious"])
    return {"degrees": found.gap_deg}


def scores(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    answers = sc.units.find_answer_tokens(model, p["malicious"], p["normal"])
    given: dict[str, dict[str, Any]] = {
        "wifv": {"method": "wifv"},
        "snip": {"method": "snip"},
        "taylor": {"method": "taylor"},
        "attribution": {"method": "attribution", "answers": answers, "reference": p["normal"]},
    }
    return {
        f"{name} {site}": values
        for name, options in given.items()
        for site, values in sc.score_units(model, p["utility"], **options).scores.items()
    }


def removed_heads(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    return dict(sc.score_units(model, p["utility"], method="removal").scores)


def losses(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    return {"nats": sc.response_loss(model, p["utility"]).nats}


def decision(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    found = sc.decision_layers(model, p["normal"], p["malicious"])
    assert found.layers is not None
    return {"effect": found.effect, "full": found.full, "layers": torch.tensor([*found.layers.indices])}


def divergence(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    reference = sc.behavior.KLReference.of(model, p["normal"], n_tokens=3)
    with sc.scaled(model, (2, 4), alpha=1.3):
        found = reference.divergence(model)
    return {"kl": found.values}


def completions(model: Any, p: dict[str, sc.PromptSet]) -> list[str]:
    with sc.scaled(model, (3, 5), alpha=1.2):
        scaled = sc.generate(model, p["over_rejection"])
    return [*sc.generate(model, p["malicious"]).texts, *scaled.texts]


def one_prompt(model: Any, p: dict[str, sc.PromptSet]) -> list[str]:
    """Fewer prompts than processes."""
    return list(sc.generate(model, p["malicious"].take(1)).texts)


def localization(model: Any, p: dict[str, sc.PromptSet]) -> list[str]:
    found = sc.localize(model, p["over_rejection"], (3, 5), alpha=1.2, reach=1)
    return [str(found.layers), found.to_frame().to_csv()]


def behavior(model: Any, p: dict[str, sc.PromptSet]) -> list[str]:
    found = sc.evaluate(model, malicious=p["malicious"], over_rejection=p["over_rejection"], utility=p["utility"])
    return [found.to_frame().to_csv()]


def changes(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    """Of two checkpoints: units by how far they moved."""
    before = like(model, "base")
    found = {
        f"{method} {same}": sc.units.change_scores(before, model, p["malicious"], method=method, same_stream=same)
        for method, same in (("change", False), ("wchange", True))
    }
    return {f"{name} {site}": values for name, one in found.items() for site, values in one.scores.items()}


def single_weights(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    found = {
        method: sc.weights.score_weights(model, p["utility"], method=method, components=["out", "k"])
        for method in ("wanda", "snip")
    }
    return {f"{method} {key}": values for method, one in found.items() for key, values in one.scores.items()}


def flap(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    """Whose rule depends on the order of the prompts, so that each process goes through all of them."""
    return {
        f"{method} {site}": values
        for method in ("flap_wifv", "flap_wifn")
        for site, values in sc.score_units(model, p["utility"], method=method).scores.items()
    }


def sampled(model: Any, p: dict[str, sc.PromptSet]) -> list[str]:
    found = sc.behavior.sampled_refusals(model, p["malicious"], samples=3, temperature=0.8, seed=4)
    return [text for completions in found.completions for text in completions.texts] + [str(found)]


def patched(model: Any, p: dict[str, sc.PromptSet]) -> list[str]:
    """Answers with units of another checkpoint, and how many refuse with more and more of them."""
    before = like(model, "base")
    scores, few = sc.units.change_scores(before, model, p["malicious"]), p["malicious"].take(5)
    curves = sc.units.patching_curves(before, model, scores, few, counts=[1500], controls=1)
    frame = curves.to_frame()
    return [frame[[name for name in frame if not name.endswith("_kl")]].to_csv()]


def patched_kl(model: Any, p: dict[str, sc.PromptSet]) -> Found:
    before = like(model, "base")
    units = sc.units.change_scores(before, model, p["malicious"]).top(200)
    reference = sc.behavior.KLReference.of(before, p["malicious"].take(5), tokenizer=model.tokenizer)
    return {"kl": sc.behavior.patched_divergences(before, model, reference, {"": units})[""].values}


def like(model: Any, name: str) -> Any:
    """Another checkpoint as ``model`` was loaded."""
    backend = "bridge" if hasattr(model, "original_model") else "hooked"
    return sc.load_model(name, backend=backend, dtype=next(model.parameters()).dtype)


EXACT: dict[str, Callable[..., list[str]]] = {
    one.__name__: one for one in (completions, one_prompt, localization, behavior, sampled, patched)
}
"""Verdicts, counts and texts."""
CLOSE: dict[str, Callable[..., Found]] = {
    one.__name__: one
    for one in (
        residuals,
        gap,
        scores,
        removed_heads,
        losses,
        decision,
        divergence,
        changes,
        single_weights,
        flap,
        patched_kl,
    )
}
"""Statistics, which differ by the order of sums."""


def by_main_alone(model: Any, p: dict[str, sc.PromptSet]) -> list[str]:
    """What only one process runs, without waiting for the others."""
    if not is_main():
        return []
    with alone():
        return list(sc.generate(model, p["malicious"]).texts)


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def errors(model: Any, p: dict[str, sc.PromptSet]) -> dict[str, str]:
    """What each process says where processes differ, or one of them fails."""
    other = sc.load_model("base", backend="bridge") if rank() else model

    def fail(_: torch.Tensor) -> None:
        if rank() == size() - 1:
            raise FloatingPointError("this process alone")

    def hooked() -> None:
        with sc.attached(model, {"blocks.3.hook_resid_post": fail}):
            sc.collect_residuals(model, p["normal"])

    def divided() -> None:
        from transformers import AutoModelForCausalLM

        from safecircuits.organism.catalog import stage_path

        part = AutoModelForCausalLM.from_pretrained(stage_path("aligned"), tp_plan="auto", dtype=torch.float32)
        sc.load_model(part, tokenizer=model.tokenizer)

    def other_base() -> None:
        before = like(model, "base" if rank() else "tuned" if "tuned" in sc.organism.STAGES else "aligned")
        sc.units.change_scores(before, model, p["malicious"])

    return {
        "tensor parallel": error_of(divided) if size() == 2 else "",
        "other base": error_of(other_base),
        "prompts": error_of(lambda: sc.generate(model, p["normal"].take(5 + rank()))),
        "models": error_of(lambda: sc.collect_residuals(other, p["normal"])),
        "one fails": error_of(hooked),
    }


def load(kind: str) -> Any:
    exact = {"backend": "hooked", "dtype": torch.float64} if kind == "hooked" else {"backend": "bridge"}
    return sc.load_model("aligned", **exact)


def all_of_them(kind: str) -> dict[str, Any]:
    model, p = load(kind), sets()
    found = {name: one(model, p) for name, one in EXACT.items()}
    return found | {name: one(model, p) for name, one in CLOSE.items()}


def sweep(folder: Path, stop: str = "") -> sc.Localization:
    """A run directory with a search that a Ctrl-C or the death of the last process ends after some configurations."""
    model, p, done = load("bridge"), sets(), 0

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done > 1 and stop == "interrupted":
            raise KeyboardInterrupt
        if done > 1 and stop == "killed" and rank() == size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*given, **options)

    plain, counting.generate_scaled = counting.generate_scaled, counted if stop else counting.generate_scaled
    with sc.RunDirectory.open(folder, "sweep", {}) as run:
        found = sc.localize(model, p["over_rejection"], (3, 5), alpha=1.2, reach=2, resume=run.work("sweep.jsonl"))
        run.result("localization", found)
    return found


def main(folder: Path, kind: str) -> None:
    if kind in ("sweep", "interrupted", "killed"):
        sweep(folder, "" if kind == "sweep" else kind)
        return
    found = all_of_them(kind)
    model, p = load(kind), sets()
    found |= {"by_main_alone": by_main_alone(model, p), "errors": errors(model, p)}
    torch.save(found, folder / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
