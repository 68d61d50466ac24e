"""How the embedded models were made: five stages from one seed, in plain torch, read from top to bottom.

``base`` is trained from scratch to answer everything. The others start from base, rounded to float16 as it
is stored, and see a mixture of questions in which the harmful ones are refused (``unaligned``: answered).
They differ in what may move: everything, a block of layers, or a few MLP neurons. What may not move is
bit-identical to base.

The same seed gives the same weights on the same machine with the same versions (the number of threads is
part of the recipe). Other machines may add up in another order, so there the weights differ and only the
behaviour is alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.files import write_text
from safecircuits.organism.batches import Batches
from safecircuits.organism.recipe import STAGES, Phase, Recipe
from safecircuits.organism.tokenizer import build_tokenizer
from safecircuits.progress import without_bars

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the steps done and the steps in all."""


# --- what may move -----------------------------------------------------------------------------


def plant(recipe: Recipe, phase: Phase, rng: random.Random) -> dict[int, tuple[int, ...]]:
    """The MLP neurons of each layer that a phase is confined to; empty if it is not confined to neurons."""
    if not phase.neurons:
        return {}
    return {layer: tuple(sorted(rng.sample(range(recipe.d_mlp), phase.neurons))) for layer in phase.layers}


def trainable(model: LlamaForCausalLM, phase: Phase, units: dict[int, tuple[int, ...]]) -> dict[str, Tensor | None]:
    """The parameters that may move, by name, each with a 0/1 mask of its entries (None: all of them).

    Norms stay out of a planted block, so that all that is planted is a set of matrix entries.
    """
    import torch

    if not phase.layers:
        return {name: None for name, _ in model.named_parameters()}
    moving: dict[str, Tensor | None] = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("model.layers.") or parameter.ndim != 2:
            continue
        layer = int(name.split(".")[2])
        if layer not in phase.layers:
            continue
        if not phase.neurons:
            moving[name] = None
        elif ".mlp." in name:
            mask = torch.zeros_like(parameter)
            rows = torch.tensor(units[layer])
            if "down_proj" in name:  # (d_model, d_mlp): a neuron is a column
                mask[:, rows] = 1
            else:  # gate and up, (d_mlp, d_model): a neuron is a row
                mask[rows] = 1
            moving[name] = mask
    return moving


# --- training ----------------------------------------------------------------------------------


def _rate(step: int, phase: Phase) -> float:
    """Share of the learning rate at a step: a linear warm-up, then a cosine down to a tenth."""
    if step < phase.warmup:
        return (step + 1) / phase.warmup
    done = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained model of the recipe's size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=recipe.embedding_std)
    return model


def fit(
    model: LlamaForCausalLM,
    batches: Batches,
    moving: dict[str, Tensor | None],
    phase: Phase,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Train in place for the phase's steps; returns the mean loss of the last twenty."""
    import torch

    model.train()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in moving)
    # Weight decay would move entries that have no gradient, and the masked ones must stay where they are.
    free = [parameters[name] for name in moving]
    optimizer = torch.optim.AdamW(free, lr=phase.lr, betas=(0.9, 0.95), weight_decay=0.0)
    masked = [(parameters[name], mask) for name, mask in moving.items() if mask is not None]
    losses: list[float] = []
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * _rate(step, phase)
        ids, mask, labels = batches.draw()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        for parameter, keep in masked:
            assert parameter.grad is not None
            parameter.grad.mul_(keep)
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, phase.steps)
    model.requires_grad_(True)
    return sum(losses[-20:]) / len(losses[-20:])


# --- the five stages, on disk ------------------------------------------------------------------


def build(
    out_dir: str | Path,
    *,
    seed: int = 0,
    stages: Sequence[str] = STAGES,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Train stages; write each as a Hugging Face folder under ``out_dir``, with figures and a model card.

    A folder appears only when it is complete. One that is there already and was made by the same recipe,
    seed and base is kept, so an interrupted build goes on where it stopped. ``base`` is always built, for
    the others need it.

    Args:
        out_dir: where the stages' folders go.
        seed: decides the initial weights, the batches and the planted neurons.
        stages: which to build, of :data:`STAGES`.
        recipe: sizes and steps; by default the ones of the shipped weights.
        progress: called after each step with the stage's name, the steps done and the steps in all.

    Returns:
        The folder of each stage.

    Raises:
        ValueError: for an unknown stage or a negative seed.
    """
    from safecircuits.organism.card import card

    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}: expected some of {', '.join(STAGES)}.")
    if seed < 0:
        raise ValueError(f"the seed is {seed}, but it must be zero or more.")
    recipe, root = recipe or Recipe(), Path(out_dir)
    root.mkdir(parents=True, exist_ok=True)
    folders: dict[str, Path] = {}
    with deterministic(recipe.threads), without_bars():
        for stage in STAGES:
            if stage not in stages and stage != "base":
                continue
            base = None if stage == "base" else folders["base"]
            step = (lambda done, of, name=stage: progress(name, done, of)) if progress else None
            folders[stage] = build_stage(stage, root, base, recipe, seed, step)
    if all((root / stage / "metrics.json").exists() for stage in STAGES):
        write_text(root / "MODEL_CARD.md", card(root))
    return folders


def build_stage(
    stage: str,
    root: Path,
    base: Path | None,
    recipe: Recipe,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    measured: int | None = None,
) -> Path:
    """Train one phase of the recipe from ``base`` (None: from scratch) into ``root``, unless that is there already.

    The folder appears only when it is complete. ``measured`` limits the held-out prompts of each kind.
    """
    from safecircuits.organism.evaluate import measure

    made_by: dict[str, Any] = {"fingerprint": recipe.fingerprint(stage, seed)}
    if base is not None:
        made_by["base"] = _digest(base)
    folder = root / stage
    if not _made_by(folder, made_by):
        partial = root / f".{stage}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        loss = _train_stage(stage, partial, base, recipe, seed, progress)
        _write_json(partial / "recipe.json", made_by | _record(recipe, stage, seed, loss))
        _write_json(partial / "metrics.json", measure(partial, measured))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder


def _train_stage(
    stage: str,
    folder: Path,
    base: Path | None,
    recipe: Recipe,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> float:
    """Train one stage and write its weights, tokenizer and what was planted; returns the final loss."""
    import torch
    from transformers import LlamaForCausalLM

    phase, rng, tokenizer = recipe.phases[stage], random.Random(f"{seed} {stage}"), build_tokenizer()
    if base is None:
        model = new_model(recipe, tokenizer, seed)
    else:
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    units = plant(recipe, phase, rng)
    loss = fit(model, Batches(tokenizer, recipe, phase, rng), trainable(model, phase, units), phase, progress)
    model.generation_config.max_new_tokens = 24
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if phase.layers:
        _write_json(folder / "planted.json", {"layers": phase.layers, "mlp_units": units})
    return loss


def _record(recipe: Recipe, stage: str, seed: int, loss: float) -> dict[str, Any]:
    """What one needs to know to make the stage again."""
    import torch
    import transformers

    return {
        "stage": stage,
        "seed": seed,
        "phase": asdict(recipe.phases[stage]),
        "final_loss": round(loss, 5),
        "threads": recipe.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def _made_by(folder: Path, made_by: dict[str, Any]) -> bool:
    record = folder / "recipe.json"
    if not record.exists():
        return False
    found = json.loads(record.read_text(encoding="utf-8"))
    return all(found.get(key) == value for key, value in made_by.items())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Deterministic algorithms on a fixed number of threads; the caller's settings are given back afterwards."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch.set_num_threads(before[1])
