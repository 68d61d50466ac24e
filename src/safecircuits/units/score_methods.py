"""Which scores of units there are, what each measures, and whose activations count unless told."""

from __future__ import annotations

from typing import Literal

from safecircuits.base.vocabulary import TokenChoice

Method = Literal[
    "wifv",
    "ifv",
    "wifn",
    "wanda",
    "wrms",
    "magnitude",
    "random",
    "snip",
    "taylor",
    "attribution",
    "integrated",
    "removal",
    "flap_ifv",
    "flap_wifv",
    "flap_wifn",
    "change",
    "wchange",
    "contrast",
    "ships",
]

ACTIVATION_METHODS: dict[str, str] = {
    "wifv": "variance × squared norm of the outgoing weights",
    "ifv": "variance",
    "wifn": "root mean square activation × mean of the outgoing weights' absolute values (FLAP's, not standardised)",
    "wanda": "root mean square activation × sum of the outgoing weights' absolute values",
    "wrms": "root mean square activation × norm of the outgoing weights",
    "magnitude": "squared norm of the outgoing weights (needs no data, so it is the same on every set)",
    "random": "uniform noise, drawn by seed and data set: the control",
}
"""Scores of a unit's activation and its outgoing weights, by one forward pass."""

FLAP_METHODS: dict[str, str] = {
    "flap_ifv": "FLAP's own IFV: its code's fluctuation, standardised over a layer's channels, a head's mean square",
    "flap_wifv": "FLAP's own WIFV: the same with the fluctuation × squared norm of the outgoing weights",
    "flap_wifn": "FLAP's own WIFN: the same with root sum of squares × mean of the outgoing weights' absolute values",
}
"""FLAP's scores as its published code computes them (``flap_statistics``), by which it ranks units of all layers."""

REMOVAL_METHODS: dict[str, str] = {
    "removal": "variance that removal takes out of the residual stream: wifv of a neuron, tr(W Σ Wᵀ) of a head",
}
"""``wifv`` with the covariances between a head's channels, which its sum over channels leaves out."""

GRADIENT_METHODS: dict[str, str] = {
    "snip": "sum of |weight × gradient of a prompt's response loss| over the unit's weights, mean over prompts",
    "taylor": "|sum of activation × gradient of a prompt's response loss| over positions, mean over prompts",
}
"""First-order effect on the response loss, by one forward and one backward pass."""

ATTRIBUTION_METHODS: dict[str, str] = {
    "attribution": "(activation − reference) × gradient of the refuse-minus-comply logit difference, mean over prompts",
    "integrated": "the same with gradients along the way from the reference to the activation",
}
"""First-order effect on the choice to refuse, at the first answer token; signed: positive promotes refusal."""

CHANGE_METHODS: dict[str, str] = {
    "change": "root mean square difference of the activation between two checkpoints (SafetyNeuron's change score)",
    "wchange": "root mean square difference of what the unit writes, by either checkpoint's outgoing weights",
}
"""How far a unit has moved between two checkpoints (``change_scores``)."""

METHODS: dict[str, str] = ACTIVATION_METHODS | REMOVAL_METHODS | FLAP_METHODS | GRADIENT_METHODS | ATTRIBUTION_METHODS
"""Those of one model on one set of prompts: what ``score_units`` takes."""

DEFAULT_TOKENS: dict[str, TokenChoice] = {
    **dict.fromkeys(ACTIVATION_METHODS | REMOVAL_METHODS | FLAP_METHODS, "all"),
    **dict.fromkeys(GRADIENT_METHODS, "all"),
    **dict.fromkeys(ATTRIBUTION_METHODS, "prompt"),
}
"""Whose activations count. Where the answer is known, groups cut by all tokens do best what their names say; prompt
tokens find the smallest sets that carry refusal, and response tokens, as in Wei et al.'s code, the largest. The loss is
the responses' in any case; what decides it happens in the prompt as well."""
