"""TensorBoard, W&B, trackio and the others, through Accelerate's own trackers: ``finetune(..., report_to="wandb")``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NONE = "none"


def require_trackers(report_to: Any) -> list[Any]:
    """The names and trackers of ``report_to``, in a list, each once; nothing for None and ``"none"``.

    Raises:
        ValueError: for a name that Accelerate does not know, or whose package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
    from accelerate.utils import LoggerType

    listed = list(report_to) if isinstance(report_to, Sequence) and not isinstance(report_to, str) else [report_to]
    chosen = [one for one in dict.fromkeys(listed) if one not in (None, NONE)]
    here = {str(name) for name in get_available_trackers()}
    for one in chosen:
        if isinstance(one, GeneralTracker):
            continue
        if one not in LOGGER_TYPE_TO_CLASS:  # those that were registered are among them
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ValueError(f"report_to is one of {known}, none, or a tracker of Accelerate, not {one!r}")
        if one in LoggerType.list() and one not in here:
            package = one.replace("_", "-")
            raise ValueError(f"report_to={one!r} needs a package that is not installed: pip install {package}")
    return chosen


class Trackers:
    """What a run reports to; before it has begun, and on other processes than the main one, nothing."""

    def __init__(self) -> None:
        self._trackers: list[Any] = []

    def begin(self, report_to: Any, folder: str | Path, config: Mapping[str, Any]) -> None:
        """Start them.

        Args:
            folder: of those that write files.
            config: the settings of the run; numbers, texts and booleans of it are handed on.

        Raises:
            ValueError: if one cannot be started, such as one that wants a login.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

        for one in require_trackers(report_to):
            try:
                tracker = one
                if not isinstance(one, GeneralTracker):
                    kind = LOGGER_TYPE_TO_CLASS[one]
                    beside = (str(folder),) if kind.requires_logging_directory else ()
                    tracker = kind("safecircuits", *beside)
                getattr(tracker, "start", lambda: None)()  # those of earlier Accelerates have begun
                tracker.store_init_configuration(_plain(config))
            except Exception as error:  # theirs, of any class
                raise ValueError(f"report_to={one!r} could not begin: {error}") from error
            self._trackers.append(tracker)

    def log(self, figures: Mapping[str, Any], step: int, under: str) -> None:
        """Numbers after a step, as ``train/loss`` or ``eval/malicious_refused``."""
        numbers = {
            f"{under}/{name}": float(value)
            for name, value in figures.items()
            if name != "step" and isinstance(value, int | float)
        }
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def finish(self) -> None:
        """Close them."""
        for tracker in self._trackers:
            tracker.finish()


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """What TensorBoard takes for a setting."""
    return {name: value for name, value in config.items() if isinstance(value, bool | int | float | str)}
