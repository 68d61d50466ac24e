"""The one script of a page, which its policy lets a browser run by its hash, and the style that goes with it.

It is DataTables, as the package ``itables`` carries it, and this package's own parts: what may be done with any page
(``interact.js``: sort, filter, say a value), and what shows answers (``answers.js``) and units (``units.js``) where
there are any.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

OWN = ("interact.js", "answers.js", "units.js")


@cache
def script() -> Markup:
    """The table library without its exports, and the parts of this package, as one module."""
    bundle = files("itables").joinpath("html", "dt_bundle.js").read_text(encoding="utf-8")
    found = re.search(r"export\{[^}]*?(\w+) as default[^}]*\};?", bundle)
    if found is None or "</script" in bundle.lower():
        raise RuntimeError("the installed itables carries its table library in another form; install itables 2.9")
    parts = [files("safecircuits.report").joinpath(name).read_text(encoding="utf-8") for name in OWN]
    own = "\n".join(f"{{\n{part}}}" for part in parts)
    return Markup(f"{bundle[: found.start()]}{bundle[found.end() :]}\nconst DataTable = {found[1]};\n{own}")


@cache
def style() -> Markup:
    """Of the table library."""
    return Markup(files("itables").joinpath("html", "dt_bundle.css").read_text(encoding="utf-8"))


@cache
def policy() -> str:
    """What the page's policy lets run: this script, by its hash."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return f"script-src 'sha256-{digest}'"


def as_data(document: Any) -> Markup:
    """A document as a script of data may hold it: JSON in which nothing ends the script."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Markup(re.sub("[<>&\u2028\u2029]", lambda sign: f"\\u{ord(sign[0]):04x}", text))
