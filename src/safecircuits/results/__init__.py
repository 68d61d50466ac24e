"""Results on disk, and the directories of runs."""

from safecircuits.results.result import Result
from safecircuits.results.run import RunDirectory, load_run

__all__ = ["Result", "RunDirectory", "load_run"]
