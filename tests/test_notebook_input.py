"""Arguments as a notebook has them: numpy's numbers, ranges, tables, single strings. Each is understood or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import safecircuits as sc
from safecircuits.base.notices import Notice
from safecircuits.base.stats import Share
from safecircuits.base.vocabulary import LayerRange
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.conditions import pressure
from safecircuits.behavior.phrases import PhraseDetector
from safecircuits.behavior.refusal import refused
from safecircuits.model.sites import ModelShape

PROMPTS = ["how do i make the cake", "find a lamp", "how do i fix the road with some water", "a dog"]
SHAPE = ModelShape("LlamaForCausalLM", 3, 32, 48, 4, 2)


# --- layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers", [(np.int64(1), np.int64(2)), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3), LayerRange(1, 2)]
)
def test_a_range_of_layers_is_read_from_whatever_has_two_ends(layers: Any) -> None:
    found = LayerRange.of(layers, 3)
    assert (type(found.first), type(found.last), tuple(found)) == (int, int, (1, 2))
    assert type(LayerRange(*np.array([1, 2])).first) is int


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (1, r"a \(first, last\) pair, both inclusive; got 1: one layer is \(1, 1\)"),
        (np.int64(1), r"one layer is \(1, 1\)"),
        (None, "both inclusive; got None"),
        ({1, 2}, "which has no order and may have gaps"),
        (range(0, 3, 2), r"range\(0, 3, 2\) has gaps or no layers"),
        (range(2, 2), "has gaps or no layers"),
        (sc.layers.Onset(LayerRange(1, 2), sc.OnsetRule()), "got Onset: give its .layers"),
        ((0.0, 2.0), "pair of whole numbers"),
    ],
)
def test_what_is_no_range_of_layers_says_how_to_give_one(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerRange.of(layers)


@pytest.mark.parametrize("layer", [np.int64(1), torch.tensor(1)])
def test_a_mask_of_one_layer_from_any_whole_number(layer: Any) -> None:
    assert sc.FreezeMask.layers(layer).whole_layers == (1,)
    assert sc.FreezeMask.layers({layer}).whole_layers == (1,)
    with pytest.raises(ValueError, match=r"each of layers must be a whole number, not 1\.5"):
        sc.FreezeMask.layers({1.5})


def test_residuals_of_a_block_are_those_of_all_its_layers(tiny_bridge: Any, tmp_path: Path) -> None:
    every = sc.collect_residuals(tiny_bridge, PROMPTS)
    block = sc.collect_residuals(tiny_bridge, PROMPTS, layers=LayerRange(0, 2))
    assert block.layers == (0, 1, 2)
    chosen = sc.collect_residuals(tiny_bridge, PROMPTS, layers=np.array([2, 0]))
    torch.testing.assert_close(chosen.values, every.values[[2, 0]])
    assert sc.Residuals.load(chosen.save(tmp_path / "chosen")).equals(chosen)
    for layers, message in (([1, 1], "named twice"), (1, "a list of whole numbers"), ([3], "outside the model")):
        with pytest.raises(ValueError, match=message):
            sc.collect_residuals(tiny_bridge, PROMPTS, layers=layers)


def test_the_final_norm_is_the_last_layers_wherever_it_stands(tiny_bridge: Any) -> None:
    normed = sc.collect_residuals(tiny_bridge, PROMPTS, final_norm=True).values
    raw = sc.collect_residuals(tiny_bridge, PROMPTS).values
    got = sc.collect_residuals(tiny_bridge, PROMPTS, layers=[2, 0], final_norm=True).values
    torch.testing.assert_close(got, torch.stack([normed[2], raw[0]]))
    assert not torch.allclose(normed[2], raw[2], atol=0.1)


# --- units -------------------------------------------------------------------------------------------------------


def without(model: Any, units: Any) -> torch.Tensor:
    with sc.ablated(model, sc.FreezeMask.of_units(units, model)):
        return sc.collect_residuals(model, PROMPTS).values


@pytest.mark.parametrize(
    "indices", [np.array([3, 7, 3]), torch.tensor([7, 3]), {3, 7}, range(3, 8, 4), (3, np.int64(7))]
)
def test_units_are_given_in_any_collection(indices: Any, tiny_bridge: Any) -> None:
    want = without(tiny_bridge, {"mlp": {1: [3, 7]}})
    assert torch.equal(without(tiny_bridge, {"mlp": {np.int64(1): indices}}), want)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"neurons": {1: [3]}}, "a site is one of mlp, attn, expert, shared, router, not 'neurons'"),
        ({"heads": {1: [3]}}, "a site is one of mlp, attn, expert, shared, router, not 'heads'"),
        ({1: [3]}, "a site is one of mlp, attn, expert, shared, router, not 1: units are given by site and layer"),
        ({"mlp": [3]}, "units are given by site and layer, such as .*; the mlp units are a list"),
        (sc.FreezeMask.layers(1), "not as a FreezeMask"),
        (
            {"mlp": {1: torch.ones(48, dtype=torch.bool)}},
            "the mlp units of layer 1 must be whole numbers, not booleans",
        ),
        ({"mlp": {1: 3}}, "the mlp units of layer 1 must be a list of whole numbers, not 3"),
        ({"mlp": {"1": [3]}}, "a layer must be a whole number, not '1'"),
        ({"mlp": {3: [3]}}, "layer 3 does not exist"),
    ],
)
def test_what_are_no_units_removes_nothing_silently(units: Any, message: str, tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match=message):
        without(tiny_bridge, units)


def test_a_mean_that_lacks_a_layer_is_told(tiny_bridge: Any) -> None:
    with (
        pytest.raises(ValueError, match="to= has no values for the mlp units of layer 1"),
        sc.ablated(
            tiny_bridge, sc.FreezeMask.of_units({"mlp": {1: [0]}}, tiny_bridge), to={"mlp": {0: torch.zeros(48)}}
        ),
    ):
        pass


def test_what_a_mask_freezes_can_be_removed(tiny_bridge: Any) -> None:
    every = {"mlp": {1: range(48)}, "attn": {1: range(4)}}
    with sc.ablated(tiny_bridge, sc.FreezeMask.layers(1)):
        got = sc.collect_residuals(tiny_bridge, PROMPTS).values
    assert torch.equal(got, without(tiny_bridge, every))


def test_an_ablation_of_array_indices_resumes(tiny_bridge: Any, tmp_path: Path) -> None:
    def table() -> sc.Behavior:
        named = {"mine": sc.FreezeMask.of_units({"mlp": {np.int64(1): np.array([3, 7])}}, tiny_bridge)}
        found = sc.ablate_units(tiny_bridge, named, controls=1, malicious=PROMPTS, resume=tmp_path / "measured")
        return found.rows[0].behavior

    assert table().equals(table())


# --- hooks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["bridge", "hooked"])
def test_a_hook_as_transformer_lens_spells_it_can_be_attached(backend: str, make_tiny_model: Any) -> None:
    model = make_tiny_model(backend)
    seen: list[str] = []

    def theirs(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(hook.name)
        return 2 * resid

    tokens = torch.tensor([[2, 5, 6, 7]])
    with sc.attached(model, {"blocks.1.hook_resid_post": theirs}):
        got = model(tokens)
    with sc.attached(model, {"blocks.1.hook_resid_post": lambda resid: 2 * resid}):
        want = model(tokens)
    assert torch.equal(got, want)
    assert len(seen) == 1


def test_dropout_has_no_part_in_an_analysis(tiny_tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model: Any = sc.load_model(GPT2LMHeadModel(config), tokenizer=tiny_tokenizer)
    data = sc.PromptSet("d", tuple(PROMPTS), ("here is a cake", "sure", "with salt", "that is it"))

    def results() -> list[torch.Tensor]:
        scores = sc.score_units(model, data, method="snip")
        return [
            sc.collect_residuals(model, PROMPTS).values,
            sc.response_loss(model, data).nats,
            scores.scores["mlp"],
            sc.layers.attention_map(model, PROMPTS[0]).values,
        ]

    want = results()
    for trained in (model, model.original_model):  # what a trainer may have been given
        trained.train()
        assert all(map(torch.equal, results(), want))
        assert trained.training
        model.eval()
        model.original_model.eval()


@pytest.mark.parametrize(("architecture", "backend"), [("gpt2", "bridge"), ("gpt2", "hooked"), ("llama", "hooked")])
def test_more_tokens_than_the_model_has_positions_are_refused(
    architecture: str, backend: str, tiny_tokenizer: Any, make_tiny_model: Any
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    if architecture == "gpt2":
        config = GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
        model: Any = sc.load_model(GPT2LMHeadModel(config), backend=backend, tokenizer=tiny_tokenizer)
    else:
        model = make_tiny_model(backend)
    long = " ".join(["lamp"] * 70)
    data = sc.PromptSet("long", (long, "a dog"), ("sure", "sure"))
    calls: list[Any] = [
        lambda: sc.collect_residuals(model, data),
        lambda: sc.generate(model, data, max_new_tokens=2),
        lambda: sc.localize(model, data, (0, 1), alpha=1.2),
        lambda: sc.score_units(model, data),
        lambda: sc.response_loss(model, data),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"have 7\d tokens or more, but the model's context is 64"):
            call()
    fits = sc.generate(model, [" ".join(["lamp"] * 55), "a dog"], max_new_tokens=4)
    assert len(fits) == 2


# --- numbers -----------------------------------------------------------------------------------------------------


def test_results_made_with_numpys_numbers_can_be_saved(tiny_bridge: Any, tmp_path: Path) -> None:
    found = sc.localize(
        tiny_bridge,
        PROMPTS,
        np.array([0, 1]),
        alpha=np.float32(1.2),
        reach=np.int64(1),
        max_new_tokens=np.int64(2),
        resume=tmp_path / "sweep",
    )
    assert type(found.alpha) is float
    back = sc.Localization.load(found.save(tmp_path / "found"))
    assert back.equals(found)
    drawn = sc.behavior.sampled_refusals(tiny_bridge, PROMPTS, samples=2, seed=np.int64(3), max_new_tokens=2)
    assert sc.behavior.SampledRefusals.load(drawn.save(tmp_path / "drawn")).equals(drawn)
    assert drawn.to_frame()["refused"].tolist() == drawn.refused.sum(0).tolist()


@pytest.mark.parametrize("alpha", ["Search", "1.2", 1, 0, float("nan"), None])
def test_an_alpha_that_is_no_factor_is_named(alpha: Any, tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match=r"alpha must be positive, finite and not 1, not .*; or 'search'"):
        sc.localize(tiny_bridge, PROMPTS, (0, 1), alpha=alpha)


def test_pressure_takes_numpys_numbers_and_says_what_was_not_asked(tiny_bridge: Any) -> None:
    asked = pressure(tiny_bridge, PROMPTS[:2], prefill="here is a", prefill_tokens=np.int64(2), max_new_tokens=2)
    assert [attempt.condition.prefilled for attempt in asked.attempts] == [0, 1, 2]
    with pytest.raises(ValueError, match="nothing was asked with a system prompt: pass system="):
        asked.held(system=True)
    with pytest.raises(ValueError, match="prefill_tokens must be a whole number"):
        pressure(tiny_bridge, PROMPTS, prefill="here is a", prefill_tokens=1.5)


def test_a_share_of_nothing_is_no_number() -> None:
    assert np.isnan([Share(0, 0).rate, *Share(0, 0).interval]).all()
    assert "0/0" in str(sc.behavior.harmful_rate([]))


# --- texts -------------------------------------------------------------------------------------------------------


def test_a_single_string_is_no_list_of_texts() -> None:
    calls: list[Any] = [
        lambda: refused("I'm sorry, but I can't help."),
        lambda: sc.behavior.harmful_rate("I'm sorry"),
        lambda: sc.behavior.rouge_l("a", "a"),
        lambda: sc.behavior.agreement("I'm sorry"),
        lambda: sc.JudgeDetector(lambda question: "yes", question="{completion}?").verdicts("I'm sorry"),
        lambda: Completions(sc.PromptSet("p", ("a",)), "a"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not the single string"):
            call()
    for call in (
        lambda: sc.PromptSet("p", "lamp"),
        lambda: sc.PromptSet("p", ("a",), "b"),
        lambda: PhraseDetector("mine", "I cannot"),
    ):
        with pytest.raises(ValueError, match="several texts: give "):
            call()


def test_a_detectors_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="where is 'start' or 'anywhere', not 'begin'"):
        PhraseDetector("mine", ("I cannot",), "begin")
    assert PhraseDetector("mine", ["I cannot"])("No, I cannot.")
    judge = sc.JudgeDetector(lambda question: "yes, it does", question="{completion}?", yes="yes", no="no")
    assert judge.verdicts(["I'm sorry"]).refused.tolist() == [True]


def test_harmfulness_needs_the_prompts_as_well() -> None:
    with pytest.raises(ValueError, match="pass Completions"):
        sc.behavior.harmfulness(["an answer"], lambda question: "#thescore: 1")


# --- prompts -----------------------------------------------------------------------------------------------------

TABLE = pd.DataFrame({"prompt": ["find a lamp", "make tea"], "response": ["here", None], "label": ["safe", "unsafe"]})


class HubTable:
    """As a data set of the library ``datasets`` shows its columns."""

    column_names = ("prompt", "response", "label")

    def __getitem__(self, name: str) -> list[Any]:
        return list(TABLE[name])

    def __iter__(self) -> Any:
        return iter(TABLE.to_dict("records"))


@pytest.mark.parametrize(
    "table",
    [TABLE, TABLE.to_dict("list"), TABLE.to_dict("records"), HubTable()],
    ids=["pandas", "columns", "rows", "hub"],
)
def test_prompts_from_any_kind_of_table(table: Any) -> None:
    with pytest.warns(Notice, match="1 of the 2 rows of 'table' has no response and is left out: 'make tea'"):
        got = sc.load_prompts(table)
    assert (got.prompts, got.responses) == (("find a lamp",), ("here",))
    assert sc.load_prompts(table, responses="").prompts == ("find a lamp", "make tea")
    assert sc.load_prompts(table, responses="", where={"label": "unsafe"}).prompts == ("make tea",)


@pytest.mark.parametrize("column", [TABLE["prompt"], TABLE["prompt"].to_numpy(), np.array(TABLE["prompt"], dtype=str)])
def test_prompts_from_a_column(column: Any) -> None:
    assert sc.load_prompts(column).prompts == ("find a lamp", "make tea")
    with pytest.raises(ValueError, match="no columns"):
        sc.load_prompts(column, where={"label": "safe"})


def test_responses_are_texts() -> None:
    with pytest.raises(ValueError, match="response 2 of the 2 of set 'p' is not text: None"):
        sc.PromptSet("p", ("a", "b"), ("c", None))


def test_what_holds_no_prompts_is_named() -> None:
    with pytest.raises(ValueError, match="cannot read prompts from a int"):
        sc.load_prompts(3)


def test_other_line_separators_and_a_mark_at_the_start_belong_to_no_prompt(tmp_path: Path) -> None:
    texts = ("find\u2028a lamp", "make\x85tea")
    rows = [{"prompt": text} for text in texts]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8-sig")
    (tmp_path / "p.txt").write_text("\n".join(texts) + "\n", encoding="utf-8-sig")
    (tmp_path / "p.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    for kind in ("jsonl", "txt", "json"):
        assert sc.load_prompts(tmp_path / f"p.{kind}").prompts == texts, kind


def test_a_sweep_whose_completions_hold_line_separators_resumes(
    tiny_bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_bridge.tokenizer.batch_decode

    def with_separators(rows: Sequence[Any], **options: Any) -> list[str]:
        return [f"one\u2028{text}\x85two" for text in plain(rows, **options)]

    monkeypatch.setattr(tiny_bridge.tokenizer, "batch_decode", with_separators)
    options: Mapping[str, Any] = {"alpha": 1.2, "reach": 1, "max_new_tokens": 2, "resume": tmp_path / "sweep"}
    first = sc.localize(tiny_bridge, PROMPTS, (0, 1), **options)
    assert sc.localize(tiny_bridge, PROMPTS, (0, 1), **options).equals(first)


def test_a_part_of_a_set_keeps_its_responses() -> None:
    data = sc.PromptSet("p", ("a", "b", "c"), ("x", "y", "z"))
    assert (data[0], data[-1]) == ("a", "c")
    assert (data[1:].prompts, data[1:].responses) == (("b", "c"), ("y", "z"))
    with pytest.raises(ValueError, match="is empty"):
        data[3:]


def test_completions_are_shown_as_a_table_and_not_as_all_their_texts() -> None:
    answers = Completions(sc.PromptSet("p", ("a", "b")), ["<b>", "x" * 500])
    assert repr(answers) == "Completions(2 of 'p')"
    assert answers.to_frame().to_dict("list") == {"prompt": ["a", "b"], "completion": ["<b>", "x" * 500]}
    assert "&lt;b&gt;" in answers._repr_html_()
    with pytest.raises(ValueError, match="1 completions of 2 prompts"):
        Completions(answers.prompts, ("a",))


def test_evaluation_takes_lists(tiny_bridge: Any) -> None:
    as_list = sc.evaluate(tiny_bridge, malicious=PROMPTS, over_rejection=PROMPTS, max_new_tokens=2)
    as_set = sc.PromptSet("p", tuple(PROMPTS))
    assert as_list.equals(sc.evaluate(tiny_bridge, malicious=as_set, over_rejection=as_set, max_new_tokens=2))
    with pytest.raises(ValueError, match="'utility' has no responses"):
        sc.evaluate(tiny_bridge, utility=PROMPTS)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        sc.evaluate(tiny_bridge, malicious=PROMPTS, refusal_tokens=0)


# --- tables and figures ------------------------------------------------------------------------------------------


def test_results_with_a_figure_draw_it_on_given_axes(tiny_bridge: Any) -> None:
    from matplotlib.figure import Figure

    from safecircuits.units import Candidate, stability

    data = sc.PromptSet("d", tuple(PROMPTS), ("here is a cake", "sure", "with salt", "that is it"))
    scores = sc.score_units(tiny_bridge, data)
    groups = sc.classify_units(scores, scores, scu=0.1, ucu=0.1, ru=0.1)
    always: Any = {"malicious": data, "utility": data, "detector": lambda text: True, "max_new_tokens": 2}
    few = [Candidate("magnitude", "response", "none", "safety")]
    results: list[Any] = [
        scores,
        groups,
        sc.ablate_groups(tiny_bridge, groups, names=["SCU"], controls=1, malicious=data, over_rejection=data),
        sc.scaling_grid(tiny_bridge, PROMPTS, alpha=1.2, max_length=2, max_new_tokens=2),
        stability(tiny_bridge, {"a": (data, data), "b": (data[:3], data)}, scu=0.1, ucu=0.1, ru=0.1),
        sc.score_comparison(tiny_bridge, data, data, data, candidates=few, counts=[1, 2], **always),
    ]
    for result in results:
        axes = Figure().subplots()
        assert result.plot(ax=axes) is axes, type(result).__name__
        assert axes.has_data(), type(result).__name__
        assert len(result.to_frame()), type(result).__name__


def test_the_table_of_scores_has_a_row_for_every_unit(tiny_bridge: Any) -> None:
    scores = sc.score_units(tiny_bridge, sc.PromptSet("d", tuple(PROMPTS)), tokens="prompt")
    frame = scores.to_frame()
    assert len(frame) == 3 * (48 + 4)
    row = frame[(frame.site == "attn") & (frame.layer == 2) & (frame.unit == 3)]
    assert float(row.score.iloc[0]) == float(scores.scores["attn"][2, 3])


# --- training ----------------------------------------------------------------------------------------------------


def test_what_callbacks_return_is_kept_whichever_numbers_it_has(tiny_bridge: Any, tmp_path: Path) -> None:
    data = sc.PromptSet("d", tuple(PROMPTS), ("here is a cake", "sure", "with salt", "that is it"))

    def numbers(model: Any, step: int) -> dict[str, Any]:
        return {"numpy": np.float32(0.5), "torch": torch.tensor(step)}

    run = sc.finetune(
        tiny_bridge,
        data,
        steps=2,
        seed=np.int64(1),
        callbacks=[numbers, lambda model, step: sc.evaluate(model, malicious=data, max_new_tokens=2)],
        log=tmp_path / "log.jsonl",
        checkpoint_dir=tmp_path / "checkpoint",
    )
    back = sc.FinetuneRun.load(run.save(tmp_path / "run").parent)
    last = dict(back.evaluations[-1])
    assert {name: last[name] for name in ("step", "numpy", "torch")} == {"step": 2, "numpy": 0.5, "torch": 2}
    assert (last["malicious_refused"], last["malicious_n"]) == (0.0, len(PROMPTS))
    with pytest.raises(ValueError, match="a callback returns numbers by name"):
        sc.finetune(tiny_bridge, data, steps=1, callbacks=[lambda model, step: 0.5])


def test_masks_and_scores_by_a_seed_of_numpys(tiny_bridge: Any, tmp_path: Path) -> None:
    like = sc.FreezeMask.of_units({"mlp": {1: [3, 7]}}, SHAPE)
    drawn = sc.FreezeMask.random_units(like, seed=np.int64(1))
    assert sc.FreezeMask.load(drawn.save(tmp_path / "freeze.safetensors")) == drawn
    data = sc.PromptSet("d", tuple(PROMPTS))
    scores = sc.score_units(tiny_bridge, data, method="random", tokens="prompt", seed=np.int64(1))
    assert scores.equals(sc.score_units(tiny_bridge, data, method="random", tokens="prompt", seed=1))
    assert sc.UnitScores.load(scores.save(tmp_path / "scores")).equals(scores)


# --- what is printed ---------------------------------------------------------------------------------------------


def test_a_result_prints_its_verdict(tiny_bridge: Any) -> None:
    gap = sc.layer_gap(tiny_bridge, PROMPTS, [*PROMPTS[::-1], "find a dog"])
    assert str(gap) == gap.verdict
    layer = int(gap.gap_deg.argmax())
    noise = f"p = {gap.p:.2g}: within noise"
    assert gap.verdict.startswith(f"largest gap {float(gap.gap_deg.max()):.1f}° (layer {layer}, {noise}), ")
    found = sc.localize(tiny_bridge, PROMPTS, (0, 1), alpha=1.2, reach=1, max_new_tokens=2)
    assert str(found) == found.verdict
    assert str(sc.collect_residuals(tiny_bridge, PROMPTS)).startswith("Residuals(values=float32[3, 4, 32]")


def test_behaviour_has_a_table(tiny_bridge: Any) -> None:
    behavior = sc.evaluate(tiny_bridge, malicious=PROMPTS, detector=lambda text: True, max_new_tokens=2)
    [row] = behavior.to_frame().to_dict("records")
    assert (row["what"], row["rate"], row["hits"], row["n"]) == ("malicious_refused", 1.0, 4, 4)
    assert (row["low"], row["high"]) == behavior.shares["malicious_refused"].interval
    assert "malicious_refused" in behavior._repr_html_()


def test_a_pruned_model_is_shown_in_a_line(tiny_bridge: Any) -> None:
    one = sc.FreezeMask.of_units({"mlp": {layer: np.array([0]) for layer in range(3)}}, tiny_bridge)
    shown = repr(sc.units.prune_units(tiny_bridge, one))
    assert shown.startswith("PrunedModel(LlamaForCausalLM without 3 units, ")
    assert len(shown) < 120


def test_models_to_compare_are_named_and_have_a_tokenizer(tiny_bridge: Any, tiny_llama_hf: Any) -> None:
    with pytest.raises(ValueError, match=r"models are given by name, such as \{'aligned': model\}, not as a list"):
        sc.compare_gaps([tiny_bridge], PROMPTS, PROMPTS)
    with pytest.raises(ValueError, match=r"'mine' is a plain LlamaForCausalLM.*load_model\(it, tokenizer=...\)"):
        sc.compare_gaps({"mine": tiny_llama_hf}, PROMPTS, PROMPTS)


# --- models ------------------------------------------------------------------------------------------------------

DATA = sc.PromptSet("d", tuple(PROMPTS), ("here is a cake", "sure", "with salt", "that is it"))
ANALYSES: dict[str, Any] = {
    "residuals": lambda model: sc.collect_residuals(model, PROMPTS),
    "gap": lambda model: sc.layer_gap(model, PROMPTS, PROMPTS),
    "generate": lambda model: sc.generate(model, PROMPTS),
    "evaluate": lambda model: sc.evaluate(model, malicious=PROMPTS),
    "localize": lambda model: sc.localize(model, PROMPTS, (0, 1)),
    "grid": lambda model: sc.scaling_grid(model, PROMPTS, alpha=1.2),
    "answered": lambda model: sc.layers.answered_malicious(model, PROMPTS, (0, 1), 1.2),
    "decision": lambda model: sc.decision_layers(model, PROMPTS, PROMPTS),
    "attention": lambda model: sc.layers.attention_map(model, PROMPTS[0]),
    "scores": lambda model: sc.score_units(model, DATA),
    "snip": lambda model: sc.score_units(model, DATA, method="snip"),
    "heads": lambda model: sc.weights.head_probe(model, PROMPTS, PROMPTS, folds=2),
    "loss": lambda model: sc.response_loss(model, DATA),
    "pressure": lambda model: sc.behavior.pressure(model, PROMPTS),
    "samples": lambda model: sc.behavior.sampled_refusals(model, PROMPTS),
    "direction": lambda model: sc.probe_direction(model, PROMPTS),
}
HOOKS: dict[str, Any] = {
    "scaled": lambda model: sc.scaled(model, (0, 1), 1.2).__enter__(),
    "ablated": lambda model: sc.ablated(model, sc.FreezeMask.layers(0)).__enter__(),
    "attached": lambda model: sc.attached(model, {"blocks.0.hook_resid_post": lambda resid: None}).__enter__(),
}


@pytest.mark.parametrize("analysis", [*ANALYSES, *HOOKS])
def test_a_model_without_hook_points_or_only_its_name_is_refused(analysis: str, tiny_llama_hf: Any) -> None:
    run = {**ANALYSES, **HOOKS}[analysis]
    with pytest.raises(ValueError, match="not a LlamaForCausalLM, which has no hook points: load_model"):
        run(tiny_llama_hf)
    with pytest.raises(ValueError, match=r"not its name: pass load_model\('aligned'\)"):
        run("aligned")


@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_model_without_a_tokenizer_is_refused(analysis: str, tiny_bridge: Any) -> None:
    tiny_bridge._tokenizer = tiny_bridge.tokenizer = None
    with pytest.raises(ValueError, match="this TransformerBridge has no tokenizer: load_model"):
        ANALYSES[analysis](tiny_bridge)


def test_a_template_that_takes_no_system_prompt_says_so(tiny_bridge: Any) -> None:
    tiny_bridge._tokenizer = copy.deepcopy(tiny_bridge.tokenizer)  # other tests share it
    tiny_bridge.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ m['content'] }} {% endfor %}"
    )
    assert len(sc.generate(tiny_bridge, PROMPTS, max_new_tokens=2)) == 4
    with pytest.raises(ValueError, match=r"take a system prompt \(System role not supported\): leave system= out"):
        sc.generate(tiny_bridge, PROMPTS, system="make tea")


@pytest.mark.parametrize("freeze", [(0, 1), LayerRange(0, 1), [LayerRange(0, 1)], {0}])
def test_what_is_frozen_is_a_mask(freeze: Any, tiny_bridge: Any) -> None:
    with pytest.raises(ValueError, match=r"such as FreezeMask.layers\(\(3, 5\)\)"):
        sc.finetune(tiny_bridge, DATA, freeze=freeze, steps=1)
    with pytest.raises(ValueError, match=r"such as FreezeMask.layers\(\(3, 5\)\)"), sc.frozen(tiny_bridge, freeze):
        pass


def test_units_are_scored_on_lists(tiny_bridge: Any) -> None:
    listed = sc.score_units(tiny_bridge, PROMPTS, tokens="prompt")
    assert torch.equal(listed.scores["mlp"], sc.score_units(tiny_bridge, DATA, tokens="prompt").scores["mlp"])
    with pytest.raises(ValueError, match="'data' has no responses"):
        sc.score_units(tiny_bridge, PROMPTS)


def test_draws_by_a_seed_of_numpys_are_those_of_pythons(tiny_bridge: Any) -> None:
    assert DATA.take(np.int64(2), seed=np.int64(3)) == DATA.take(2, seed=3)
    drawn = sc.training.normal_data(DATA, 2, seed=np.int64(3))
    assert drawn.prompts == sc.training.normal_data(DATA, 2, seed=3).prompts
    refusals = {2.5: r"n must be a whole number, not 2\.5", 0: "cannot take 0 of the 4", 5: "cannot take 5 of the 4"}
    for n, message in refusals.items():
        with pytest.raises(ValueError, match=message):
            DATA.take(n)
    one = sc.FreezeMask.of_units({"mlp": {0: [1]}}, tiny_bridge)
    sc.ablate_units(tiny_bridge, {"a": one}, seed=np.int64(3), malicious=DATA, max_new_tokens=2)


def test_a_result_does_not_take_the_place_of_a_file(tiny_bridge: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="is a file; give the result a folder"):
        sc.collect_residuals(tiny_bridge, PROMPTS).save(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("wivf", "all"), "method of a candidate is one of wifv, .* not 'wivf'"),
        (("wifv", "answer"), "tokens of a candidate is one of response, prompt, all, not 'answer'"),
        (("wifv", "all", "softmax"), "normalize of a candidate is one of none, zscore, .* not 'softmax'"),
        (("wifv", "all", "none", "ratio"), "contrast of a candidate is one of difference, safety, set-difference"),
    ],
)
def test_a_candidate_is_checked_before_anything_runs(fields: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sc.units.Candidate(*fields)


def test_figures_of_several_take_a_single_one(tiny_bridge: Any) -> None:
    from matplotlib.figure import Figure

    from safecircuits.plots.layers import plot_gap

    gap = sc.layer_gap(tiny_bridge, PROMPTS, ["find a dog", "make the tea"])
    line = plot_gap(gap, ax=Figure().subplots()).lines[0]
    assert list(line.get_ydata()) == gap.gap_deg.tolist()
    behavior = sc.evaluate(tiny_bridge, malicious=PROMPTS, max_new_tokens=2)
    axes = Figure().subplots()
    assert behavior.plot(ax=axes) is axes
    assert axes.has_data()


def test_a_study_takes_seeds_of_a_numpy_range(tiny_bridge: Any, tmp_path: Path) -> None:
    from safecircuits.studies.arms import full

    study = sc.studies.finetuning_study(
        tiny_bridge,
        [sc.studies.Scenario("new task", DATA[:3], DATA[3:])],
        [full()],
        malicious=DATA,
        seeds=np.arange(1),
        settings=sc.TrainingSettings(epochs=1, batch_size=4, lr=1e-3),
        out=tmp_path / "study",
        progress=False,
        evaluation={"max_new_tokens": 2},
    )
    assert [run.seed for run in study.runs] == [0]
