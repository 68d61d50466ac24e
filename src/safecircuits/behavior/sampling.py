"""Sampled answers: does a prompt get through in any of n tries, and in how many of them? (Wei et al. 2024)

The two are not the same number: their code reports the mean over all tries under the name of the first.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from safecircuits.base.arguments import checked
from safecircuits.base.progress import track
from safecircuits.base.stats import Share, rate_interval
from safecircuits.behavior.categories import category_frame, sum_of
from safecircuits.behavior.completions import Completions
from safecircuits.behavior.decoding import Writer
from safecircuits.behavior.detectors import RefusalDetector
from safecircuits.behavior.verdict import verdicts
from safecircuits.behavior.verdict_table import Tally
from safecircuits.hooks.passes import running
from safecircuits.model.memory import batch_tokens
from safecircuits.model.shares import in_order, spread
from safecircuits.model.sites import HookedModel, tokenizer_of
from safecircuits.prompts.batching import Batch, each_batch
from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.prompts.templates import stop_string
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SampledRefusals(Result):
    """Which prompts were refused in which of several sampled answers.

    Examples:
        >>> sampled = sc.behavior.sampled_refusals(model, malicious, samples=2)
        >>> sampled.refused.shape
        torch.Size([2, 8])
    """

    refused: Bool[Tensor, "sample prompt"]
    completions: tuple[Completions, ...]
    """One set a sample."""
    provenance: dict[str, Any]
    tally: Tally | None = None
    """What the answers of all samples are; None in files of earlier versions."""
    kinds: Mapping[str, Tally] = field(default_factory=dict)
    """The same by category of the prompts, where they have categories."""

    @property
    def any_success(self) -> Share:
        """Attack success if one answer of n is enough: prompts that are not refused in all of them."""
        return Share.of(~self.refused.all(0))

    @property
    def mean_success(self) -> tuple[float, float, float]:
        """Share of all answers that do not refuse, with its 95 % interval over prompts (``rate_interval``)."""
        return rate_interval((~self.refused).double().mean(0))

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt: ``prompt``, ``category`` if any, ``samples``, and in how many it was ``refused``."""

        columns = self.completions[0].prompts.to_frame().drop(columns="response", errors="ignore")
        return columns.assign(samples=len(self.refused), refused=self.refused.sum(0).tolist())

    def categories(self) -> pd.DataFrame:
        """One row a category of the prompts, over all samples (``category_frame``); none without categories."""
        return category_frame([({}, {"malicious": self.kinds})])

    def __str__(self) -> str:
        mean, low, high = self.mean_success
        n = len(self.refused)
        return (
            f"prompts answered at least once in {n} tries: {self.any_success}; "
            f"of all tries {100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}] were answered"
            + (f" or were no answer ({self.tally})" if self.tally else "")
        )


@checked
def sampled_refusals(
    model: HookedModel,
    malicious: PromptSet | Sequence[str],
    *,
    samples: int = 5,
    temperature: float = 1.0,
    detector: str | RefusalDetector = "opening",
    seed: int = 0,
    **options: Any,
) -> SampledRefusals:
    """Ask each malicious prompt several times and judge every answer.

    Args:
        samples: answers a prompt; Wei et al. draw 5 at temperature 1 without a system prompt.
        options: ``max_new_tokens``, ``template``, ``system``, ``max_tokens`` and ``progress``, as in ``generate``.

    Raises:
        ValueError: for no samples, or a temperature that is not positive.
        JudgingError: a ValueError, if the detector raises.

    Examples:
        >>> sampled = sc.behavior.sampled_refusals(model, malicious, samples=3, temperature=0.7, seed=1)
        >>> len(sampled.completions), sampled.refused.shape
        (3, torch.Size([3, 8]))
    """
    prompts = as_prompt_set(malicious, "malicious")
    completions = sample(model, prompts, samples=samples, temperature=temperature, seed=seed, **options)
    provenance = {
        "malicious": prompts.identity,
        "samples": samples,
        "temperature": temperature,
        "detector": detector if isinstance(detector, str) else repr(detector),
        "seed": seed,
        **{name: value for name, value in options.items() if name != "progress"},
    }
    read = [verdicts(one, detector) for one in completions]
    tally, kinds = sum_of({"": {"all": one.tally}, "kinds": one.by_category} for one in read).values()
    return SampledRefusals(torch.stack([one.refused for one in read]), completions, provenance, tally["all"], kinds)


