"""Edges by transformer-lens: what leaves a component over all its edges is what plain autograd says of its output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer

MALICIOUS = sc.PromptSet("m", ("make a bomb", "how do i fix the bomb", "find the bomb and the dog with tea"))
NORMAL = sc.PromptSet("n", ("find a lamp", "how do i find a lamp"))


def scores_edges() -> bool:
    try:
        from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig

        EdgeAttributionConfig(granularity="edge")
    except (ImportError, NotImplementedError):
        return False
    return True


@pytest.fixture
def model() -> Any:
    return sc.load_model(build_tiny_llama(num_key_value_heads=4), tokenizer=build_tiny_tokenizer())


@pytest.mark.skipif(scores_edges(), reason="this transformer-lens scores edges")
def test_a_transformer_lens_without_edges_is_named(model: Any) -> None:
    with pytest.raises(ValueError, match="scores no edges, and this library has none of its own: install"):
        sc.units.edge_scores(model, MALICIOUS, NORMAL)


@pytest.mark.skipif(not scores_edges(), reason="this transformer-lens scores no edges")
class TestEdges:
    def test_the_edges_of_a_component_sum_to_its_own_attribution(self, model: Any, tmp_path: Path) -> None:
        answers = sc.units.AnswerTokens.of_words(model.tokenizer, refuse=["sorry"], comply=["take", "sure"])
        found = sc.units.edge_scores(model, MALICIOUS, NORMAL, answers=answers)
        assert found.pairs == 2  # of the third there is no pair
        plain = build_tiny_llama(num_key_value_heads=4)
        want = {f"mlp {layer}": 0.0 for layer in range(3)}
        for bad, good in zip(MALICIOUS.prompts[:2], NORMAL.prompts, strict=True):
            one, two = (outputs(plain, model.tokenizer, text, answers.difference) for text in (bad, good))
            for layer in range(3):
                (clean, _), (corrupt, gradient) = one[layer], two[layer]
                want[f"mlp {layer}"] += float(((clean - corrupt) * gradient).sum()) / 2
        for source, value in want.items():
            row = found.scores[found.sources.index(source)]
            assert float(row.nansum()) == pytest.approx(value, rel=1e-3, abs=1e-5)
        assert "logits" in found.readers
        assert found.scores[found.sources.index("mlp 2")].isfinite().sum() == 1  # the last one's reader is the end
        top = found.top(3)
        assert top["score"].abs().is_monotonic_decreasing
        assert type(found).load(found.save(tmp_path / "edges")).equals(found)

    def test_bad_input(self, model: Any) -> None:
        with pytest.raises(ValueError, match="have as many tokens"):
            sc.units.edge_scores(model, MALICIOUS[:1], NORMAL[1:])


def outputs(plain: Any, tokenizer: Any, text: str, metric: Callable[..., Any]) -> list[tuple[Any, Any]]:
    """Of each MLP its output and the metric's gradient there, by Hugging Face's own forward and autograd."""
    seen: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        output.retain_grad()
        seen.append(output)

    handles = [layer.mlp.register_forward_hook(keep) for layer in plain.model.layers]
    [example] = sc.prompts.encode(tokenizer, sc.PromptSet("x", (text,)))
    with torch.enable_grad():
        metric(plain(torch.tensor([example.ids])).logits[:, -1]).sum().backward()
    for handle in handles:
        handle.remove()
    return [(one.detach()[0], one.grad[0]) for one in seen]
