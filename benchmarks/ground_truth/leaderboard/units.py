"""Localizers of units: each gives an order of neurons and heads, what refusal should need most first."""

from __future__ import annotations

from benchmarks.ground_truth.leaderboard.directions import writers_of
from benchmarks.ground_truth.leaderboard.registry import Find, Order, localizer
from benchmarks.ground_truth.leaderboard.subjects import Subject
from safecircuits.base.vocabulary import SITES
from safecircuits.units.candidates import Candidate, CandidateScores
from safecircuits.units.change import ChangeMethod, change_scores
from safecircuits.units.contrast import contrast_scores
from safecircuits.units.head_kl import head_scores

SCORES: dict[str, tuple[Candidate, str]] = {
    "WIFV, S − U": (Candidate("wifv", "all"), "SSAH"),
    "WIFV of prompts, S − U": (Candidate("wifv", "prompt"), "ours"),
    "Wanda without top U": (Candidate("wanda", "response", "none", "set-difference"), "Wei et al. 2024"),
    "SNIP without top U": (Candidate("snip", "all", "none", "set-difference"), "Wei et al. 2024"),
    "Taylor, S − U": (Candidate("taylor", "all"), "Molchanov et al. 2019"),
    "attribution": (Candidate("attribution", "prompt", "none", "safety"), "Nanda 2023"),
    "integrated attribution": (Candidate("integrated", "prompt", "none", "safety"), "Sundararajan et al. 2017"),
    "magnitude": (Candidate("magnitude", "response", "none", "safety"), "control"),
    "random": (Candidate("random", "response", "none", "safety"), "control"),
}


def _by(candidate: Candidate) -> Find:
    def find(subject: Subject) -> Order:
        seen = subject.seen
        scores = CandidateScores(
            subject.model, seen.malicious, subject.utility, seen.normal, SITES, {"detector": subject.measured.detector}
        )
        return scores.order(candidate)

    return find


for _name, (_candidate, _source) in SCORES.items():
    localizer(_name, "units", _source)(_by(_candidate))


@localizer("contrastive activation", "units", "Zhao et al. 2025")
def contrast(subject: Subject) -> Order:
    """Without units that are on everywhere."""
    return contrast_scores(subject.model, subject.seen.malicious, subject.seen.normal).scores


@localizer("Ships, heads alone", "units", "Zhou et al. 2025")
def ships(subject: Subject) -> Order:
    return head_scores(subject.model, subject.seen.malicious[:32]).scores


def _change(subject: Subject, method: ChangeMethod, *, same_stream: bool) -> Order:
    pair, seen = (subject.base, subject.model), subject.seen.malicious
    return change_scores(*pair, seen, method=method, same_stream=same_stream, max_new_tokens=16).scores


@localizer("change", "units", "SafetyNeuron", needs_base=True)
def change(subject: Subject) -> Order:
    return _change(subject, "change", same_stream=False)


@localizer("change of what is written, same stream", "units", "ours", needs_base=True)
def written_change(subject: Subject) -> Order:
    return _change(subject, "wchange", same_stream=True)


@localizer("writers of the direction", "units", "ours")
def writers(subject: Subject) -> Order:
    found = writers_of(subject)
    return {"mlp": found.neurons, "attn": found.heads}