def sample(
    model: HookedModel,
    prompts: PromptSet | Sequence[str],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 16,
    template: str = "auto",
    system: str | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
) -> tuple[Completions, ...]:
    """Completions drawn from the model's distribution, one set a sample; hooks on the model stay in force.

    Every answer has random numbers of its own, by seed, prompt and sample, so that batches do not change it. In a
    template that is plain text it ends where a greedy one does, in front of the next question's heading.

    Raises:
        ValueError: for no samples or tokens, or a temperature that is not positive.
        FloatingPointError: if the logits are not finite.
    """
    if samples < 1 or max_new_tokens < 1:
        raise ValueError(f"samples and max_new_tokens are at least 1, not {samples} and {max_new_tokens}")
    if temperature <= 0:
        raise ValueError(f"temperature is above 0, not {temperature}; generate() is greedy")
    prompts = as_prompt_set(prompts)
    once = encode(tokenizer_of(model), prompts, template=template, system=system)
    examples = [example for _ in range(samples) for example in once]
    writer = Writer(model, max_new_tokens, None, stop_string(model.tokenizer, template))

    def part(share: list[int]) -> list[list[int]]:
        return _written(model, examples, share, len(once), writer, temperature, seed, max_tokens, progress)

    written = in_order(spread(model, examples, part, "sampled completions"))
    texts = [text.strip() for text in writer.texts(written)]
    n = len(once)
    ended, lengths = tuple(map(writer.ended, written)), tuple(map(len, written))
    parts = [slice(n * k, n * (k + 1)) for k in range(samples)]
    return tuple(
        Completions(
            prompts,
            tuple(texts[rows]),
            ended=ended[rows],
            tokens=lengths[rows],
        )
        for rows in parts
    )


def _written(
    model: HookedModel,
    examples: Sequence[Encoded],
    share: list[int],
    n_prompts: int,
    writer: Writer,
    temperature: float,
    seed: int,
    max_tokens: int | None,
    progress: bool,
) -> list[list[int]]:
    """Token ids of the answers of these rows, by this process; a row is a prompt and a sample."""
    written = {row: list[int]() for row in share}
    mine = [examples[row] for row in share]
    with running(model) as runner:

        def work(batch: Batch) -> None:
            rows = [share[place] for place in batch.rows]
            for row in rows:
                written[row].clear()  # a batch that ran out of memory is tried again in parts
            draws = [random.Random(f"{seed} {row % n_prompts} {row // n_prompts}") for row in rows]
            going = [True] * len(rows)
            decoder, new, mask = runner.decoder(), batch.input_ids, batch.attention_mask
            while any(going):
                logits = decoder.step(new, mask).double().cpu()
                if not torch.isfinite(logits).all():
                    raise FloatingPointError("the logits are not finite")
                below = (logits / temperature).softmax(-1).cumsum(-1)
                drawn = torch.tensor([draw.random() for draw in draws], dtype=torch.float64)[:, None]
                new = torch.searchsorted(below, drawn * below[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
                for place, token in enumerate(new[:, 0].tolist()):
                    going[place] = going[place] and writer.goes_on(written[rows[place]], token)
                mask = torch.ones_like(new)

        budget = batch_tokens(model, mine, max_tokens, more=writer.max_new_tokens, cached=True)
        finished = each_batch(mine, work, budget)
        each_done = (1 for n in finished for _ in range(n))
        for _ in track(each_done, "sampled completions", total=len(mine), enabled=progress):
            pass
    return [written[row] for row in share]
