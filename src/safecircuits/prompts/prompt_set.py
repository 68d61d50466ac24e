"""Prompts: a named, fingerprinted set of instructions, and how they are put to a model as tokens."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, overload

from safecircuits.base.arguments import READ_AS, whole
from safecircuits.prompts.cells import plain
from safecircuits.prompts.rendering import Chat, common_prefix_length, fill, without_ends
from safecircuits.prompts.sources import listed, split_of, table_of
from safecircuits.prompts.tables import NO_CATEGORY, from_table
from safecircuits.prompts.templates import Template, resolve_template

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PromptSet:
    """Prompts, with their responses and categories if the set has them; ``load_prompts`` reads one from anywhere.

    Raises:
        ValueError: if the set is empty, a prompt is blank or a response no text, or they do not match in number.

    Examples:
        >>> prompts = sc.PromptSet("mine", ("what is 2 + 2 ?", "name a fruit ."), ("4", "apple"))
        >>> len(prompts)
        2
        >>> prompts.to_frame()
                    prompt response
        0  what is 2 + 2 ?        4
        1   name a fruit .    apple
    """

    name: str
    prompts: tuple[str, ...]
    responses: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    """Of each prompt: a kind of harm, say, by which rates are told apart. They are no part of the fingerprint."""

    def __post_init__(self) -> None:
        for field, texts in (("prompts", self.prompts), ("responses", self.responses)):
            if isinstance(texts, str):
                raise ValueError(f"{field} are several texts: give [{texts!r}], not the text itself")
            for i, text in enumerate(texts or (), 1):
                if isinstance(text, str) and has_lone_surrogate(text):
                    raise ValueError(
                        f"{field.removesuffix('s')} {i} of set {self.name!r} holds half a character (a lone "
                        f"surrogate), which no tokenizer reads: {text[:60]!r}; write the data as UTF-8"
                    )
        object.__setattr__(self, "prompts", tuple(map(_own, self.prompts)))
        if not self.prompts:
            raise ValueError(f"prompt set {self.name!r} is empty")
        blank = next((i for i, p in enumerate(self.prompts) if not isinstance(p, str) or not p.strip()), None)
        if blank is not None:
            what = "is blank" if isinstance(self.prompts[blank], str) else f"is not text: {self.prompts[blank]!r}"
            raise ValueError(f"prompt {blank + 1} of the {len(self.prompts)} of set {self.name!r} {what}")
        if self.responses is not None:
            object.__setattr__(self, "responses", tuple(map(_own, self.responses)))
            if len(self.responses) != len(self.prompts):
                raise ValueError(
                    f"prompt set {self.name!r} has {len(self.prompts)} prompts but {len(self.responses)} responses"
                )
            odd = next((i for i, response in enumerate(self.responses) if not isinstance(response, str)), None)
            if odd is not None:
                raise ValueError(
                    f"response {odd + 1} of the {len(self)} of set {self.name!r} is not text: {self.responses[odd]!r}"
                )

        if self.categories is not None:
            self._check_categories()

    def _check_categories(self) -> None:
        given: Any = self.categories
        categories = (given,) if isinstance(given, str) else tuple(given)
        if len(categories) != len(self.prompts):
            raise ValueError(
                f"prompt set {self.name!r} has {len(self.prompts)} prompts but {len(categories)} categories"
            )
        odd = next((i for i, one in enumerate(categories) if not isinstance(one, str) or not one.strip()), None)
        if odd is not None:
            raise ValueError(
                f"category {odd + 1} of the {len(self)} of set {self.name!r} is {categories[odd]!r}, expected a name: "
                "name every prompt's category, if only as 'other'"
            )
        object.__setattr__(self, "categories", categories)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.prompts)

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> PromptSet: ...
    def __getitem__(self, which: int | slice) -> str | PromptSet:
        """One prompt by its index, or the set of those in a slice, with their responses."""
        if not isinstance(which, slice):
            return self.prompts[which]
        return PromptSet(
            self.name,
            self.prompts[which],
            self.responses and self.responses[which],
            self.categories and self.categories[which],
        )

    def __repr__(self) -> str:
        with_responses = "" if self.responses is None else " with responses"
        return f"PromptSet({self.name!r}, {len(self)} prompts{with_responses}, {self.fingerprint})"

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt: ``prompt`` and, where the set has them, ``response``."""
        import pandas as pd

        columns = {"prompt": self.prompts} | ({} if self.responses is None else {"response": self.responses})
        return pd.DataFrame(columns | ({} if self.categories is None else {"category": self.categories}))

    def _repr_html_(self) -> str:
        shown = self.to_frame().to_html(max_rows=6, border=0)
        return f"<div><strong>{escape(repr(self))}</strong>{shown}</div>"

    def __add__(self, other: PromptSet) -> PromptSet:
        """Both sets, one after the other; either both have responses or neither.

        Where only one has categories, the prompts of the other are of the category ``"none"``.
        """
        if (self.responses is None) != (other.responses is None):
            lacking = self if self.responses is None else other
            raise ValueError(f"cannot join {self.name!r} and {other.name!r}: {lacking.name!r} has no responses")
        responses = None if self.responses is None else self.responses + other.require_responses()
        kinds = [one.categories or (NO_CATEGORY,) * len(one) for one in (self, other)]
        categories = None if self.categories is None and other.categories is None else kinds[0] + kinds[1]
        return PromptSet(f"{self.name}+{other.name}", self.prompts + other.prompts, responses, categories)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of prompts and responses, in order; the name does not count."""
        text = json.dumps([self.prompts, self.responses], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def ids(self) -> tuple[str, ...]:
        """Of each prompt ten hex digits of its SHA-256: the same wherever and in whatever order it is asked."""
        return tuple(hashlib.sha256(prompt.encode()).hexdigest()[:10] for prompt in self.prompts)

    @property
    def identity(self) -> dict[str, Any]:
        """What a result keeps of the set: its ``name``, the number ``n`` of prompts, and ``sha``, its fingerprint."""
        return {"name": self.name, "n": len(self), "sha": self.fingerprint}

    def take(self, n: int | None, *, seed: int | None = None) -> PromptSet:
        """The first ``n`` prompts (all if None), or ``n`` drawn without replacement when a seed is given."""
        if n is None:
            return self
        n = whole(n, "n")
        if not 0 < n <= len(self):
            raise ValueError(f"cannot take {n} of the {len(self)} prompts of set {self.name!r}")
        chosen = range(n) if seed is None else random.Random(whole(seed, "seed", 0)).sample(range(len(self)), n)
        return self.subset(list(chosen))

    def subset(self, rows: Sequence[int]) -> PromptSet:
        """The prompts at these places, in this order, with their responses and categories."""
        of = [
            None if whole is None else tuple(whole[row] for row in rows) for whole in (self.responses, self.categories)
        ]
        return PromptSet(self.name, tuple(self.prompts[row] for row in rows), *of)

    def at_most(self, n: int | None) -> PromptSet:
        """The first ``n`` prompts; all of them if there are fewer, or if None."""
        return self.take(None if n is None else min(n, len(self)))

    def require_responses(self) -> tuple[str, ...]:
        """The responses, or a ValueError that says the set has none."""
        if self.responses is None:
            raise ValueError(
                f"prompt set {self.name!r} has no responses, which this needs; "
                "name their column (responses=, or --responses), or let the model answer first (safecircuits generate)"
            )
        return self.responses


def _own(text: Any) -> Any:
    """Python's own text for numpy's and Arrow's; anything else as it is."""
    return text if type(text) is str else plain(text)


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half a character, which no tokenizer reads."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def require_answered(data: Any, what: str) -> PromptSet:
    """``data``, a PromptSet with responses; a ValueError for anything else, which says what it would have been for."""
    if not isinstance(data, PromptSet):
        raise ValueError(f"{what} is a PromptSet with responses, not a {type(data).__name__}")
    data.require_responses()
    return data


