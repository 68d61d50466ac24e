"""Repairs after training, each against its equation in float64, and where it must be an identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_methods import DATA, HELD, MASK, SETTINGS, weights

from safecircuits.baselines import Ema, Lora, Nlsr, ProjectedUnits, Resta, Rewind, SafeLora, WiseFt
from safecircuits.baselines.earlier import EarlierModel, matrices_of, read
from safecircuits.baselines.safe_lora import project_update
from safecircuits.baselines.unit_entries import entries_in_matrices
from safecircuits.masks.freeze_mask import FreezeMask
from safecircuits.model.load import load_model
from safecircuits.model.parameters import checkpoint_parameters
from safecircuits.training import Method, Plain, finetune
from zoo import ZOO, backends, tokenizer

Weights = dict[str, torch.Tensor]
BEFORE, ALIGNED = 3, 0
"""Seeds of the model before alignment and of the aligned one."""


def ends(model: Any, method: Method, **options: Any) -> Weights:
    finetune(model, DATA, settings=SETTINGS, method=method, progress=False, **options)
    return weights(model)


def alike(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], value) for name, value in other.items())


class Models:
    """The aligned model and the one before, of one backend, and what plain training leaves."""

    def __init__(self, make: Callable[..., Any], kind: str = "bridge") -> None:
        self.make, self.kind = make, kind
        self.start, self.before = weights(make(kind, ALIGNED)), weights(make(kind, BEFORE))
        self.plain = self.after(Plain())

    def after(self, method: Method, **options: Any) -> Weights:
        return ends(self.make(self.kind, ALIGNED), method, **options)

    @property
    def unaligned(self) -> Any:
        return self.make(self.kind, BEFORE)


@pytest.fixture
def models(make_tiny_model: Callable[..., Any]) -> Models:
    return Models(make_tiny_model)


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
def test_interpolation_is_the_line_between_both_models(kind: str, make_tiny_model: Callable[..., Any]) -> None:
    """Wortsman et al. 2022, equation 1: (1 − α) θ₀ + α θ; exact at both ends."""
    models = Models(make_tiny_model, kind)
    assert alike(models.after(WiseFt(1.0)), models.plain)
    assert alike(models.after(WiseFt(0.0)), models.start)
    for name, value in models.after(WiseFt(0.25)).items():
        wanted = 0.75 * models.start[name].double() + 0.25 * models.plain[name].double()
        assert torch.allclose(value.double(), wanted, atol=1e-6)


def test_a_moving_average_follows_the_weights_of_every_step(models: Models) -> None:
    """θ̄ ← η θ̄ + (1 − η) θ from θ₀; with η = 0 it is plain training to the bit."""
    assert alike(models.after(Ema(0.0)), models.plain)
    path: list[Weights] = []
    models.after(Plain(), callbacks=[lambda model, _: path.append(weights(model))], eval_every=1)
    assert len(path) == SETTINGS.steps
    seen: list[Weights] = []
    found = models.after(Ema(0.7), callbacks=[lambda model, _: seen.append(weights(model))], eval_every=1)
    for name, value in found.items():
        mean = models.start[name].double()
        for step, point in enumerate(path):
            mean = 0.7 * mean + 0.3 * point[name].double()
            assert torch.allclose(seen[step][name].double(), mean, atol=1e-5)  # callbacks see the average so far
        assert torch.allclose(value.double(), mean, atol=1e-5)


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
def test_the_safety_vector_is_added_once(kind: str, make_tiny_model: Callable[..., Any]) -> None:
    """Bhardwaj et al. 2024: θ + γ (θ_aligned − θ_unaligned); γ = 0 changes nothing."""
    models = Models(make_tiny_model, kind)
    assert alike(models.after(Resta(models.unaligned, 0.0)), models.plain)
    for name, value in models.after(Resta(models.unaligned, 1.0)).items():
        wanted = models.plain[name].double() + models.start[name].double() - models.before[name].double()
        assert torch.allclose(value.double(), wanted, atol=1e-5)


def test_training_that_undid_alignment_is_undone_with_scale_one(models: Models) -> None:
    class Undone(Plain):
        def train(self, job: Any) -> Any:
            run = super().train(job)
            with torch.no_grad():
                for name, parameter in checkpoint_parameters(job.model).items():
                    parameter.copy_(models.before[name])
            return run

    for name, value in models.after(Resta(models.unaligned, 1.0, training=Undone())).items():
        assert torch.allclose(value, models.start[name], atol=1e-5)


def test_dropped_changes_are_made_up_for_on_average(models: Models) -> None:
    """DARE: a share of what training changed goes, and the rest is scaled up."""
    found = models.after(Resta(models.unaligned, 0.0, drop=0.5))
    name = "model.layers.0.mlp.down_proj.weight"
    change, wanted = found[name] - models.start[name], 2 * (models.plain[name] - models.start[name])
    kept = change.abs() > 0
    assert 0.45 < float(kept.float().mean()) < 0.55
    assert torch.allclose(change[kept], wanted[kept], atol=1e-6)


def projector(direction: np.ndarray[Any, Any], how: str) -> np.ndarray[Any, Any]:
    if how == "exact":
        return direction @ np.linalg.pinv(direction.T @ direction, rcond=1e-10, hermitian=True) @ direction.T
    return direction @ direction.T / np.linalg.norm(direction)


@pytest.mark.parametrize("how", ["approximate", "exact"])
def test_projection_is_the_papers(how: Any) -> None:
    """Hsu et al. 2024: C ΔW with C = V Vᵀ / ‖V‖, or the projector V (Vᵀ V)⁻¹ Vᵀ that it stands for."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(12, 4, generator=generator) @ torch.randn(4, 9, generator=generator)
    update = torch.randn(12, 9, generator=generator)
    found = project_update(update, direction, how)
    assert np.allclose(found, projector(direction.double().numpy(), how) @ update.double().numpy(), atol=1e-4)
    again = project_update(found, direction, how)
    assert torch.allclose(again, found, atol=1e-5) == (how == "exact")  # so projecting twice would be another method


