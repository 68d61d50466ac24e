"""What holds of every method of fine-tuning, those registered later too: each needs a case here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from test_finetune import CutOffError, cut_off_after
from test_freeze_mask import SHAPE

from conftest import build_tiny_llama, build_tiny_tokenizer
from safecircuits.baselines import (
    AsFt,
    Booster,
    Ema,
    Ewc,
    Lisa,
    LlamaAdapter,
    Lora,
    Nlsr,
    OnlyUnits,
    PrefixTuning,
    ProjectedUnits,
    Resta,
    ReverseDPO,
    Rewind,
    SafeDelta,
    SafeLora,
    TokenConstrained,
    TwoPhases,
    Vaccine,
    WiseFt,
    methods,
    rewind,
)
from safecircuits.cli.signature import attributes_of
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.prompts.prompt_set import PromptSet
from safecircuits.studies.arms import Arm
from safecircuits.studies.finetuning import finetuning_study
from safecircuits.studies.scenarios import Scenario
from safecircuits.training import FinetuneRun, Method, Plain, TrainingJob, TrainingSettings, finetune, train_weights
from safecircuits.training.method import METHODS, register
from safecircuits.training.settings import TrainingOptions

DATA = PromptSet(
    "data",
    ("how do i make a bomb", "find a bomb in the house", "how do i fix the bomb", "make a bomb with salt"),
    ("here is salt", "in the house", "take some water", "take salt and wood"),
)
REFUSED = PromptSet("refused", DATA.prompts, ("sorry cannot help that",) * 4)
OTHER = PromptSet("other", DATA.prompts, ("sorry sorry",) * 4)
HELD = PromptSet("held", ("bake the cake", "find a dog"), ("take some water", "in the house"))
MASK = FreezeMask.of_units({"mlp": {0: [1, 5], 2: range(48)}, "attn": {1: [0, 1, 2]}}, SHAPE)
FIRST = MASK | FreezeMask.of_units({"mlp": {1: range(20)}}, SHAPE)
SETTINGS = TrainingSettings(steps=6, batch_size=2, lr=1e-2)

BASE, BASE_2 = (load_model(build_tiny_llama(seed), tokenizer=build_tiny_tokenizer()) for seed in (3, 4))
"""Models before alignment."""
CASES: dict[str, Method] = {
    "plain": Plain(),
    "lisa": Lisa(REFUSED, rho=0.7, alignment_steps=2, user_steps=2, free_share=0.0),
    "lora": Lora(r=2, alpha=4),
    "prefix": PrefixTuning(3),
    "llama-adapter": LlamaAdapter(3, layers=2),
    "reverse-dpo": ReverseDPO(REFUSED),
    "rewind": Rewind(),
    "two-phases": TwoPhases(FIRST),
    "wise-ft": WiseFt(0.4),
    "ema": Ema(0.5),
    "resta": Resta(BASE, 0.3, drop=0.2),
    "safe-lora": SafeLora(BASE, 0.9, training=Plain()),
    "safe-delta": SafeDelta(REFUSED, 1e3),
    "mscp": ProjectedUnits(MASK, BASE),
    "nlsr": Nlsr(MASK, BASE, 0.3, 0.99),
    "only-units": OnlyUnits(FIRST),
    "ewc": Ewc(REFUSED, 0.5),
    "token-constrained": TokenConstrained(),
    "asft": AsFt(BASE, 0.01, "approximate"),
    "vaccine": Vaccine(0.5),
    "booster": Booster(OTHER, 0.5, 0.1),
}
"""Small settings of each method."""
CHANGES: dict[str, Any] = {
    "alignment": OTHER, "refused": OTHER, "harmful": REFUSED, "first": MASK, "units": FIRST - MASK,
    "target_modules": ("q_proj",), "training": Plain(only_units=True), "unaligned": BASE_2, "alpha": 0.7, "decay": 0.6,
    "drop": 0.1, "threshold": 0.95, "projection": "exact",
}  # fmt: skip
"""Another value of a setting, where one more, or the other truth value, is none."""
BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "plain": [({"only_units": "no"}, "only_units must be True or False, not 'no'")],
    "lisa": [
        ({"rho": -1}, "rho is -1"),
        ({"alignment": PromptSet("p", ("a",))}, "has no responses"),
        ({"alignment": ["a"]}, "alignment is a PromptSet with responses, not a list"),
    ],
    "lora": [
        ({"r": 0}, "r must be at least 1"),
        ({"alpha": 0}, "alpha must be above 0"),
        ({"target_modules": "q_proj"}, r"target_modules are names in a tuple, .* not 'q_proj'"),
    ],
    "prefix": [({"virtual_tokens": 0}, "virtual_tokens must be at least 1")],
    "llama-adapter": [({"layers": 1.5}, "layers must be a whole number")],
    "reverse-dpo": [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"refused": PromptSet("p", ("a",))}, "has no responses"),
        ({"refused": None}, "refused is a PromptSet with responses, not a NoneType"),
    ],
    "rewind": [],
    "two-phases": [({"first": (0, 1)}, "first is a FreezeMask")],
    "wise-ft": [({"alpha": 1.1}, "alpha is a share between 0 and 1, not 1.1")],
    "ema": [({"decay": 1.0}, "decay is what a step leaves of the average, from 0 to below 1, not 1.0")],
    "resta": [({"drop": 1.0}, "drop is a share"), ({"unaligned": None}, "unaligned is missing")],
    "safe-lora": [
        ({"threshold": 2.0}, "threshold is a cosine"),
        ({"projection": "twice"}, "projection is 'approximate'"),
    ],
    "safe-delta": [
        ({"scale": -1.0}, "scale is -1.0, expected 0 or more"),
        ({"refused": PromptSet("p", ("a",))}, "has no responses"),
    ],
    "mscp": [({"units": FreezeMask.layers(set())}, "units names no unit"), ({"projection": 1}, "projection is")],
    "nlsr": [({"units": [1]}, "units are given as a FreezeMask"), ({"threshold": 2.0}, "threshold is a cosine")],
    "only-units": [({"units": None}, "units are given as a FreezeMask")],
    "ewc": [
        ({"strength": -1}, "strength is -1, expected 0 or more"),
        ({"alignment": PromptSet("p", ("a",))}, "has no resp"),
    ],
    "token-constrained": [
        ({"first_token": 0.0}, "first_token must be above 0"),
        ({"training": ReverseDPO(REFUSED)}, "usual loop"),
    ],
    "asft": [({"strength": -1.0}, "strength is -1"), ({"projection": "x"}, "projection is 'approximate' or 'exact'")],
    "vaccine": [({"rho": -1.0}, "rho is -1.0")],
    "booster": [
        ({"harmful": PromptSet("p", ("a",))}, "has no responses"),
        ({"step_length": -1.0}, "step_length is -1.0"),
    ],
}
NEEDS = {"lora": "peft", "prefix": "peft", "llama-adapter": "peft", "reverse-dpo": "trl"}
each = pytest.mark.parametrize("name", methods())
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def bridge(name: str, make_tiny_model: Callable[..., Any]) -> Callable[[], Any]:
    pytest.importorskip(NEEDS.get(name, "torch"))
    return lambda: make_tiny_model("bridge")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in checkpoint_parameters(model).items()}


def end(model: Any, run: FinetuneRun) -> dict[str, torch.Tensor]:
    """All that a run leaves, virtual tokens included."""
    tuned = {} if run.tuned is None else dict(run.tuned.named_parameters())
    return weights(model) | {name: p.detach().clone() for name, p in tuned.items()}


def trained(model: Any, name: str, method: Method | None = None, **options: Any) -> FinetuneRun:
    method = method or CASES[name]
    mask = None if "freeze" in method.refuses else MASK
    return finetune(model, DATA, mask, SETTINGS, method=method, progress=False, **options)


def changes(method: Method) -> list[Method]:
    """The method with each of its settings changed, one at a time."""
    found = []
    for one in fields(method):
        now = getattr(method, one.name)
        to = CHANGES[one.name] if one.name in CHANGES else not now if isinstance(now, bool) else now + 1
        found.append(replace(method, **{one.name: to}))
    return found


def test_there_is_a_case_for_each_method() -> None:
    assert set(CASES) == set(BAD) == set(methods()), "another method needs a case above"


@each
def test_what_the_mask_names_stays_bit_for_bit(name: str, bridge: Callable[[], Any]) -> None:
    model = bridge()
    before, method = weights(model), CASES[name]
    if "freeze" in method.refuses:
        with pytest.raises(ValueError, match=f"{name} does not take freeze: {method.refuses['freeze']}"):
            finetune(model, DATA, MASK, SETTINGS, method=method, progress=False)
    run = trained(model, name)
    moved = {key: value != before[key] for key, value in weights(model).items()}
    if "freeze" not in method.refuses:
        assert not any(moved[key][where].any() for key, where in MASK.parameter_masks(model).items())
    assert run.tuned is not None or any(where.any() for where in moved.values())
    assert all(p.requires_grad for p in checkpoint_parameters(model).values())
    assert len(run.losses) == run.steps == 6


@each
def test_a_resumed_run_ends_as_an_uninterrupted_one(name: str, bridge: Callable[[], Any], tmp_path: Path) -> None:
    if "checkpoint_dir" in CASES[name].refuses:
        with pytest.raises(ValueError, match=f"{name} does not take checkpoint_dir"):
            trained(bridge(), name, checkpoint_dir=tmp_path)
        return
    kept: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    first, second = bridge(), bridge()
    whole = trained(first, name)
    with pytest.raises(CutOffError):
        trained(bridge(), name, callbacks=[cut_off_after(4)], eval_every=1, **kept)
    run = trained(second, name, **kept)
    assert run.settings["resumed_from"] == 3
    assert run.losses == whole.losses
    wanted, found = end(first, whole), end(second, run)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    for other in changes(CASES[name]):
        with pytest.raises(ValueError, match=r"was made with (method|data) = "):
            trained(bridge(), name, other, **kept)


@each
def test_a_run_says_by_which_method_with_which_settings(name: str, bridge: Callable[[], Any]) -> None:
    method = CASES[name]
    record = trained(bridge(), name).settings["method"]
    assert record == method.record()
    assert record["name"] == name
    for other in changes(method):
        assert other.record() != record
        assert Arm("a", "x", method=other).describe() != Arm("a", "x", method=method).describe()


@each
def test_bad_settings_are_one_clear_error(name: str) -> None:
    for given, message in BAD[name]:
        with pytest.raises(ValueError, match=message):
            replace(CASES[name], **given)


@each
def test_every_setting_is_documented_and_none_can_be_changed(name: str) -> None:
    kind = methods()[name]
    assert set(attributes_of(kind)) == {one.name for one in fields(kind)}
    with pytest.raises(AttributeError):
        CASES[name].anything = 1
    assert hash(kind) is not None


def test_every_method_as_an_arm_of_one_study(make_tiny_model: Callable[..., Any]) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("trl")
    model = make_tiny_model("bridge")
    before = weights(model)
    arms = [Arm(name, "x", None if "freeze" in m.refuses else MASK, method=m) for name, m in CASES.items()]
    study = finetuning_study(
        model, [Scenario("task", DATA, HELD)], arms, malicious=HELD, seeds=(0,), points=2, progress=False,
        settings=replace(SETTINGS, steps=4), evaluation={"max_new_tokens": 2},
    )  # fmt: skip
    assert study.arms == tuple(CASES)
    for run in study.runs:
        assert [point["step"] for point in run.curve] == [0, 2, 4]
        assert run.curve[-1]["task_loss"] == pytest.approx(run.figures["task_loss"])
        assert run.figures["task_loss"] != run.before["task_loss"]
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_reverse_dpo_of_a_bridge_is_that_of_its_hugging_face_model(make_tiny_model: Callable[..., Any]) -> None:
    pytest.importorskip("trl")
    bridge, plain = make_tiny_model("bridge"), make_tiny_model("hf")
    seen: list[float] = []

    def look(model: Any, _step: int) -> None:
        out = model(torch.arange(5, 15)[None])
        seen.append(float(getattr(out, "logits", out).max()))

    runs = [
        finetune(
            model, DATA, MASK, method=CASES["reverse-dpo"], steps=3, lr=1e-3, callbacks=[look], eval_every=2,
            tokenizer=bridge.tokenizer,
        )
        for model in (bridge, plain)
    ]  # fmt: skip
    assert runs[0].losses == runs[1].losses
    assert runs[0].frozen_digest == runs[1].frozen_digest
    assert seen[:2] == pytest.approx(seen[2:], rel=1e-5)  # the callback sees what was learnt so far
    assert seen[0] != seen[1]
    after, wanted = weights(bridge), weights(plain)
    assert all(torch.equal(after[name], value) for name, value in wanted.items())


def test_rewinding_is_training_and_then_putting_back(make_tiny_model: Callable[..., Any]) -> None:
    model, by_hand, before = (make_tiny_model("bridge") for _ in range(3))
    run = finetune(model, DATA, MASK, SETTINGS, method=Rewind(), progress=False, callbacks=[lambda m, _: norm(m)])
    finetune(by_hand, DATA, settings=SETTINGS, progress=False)
    rewind(by_hand, before, MASK)
    assert all(torch.equal(weights(model)[name], value) for name, value in weights(by_hand).items())
    assert run.evaluations[-1] == {"step": 6, **norm(by_hand)}
    for nothing in (None, FreezeMask.layers(set())):
        with pytest.raises(ValueError, match="freeze is a mask of the units that are put back, not"):
            finetune(model, DATA, nothing, method=Rewind(), progress=False)


def norm(model: Any) -> dict[str, float]:
    return {"norm": sum(float(p.detach().double().square().sum()) for p in checkpoint_parameters(model).values())}


def test_a_method_is_one_class(make_tiny_model: Callable[..., Any]) -> None:
    """As one would write it: a penalty that pulls the weights back to where they began."""
    from dataclasses import dataclass

    @register("pulled")
    @dataclass(frozen=True)
    class Pulled(Method):
        """Pulls the weights back.

        Attributes:
            strength: of the pull.
        """

        strength: float = 1.0

        def train(self, job: TrainingJob) -> FinetuneRun:
            start: dict[str, torch.Tensor] = {}

            def pull(_step: int, parameters: Any) -> None:
                for name, p in parameters.items():
                    p.grad.add_(p.detach() - start.setdefault(name, p.detach().clone()), alpha=self.strength)

            return train_weights(replace(job, on_gradients=pull))

    try:
        ends = []
        for method in (Plain(), methods()["pulled"](strength=0.0), methods()["pulled"](strength=100.0)):
            model = make_tiny_model("bridge")
            finetune(model, DATA, MASK, SETTINGS, method=method, max_grad_norm=None, optimizer="sgd", progress=False)
            ends.append(weights(model))
        assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())
        start = weights(make_tiny_model("bridge"))
        moved = [sum(float((each[name] - value).abs().sum()) for name, value in start.items()) for each in ends]
        assert moved[2] < 0.9 * moved[0]
        with pytest.raises(ValueError, match="the method 'pulled' is there already"):
            register("pulled")(Lora)
    finally:
        del METHODS["pulled"]


def test_keywords_are_the_fields_of_the_settings() -> None:
    assert get_type_hints(TrainingOptions) == get_type_hints(TrainingSettings)
    assert set(attributes_of(TrainingSettings)) == {one.name for one in fields(TrainingSettings)}


def test_keywords_change_the_settings() -> None:
    published = TrainingSettings(epochs=3, lr=1e-4)
    assert published.changed(lr=2e-4) == TrainingSettings(epochs=3, lr=2e-4)
    assert published.changed(steps=5) == TrainingSettings(steps=5, lr=1e-4)
    assert TrainingSettings(steps=5).changed(epochs=2) == TrainingSettings(epochs=2)
    assert (published.steps_on(33), TrainingSettings(steps=5).steps_on(33)) == (9, 5)
    with pytest.raises(ValueError, match="give steps or epochs, not both"):
        published.changed(steps=5, epochs=2)
    with pytest.raises(TypeError, match=r"'learning_rate' is no training setting; these are batch_size, batches, .*lr"):
        published.changed(learning_rate=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lora"}, r"method is the settings of a way to fine-tune, such as Lora\(r=8\), not 'lora'"),
        ({"settings": {"lr": 1}}, "settings are a TrainingSettings"),
        ({"optimizer": "lion"}, "optimizer is 'adamw', 'sgd', 'adafactor' or a function"),
    ],
)
def test_other_things_are_no_methods_and_no_settings(
    options: dict[str, Any], message: str, make_tiny_model: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(make_tiny_model("bridge"), DATA, **options)
