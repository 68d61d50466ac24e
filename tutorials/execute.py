"""Run tutorials from their sources and keep each beside as a notebook with its outputs.

Exercises stand there without an answer; that each folded solution passes its check is tried on the way.

python tutorials/execute.py             # all of them
python tutorials/execute.py 2_*.py      # some
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).parent


def sources() -> list[Path]:
    """The tutorials in order."""
    return sorted(FOLDER.glob("[0-9]_*.py"))


def executed(source: Path, workdir: Path) -> NotebookNode:
    """The notebook of ``source`` after running it in ``workdir``; raises at the first cell that fails."""
    notebook = jupytext.read(source)
    _with_solutions(notebook)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(workdir)}}
    )
    # Bars would be kept at every step, and tqdm asks for widgets, which nothing here shows.
    client.execute(env=os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found", "TQDM_DISABLE": "1"})
    _without_solutions(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran: it would change the file every time
        if "outputs" in cell:  # a progress bar leaves an empty output behind
            cell.outputs = [output for output in cell.outputs if output.get("data") != {} and not _of_machine(output)]
            for output in cell.outputs:  # a warning names the file it comes from
                if "text" in output:
                    for folder in (sys.prefix, str(FOLDER.parent)):
                        output.text = output.text.replace(f"{folder}{os.sep}", "")
    return notebook


def _of_machine(output: NotebookNode) -> bool:
    """Whether it says which compiled kernels this machine does not have."""
    return str(output.get("text", "")).startswith("Failed to load CPU")


SOLUTION = re.compile(r"<details><summary>Solution</summary>\n+```python\n(.*?)```", re.DOTALL)


def exercises(notebook: NotebookNode) -> list[tuple[int, str, str]]:
    """Of each exercise the place of the cell that checks it, the code of its folded solution, and that of the check."""
    found, cells = [], notebook.cells
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown" and (solution := SOLUTION.search(cell.source)):
            check = next(i for i in range(place + 1, len(cells)) if "check(" in cells[i].source)
            found.append((check, solution[1], cells[check].source))
    return found


def _with_solutions(notebook: NotebookNode) -> None:
    """Behind each exercise a cell that gives the folded solution and checks it, for as long as the notebook runs."""
    for place, solution, check in reversed(exercises(notebook)):
        cell = new_code_cell(f"{solution}\n{check}")
        cell.metadata["solution"] = True
        notebook.cells.insert(place + 1, cell)


def _without_solutions(notebook: NotebookNode) -> None:
    """Take them out again, each of which must have said "right", and count the cells as a reader runs them."""
    for cell in notebook.cells:
        said = "".join(output.get("text", "") for output in cell.get("outputs", ()))
        if cell.metadata.get("solution") and "right" not in said.splitlines():
            raise ValueError(f"the solution of an exercise is not right: it said {said!r}\n{cell.source}")
    notebook.cells = [cell for cell in notebook.cells if not cell.metadata.get("solution")]
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number


def main(names: list[str]) -> None:
    """Execute the tutorials named, or all."""
    import tempfile

    from safecircuits.base.files import write_text

    for source in [FOLDER / Path(name).name for name in names] or sources():
        with tempfile.TemporaryDirectory() as workdir:
            notebook = executed(source, Path(workdir))
        write_text(source.with_suffix(".ipynb"), jupytext.writes(notebook, fmt="ipynb"))
        print(f"wrote {source.with_suffix('.ipynb')}")


if __name__ == "__main__":
    main(sys.argv[1:])
