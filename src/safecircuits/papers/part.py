"""One way to write a study: what a part is called, how it is made, what a page says of it and what it claims stand in
one place.

A study is a class whose attributes are its parts, in the order in which they run and stand on its page::

    GAPS = Part("gaps", GapComparison, compare, section=show_gaps, claims=claim_gaps)

    class MyStudy(Study):
        gaps = GAPS

``study.gaps``, or ``study[GAPS]`` where the class is not known yet, is what the part found. A study that runs keeps it
as ``results/gaps`` of its run directory as soon as it is there, so that an interrupted study goes on with the rest; a
study that was run is put together again from there, by its ``Subject``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

from safecircuits.base.files import write_text
from safecircuits.base.progress import say
from safecircuits.base.reading import inside
from safecircuits.model.each_model import release
from safecircuits.model.sites import HookedModel, ModelShape
from safecircuits.papers.conclusion import Conclusion, entries
from safecircuits.papers.page import StudyPage
from safecircuits.plots.style import styled
from safecircuits.report.answers import views
from safecircuits.report.explored import explored
from safecircuits.report.opening import WORDS, embedded, opening, tally
from safecircuits.report.unit_views import units_shown
from safecircuits.results.result import Result
from safecircuits.results.run import RunDirectory
from safecircuits.results.run_record import REPORT
from safecircuits.studies.outcome import FinetuningStudy
from safecircuits.studies.running import Running

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

S = TypeVar("S", bound="Study")
R = TypeVar("R", bound=Result)
K = TypeVar("K")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
A = TypeVar("A")
B = TypeVar("B")

Wanted = tuple[str, type[Result], Callable[[], Result], str]
"""The name of a result in the run directory, its class, what makes it, and what is said before."""


@dataclass(frozen=True, kw_only=True)
class Piece(Generic[S, T_co]):
    """Something that a study finds or shows; ``study[piece]`` is what it found.

    Attributes:
        when: whether a run has it at all; every run unless given.
        says: told before it is made; of several by key, a text with ``{0}`` for the key.
        then: called once it is there, to tell what it means for the rest.
        section: adds what a page shows of it.
        claims: what the paper says of it, and whether that shows.
        tables: its numbers as files, by name.
    """

    when: Callable[[S], object] | None = None
    says: str = ""
    then: Callable[[S], None] | None = None
    section: Callable[[S, StudyPage], None] | None = None
    claims: Callable[[S], Iterable[Conclusion]] | None = None
    tables: Callable[[S], Mapping[str, pd.DataFrame]] | None = None

    @abstractmethod
    def of(self, study: S) -> T_co:
        """What the study found."""

    @abstractmethod
    def wanted(self, study: S) -> Iterator[Wanted]:
        """The results that are to be made, or read again."""

    @overload
    def __get__(self, study: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, study: S, owner: Any) -> T_co: ...
    def __get__(self, study: S | None, owner: Any) -> Self | T_co:
        return self if study is None else self.of(study)


@dataclass(frozen=True)
class Shown(Piece[S, None]):
    """A section of the page, or claims, from what other parts found."""

    def of(self, study: S) -> None: ...

    def wanted(self, study: S) -> Iterator[Wanted]:  # noqa: ARG002
        return iter(())


@dataclass(frozen=True)
class Part(Piece[S, R]):
    """A result that every run of the study has."""

    name: str
    kind: type[R]
    make: Callable[[S], R]

    def of(self, study: S) -> R:
        return cast(R, study.found[self.name])

    def wanted(self, study: S) -> Iterator[Wanted]:
        yield self.name, self.kind, lambda: self.make(study), self.says


@dataclass(frozen=True)
class Maybe(Piece[S, R | None]):
    """A result that some runs have; None in the others."""

    name: str
    kind: type[R]
    make: Callable[[S], R]

    def of(self, study: S) -> R | None:
        return cast(R | None, study.found.get(self.name))

    def wanted(self, study: S) -> Iterator[Wanted]:
        yield self.name, self.kind, lambda: self.make(study), self.says


@dataclass(frozen=True)
class Parts(Piece[S, dict[K, R]], Generic[S, K, R]):
    """Several results by key, such as one a model; ``names`` has what each is called in the run directory."""

    names: Callable[[S], Mapping[K, str]]
    kind: type[R]
    make: Callable[[S, K], R]

    def of(self, study: S) -> dict[K, R]:
        found: Any = study.found
        return {key: found[name] for key, name in self.names(study).items() if name in found}

    def wanted(self, study: S) -> Iterator[Wanted]:
        for key, name in self.names(study).items():
            said = self.says.format(*(key if isinstance(key, tuple) else (key,)))
            yield name, self.kind, partial(self.make, study, key), said


def by_first(found: Mapping[tuple[A, B], T]) -> dict[A, dict[B, T]]:
    """Results by two keys as results by the first and then the second."""
    nested: dict[A, dict[B, T]] = {}
    for (first, second), one in found.items():
        nested.setdefault(first, {})[second] = one
    return nested


@dataclass(kw_only=True)
class Study:
    """A study of one model, while it runs or as it was run.

    Attributes:
        source: of the model that is studied, and ``name``, by which it goes in tables.
        others: sources of the models beside it, by name.
        found: results by the names under which the run directory keeps them.
        run: where they are kept while the study runs.
    """

    source: str
    name: str
    shape: ModelShape
    settings: Running
    others: Mapping[str, str] = field(default_factory=dict)
    found: dict[str, Result] = field(default_factory=dict)
    run: RunDirectory | None = None
    _model: HookedModel | None = None

    @classmethod
    def parts(cls) -> list[Piece[Any, Any]]:
        """All parts, in order."""
        return [part for part in vars(cls).values() if isinstance(part, Piece)]

    @property
    @abstractmethod
    def title(self) -> str:
        """Of the page."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the page says of the model."""

    def __getitem__(self, part: Piece[Any, T]) -> T:
        return part.of(self)

    def having(self, **found: Result | None) -> Self:
        """The same study with other results, by the names under which they are kept; None takes one away."""
        return replace(self, found={k: one for k, one in (self.found | found).items() if one is not None}, _model=None)

    @property
    def model(self) -> HookedModel:
        """The model that is studied; loaded when it is first asked for."""
        if self._model is None:
            self._model = self.settings.load(self.source)
        return self._model

    def let_go(self) -> None:
        """Forget the model: what comes next loads its own."""
        self._model = None
        release()

    def work(self, name: str) -> Path:
        """A file from which an interrupted run goes on."""
        assert self.run is not None
        return self.run.work(name)

    def go(self, run: RunDirectory) -> Self:
        """Make every part, those that the run directory has already excepted."""
        self.run, told = run, ""
        for part in self.parts():
            for name, kind, make, says in part.wanted(self) if part.when is None or part.when(self) else ():
                if says and says != told:
                    say(says)
                told = says
                self.found[name] = run.kept(name, kind, make)
            if part.then is not None:
                part.then(self)
        self.let_go()
        return self

    def again(self, folder: str | Path) -> Self:
        """Fill the study with what a complete run has kept; a ValueError for what is missing or cannot be read."""
        results = Path(folder) / "results"
        for part in self.parts():
            for name, kind, _, _ in part.wanted(self):
                if part.when is None or (results / name).is_dir():
                    self.found[name] = kind.load(inside(results, name))
        return self

    def conclusions(self) -> list[dict[str, str]]:
        """What the paper claims, whether it shows on this model, and the numbers, in the order of the page."""
        return entries(*(part.claims(self) for part in self.parts() if part.claims is not None))

    @styled
    def page(self, provenance: Mapping[str, Any], *, with_completions: bool = False) -> tuple[str, dict[str, Figure]]:
        """The report as HTML, and its figures by name.

        Args:
            with_completions: show prompts and answers of harmful sets, folded; the embedded organism's, whose answers
                are invented words, are shown in any case.
        """
        made, claimed = StudyPage(), []
        for part in self.parts():
            before = len(made.sections)
            if part.section is not None:
                part.section(self, made)
            section = made.sections[before].id if len(made.sections) > before else ""
            claims = part.claims(self) if part.claims is not None else ()
            claimed += [{**entry, "section": section} for entry in entries(claims)]
        answers, texts = views(self.found), with_completions or bool(embedded(self.source))
        return made.render(
            self.title,
            self.facts,
            claimed,
            provenance,
            opening=opening(self.title, self.source, claimed, answers, seeds=self.seeds),
            answers=explored(answers, texts=texts),
            units=units_shown(self.found, texts=texts),
        )

    @property
    def seeds(self) -> int | None:
        """How many seeds there are of what was trained; None if nothing was."""
        tuned = next((one for one in self.found.values() if isinstance(one, FinetuningStudy)), None)
        return None if tuned is None else len({run.seed for run in tuned.runs})

    def write(self, provenance: Mapping[str, Any]) -> None:
        """Into the run directory: tables, what shows (the main one, and the findings), figures and the page."""
        import pandas as pd

        run = self.run
        assert run is not None
        for part in self.parts():
            for name, frame in part.tables(self).items() if part.tables is not None else ():
                run.table(name, frame)
        said = self.conclusions()
        run.table("conclusions", pd.DataFrame(said).assign(verdict=[WORDS[one["shows"]] for one in said]), main=True)
        run.say(f"{tally(said)}.")
        for entry in said:
            run.say(f"{WORDS[entry['shows']]}: {entry['effect']} ({entry['paper']}). {entry['text']}")
        for view in views(self.found):
            view.found.save_lines(run.file(f"completions/{view.key}.jsonl"))
        html, figures = self.page(provenance)
        for name, figure in figures.items():
            run.figure(name, figure)
        write_text(run.file(REPORT), html)


class Subject(Result):
    """The model of a study as ``results/subject`` has it: from it, and the parts beside it, the study comes again."""

    @abstractmethod
    def study(self, folder: Path) -> Study:
        """The study that a complete run directory holds; a ValueError if a part is missing or cannot be read."""
