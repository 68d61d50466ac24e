"""A run's folder as somebody might send it: complete and readable, with what must never run or be followed in it.

Every payload that runs in a page calls or loads something with ``MARK`` in it; a browser that shows the page then has
it in its title, its console or its requests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from safecircuits.results.run import RunDirectory

MARK = "owned-by-the-sender"
RUN = f"document.title='{MARK}'"

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="200pt" height="100pt" viewBox="0 0 200 100" version="1.1">{}</svg>'
)
SHAPE = '<g id="axes_1"><path id="line" d="M 0 0 L 9 9" style="fill: none; stroke: #0072b2"/></g>'

PAYLOADS = {
    "script": f"<script>{RUN}</script>",
    "script in CDATA": f"<script><![CDATA[{RUN}]]></script>",
    "script after a broken element": f"<g <script>{RUN}</script>",
    "linked script": f'<script href="data:text/javascript,{RUN}"/>',
    "script of HTML inside": f'<foreignObject><body xmlns="http://www.w3.org/1999/xhtml"><script>{RUN}</script></body></foreignObject>',
    "frame": f'<foreignObject><iframe srcdoc="&lt;script&gt;parent.{RUN}&lt;/script&gt;"></iframe></foreignObject>',
    "frame outside": f'</svg><iframe src="javascript:parent.{RUN}"></iframe><svg>',
    "load": f'<g onload="{RUN}"/>',
    "image that fails": f'<image href="x" onerror="{RUN}"/>',
    "image of HTML": f'</svg><img src=x onerror="{RUN}"><svg>',
    "begin of an animation": f'<animate onbegin="{RUN}" attributeName="x" dur="1s"/>',
    "animated link": f'<a><set attributeName="href" to="javascript:{RUN}"/><text>press</text></a>',
    "link": f'<a href="javascript:{RUN}"><text x="9" y="9">press</text></a>',
    "use of data": f'<use href="data:image/svg+xml,&lt;svg id=&quot;x&quot; onload=&quot;{RUN}&quot;/&gt;#x"/>',
    "picture from elsewhere": f'<image href="https://{MARK}.invalid/a.png" width="9" height="9"/>',
    "picture of SVG": f'<image href="data:image/svg+xml,%3Csvg onload=%22{RUN}%22/%3E" width="9" height="9"/>',
    "style": f"<style>@import url(https://{MARK}.invalid/a.css); body {{ display: none }}</style>",
    "style in a declaration": f'<path d="M 0 0" style="fill: url(https://{MARK}.invalid/a)"/>',
    "style in an escape": f'<path d="M 0 0" style="fill: u\\72l(https://{MARK}.invalid/a)"/>',
    "style over the page": f'<rect width="9" height="9" style="position: fixed; inset: 0" class="{MARK}"/>',
    "id that ends": f'<g id="a&quot; onload=&quot;{RUN}"/>',
    "title": f'<title><img src=x onerror="{RUN}"></title>',
    "math": f'<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror={RUN}&gt;">',
    "comment": f"<!--><script>{RUN}</script>-->",
    "object": f'<foreignObject><object data="javascript:{RUN}"/><embed src="javascript:{RUN}"/></foreignObject>',
    "refresh": f'</svg><meta http-equiv="refresh" content="0;url=https://{MARK}.invalid"><svg>',
    "base": f'</svg><base href="https://{MARK}.invalid/"><svg>',
    "form": f'</svg><form action="https://{MARK}.invalid"><button autofocus onfocus="{RUN}">x</button></form><svg>',
}
"""What may stand in a figure, by kind."""

WORDS = f'<script>{RUN}</script><img src=x onerror="{RUN}">"\'{{{{ 7 * 7 }}}}</title></style>'


def record(**changed: Any) -> dict[str, Any]:
    """The record of a complete run, with parts replaced; None takes one away."""
    made = {
        "format": "safecircuits-run",
        "version": 1,
        "command": "layers gap",
        "arguments": {"seed": 0, "model": "m"},
        "inputs": {"normal": "abc"},
        "started": ["2026-01-01T00:00:00+00:00"],
        "finished": "2026-01-01T00:00:01+00:00",
        "seconds": 1.0,
        "files": [],
        "findings": ["found"],
        "provenance": {"version": "0.0.0", "versions": {}, "python": "3", "seed": 0, "date": "today"},
    } | changed
    return {key: value for key, value in made.items() if value is not None}


def folder_of(root: Path, made: dict[str, Any] | str) -> Path:
    """A folder with this record."""
    root.mkdir(parents=True, exist_ok=True)
    text = made if isinstance(made, str) else json.dumps(made)
    (root / "run.json").write_text(text, encoding="utf-8")
    return root


def hostile_run(root: Path) -> Path:
    """A complete run with every payload as a figure, and markup in every word of its record and tables."""
    with RunDirectory.open(root, "layers gap", {"model": WORDS, "seed": 0, WORDS: WORDS}, inputs={WORDS: WORDS}) as run:
        run.say(WORDS)
        run.table("gap", pd.DataFrame({WORDS: [WORDS, "b"], "layer": [0, 1]}), main=True)
        for number, payload in enumerate(PAYLOADS.values()):
            path = run.file(f"figures/figure_{number}.svg")
            path.parent.mkdir(exist_ok=True)
            path.write_text(SVG.format(SHAPE + payload), encoding="utf-8")
        for number, name in enumerate(('a" onload="document.title=1', "a' <b>", "\\g<0>")):
            (root / "figures" / f"{name}.svg").write_text(SVG.format(SHAPE), encoding="utf-8")
            (root / "tables" / f"{name}.csv").write_text(f"layer,x{number}\n0,1\n", encoding="utf-8")
    return root