def test_the_exact_projection_leaves_everything_where_alignment_went_everywhere() -> None:
    direction, update = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.ones(6, 8)
    assert torch.allclose(project_update(update, direction, "exact"), update, atol=1e-5)


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
def test_each_matrix_is_projected_once_or_not_at_all(kind: str, make_tiny_model: Callable[..., Any]) -> None:
    models = Models(make_tiny_model, kind)
    tuned, start, before = (make_tiny_model(kind, seed) for seed in (ALIGNED, ALIGNED, BEFORE))
    plain = make_tiny_model(kind, ALIGNED)
    finetune(plain, DATA, settings=SETTINGS, progress=False)
    assert alike(models.after(SafeLora(models.unaligned, threshold=-1.0, training=Plain())), models.plain)
    finetune(tuned, DATA, settings=SETTINGS, method=SafeLora(before, 1.0, training=Plain()), progress=False)
    matrices = [read(matrices_of(model)) for model in (tuned, plain, start, before)]
    for key, found in matrices[0].items():
        trained, aligned, unaligned = (one[key].double().numpy() for one in matrices[1:])
        wanted = aligned + projector(aligned - unaligned, "approximate") @ (trained - aligned)
        assert np.allclose(found, wanted, atol=1e-4), key
    outside = "lm_head.weight" if kind == "bridge" else "unembed.W_U"
    assert torch.equal(weights(tuned)[outside], models.plain[outside])  # no linear map of a layer


def test_projecting_the_product_is_projecting_loras_b(models: Models, make_tiny_model: Callable[..., Any]) -> None:
    pytest.importorskip("peft")
    lora = Lora(r=2, alpha=4, target_modules=("q_proj",))
    adapted = models.after(lora)
    found = models.after(SafeLora(models.unaligned, 1.0, training=lora))
    moved = [name for name, value in found.items() if not torch.equal(value, models.start[name])]
    assert moved
    assert all("q_proj" in name for name in moved)
    for name in moved:
        start, before = models.start[name].double().numpy(), models.before[name].double().numpy()
        left, sizes, right = np.linalg.svd(adapted[name].double().numpy() - start)
        b, a = left[:, :2] * sizes[:2], right[:2]
        wanted = start + (projector(start - before, "approximate") @ b) @ a
        assert np.allclose(found[name], wanted, atol=1e-4)
    del make_tiny_model


