"""What every prompt begins with does not count: which positions that is, and that length alone makes no unit matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import safecircuits as sc
from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.model.attach import attached
from safecircuits.model.beginning import encode_to_score
from safecircuits.model.load import load_model
from safecircuits.prompts.templates import TEMPLATES

PROMPTS = ("how do i make the cake", "how do i find a lamp", "how do i fix the road and the house")
SHORT = sc.PromptSet("short", PROMPTS, ("sure here it is", "find the house", "take some wood"))
LONG = sc.PromptSet(
    "long", PROMPTS, tuple(f"{answer} then the salt and water ." * 4 for answer in SHORT.responses or ())
)

SINK = (1, 5)
"""Layer and neuron."""


def with_bos() -> Any:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def joining() -> Any:
    """Joins the last letters of a template with the first of an instruction, as byte pairs do."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    parts = ["<unk>", "Q", ":", "\n", "\n\n", "h", "w", "4"]
    backend = Tokenizer(WordLevel({part: i for i, part in enumerate(parts)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


class TestWhichPositions:
    @pytest.mark.parametrize(
        ("tokenizer", "template", "expected"),
        [
            (build_tiny_tokenizer, "chat", "<user>"),
            (build_tiny_tokenizer, "none", "how"),  # the first position in any case: the sink is there
            (build_tiny_tokenizer, "the salt is {instruction}", "the salt is"),
            (with_bos, "none", "<bos>"),
            (with_bos, "take some {instruction} .", "<bos> take some"),
            (with_bos, "{instruction} .", "<bos>"),
        ],
    )
    def test_template_and_beginning_of_sequence(self, tokenizer: Any, template: str, expected: str) -> None:
        """Not what these prompts happen to begin with ("how do i"), which other sets do not."""
        tokenizer = tokenizer()
        for example in encode_to_score(tokenizer, SHORT, tokens="all", template=template):
            assert tokenizer.decode(example.ids[: example.beginning]) == expected
        every = encode_to_score(tokenizer, SHORT, tokens="prompt", template=template, count_beginning=True)
        assert {e.beginning for e in every} == {0}

    def test_a_token_joined_with_the_instruction_is_none_of_the_templates(self) -> None:
        prompts = sc.PromptSet("p", ("h", "\nh"))
        plain, joined = encode_to_score(joining(), prompts, tokens="prompt", template="Q:\n{instruction}")
        assert (plain.beginning, joined.beginning) == (3, 2)

    @pytest.mark.parametrize("name", sorted(TEMPLATES))
    @pytest.mark.parametrize("tokenizer", [build_tiny_tokenizer, with_bos])
    def test_are_of_the_prompt_and_the_same_in_every_set(self, name: str, tokenizer: Any) -> None:
        other = sc.PromptSet("o", ("bake the tea", "sorry"))
        mine, theirs = (encode_to_score(tokenizer(), data, tokens="prompt", template=name) for data in (SHORT, other))
        assert len({e.beginning for e in (*mine, *theirs)}) == 1
        assert all(1 <= e.beginning <= e.response_start for e in (*mine, *theirs))


def planted_sink() -> Any:
    """A tiny Llama with a neuron that is large at "<user>", the first position, and does nothing at any other."""
    hf_model, tokenizer = build_tiny_llama(), build_tiny_tokenizer()
    layer, neuron = SINK
    with torch.no_grad():  # a direction of the residual stream of its own, which nothing else writes
        embedding = hf_model.model.embed_tokens.weight
        embedding[:, -1] = 0
        embedding[tokenizer.convert_tokens_to_ids("<user>"), -1] = 5
        for block in hf_model.model.layers:
            block.self_attn.o_proj.weight[-1] = 0
            block.mlp.down_proj.weight[-1] = 0
        mlp = hf_model.model.layers[layer].mlp
        for matrix in (mlp.gate_proj, mlp.up_proj):
            matrix.weight[neuron] = 0
            matrix.weight[neuron, -1] = 20
    return load_model(hf_model, tokenizer=tokenizer)


class TestLengthAlone:
    """The same prompts, with answers of unequal length."""

    def test_makes_no_planted_sink_safety_critical(self) -> None:
        model = planted_sink()
        layer, neuron = SINK
        share = 1 / (3 * 48 + 3 * 4)

        s, u = (sc.score_units(model, data, count_beginning=True) for data in (SHORT, LONG))
        groups = sc.classify_units(s, u, scu=share, ucu=0, ru=0)
        assert groups["SCU"] == sc.FreezeMask.of_units(
            {"mlp": {layer: [neuron]}}, model
        )  # of the length of answers alone
        ratio = s.scores["mlp"][layer, neuron] / u.scores["mlp"][layer, neuron]
        # Variance of a value that one position in so many has.
        shares = [len(PROMPTS) / scores.n_tokens for scores in (s, u)]
        assert float(ratio) == pytest.approx(shares[0] * (1 - shares[0]) / (shares[1] * (1 - shares[1])), rel=0.02)
        s, u = (sc.score_units(model, data) for data in (SHORT, LONG))
        assert s.scores["mlp"][layer, neuron] == u.scores["mlp"][layer, neuron] == 0
        groups = sc.classify_units(s, u, scu=share, ucu=0, ru=0)
        assert groups["SCU"].members("mlp").get(layer) != (neuron,)

    @pytest.mark.parametrize("tokens", ["prompt", "all"])
    def test_the_mean_is_not_the_sinks(self, tokens: Any) -> None:
        model = planted_sink()
        layer, neuron = SINK
        literal = sc.score_units(model, SHORT, tokens=tokens, count_beginning=True)
        assert abs(float(literal.mean["mlp"][layer][neuron])) > 20
        assert float(sc.score_units(model, SHORT, tokens=tokens).mean["mlp"][layer][neuron]) == 0

    def test_makes_no_sink_of_a_real_model_safety_critical(self, smollm2: Any) -> None:
        prompts = ("Name a colour.", "Where is Rome?")
        answer = "That is a good question, and I am glad that you ask it, because it is one that many people have. " * 2
        short = sc.PromptSet("short", prompts, (answer[:40],) * 2)
        long = sc.PromptSet("long", prompts, (answer,) * 2)

        def ratio_of_three(**options: Any) -> tuple[list[float], list[tuple[str, int, int]]]:
            s, u = (sc.score_units(smollm2, data, sites=("mlp",), **options) for data in (short, long))
            top = sc.classify_units(s, u, scu=3 / 46080, ucu=0, ru=0)["SCU"]
            units = [("mlp", layer, unit) for layer, units in top.members("mlp").items() for unit in units]
            sinks = ((11, 1229), (28, 678), (11, 1487))
            return [float(s.scores["mlp"][at] / u.scores["mlp"][at]) for at in sinks], units

        literal, units = ratio_of_three(count_beginning=True)
        assert all(ratio > 1.3 for ratio in literal)
        assert {("mlp", 11, 1229), ("mlp", 28, 678)} <= set(units)
        _, units = ratio_of_three()
        assert not {("mlp", 11, 1229), ("mlp", 28, 678), ("mlp", 11, 1487)} & set(units)


class TestOneRule:
    @pytest.mark.parametrize("backend", ["bridge", "hooked"])
    def test_a_shared_pass_over_the_beginning_changes_nothing(self, backend: Any) -> None:
        """A long template is computed once for all prompts, unless somebody else's hook must see whole prompts."""
        model = load_model(build_tiny_llama(), tokenizer=build_tiny_tokenizer(), backend=backend)
        template = "the salt is on the road and the tea is in the house and here is some wood {instruction} ."
        data = SHORT + sc.PromptSet("m", ("bake it", "lamp", "the cake"), ("here", "sure", "sorry"))
        shared = sc.score_units(model, data, template=template)
        with attached(model, {"blocks.0.hook_resid_post": lambda _: None}):
            whole = sc.score_units(model, data, template=template)
        assert (
            shared.n_tokens
            == whole.n_tokens
            == sum(
                len(e) - e.beginning for e in encode_to_score(model.tokenizer, data, tokens="all", template=template)
            )
        )
        torch.testing.assert_close(shared.scores["mlp"], whole.scores["mlp"], rtol=1e-4, atol=1e-7)

    def test_results_say_which_positions_counted(self, tiny_bridge: Any) -> None:
        default = sc.score_units(tiny_bridge, SHORT)
        assert str(default).endswith("without the first position that every prompt begins with")
        literal = sc.score_units(tiny_bridge, SHORT, count_beginning=True)
        assert "among them the first position that every prompt begins with" in str(literal)
        template = sc.score_units(tiny_bridge, SHORT, template="the salt is {instruction}")
        assert "without the 3 first positions" in str(template)
        assert literal.n_tokens == default.n_tokens + len(SHORT)
        assert str(sc.score_units(tiny_bridge, SHORT, method="snip")) == "snip of 156 units over 3 prompts"

    def test_scores_with_and_without_do_not_mix(self, tiny_bridge: Any) -> None:
        default, literal = (sc.score_units(tiny_bridge, SHORT, count_beginning=c) for c in (False, True))
        with pytest.raises(ValueError, match="whose beginning differ"):
            default.merge(literal)
        with pytest.raises(ValueError, match="with the same count_beginning="):
            sc.classify_units(default, literal, scu=0.1, ucu=0.1, ru=0.1)

    def test_prompts_that_are_only_a_beginning(self, tiny_bridge: Any) -> None:
        with pytest.raises(ValueError, match=r"at least two prompt tokens; 'p' has 0 beside what every prompt begins"):
            sc.score_units(tiny_bridge, sc.PromptSet("p", ("lamp",)), tokens="prompt", template="none")

    def test_weights_and_directions_too(self, tiny_bridge: Any) -> None:
        """Wanda's and ActSVD's inputs, where the prompt's tokens count."""
        for function, options in (
            (sc.weights.score_weights, {"method": "wanda"}),
            (sc.weights.output_spaces, {"rank": 4}),
        ):
            a, b = (function(tiny_bridge, SHORT, tokens="all", count_beginning=c, **options) for c in (False, True))
            assert (a.provenance["beginning"]["counted"], b.provenance["beginning"]["counted"]) == (False, True)
            assert not a.equals(b)
            c, d = (function(tiny_bridge, SHORT, count_beginning=c, **options) for c in (False, True))
            kept = "scores" if hasattr(c, "scores") else "singular_values"
            for key, value in getattr(c, kept).items():  # of responses nothing is left out
                torch.testing.assert_close(value, getattr(d, kept)[key])
