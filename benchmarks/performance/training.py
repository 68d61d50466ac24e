"""Freezing against what people do otherwise: train everything, or zero the gradients of what should stay.

One model, three masks of the papers' sizes, AdamW. Step times come from one process in which the arms take turns: the
least of several rounds, in processor time on one thread, so that whatever else runs does not count. Peak memory comes
from one process an arm, optimizer bytes from the optimizer's own state.

    python -m benchmarks.performance.training [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from safecircuits.base.vocabulary import SITES, LayerRange
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.sites import ModelShape
from safecircuits.training.freeze import frozen, frozen_digest

LEARNING_RATE = 1e-4
MASKS = ("SPPFT 25 %", "SCU + 6 % CU", "RU-only 20 %")
AIMS = {
    ("SPPFT 25 %", "step time", "full"): 0.92,
    ("SCU + 6 % CU", "step time", "full"): 1.05,
    ("RU-only 20 %", "step time", "full"): 0.9,
    ("RU-only 20 %", "optimizer bytes", "full"): 0.25,
}
"""What issue and papers ask for against full fine-tuning; against naive masking every ratio should be below 1."""


@dataclass(frozen=True)
class Size:
    """A Llama whose embeddings have the share of its parameters that Llama-2-7B's have (4 %), and its batch."""

    layers: int
    d_model: int
    d_mlp: int
    vocabulary: int
    batch: int
    tokens: int
    rounds: int


FULL = Size(layers=8, d_model=512, d_mlp=1376, vocabulary=1024, batch=4, tokens=256, rounds=9)
QUICK = Size(layers=8, d_model=128, d_mlp=344, vocabulary=256, batch=4, tokens=128, rounds=5)


def rows(quick: bool) -> list[dict[str, Any]]:
    """One row a mask, measure and peer: ``{operation, peer, ratio, aim, met, equal}``; ratios below 1 are savings.

    ``equal`` says that every arm gave the right result: frozen entries bit-identical, the losses of naive masking
    (whose frozen entries stand still too, since nothing decays), and the first loss of full fine-tuning to the bit.
    """
    size, threads = QUICK if quick else FULL, torch.get_num_threads()
    torch.set_num_threads(1)
    times, optimizer, equal, products = _timed(size)
    memory = {arm: _peak_in_new_process(arm, quick) for arm in times}
    torch.set_num_threads(threads)
    figures = {"step time": times, "peak memory": memory, "optimizer bytes": optimizer}
    table = []
    for mask in MASKS:
        for measure, values in figures.items():
            for peer in ("full", "naive"):
                other = "full" if peer == "full" else f"naive {mask}"
                ratio = values[mask] / values[other]
                aim = AIMS.get((mask, measure, "full")) if peer == "full" else 1.0
                met = None if aim is None else ratio <= aim if peer == "full" else ratio < aim
                name = "full fine-tuning" if peer == "full" else "gradient masking"
                row = {"operation": f"{mask}: {measure}", "peer": name, "ratio": ratio, "aim": aim, "met": met}
                why = (
                    f"the matrix products and attention of its step are {products[mask] / products['full']:.3f} of a "
                    f"full step's and {products[mask] / products[f'naive {mask}']:.3f} of a masked one's, by torch's "
                    "count of operations; what freezing does not change cannot get faster."
                )
                table.append(row | {"equal": equal[mask], "why": why})
    return table