def as_prompt_set(prompts: Any, name: str = "prompts") -> PromptSet:
    """A PromptSet as it is, or one made of a list of instructions, or of a table with columns of usual names.

    A table is what ``load_prompts`` takes for one: of pandas or ``datasets``, a mapping of columns, or rows.
    """
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str):
        raise ValueError(f"expected a PromptSet or a list of prompts, not the single string {prompts!r}")
    prompts = listed(prompts)
    table = table_of(split_of(prompts, None))
    return PromptSet(name, tuple(prompts)) if table is None else PromptSet(name, *from_table(table, None, None, name))


READ_AS["PromptSet"] = as_prompt_set  # so that every function that checks its arguments takes what this does


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, with its response where there is one: ``ids[response_start:]`` are the response's.

    A chat has several answers; ``response_start`` is where the first of ``answers`` starts.

    Examples:
        >>> example = sc.prompts.encode(model.tokenizer, utility.take(1), with_responses=True)[0]
        >>> model.tokenizer.decode(example.ids[example.response_start :])
        'the cousin is in the factory . <eos>'
    """

    ids: tuple[int, ...]
    response_start: int
    beginning: int = 0
    """How many leading tokens do not count in a score, because every prompt begins with them (``beginning.py``)."""
    answers: tuple[tuple[int, int], ...] = ()
    """Where the answers of a chat start and stop; ``()`` for one response up to the end."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Start and stop of each response in what there is of the tokens."""
        n = len(self.ids)
        found = self.answers or ((self.response_start, n),)
        return tuple((start, min(stop, n)) for start, stop in found if start < n)


