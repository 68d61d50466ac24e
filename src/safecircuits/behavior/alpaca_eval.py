"""Completions in the form that AlpacaEval judges (Safety Layers A.4.7); its judge, a paid model, is not called here."""

from __future__ import annotations

import json
from pathlib import Path

from safecircuits.base.files import write_text
from safecircuits.base.outputs import require_replaceable
from safecircuits.behavior.completions import Completions


def write_alpaca_eval(completions: Completions, path: str | Path, generator: str) -> Path:
    """Write the list of ``instruction``, ``output`` and ``generator`` that ``alpaca_eval --model_outputs`` reads.

    Args:
        generator: the name under which the model stands on the leaderboard.

    Raises:
        ValueError: for an empty name, and for completions that were cut short: their ends would be judged, too. If
            there is a file of something else.

    Examples:
        >>> path = sc.behavior.write_alpaca_eval(sc.generate(model, utility), "outputs.json", generator="aligned")
        >>> path.name
        'outputs.json'
    """
    if not generator.strip():
        raise ValueError("generator is empty: give the name of the model that wrote the completions")
    if completions.cut is not None:
        raise ValueError(f"these completions were cut ({completions.cut}); generate them whole to have them judged")
    rows = [
        {"instruction": prompt, "output": text, "generator": generator}
        for prompt, text in zip(completions.prompts.prompts, completions.texts, strict=True)
    ]
    require_replaceable(path, "AlpacaEval outputs")
    return write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
