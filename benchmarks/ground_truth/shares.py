"""What neurons and what heads carry, when the safety-critical units are cut in one ranking or by site.

    python -m benchmarks.ground_truth.shares

On the embedded model ``aligned``: refusal and utility on 200 held-out prompts each without the 1.3 % SCU, without their
heads alone and without their neurons alone, ranked together as published and in proportion, the library's default.
"""

from __future__ import annotations

from typing import Any

import safecircuits as sc

WAYS: dict[str, tuple[bool, Any]] = {
    "one ranking, every position (published)": (True, "pooled"),
    "by site, without what every prompt begins with (default)": (False, "units"),
}


def main() -> None:
    model = sc.load_model("aligned")
    seen = [sc.load_prompts(f"organism:{kind}", split="train", n=128) for kind in ("malicious", "utility")]
    malicious, utility = (sc.load_prompts(f"organism:{kind}", n=200) for kind in ("malicious", "utility"))
    for way, (count_beginning, share_of) in WAYS.items():
        safety, useful = (sc.score_units(model, data, count_beginning=count_beginning) for data in seen)
        groups = sc.classify_units(safety, useful, scu=0.013, ucu=0.133, ru=0.148, share_of=share_of)
        scu = groups["SCU"]
        print(f"{way}: {scu.n_units('mlp')} neurons and {scu.n_units('attn')} heads")
        for name, units in {
            "both": scu,
            "the heads": scu.restrict(sites="attn"),
            "the neurons": scu.restrict(sites="mlp"),
        }.items():
            with sc.ablated(model, units):
                rates = sc.evaluate(model, malicious=malicious, utility=utility).rates
            print(
                f"  without {name}: refused {rates['malicious_refused']:.1%}, utility {rates['utility']:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
