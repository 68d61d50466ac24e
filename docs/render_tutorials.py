"""A hook of MkDocs: the executed notebooks of ``tutorials/`` as pages, with the pictures that they show."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

TUTORIALS = Path(__file__).parents[1] / "tutorials"
SOURCE = "The [notebook]({name}.ipynb) runs anywhere safecircuits is installed.{colab}\n\n"


def colab(repository: str | None, notebook: str) -> str:
    """A link that opens a notebook in Colab, where the site says which repository on GitHub it is of; else nothing."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository or "")
    if found is None:
        return ""
    return f" [Open in Colab](https://colab.research.google.com/github/{found[1]}/blob/main/tutorials/{notebook})."


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, the notebook itself, and its pictures."""
    exporter = MarkdownExporter()
    for notebook in sorted(TUTORIALS.glob("*.ipynb")):
        text, resources = exporter.from_filename(
            str(notebook), resources={"unique_key": notebook.stem, "output_files_dir": f"{notebook.stem}_files"}
        )
        title, body = text.split("\n", 1)
        body = re.sub(r"<table\b[^>]*\bdataframe\b[^>]*>", "<table>", body)  # as the site's own tables look, and scroll
        body = body.replace("<details>", '<details markdown="1">')  # the code of a solution is code there, too
        page = f"{title}\n\n{SOURCE.format(name=notebook.stem, colab=colab(config.repo_url, notebook.name))}{body}"
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=page))
        files.append(File.generated(config, f"tutorials/{notebook.name}", content=notebook.read_bytes()))
        for name, picture in resources.get("outputs", {}).items():
            files.append(File.generated(config, f"tutorials/{name}", content=picture))
    return files