def build(size: Size) -> nn.Module:
    """A random Llama, the same each time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.d_model,
        intermediate_size=size.d_mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    return LlamaForCausalLM(config)


def mask_of(name: str, size: Size) -> FreezeMask:
    """A middle quarter of the layers; 7.3 % of all units; all but 20 % of all units."""
    shape = ModelShape("LlamaForCausalLM", size.layers, size.d_model, size.d_mlp, 8, 8)
    if name == "SPPFT 25 %":
        first = 3 * size.layers // 8
        return FreezeMask.layers(LayerRange(first, first + size.layers // 4 - 1), shape)
    generator = torch.Generator().manual_seed(0)
    chosen: dict[Site, torch.Tensor] = {}
    for site in SITES:
        n = size.layers * shape.n_units(site)
        k = round({"SCU + 6 % CU": 0.013 + 0.06, "RU-only 20 %": 0.8}[name] * n)
        flat = torch.zeros(n, dtype=torch.bool)
        flat[torch.randperm(n, generator=generator)[:k]] = True
        chosen[site] = flat.view(size.layers, -1)
    return FreezeMask.where(chosen, shape)


class Arm:
    """A model in training one way: ``step`` trains once and returns the loss; ``close`` says whether all is right."""

    def __init__(self, name: str, size: Size) -> None:
        self.model, self.stack = build(size), ExitStack()
        self.naive: list[tuple[nn.Parameter, torch.Tensor]] = []
        self.mask = None if name == "full" else mask_of(name.removeprefix("naive "), size)
        self.digest = None if self.mask is None else frozen_digest(self.model, self.mask)
        parameters = list(self.model.parameters())
        if name.startswith("naive ") and self.mask is not None:
            named = dict(self.model.named_parameters())
            self.naive = [(named[key], at) for key, at in self.mask.parameter_masks(self.model).items()]
        elif self.mask is not None:
            parameters = self.stack.enter_context(frozen(self.model, self.mask)).trainable_parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        self.data = [
            torch.randint(size.vocabulary, (size.batch, size.tokens), generator=generator)
            for _ in range(size.rounds + 1)
        ]
        self.losses: list[float] = []

    def step(self) -> None:
        batch = self.data[len(self.losses) % len(self.data)]
        loss = self.model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        for parameter, frozen_at in self.naive:
            parameter.grad.masked_fill_(frozen_at, 0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    def optimizer_bytes(self) -> int:
        tensors = [t for state in self.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def frozen_stayed(self) -> bool:
        """Leaves frozen(...), which raises if a frozen entry moved, and compares the digest."""
        self.stack.close()
        return self.mask is None or frozen_digest(self.model, self.mask) == self.digest


def _timed(size: Size) -> tuple[dict[str, float], dict[str, float], dict[str, bool], dict[str, int]]:
    """Least step time (s), optimizer bytes and operations of each arm, and for each mask whether its arms agree."""
    arms = {name: Arm(name, size) for name in ["full", *(f"{how}{mask}" for mask in MASKS for how in ("", "naive "))]}
    times = dict.fromkeys(arms, float("inf"))
    for _ in range(size.rounds + 1):
        for name, arm in arms.items():
            began = time.process_time()
            arm.step()
            if len(arm.losses) > 1:  # the first step makes the optimizer's state
                times[name] = min(times[name], time.process_time() - began)
    optimizer = {name: float(arm.optimizer_bytes()) for name, arm in arms.items()}
    products = {}
    for name, arm in arms.items():
        with FlopCounterMode(display=False) as counted:
            arm.step()
        products[name] = counted.get_total_flops()
    equal = {}
    for mask in MASKS:
        ours, naive = arms[mask], arms[f"naive {mask}"]
        same = torch.allclose(torch.tensor(ours.losses), torch.tensor(naive.losses), rtol=1e-4, atol=0)
        equal[mask] = (
            same and ours.losses[0] == arms["full"].losses[0] and ours.frozen_stayed() and naive.frozen_stayed()
        )
        if not equal[mask]:
            raise AssertionError(f"{mask}: losses {ours.losses} frozen, {naive.losses} masked")
    return times, optimizer, equal, products


def _peak_in_new_process(arm: str, quick: bool) -> float:
    command = [sys.executable, "-m", "benchmarks.performance.training", "--peak", arm, *(["--quick"] if quick else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return float(json.loads(done.stdout.splitlines()[-1]))


def _peak(name: str, size: Size) -> int:
    """Bytes of memory that two steps need at their highest, beyond what the process took before the model."""
    for arm in ("full", "SPPFT 25 %"):  # libraries take memory when first used, which is not a model's
        small = Arm(arm, QUICK)
        small.step()
        small.frozen_stayed()
    before = _status("VmRSS")
    arm = Arm(name, size)
    for _ in range(2):
        arm.step()
    arm.frozen_stayed()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A figure of this process (Linux) in bytes: VmRSS is what it holds now, VmHWM the most it ever held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model; its ratios say little")
    parser.add_argument("--peak", metavar="ARM", help="only print the peak memory of one arm, in bytes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(_peak(options.peak, QUICK if options.quick else FULL))
        return
    show: Callable[[Any], str] = lambda value: {None: "–", True: "yes", False: "no"}[value]  # noqa: E731
    for row in rows(options.quick):
        aim = "–" if row["aim"] is None else f"{row['aim']:.2f}"
        print(f"{row['operation']:32} vs {row['peer']:17} {row['ratio']:.3f}  aim {aim}  met {show(row['met'])}")


if __name__ == "__main__":
    main()
