"""Which units changed group in alignment (Figure 6) and in fine-tuning (Figure 5)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from safecircuits.base.text import percent
from safecircuits.behavior.stakes import nothing_to_lose
from safecircuits.model.each_model import release
from safecircuits.model.sites import HookedModel
from safecircuits.papers.conclusion import Conclusion, unless
from safecircuits.papers.page import StudyPage
from safecircuits.papers.part import Parts, by_first
from safecircuits.papers.ssah.behavior import BEHAVIOR
from safecircuits.papers.ssah.freezing import FINETUNING
from safecircuits.papers.ssah.groups import UNITS, classify
from safecircuits.papers.ssah.settings import PAPER, Ssah
from safecircuits.report.sections import Exhibit
from safecircuits.report.tables import Table
from safecircuits.training.loop import finetune
from safecircuits.units.groups import GROUPS
from safecircuits.units.transfer import AttributeTransfer, transfer_of

TUNED = "tuned"
"""The transfer by fine-tuning, among those named after the models beside the studied one."""


def _other(study: Ssah, kind: str) -> HookedModel:
    """The model before or after, which all cuts share."""
    if study.beside is None or study.beside[0] != kind:
        _let_go(study)
        study.beside = kind, _tuned(study) if kind == TUNED else study.settings.load(study.others[kind])
    return study.beside[1]


def _let_go(study: Ssah) -> None:
    study.beside = None
    release()


def _tuned(study: Ssah) -> HookedModel:
    """The model after full fine-tuning on the first scenario by the first seed."""
    s = study.settings
    model = s.load(study.source)
    finetune(model, s.scenarios[0].train, settings=s.training, seed=s.seeds[0], progress=False)
    return model


def _transfer(study: Ssah, key: tuple[str, str]) -> AttributeTransfer:
    name, kind = key
    own = study[UNITS][name]
    theirs = classify(study, _other(study, kind), study.settings.cuts[name], knows_safety=kind != "base")
    return transfer_of(own, theirs) if kind == TUNED else transfer_of(theirs, own)


def transfers(study: Ssah) -> dict[str, dict[str, AttributeTransfer]]:
    """By cut and training: ``base → name``, ``unaligned → name``, ``name → fine-tuned on …``."""
    found = {(cut, _label(study, kind)): one for (cut, kind), one in study[TRANSFERS].items()}
    return by_first(found)


def _label(study: Ssah, kind: str) -> str:
    tuned = study[FINETUNING]
    if kind == TUNED and tuned is not None:
        return f"{study.name} → fine-tuned on {tuned.scenarios[0]}"
    return f"{kind} → {study.name}"


def _section(study: Ssah, made: StudyPage) -> None:
    exhibits = []
    for number, (name, found) in enumerate(transfers(study).items()):
        for place, (label, transfer) in enumerate(found.items()):
            key = f"transfer_{number}_{place}"
            transfer.plot(made.axes(key, 3.6, 5.2))
            caption = f"By {name}: {label}. {'. '.join(str(transfer).splitlines())}."
            exhibits.append(Exhibit(key, f"By {name}: {label}", caption, [_table(transfer)]))
    made.add(
        "transfer",
        "Which units changed group (Figures 5 and 6)",
        "Units classified before and after training with the same data and shares. A base model knows no safety, so "
        "what is not redundant in it counts as utility-critical, as in the paper.",
        exhibits,
    )


def _table(transfer: AttributeTransfer) -> Table:
    rows = []
    for i, group in enumerate(GROUPS):
        if int(transfer.counts[i].sum()):
            cells = [
                f"{int(transfer.counts[i, j])} ({percent(float(transfer.matrix[i, j]))})" for j in range(len(GROUPS))
            ]
            rows.append([group, *cells])
    return Table("Units by group before (row) and after", ["", *GROUPS], rows)


def _claims(study: Ssah) -> Iterator[Conclusion]:
    why = nothing_to_lose(study[BEHAVIOR][study.name].rates, "malicious_refused")
    for name, found in transfers(study).items():
        for label, transfer in found.items():
            shares = transfer.shares
            scu, cu = GROUPS.index("SCU"), GROUPS.index("CU")
            if label.startswith(f"{study.name} →"):
                stayed, to_cu = float(transfer.matrix[scu, scu]), float(transfer.matrix[scu, cu])
                text = (
                    f"Of the SCU {percent(stayed)} stay SCU and {percent(to_cu)} become CU (by chance "
                    f"{percent(float(transfer.chance[scu, scu] / shares[scu].sum()))} would stay)."
                )
                shows = "yes" if to_cu > 0.5 else "no" if stayed > 0.5 else "unclear"
                effect = f"Fine-tuning turns most safety-critical units into complex ones (by {name}; {label})"
                yield effect, f"{PAPER} Figure 5", *unless(why, shows, text)
            elif label.startswith("unaligned"):
                kept = float(transfer.matrix[scu, scu])
                text = f"Of the SCU of {study.name} {percent(_from(transfer.counts, scu))} were SCU before. " + (
                    f"Of those before, {percent(kept)} still are."
                )
                shows = "yes" if _from(transfer.counts, scu) < 0.5 else "no"
                effect = f"Alignment makes the safety-critical units (by {name}; {label})"
                yield effect, f"{PAPER} §4.2", *unless(why, shows, text)


def _from(counts: Tensor, group: int) -> float:
    """Of the units that are in a group afterwards, the share that was in it before."""
    return float(counts[group, group] / counts[:, group].sum())


def _kinds(study: Ssah) -> dict[tuple[str, str], str]:
    kinds = [*study.others, *([TUNED] if study[FINETUNING] is not None else [])]
    return {(cut, kind): f"{name}_{kind}" for kind in kinds for cut, name in study.by_cut("transfer").items()}


TRANSFERS: Parts[Ssah, tuple[str, str], AttributeTransfer] = Parts(
    _kinds,
    AttributeTransfer,
    _transfer,
    when=lambda _: True,  # a run from before may have fewer
    says="attribute transfer, {1}: groups by {0}",
    then=_let_go,
    section=_section,
    claims=_claims,
    tables=lambda study: {
        f"transfer_{number}_{place}": one.to_frame()
        for number, found in enumerate(transfers(study).values())
        for place, one in enumerate(found.values())
    },
)
