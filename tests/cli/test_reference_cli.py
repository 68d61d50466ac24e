"""``safecircuits evaluate --reference``: how far a model is from the one it came of, by numpy on plain forwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import safecircuits as sc
from commands import refuse, succeed
from safecircuits.behavior.divergence import KLReference
from safecircuits.organism import stage_path
from safecircuits.prompts.prompt_set import encode

COMMON = ["evaluate", "--model", "organism:aligned", "--n", 5]
MALICIOUS = ["--malicious", "organism:malicious"]


def probabilities(stage: str, ids: list[int]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(stage_path(stage)).double().eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_divergence_from_a_reference(tmp_path: Path) -> None:
    out = tmp_path / "run"
    sets = [*MALICIOUS, "--over-rejection", "organism:over_rejection", "--utility", "organism:utility"]
    said = succeed(*COMMON, *sets, "--reference", "organism:base", "--kl-tokens", 1, "--out", out)
    kl = pd.read_csv(out / "tables" / "kl.csv").set_index("prompts_of")
    assert kl.index.tolist() == ["malicious", "harmless"]  # the utility prompts, as everywhere
    tokenizer = AutoTokenizer.from_pretrained(stage_path("base"))
    for kind, name in (("malicious", "malicious"), ("harmless", "utility")):
        each = []
        for example in encode(tokenizer, sc.load_prompts(f"organism:{name}", n=5)):
            p, q = (probabilities(stage, list(example.ids))[-1] for stage in ("base", "aligned"))
            each.append(float((p * (np.log(p) - np.log(q))).sum()))
        assert kl.loc[kind, "kl"] == pytest.approx(np.mean(each), rel=1e-3)
        assert kl.loc[kind, "prompts"] == 5
    assert "KL to the intact model" in said.stdout


def test_several_tokens_and_one_set(tmp_path: Path) -> None:
    out = tmp_path / "run"
    succeed(*COMMON, *MALICIOUS, "--reference", "organism:base", "--kl-tokens", 3, "--out", out)
    assert pd.read_csv(out / "tables" / "kl.csv")["token"].tolist() == [0, 1, 2]
    own = tmp_path / "own"
    succeed(*COMMON, *MALICIOUS, "--reference", "organism:aligned", "--out", own)
    assert pd.read_csv(own / "tables" / "kl.csv")["kl"].max() < 1e-6


def test_what_does_not_go_together(tmp_path: Path) -> None:
    assert "--kl-tokens is of the answers of --reference" in refuse(
        *COMMON, *MALICIOUS, "--kl-tokens", 3, "--out", tmp_path / "a"
    )


class Renamed:
    """A tokenizer with other tokens under the same numbers."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (lambda v: {token: (i + 1) % len(v) for token, i in v.items()}, "differently: there is no divergence"),
        (lambda v: {f"{token}'": i for token, i in v.items()}, "have 0 tokens in common"),
        (lambda v: {**v, "<a new one>": len(v)}, None),
        (lambda v: {token: i for token, i in v.items() if i < len(v) - 3}, None),
    ],
)
def test_models_that_number_tokens_otherwise(changed: Any, match: str | None) -> None:
    model = sc.load_model("organism:aligned")
    reference = KLReference.of(model, sc.load_prompts("organism:malicious", n=2), n_tokens=1)
    other = replace(reference, tokenizer=Renamed(changed(model.tokenizer.get_vocab())))
    if match is None:
        assert float(other.divergence(model).first.max()) < 1e-6
        return
    with pytest.raises(ValueError, match=match):
        other.divergence(model)
