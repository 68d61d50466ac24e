"""Run tutorials from their sources and keep each beside as a notebook with its outputs.

python tutorials/execute.py             # all of them
python tutorials/execute.py 2_*.py      # some
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent


def sources() -> list[Path]:
    """The tutorials in order."""
    return sorted(FOLDER.glob("[0-9]_*.py"))


def executed(source: Path, workdir: Path) -> NotebookNode:
    """The notebook of ``source`` after running it in ``workdir``; raises at the first cell that fails."""
    notebook = jupytext.read(source)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(workdir)}}
    )
    # tqdm asks for widgets, which nothing here shows.
    client.execute(env=os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran: it would change the file every time
        if "outputs" in cell:  # a progress bar leaves an empty output behind
            cell.outputs = [output for output in cell.outputs if output.get("data") != {}]
            for output in cell.outputs:  # a warning names the file it comes from
                if "text" in output:
                    for folder in (sys.prefix, str(FOLDER.parent)):
                        output.text = output.text.replace(f"{folder}{os.sep}", "")
    return notebook


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