def encode(
    tokenizer: Any,
    prompts: PromptSet | Sequence[str],
    *,
    template: str = "auto",
    system: str | None = None,
    with_responses: bool = False,
) -> list[Encoded]:
    """Tokenize prompts in a template and, on request, their responses, each closed as the template closes it.

    With a chat template, ids are those of ``apply_chat_template``, of both turns where there is a response, its end of
    turn and what the template writes after that among them; the response starts where the ids of the prompt alone end.
    Where the template closes an answer by nothing, the tokenizer's end of sequence does.
    With the others the tokenizer adds its beginning of sequence, the response is tokenized apart from the prompt, and
    closed by the tokenizer's end of sequence. Neither token is written twice where texts have it.

    Args:
        template: a name, a text with ``{instruction}``, or a ``Template``.
        system: a system prompt; ``""`` is none, also where a chat template writes one of its own.

    Raises:
        ValueError: for a prompt or a response without tokens, and where a chat template takes no system prompt, leaves
            part of a response out, or writes a prompt otherwise once it is answered.

    Examples:
        >>> examples = sc.prompts.encode(model.tokenizer, ["how should i move my sailor ?"])
        >>> model.tokenizer.convert_ids_to_tokens(list(examples[0].ids))
        ['<bos>', '<user>', 'how', 'should', 'i', 'move', 'my', 'sailor', '?', '<assistant>']
    """
    prompts = as_prompt_set(prompts)
    resolved = resolve_template(tokenizer, Template.of(template, system))
    chat = Chat(tokenizer, resolved) if resolved.name == "chat" else None
    texts = [chat.asked(prompt) if chat else fill(tokenizer, resolved, prompt) for prompt in prompts]
    prompt_ids = _ids(tokenizer, texts) if chat else _opened(tokenizer, texts)
    empty = next((i for i, ids in enumerate(prompt_ids) if not ids), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} of set {prompts.name!r} has no tokens: {prompts.prompts[empty]!r}")
    if not with_responses:
        return [Encoded(tuple(ids), len(ids)) for ids in prompt_ids]
    eos = tokenizer.eos_token
    ends = chat.ends if chat else (eos,) if eos else ()
    responses = [without_ends(response, ends) for response in prompts.require_responses()]
    answer_ids = _ids(tokenizer, responses)
    silent = next((i for i, ids in enumerate(answer_ids) if not ids), None)
    if silent is not None:
        raise ValueError(f"response {silent} of set {prompts.name!r} has no tokens; every prompt needs a response")
    if chat:
        whole = _ids(tokenizer, [chat.answered(p, r) for p, r in zip(prompts, responses, strict=True)])
        return [
            Encoded(tuple(ids), common_prefix_length(ids, asked)) for ids, asked in zip(whole, prompt_ids, strict=True)
        ]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [Encoded((*p, *a, *end), len(p)) for p, a in zip(prompt_ids, answer_ids, strict=True)]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The texts as they are: whatever is special in them is spelled."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def _opened(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The texts with the tokenizer's beginning, once, and without an end of sequence that it is which adds it."""
    added: list[list[int]] = tokenizer(list(texts))["input_ids"]
    spelled = _ids(tokenizer, texts)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    opened = []
    for ids, own in zip(added, spelled, strict=True):
        if bos is not None and own[:1] == [bos]:
            ids = ids[max(0, _leading(ids, bos) - _leading(own, bos)) :]
        more = 0 if eos is None else _leading(ids[::-1], eos) - _leading(own[::-1], eos)
        opened.append(ids[: len(ids) - more] if more > 0 else ids)
    return opened


def _leading(ids: Sequence[int], token: int) -> int:
    return next((i for i, one in enumerate(ids) if one != token), len(ids))
