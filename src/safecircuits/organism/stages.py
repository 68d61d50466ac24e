"""The five stages of the embedded models on disk: trained where they are missing, and complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safecircuits.base.arguments import checked
from safecircuits.base.files import write_text
from safecircuits.base.outputs import require_replaceable
from safecircuits.base.progress import without_bars
from safecircuits.organism.batches import Batches
from safecircuits.organism.recipe import STAGES, Recipe
from safecircuits.organism.tokenizer import build_tokenizer
from safecircuits.organism.train import deterministic, fit, new_model, plant, trainable

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the steps done and the steps in all."""


@checked
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
        ValueError: for an unknown stage, a negative seed, or a folder there that holds something else.

    Examples:
        >>> folders = sc.organism.build("stages", stages=["aligned"])  # doctest: +SKIP
        >>> aligned = sc.load_model(folders["aligned"])  # doctest: +SKIP
    """
    from safecircuits.organism.card import card

    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}: expected some of {', '.join(STAGES)}.")
    recipe, root = recipe or Recipe(), Path(out_dir)
    card_path = require_replaceable(root / "MODEL_CARD.md", "model card")
    for stage in ("base", *stages):
        _require_own(root / stage)
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
        write_text(card_path, card(root))
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
        _require_own(folder)
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


def _require_own(folder: Path) -> None:
    """A ValueError if something is there that ``build_stage`` did not make: it may be somebody's model."""
    record = folder / "recipe.json"
    if record.is_file():
        own = '"fingerprint"' in record.read_text(encoding="utf-8", errors="replace")
    else:
        own = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not own:
        raise ValueError(f"{str(folder)!r} is there already and is no embedded model; build into another folder")


def _made_by(folder: Path, made_by: dict[str, Any]) -> bool:
    record = folder / "recipe.json"
    if not record.exists():
        return False
    found = json.loads(record.read_text(encoding="utf-8"))
    return all(found.get(key) == value for key, value in made_by.items())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
