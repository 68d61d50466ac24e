"""MMLU and every other task of EleutherAI's lm-evaluation-harness, on a hooked model with its hooks in force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safecircuits.base.arguments import checked
from safecircuits.behavior.harness_lm import harness, harness_model
from safecircuits.model.load import load_model
from safecircuits.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task: the harness's value and standard error (NaN where it gives none) over ``n`` documents."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float
    n: int
    version: str

    def __str__(self) -> str:
        error = "" if math.isnan(self.stderr) else f" ± {self.stderr:.4f}"
        return f"{self.task} {self.metric} {self.value:.4f}{error} ({self.n})"


@dataclass(frozen=True)
class TaskScores(Result):
    """What the harness measured, groups of tasks such as ``mmlu`` among the tasks.

    Examples:
        >>> scores = sc.behavior.run_tasks(model, ["mmlu"], num_fewshot=5)  # doctest: +SKIP
        >>> scores.value("mmlu", "acc")  # doctest: +SKIP
    """

    scores: tuple[TaskScore, ...]
    provenance: dict[str, Any]

    def value(self, task: str, metric: str = "acc") -> float:
        """A metric of a task; the first filter's where there are several."""
        for score in self.scores:
            if (score.task, score.metric) == (task, metric):
                return score.value
        known = ", ".join(f"{score.task}/{score.metric}" for score in self.scores)
        raise ValueError(f"no {metric!r} of task {task!r}; there are {known}")

    def to_frame(self) -> pd.DataFrame:
        """One row a task, metric and filter."""
        import pandas as pd

        return pd.DataFrame([vars(score) for score in self.scores])

    def __str__(self) -> str:
        return "\n".join(map(str, self.scores))


@checked
def run_tasks(
    model: Any,
    tasks: str | Sequence[str | dict[str, Any]],
    *,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    include: str | Path | None = None,
    chat: bool = False,
    system: str | None = None,
    tokenizer: Any = None,
    seed: int = 1234,
    max_tokens: int = 2048,
) -> TaskScores:
    """Run tasks of lm-evaluation-harness: ``run_tasks(model, ["mmlu"], num_fewshot=5)``.

    Hooks on the model stay in force, so that a task can be run inside ``with scaled(...)`` or ``ablated(...)``.
    Generation is greedy. Tasks load their data as the harness does: from the hub, or from its cache when offline.

    Args:
        model: a hooked model, or anything that ``load_model`` takes.
        tasks: names, or task configurations as the harness's YAML files spell them.
        num_fewshot: the task's own unless given.
        limit: documents a task (a whole number), or the share of them (below 1).
        include: a folder with task files of your own.
        chat: put requests in the tokenizer's chat template.
        system: a system prompt.
        tokenizer: needed with a Hugging Face model object.
        seed: draws the few-shot examples.

    Raises:
        ImportError: without ``lm-eval``, the extra ``eval``.
        ValueError: for an unknown task, and for one that wants sampling.

    Examples:
        >>> scores = sc.behavior.run_tasks(model, ["arc_easy"], limit=100)  # doctest: +SKIP
        >>> scores.to_frame()  # doctest: +SKIP
    """
    evaluator = harness("lm_eval.evaluator")
    chosen: list[str | dict[str, Any]] = [tasks] if isinstance(tasks, str) else list(tasks)
    if not chosen:
        raise ValueError("there is no task to run: give at least one name")
    manager = _manager([task for task in chosen if isinstance(task, str)], include)
    found = evaluator.simple_evaluate(
        model=harness_model(load_model(model, tokenizer=tokenizer), max_tokens=max_tokens),
        tasks=chosen,
        num_fewshot=num_fewshot,
        limit=limit,
        task_manager=manager,
        apply_chat_template=chat,
        system_instruction=system,
        bootstrap_iters=1000,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    made_by = {
        "tasks": [task if isinstance(task, str) else str(task.get("task")) for task in chosen],
        "num_fewshot": num_fewshot,
        "limit": limit,
        "chat": chat,
        "system": system,
        "seed": seed,
        "lm_eval": harness("lm_eval").__version__,
    }
    return TaskScores(_scores(found), made_by)


def _manager(names: Sequence[str], include: str | Path | None) -> Any:
    """Finds tasks by name: in the folder alone where it has them all, as reading the harness's own takes seconds."""
    manager_of = harness("lm_eval.tasks").TaskManager
    path = None if include is None else str(include)
    if path is not None and not Path(path).is_dir():
        raise ValueError(f"there is no folder of tasks {path!r}")
    manager, unknown = None, list(names)
    if path is not None:
        manager = manager_of(include_path=path, include_defaults=False)
        unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown or manager is None:
        manager = manager_of(include_path=path)
        unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise ValueError(f"lm-evaluation-harness has no task {unknown[0]!r}; give include= for the folder of your own")
    return manager


def _scores(found: dict[str, Any]) -> tuple[TaskScore, ...]:
    scores = []
    for task, row in found["results"].items():
        n = found.get("n-samples", {}).get(task, {}).get("effective") or row.get("sample_len") or 0
        for key, value in row.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = row.get(f"{metric}_stderr,{kind}")
            stderr = float(error) if isinstance(error, int | float) else float("nan")
            version = str(found.get("versions", {}).get(task, ""))
            scores.append(TaskScore(task, metric, kind, float(value), stderr, int(n), version))
    return tuple(scores)
