"""Published texts as they stand in published files, which an installed package or the user has; none is kept here.

A file is parsed and never run: what is taken from it is one constant, or a tokenizer's chat template.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """Constants in a published file.

    Args:
        file: its path in the package or repository.
        places: of the constants: names of classes, functions and the variable, joined by dots.
        sha256: of the file.
        origin: the package with its version, or the repository with its commit.
    """

    file: str
    places: tuple[str, ...]
    sha256: str
    origin: str

    @property
    def package(self) -> str | None:
        """What pip installs to have the file: ``judgezoo==0.1.9``; None if that is no package."""
        name, _, version = self.origin.partition(" ")
        return f"{name}=={version}" if version else None

    def installed(self) -> Path | None:
        """The file, if its package is there; the package is not imported."""
        package, _, inside = self.file.partition("/")
        spec = importlib.util.find_spec(package) if self.package else None
        for folder in (spec.submodule_search_locations if spec is not None else None) or ():
            if (path := Path(folder) / inside).is_file():
                return path
        return None

    def is_of(self, path: Path) -> bool:
        """Whether a file is this one."""
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256

    def read(self, path: Path) -> list[Any]:
        """The constants, of this very file.

        Raises:
            ValueError: if it is another file, or cannot be read.
        """
        text = read_checked(path, self.sha256, f"{self.file} of {self.origin}")
        return [constant(text, place) for place in self.places]


def read_checked(path: Path, sha256: str | None, meant: str) -> str:
    """A text file with the SHA-256 that it must have, if any.

    Raises:
        ValueError: if it cannot be read, or is another file: names both digests.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 is {sha256!r}, expected 64 hexadecimal digits, as sha256sum prints them")
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the judge's template from {str(path)!r}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"{str(path)!r} has the SHA-256 {found}, not {sha256.lower()}: it is not {meant}")
    return text


def constant(code: str, place: str) -> Any:
    """The value of a constant in Python code, which is not run; the last one, where it is given again.

    Raises:
        ValueError: if there is none at that place.

    Examples:
        >>> from safecircuits.behavior.published.sources import constant
        >>> constant("class Judge:\\n    PROMPT: str = 'Is it {answer}?'", "Judge.PROMPT")
        'Is it {answer}?'
    """
    *holders, name = place.split(".")
    try:
        body: Sequence[ast.stmt] = ast.parse(code).body
        for holder in holders:
            body = next(
                node.body
                for node in reversed(body)
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == holder
            )
        return ast.literal_eval(next(value for node in reversed(body) if (value := _assigned(node, name)) is not None))
    except (SyntaxError, ValueError, TypeError, StopIteration) as error:
        raise ValueError(f"there is no constant {place} in the judge's file: {error}") from error


def _assigned(node: ast.stmt, name: str) -> ast.expr | None:
    """What a statement gives to a variable."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
    return node.value if named and isinstance(node, ast.Assign | ast.AnnAssign) else None


def chat_template(text: str) -> tuple[str, str]:
    """The chat template, and the token that begins a text, of a ``tokenizer_config.json`` or a template's own file.

    Raises:
        ValueError: if there is none.
    """
    try:
        config = json.loads(text)
    except ValueError:
        if "{" not in text:
            raise ValueError("the file is no chat template: nothing in it is filled with messages") from None
        return text, ""
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):  # several by name, of which the one for chats is called default
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ValueError(
            "the file has no chat_template: name a tokenizer_config.json that has one, or the template's own file"
        )
    bos = config.get("bos_token")
    return template, str(bos.get("content", "") if isinstance(bos, dict) else bos or "")


def located(template: str | Path) -> Path:
    """A path, or a file of a hub repository at a commit: ``hf://owner/name@COMMIT/file``, from the cache if there.

    Raises:
        ValueError: without a commit, since a branch has another file tomorrow; if the hub does not give it.
    """
    if not str(template).startswith("hf://"):
        return Path(template)
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)@([0-9a-f]{40})/(.+)", str(template))
    if found is None:
        raise ValueError(f"{template!r} names no file at a commit, expected hf://owner/name@40-HEX-DIGITS/file")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(found[1], found[3], revision=found[2]))
    except Exception as error:  # the hub client raises many kinds
        raise ValueError(f"cannot get {template} from the hub or its cache: {str(error).strip()}") from error
