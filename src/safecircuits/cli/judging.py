"""The options of a judge: a published one by name or our own question, a local model or a server."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from safecircuits.behavior.judge import JudgeDetector
    from safecircuits.cli.frame import Run
    from safecircuits.results.run import RunDirectory

PANEL = "A judge"
QUESTION = "question"


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges instead of a list of phrases."""

    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="Who says what each completion is: strong_reject_rubric, xstest, wildguard, jailbreakbench_refusal, "
            "gpt4_rubric, harmbench, jailbreakbench or llama_guard_3, as published; or question, for our own question.",
            rich_help_panel=PANEL,
        ),
    ] = None
    judge_model: Annotated[
        str | None,
        typer.Option(
            "--judge-model",
            help="The model that is asked: anything that --model takes, or the name that the server of --judge-url has "
            "for it.",
            rich_help_panel=PANEL,
        ),
    ] = None
    judge_url: Annotated[
        str | None,
        typer.Option(
            "--judge-url",
            help="A server with OpenAI's API, such as http://localhost:8000/v1. Prompts and answers are sent there.",
            rich_help_panel=PANEL,
        ),
    ] = None
    judge_key_from: Annotated[
        str | None,
        typer.Option(
            "--judge-key-from", help="The environment variable with that server's key.", rich_help_panel=PANEL
        ),
    ] = None
    judge_timeout: Annotated[
        float, typer.Option("--judge-timeout", help="Seconds for one reply.", rich_help_panel=PANEL)
    ] = 60.0
    judge_calls: Annotated[
        int | None,
        typer.Option(
            "--judge-calls", min=0, help="At most so many calls; what was judged is kept.", rich_help_panel=PANEL
        ),
    ] = None
    judge_retries: Annotated[
        int,
        typer.Option(
            "--judge-retries",
            min=0,
            help="How often a busy server is asked again for one reply.",
            rich_help_panel=PANEL,
        ),
    ] = 5
    judge_template: Annotated[
        str | None,
        typer.Option(
            "--judge-template",
            help="The judge's published file, where no installed package has it: a path, or "
            "hf://OWNER/NAME@COMMIT/FILE.",
            rich_help_panel=PANEL,
        ),
    ] = None
    judge_sha256: Annotated[str | None, typer.Option("--judge-sha256", help="Of that file.", rich_help_panel=PANEL)] = (
        None
    )
    judge_undecided: Annotated[
        bool,
        typer.Option(
            "--judge-undecided",
            help="Replies in another format leave their completions undecided, instead of ending the run.",
            rich_help_panel=PANEL,
        ),
    ] = False

    @property
    def local(self) -> tuple[str, ...]:
        """The judge's model, where it runs here: an input of the run."""
        return (self.judge_model,) if self.judge_model and not self.judge_url else ()

    def made(self, run: Run, sets: Collection[str] = ("malicious",)) -> JudgeDetector | None:
        """The judge; None without one.

        Args:
            sets: names of those that are measured, of which one must be judged for refusal.

        Raises:
            ValueError: for options that do not go together.
        """
        if self.judge is None:
            given = [name for name, value in vars(self).items() if value != getattr(type(self), name)]
            if given:
                raise ValueError(f"--{given[0].replace('_', '-')} is of a judge: name it by --judge")
            return None
        if self.judge_model is None:
            raise ValueError(
                f"--judge {self.judge} needs --judge-model: a model, or its name on the server of --judge-url"
            )
        if "detector" in run.chosen:
            raise ValueError("give --detector or --judge: one of them says what each completion is")
        if not {"malicious", "over_rejection"} & set(sets):
            raise ValueError("--judge says what refuses: give --malicious or --over-rejection")
        return self._judge(self._asked(run))

    def begin(self, run: Run, judge: JudgeDetector | None, *models: str) -> RunDirectory:
        """Open the run's directory: a judge that runs here is an input, and a server's replies are kept there."""
        folder = run.begin(*(models or filter(None, (run.source,))), *self.local)
        if judge is not None:
            keep_replies(judge, folder)
        return folder

    def _asked(self, run: Run) -> Any:
        """The server, or the model."""
        if self.judge_url is None:
            if self.judge_key_from is not None:
                raise ValueError("--judge-key-from is of a server: give --judge-url")
            return run.model(self.judge_model)
        from safecircuits.behavior.endpoint import Endpoint

        assert self.judge_model is not None
        options: Any = {"timeout": self.judge_timeout, "retries": self.judge_retries}
        return Endpoint(self.judge_url, self.judge_model, key_from=self.judge_key_from, **options)

    def _judge(self, asked: Any) -> JudgeDetector:
        from safecircuits.behavior.field_judges import FieldJudge
        from safecircuits.behavior.judge import JudgeDetector

        options: Any = {
            "max_calls": self.judge_calls,
            "unreadable": "undecided" if self.judge_undecided else "error",
        }
        if self.judge != QUESTION:
            assert self.judge is not None
            return FieldJudge(self.judge, asked, template=self.judge_template, sha256=self.judge_sha256, **options)
        if self.judge_template is not None or self.judge_sha256 is not None:
            raise ValueError("--judge-template and --judge-sha256 are of a published judge, not of our own question")
        return JudgeDetector(asked, **options)


def keep_replies(judge: JudgeDetector, folder: RunDirectory) -> None:
    """Keep a server's replies in the run's directory until it is complete: an interrupted run goes on from them."""
    from safecircuits.behavior.replies import Replies

    if judge.model is None:
        judge.replies = Replies(folder.work("judge_replies.jsonl"), judge.replies.max_calls)
