"""The second half of the support table: mixtures and hybrids, quantised and offloaded weights, several processes.

    python tests/support_ways.py --write    replaces docs/reference/support_ways.json and renders support.md

Every cell is a check against what the same weights do in a plain model, on the bridge. "refused" is a ValueError, and
the note is what it says.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import configurations
import safecircuits as sc
from conftest import build_tiny_tokenizer
from safecircuits.hooks.linear_maps import Matrix
from safecircuits.model.forward import logits
from safecircuits.model.sites import mixture_at
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
FAMILIES = (
    "Mixtral", "Qwen2-MoE", "Qwen3-MoE", "OLMoE", "Phi-3.5-MoE", "Granite-MoE", "gpt-oss", "DeepSeek-V2",
    "DeepSeek-V3", "Mamba", "Mamba-2", "FalconMamba", "RecurrentGemma", "LFM2", "Jamba", "Bamba", "Qwen3-Next",
)  # fmt: skip
WAYS = ("4 bits (bitsandbytes)", "8 bits (bitsandbytes)", "offloaded to the CPU", "offloaded to a disk", "2 processes")
CLOSE = {"4 bits (bitsandbytes)": 0.05, "8 bits (bitsandbytes)": 0.05}
"""As a share of the size of what is compared; 1e-5 for what does not round."""


@dataclass(frozen=True)
class Cell:
    """What a check found of one family or way of loading."""

    table: str
    row: str
    check: str
    status: str
    note: str = ""


def found(table: str, row: str, check: str, call: Callable[[], float | None], close: float = 1e-5) -> Cell:
    """A cell: how far ``call`` says that something is off, None for what the row has none of."""
    try:
        off = call()
    except ValueError as error:
        return Cell(table, row, check, "refused", " ".join(str(error).split()))
    if off is None:
        return Cell(table, row, check, "–")
    return Cell(table, row, check, "ok" if off <= close else "fail", "" if off <= close else f"off by {off:.2g}")


def apart(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


# --- mixtures of experts and hybrids -----------------------------------------------------------------------------


def family(name: str) -> Iterator[Cell]:
    hf = configurations.build(name)
    loaded: list[Any] = []

    def load() -> float:
        loaded.append(sc.load_model(configurations.build(name), tokenizer=build_tiny_tokenizer()))
        got = sc.collect_residuals(loaded[0], configurations.PROMPTS, template="none").values
        return configurations.apart(got, configurations.alone(hf, configurations.PROMPTS))

    first = found("family", name, "residual streams", load)
    yield first
    if not loaded:
        yield from (Cell("family", name, check, first.status, first.note) for check in FAMILY_CHECKS[1:])
        return
    model = loaded[0]

    def completions() -> float:
        tokens: list[list[int]] = []
        sc.generate(model, configurations.PROMPTS, max_new_tokens=6, template="none", token_ids=tokens)
        want = configurations.continued(hf, configurations.PROMPTS, 6)
        return float(sum(mine != theirs for mine, theirs in zip(tokens, want, strict=True)))

    def scaled() -> float | None:
        with sc.scaled(model, (0, 1), alpha=1.3, components="attn"):
            got = sc.collect_residuals(model, configurations.PROMPTS, template="none").values
        other = copy.deepcopy(model)
        for layer in range(int(model.cfg.n_layers)):
            for component in ("q", "k", "v", "o"):
                matrix = Matrix.of(other, layer, component)
                matrix.write(matrix.read() * 1.3)
        if sc.hooks.substituted(model, "attn"):
            return None  # scaled behind a norm, which no weight could do
        return apart(got, sc.collect_residuals(other, configurations.PROMPTS, template="none").values)

    yield found("family", name, "completions", completions, 0)
    yield found("family", name, "scaling attention", scaled)
    for site, check in (("attn", "heads"), ("mlp", "neurons"), ("expert", "neurons of experts")):
        yield found("family", name, check, lambda site=site: without_units(model, site))
    yield found("family", name, "freezing a layer", lambda: freezing(model))


def without_units(model: Any, site: str) -> float | None:
    """Units removed by hooks, against zeroed weights, in the last layer."""
    layer, units = int(model.cfg.n_layers) - 1, [1, 2]
    mixture = mixture_at(model, layer)
    if (site == "expert" and mixture is None) or (site == "mlp" and mixture is not None):
        return None
    mask = sc.FreezeMask.of_units({site: {layer: units}}, model)
    with sc.ablated(model, mask):
        got = sc.collect_residuals(model, configurations.PROMPTS, template="none").values
    other = copy.deepcopy(model)
    with torch.no_grad():
        if site == "expert":
            mixture = mixture_at(other, layer)
            assert mixture is not None
            mixture.down()[0, units] = 0
        else:
            matrix, d_head = Matrix.of(other, layer, "o" if site == "attn" else "out"), int(model.cfg.d_head)
            value = matrix.read().clone()
            wide = d_head if site == "attn" else 1
            for unit in units:
                value[:, unit * wide : (unit + 1) * wide] = 0
            matrix.write(value)
    return apart(got, sc.collect_residuals(other, configurations.PROMPTS, template="none").values)


def freezing(model: Any) -> float:
    """A step of training with the last layer frozen: its matrices keep their bits, and others do not."""
    layer = int(model.cfg.n_layers) - 1
    other = copy.deepcopy(model)
    data = sc.PromptSet(
        "d", tuple(configurations.PROMPTS), ("take some salt", "sorry i cannot", "help is here", "sure")
    )
    before = [{name: p.clone() for name, p in other.named_parameters()}]
    sc.finetune(other, data, freeze=sc.FreezeMask.layers(layer), steps=1, lr=1e-2, template="none", progress=False)
    after = dict(other.named_parameters())
    inside = [p for p in other.blocks[layer].parameters() if p.ndim > 1]
    frozen = {name for name, p in after.items() if any(p is one for one in inside)}
    moved = [name for name, p in after.items() if not torch.equal(p, before[0][name])]
    return float(not moved or any(name in frozen for name in moved))


# --- quantised and offloaded weights, several processes ----------------------------------------------------------

SETS = {"malicious": 7, "normal": 7, "utility": 7}


def measured(model: Any) -> dict[str, Any]:
    """What is compared, by check."""
    p = {kind: sc.load_prompts(f"organism:{kind}", n=n) for kind, n in SETS.items()}
    units = sc.FreezeMask.of_units({"mlp": {3: [1, 5], 5: list(range(200))}, "attn": {4: [2, 5]}}, model)
    batch = pad_left(encode(model.tokenizer, p["malicious"]))
    rows = batch.attention_mask.bool()

    def changed(context: Any) -> Tensor:
        with torch.no_grad(), context:
            return logits(model, batch)[rows]

    def scores(*methods: str) -> Tensor:
        values = [sc.score_units(model, p["utility"], method=method).scores for method in methods]
        return torch.cat([(one / one.norm()).flatten() for by_site in values for one in by_site.values()])

    return {
        "residual streams": lambda: sc.collect_residuals(model, p["normal"]).values,
        "completions": lambda: list(sc.generate(model, p["malicious"]).texts),
        "scores by activations": lambda: scores("wifv", "magnitude", "removal"),
        "scores by gradients": lambda: scores("snip", "taylor"),
        "scaling": lambda: changed(sc.scaled(model, (3, 5), alpha=1.5)),
        "ablation": lambda: changed(sc.ablated(model, units)),
    }


def plain(folder: Path, model: Any) -> Any:
    """A plain model with the weights that ``model`` computes with."""
    other = sc.load_model(folder)
    with torch.no_grad():
        for layer in range(int(other.cfg.n_layers)):
            for component in ("q", "k", "v", "o", "gate", "in", "out"):
                Matrix.of(other, layer, component).write(Matrix.of(model, layer, component).read())
    return other


def loaded(way: str, folder: Path) -> Any:
    from accelerate import cpu_offload, disk_offload
    from transformers import AutoModelForCausalLM

    if "bits" in way:
        return sc.load_model(folder, quantization=f"{way[0]}bit")
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if way == "offloaded to the CPU":
        cpu_offload(hf, execution_device="cpu")
    else:
        disk_offload(hf, str(folder.parent / "offloaded"), execution_device="cpu")
    return sc.load_model(hf, tokenizer=sc.load_model(folder).tokenizer)


def way(name: str, folder: Path) -> Iterator[Cell]:
    close = CLOSE.get(name, 1e-5)
    if name.endswith("processes"):
        yield from over_processes(name, folder)
        return
    model = loaded(name, folder)
    got, want = measured(model), measured(plain(folder, model))

    def compared(check: str) -> float:
        mine, theirs = got[check](), want[check]()
        return apart(mine, theirs) if isinstance(theirs, Tensor) else float(mine != theirs)

    for check in got:
        yield found("way", name, check, lambda check=check: compared(check), close)
    data = sc.load_prompts("organism:utility", n=4)

    def trained() -> float:
        sc.finetune(model, data, freeze=sc.FreezeMask.layers((2, 3)), steps=1, progress=False)
        return 0.0

    def saved() -> float:
        sc.save_pretrained(model, folder.parent / "out" / name)
        return 0.0

    yield found("way", name, "masks and training", trained)
    yield found("way", name, "export", saved)


def over_processes(name: str, folder: Path) -> Iterator[Cell]:
    sys.path.insert(0, str(Path(__file__).parent / "distributed"))
    from launching import launch

    done = launch(int(name[0]), Path(__file__), "--process", folder)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    theirs = torch.load(folder.parent / "found.pt")
    for check, one in measured(sc.load_model(folder)).items():
        mine = one()
        off = apart(theirs[check], mine) if isinstance(mine, Tensor) else float(theirs[check] != mine)
        yield found("way", name, check, lambda off=off: off)
    for check in ("masks and training", "export"):
        yield Cell("way", name, check, "–")


# --- the page ----------------------------------------------------------------------------------------------------

FAMILY_CHECKS = (
    "residual streams", "completions", "scaling attention", "heads", "neurons", "neurons of experts",
    "freezing a layer",
)  # fmt: skip
WAY_CHECKS = (
    "residual streams", "completions", "scores by activations", "scores by gradients", "scaling", "ablation",
    "masks and training", "export",
)  # fmt: skip


def committed() -> list[Cell]:
    """The cells in docs/reference/support_ways.json."""
    path = REFERENCE / "support_ways.json"
    return [Cell(**cell) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]] if path.exists() else []


def measured_with() -> str:
    """The version of transformer-lens that they were found with."""
    read = json.loads((REFERENCE / "support_ways.json").read_text(encoding="utf-8"))
    return str(read["transformer_lens"])


def rendered(cells: list[Cell], lens: str) -> str:
    """The second half of the support page."""
    page = [
        "",
        "## Mixtures of experts, and hybrids",
        "",
        f"Written by `python tests/support_ways.py --write`, on bridges of transformer-lens {lens}. Residual streams "
        "and completions against Hugging Face one prompt at a time; scaled matrices and removed units against changed "
        "weights; a frozen layer against its bits after a step of training. `–`: the family has no such thing.",
        "",
        *_table(cells, "family", "Family", FAMILIES, FAMILY_CHECKS),
        "",
        "## Quantised and offloaded weights, several processes",
        "",
        "Of the embedded model, against a plain model with the weights that the packed ones multiply with, within 5 % "
        "(bitsandbytes multiplies in 16 bits); for what does not round, within 1e-5. For the commands of many "
        "processes see [on many GPUs](../how-to/many-gpus.md); training over processes is in the tests.",
        "",
        *_table(cells, "way", "Way", WAYS, WAY_CHECKS),
    ]
    return "\n".join(page) + "\n"


def _table(cells: list[Cell], table: str, title: str, rows: tuple[str, ...], checks: tuple[str, ...]) -> list[str]:
    mine = {(cell.row, cell.check): cell for cell in cells if cell.table == table}
    notes = list(dict.fromkeys(cell.note for cell in mine.values() if cell.note))
    lines = [f"| {title} | {' | '.join(checks)} |", "|---|" + "---|" * len(checks)]
    for row in rows:
        marks = [mine[row, check] for check in checks]
        shown = [m.status + (f" [{notes.index(m.note) + 1}]" if m.note else "") for m in marks]
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return [*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))] if notes else lines


def examine(rows: tuple[str, ...] = (*FAMILIES, *WAYS)) -> list[Cell]:
    """The cells of these rows, as found here."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sc.save_pretrained(sc.load_model("aligned"), Path(scratch) / "model"))
        return [cell for row in rows for cell in (family(row) if row in FAMILIES else way(row, folder))]


def main() -> None:
    torch.set_num_threads(1)
    if "--process" in sys.argv:
        folder = Path(sys.argv[-1])
        values = {check: one() for check, one in measured(sc.load_model(folder)).items()}
        if sc.base.is_main():
            torch.save(values, folder.parent / "found.pt")
        return
    cells = examine()
    for cell in cells:
        if cell.status in ("fail", "refused"):
            print(f"{cell.row:24} {cell.check:22} {cell.status:8} {cell.note[:160]}")
    print({status: sum(cell.status == status for cell in cells) for status in ("ok", "refused", "–", "fail")})
    if "--write" in sys.argv:
        import support

        lines = ",\n".join(json.dumps(asdict(cell), ensure_ascii=False) for cell in cells)
        head = json.dumps({"transformer_lens": version("transformer-lens")})[:-1]
        (REFERENCE / "support_ways.json").write_text(f'{head}, "cells": [\n{lines}\n]}}\n', encoding="utf-8")
        (REFERENCE / "support.md").write_text(support.rendered(support.committed()), encoding="utf-8")


if __name__ == "__main__":
    main()
