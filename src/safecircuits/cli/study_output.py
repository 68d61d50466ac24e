"""What every ``safecircuits study`` writes at its end: its findings, and its report with the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from safecircuits.cli.frame import Run


def write_report(
    run: Run,
    conclusions: Iterable[Mapping[str, str]],
    page: Callable[[Mapping[str, Any]], tuple[str, dict[str, Figure]]],
) -> None:
    """Say the conclusions, which are the main table, and write what ``page`` makes with the run's provenance."""
    import pandas as pd

    from safecircuits.base.files import write_text
    from safecircuits.results.provenance import provenance

    folder = run.directory
    assert folder is not None
    said = list(conclusions)
    folder.table("conclusions", pd.DataFrame(said), main=True)
    for entry in said:
        run.say(f"{entry['shows']:>8}  {entry['effect']} ({entry['paper']}): {entry['text']}")
    about = provenance(command=f"safecircuits {run.command}", seed=run.seed, datasets=None, arguments=run.arguments)
    html, figures = page(about)
    for name, figure in figures.items():
        folder.figure(name, figure)
    write_text(folder.file("report.html"), html)