@pytest.mark.parametrize("name", ["GPT-2", "Phi-3", "Pythia"])
def test_fused_and_transposed_matrices(name: str) -> None:
    """A projection is from the output side, however the checkpoint holds the matrix; copies reach it."""
    start, before, tuned, plain = (load_model(ZOO[name].build(), tokenizer=tokenizer()) for _ in range(4))
    with torch.no_grad():
        for i, parameter in enumerate(before.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)), alpha=0.05)
    data = replace(DATA, responses=DATA.responses)
    options: Any = {"settings": replace(SETTINGS, steps=2), "progress": False}
    finetune(plain, data, **options)
    finetune(tuned, data, method=WiseFt(0.5), **options)
    for key, value in weights(tuned).items():
        half = (weights(start)[key].double() + weights(plain)[key].double()) / 2
        assert torch.allclose(value.double(), half, atol=1e-5), key


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
def test_which_entries_are_the_units(kind: str, make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model(kind)
    found = entries_in_matrices(model, MASK)
    assert found["0.gate"].any(1).nonzero().flatten().tolist() == [1, 5]
    assert found["0.out"].any(0).nonzero().flatten().tolist() == [1, 5]
    assert found["1.q"].any(1).nonzero().flatten().tolist() == list(range(24))
    assert found["1.o"].any(0).nonzero().flatten().tolist() == list(range(24))
    assert found["2.in"].all()
    assert not {"0.q", "1.gate", "2.o"} & set(found)
    masks = MASK.parameter_masks(model)
    inside = {key: matrix for key, matrix in matrices_of(model).items() if key in found}
    owners = {id(matrix.owner) for matrix in inside.values()}
    named = {name: p for name, p in dict(model.named_parameters()).items() if id(p) in owners}
    in_masks = sum(int(m.sum()) for m in masks.values() if m.ndim > 1)
    assert sum(int(where.sum()) for where in found.values()) == in_masks
    assert named


def test_only_the_units_are_projected(models: Models) -> None:
    """ΔW ← M ⊙ C ΔW + (1 − M) ⊙ ΔW; with all units of all layers it is SafeLoRA."""
    everything = FreezeMask.layers((0, 2))
    found = models.after(ProjectedUnits(everything, models.unaligned))
    whole = models.after(SafeLora(models.unaligned, 1.0, training=Plain()))
    for name, value in found.items():
        assert torch.allclose(value, whole[name], atol=1e-6)
    some = models.after(ProjectedUnits(MASK, models.unaligned))
    for name, where in MASK.parameter_masks(models.make("bridge")).items():
        assert torch.allclose(some[name][where], whole[name][where], atol=1e-6)
        assert torch.equal(some[name][~where], models.plain[name][~where])


def test_transplanted_units_are_the_references(models: Models) -> None:
    """R = A + β (A − U) at the units' entries of matrices that have turned; β = 0 and threshold 1 rewind them."""
    masks = MASK.parameter_masks(models.make("bridge"))
    found = models.after(Nlsr(MASK, models.unaligned, beta=0.5, threshold=1.0))
    for name, value in found.items():
        where = masks.get(name, torch.zeros(value.shape, dtype=torch.bool))
        reference = 1.5 * models.start[name].double() - 0.5 * models.before[name].double()
        assert torch.allclose(value[where].double(), reference[where], atol=1e-5)
        assert torch.equal(value[~where], models.plain[name][~where])
    assert alike(models.after(Nlsr(MASK, models.unaligned, threshold=-1.0)), models.plain)
    rewound = models.make("bridge", ALIGNED)
    finetune(rewound, DATA, MASK, SETTINGS, method=Rewind(), progress=False)
    assert alike(models.after(Nlsr(MASK, models.unaligned, beta=0.0, threshold=1.0)), weights(rewound))


@pytest.mark.parametrize(
    "method", [WiseFt(0.3), Ema(0.5), Rewind(), Rewind(Lora(r=2, alpha=4)), WiseFt(0.3, Lora(r=2))]
)
def test_callbacks_see_the_repaired_model_and_training_does_not(method: Any, models: Models) -> None:
    """At each point the model is what a run that ended there hands out, and the run goes on as if nobody looked."""
    pytest.importorskip("peft")
    mask = MASK if isinstance(method, Rewind) else None
    settings = replace(SETTINGS, schedule="constant")
    looked, alone, shorter = (models.make("bridge", ALIGNED) for _ in range(3))
    seen: list[Weights] = []
    options: Any = {"method": method, "progress": False}
    look: Any = {"callbacks": [lambda m, _: seen.append(weights(m))], "eval_every": 3}
    finetune(looked, DATA, mask, settings, **options, **look)
    finetune(alone, DATA, mask, settings, **options)
    finetune(shorter, DATA, mask, replace(settings, steps=3), **options)
    assert alike(weights(looked), weights(alone))
    assert alike(seen[-1], weights(alone))
    assert alike(seen[0], weights(shorter))


def test_a_model_before_alignment_that_is_missing_or_another(models: Models, make_tiny_model: Any) -> None:
    for kind in (Resta, SafeLora):
        with pytest.raises(ValueError, match=r"unaligned is missing: .*; give its name, its folder, or the model"):
            kind(None)
        with pytest.raises(ValueError, match="a model is given by its name, its folder or itself, not as 7"):
            kind(7)
    with pytest.raises(ValueError, match="belongs to another model: n_layers 3 there, 2 here"):
        models.after(Resta(make_tiny_model("bridge", num_hidden_layers=2)))
    if "hooked" in backends():
        with pytest.raises(ValueError, match="is of another backend than the model that trains"):
            models.after(Resta(make_tiny_model("hooked")))
    with pytest.raises(ValueError, match="alignment changed nothing"):
        models.after(SafeLora(make_tiny_model("bridge", ALIGNED), training=Plain()))
    earlier = EarlierModel(changed := make_tiny_model("bridge", BEFORE))
    with torch.no_grad():
        next(iter(changed.parameters())).add_(1)
    with pytest.raises(ValueError, match="the earlier model has been changed since it was given"):
        models.after(Resta(earlier))
    assert EarlierModel(make_tiny_model("bridge", 1)) == EarlierModel(make_tiny_model("bridge", 1)) != earlier


def test_repairs_that_have_nothing_to_repair() -> None:
    from safecircuits.baselines import PrefixTuning

    with pytest.raises(ValueError, match="prefix leaves the weights as they are: there is nothing for wise-ft"):
        WiseFt(training=PrefixTuning(2))
    with pytest.raises(ValueError, match="training is the method that trains before the repair, not 'lora'"):
        WiseFt(training="lora")
    assert len(HELD)
