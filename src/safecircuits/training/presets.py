"""The published hyper-parameters of the fine-tuning study (Safety Layers §4.2, Table 6, and its code) by name.

| | ``"paper"`` | ``"code"`` |
|---|---|---|
| lr | Table 6: Llama-2 3e-4, Llama-3 and gemma 1e-4, Phi-3 6e-4; 1e-5 with harmful data | full 3e-4, SPPFT 3e-5 |
| epochs | Table 6: 3 | 3 |
| examples a step | Table 6: 4 | 128, as 4 × 32 accumulated |
| warm-up | Table 6: 100 steps | 100 steps |
| longest example | not stated | 256 tokens, cut at the end |
| loss on | not stated; as in the code | prompt and answer |
| prompt template | §2.2 and A.1: Alpaca | Alpaca |
| optimizer, schedule | not stated; as in the code | Trainer's: AdamW without decay, clipped to norm 1, linear to 0 |

The two differ hugely: in 3 epochs of 1,000 rows "paper" takes 750 steps, and "code" 24, all of them within the warm-up,
so that its rate never rises above a quarter of the one named. In the code the arms are not matched: besides the rate,
SPPFT closes its responses with a token that most of the tokenizers do not have. Here every arm closes them alike.

Not carried over, as ``finetune`` has no such argument: the code holds 100 rows out of training (seed 42, never
evaluated), and computes in float32, which is for whoever loads the model to choose. The code knows neither model nor
scenario; its one rate is for all.
"""

from __future__ import annotations

from typing import Literal, get_args

from safecircuits.training.settings import TrainingSettings

PresetName = Literal["paper", "code"]
Scenario = Literal["D_N", "D_I", "D_B", "D_H"]
Arm = Literal["full", "sppft"]
"""Fine-tuning of everything, or with the safety layers frozen."""

PAPER_LR = {
    "Llama-3-8B-Instruct": 1e-4,
    "Llama-2-7b-chat": 3e-4,
    "gemma-2b-it": 1e-4,
    "Phi-3-mini-4k-instruct": 6e-4,
}
"""Peak learning rate by model (Table 6), for every scenario but D_H."""
PAPER_LR_HARMFUL = 1e-5
CODE_LR: dict[Arm, float] = {"full": 3e-4, "sppft": 3e-5}

_SHORT = {
    "llama3": "Llama-3-8B-Instruct",
    "llama2": "Llama-2-7b-chat",
    "gemma": "gemma-2b-it",
    "phi3": "Phi-3-mini-4k-instruct",
}


def preset(
    name: PresetName,
    model: str | None = None,
    scenario: Scenario = "D_N",
    *,
    arm: Arm = "full",
    matched: bool = True,
) -> TrainingSettings:
    """A published set of hyper-parameters: ``finetune(model, data, mask, preset("paper", "Llama-2"))``.

    Args:
        model: one of the paper's four, as a hub id, a path that ends in the model's name, or short ("Llama-2").
            ``"paper"`` needs it; for another model take one of these and change ``lr``.
        scenario: ``"D_N"``, ``"D_I"``, ``"D_B"`` or ``"D_H"``; harmful data has a rate of its own in ``"paper"``.
        arm: ``"full"`` or ``"sppft"``; it matters only to ``"code"`` with ``matched=False``.
        matched: both arms get the same rate, that of full fine-tuning, so that only the freeze differs between them.
            False gives the arms of ``"code"`` the two rates as published, ten-fold apart.

    Raises:
        ValueError: for a name, model, scenario or arm that is not known (lists those that are).

    Examples:
        >>> settings = sc.training.preset("paper", "meta-llama/Llama-2-7b-chat-hf")
        >>> settings.lr, settings.epochs
        (0.0003, 3)
    """
    _require_known("preset", name, get_args(PresetName))
    _require_known("scenario", scenario, get_args(Scenario))
    _require_known("arm", arm, get_args(Arm))
    known = None if model is None else paper_model(model)
    if name == "code":
        lr = CODE_LR["full" if matched else arm]
    elif known is None:
        raise ValueError(f"preset 'paper' has a learning rate per model: name one of {', '.join(PAPER_LR)}")
    else:
        lr = PAPER_LR_HARMFUL if scenario == "D_H" else PAPER_LR[known]
    return TrainingSettings(
        lr=lr,
        epochs=3,
        batch_size=4,
        grad_accumulation=32 if name == "code" else 1,
        warmup_steps=100,
        schedule="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optimizer="adamw",
        max_length=256 if name == "code" else None,
        loss_on="all",
        template="alpaca",
    )


def paper_model(name: str) -> str:
    """The paper's name for a model that is given as a hub id, a path or short; later versions are other models.

    Raises:
        ValueError: if it is none of the paper's four.
    """
    last = name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    key = _key(last).removeprefix("meta").removesuffix("hf")
    names = {_key(known): known for known in PAPER_LR} | _SHORT
    if key not in names:
        raise ValueError(
            f"the paper has no hyper-parameters for the model {name!r}, only for {', '.join(PAPER_LR)}: "
            "take one of these and change lr"
        )
    return names[key]


def _key(name: str) -> str:
    """Lower case letters, digits and points: "Llama-3.1" must not pass for "Llama-31", nor for "Llama-3"."""
    return "".join(c for c in name.lower() if c.isalnum() or c == ".")


def _require_known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} is {value!r}, expected one of {', '.join(known)}")
