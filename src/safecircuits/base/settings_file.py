"""YAML and TOML files that somebody wrote by hand: bounded, without aliases, and no name twice."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from safecircuits.base.reading import require_size

LARGEST = 2**20
"""Bytes of a file that is read."""
DEEPEST = 20
"""Levels of a YAML file; a list of values has four."""


def read_settings(path: Path, what: str = "configuration file") -> dict[str, Any]:
    """The table in a file; in YAML everything but true, false and null is text.

    Raises:
        ValueError: if there is no such file, it is neither YAML nor TOML, or it holds no table; names it.
    """
    if not path.is_file():
        raise ValueError(f"there is no {what} {str(path)!r}")
    kind = path.suffix.lower()
    if kind not in (".yaml", ".yml", ".toml"):
        raise ValueError(f"a {what} ends in .yaml, .yml or .toml, not {path.name!r}")
    try:
        text = require_size(path, LARGEST).read_text(encoding="utf-8-sig")
        if kind == ".toml":
            return tomllib.loads(text)
        found = _yaml(text)
    except RecursionError as error:
        raise ValueError(f"cannot read {str(path)!r}: it is nested too deeply") from error
    except (OSError, ValueError) as error:  # TOML's and Unicode's errors are ValueErrors
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} must hold option names with values, not a {type(found).__name__}")
    return found


def _yaml(text: str) -> Any:
    """The value of a YAML text, without aliases: a few lines of them can stand for more than any memory holds."""
    import yaml

    depth = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):  # before anything is made of it
            if isinstance(token, yaml.AliasToken):
                raise ValueError("it has aliases (*name), which options do not need; write the values out")
            kind = type(token).__name__
            depth += kind.endswith("StartToken") - kind.endswith("EndToken")
            if depth > DEEPEST:
                raise ValueError("it is nested too deeply")
        _require_different(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _require_different(node: Any) -> None:
    """A ValueError for a table, at any depth, that has one name twice."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        keys = [str(key.value) for key, _ in node.value]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise ValueError(f"it has {twice[0]!r} {keys.count(twice[0])} times")
    if isinstance(node, yaml.CollectionNode):
        for part in node.value:
            for one in part if isinstance(part, tuple) else (part,):
                _require_different(one)


def _loader() -> Any:
    """YAML's safe loader, to which only true, false and null are more than text: ``6:14`` is 374 to YAML, ``010`` 8."""
    import yaml

    class Plain(yaml.SafeLoader):
        pass

    Plain.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag.rpartition(":")[2] in ("bool", "null")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Plain
