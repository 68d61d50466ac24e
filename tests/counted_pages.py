"""What a page says of refusals without saying of how many answers, how many of them no language and how many cut."""

from __future__ import annotations

import html
import re
from itertools import pairwise

from safecircuits.base.counted import HEADING

_COUNTS = re.compile(r"refused|over-rejected|answered \[|^with (nothing|full)", re.IGNORECASE)
_TOLD = re.compile(r"refus\w*[^.;]*\d %|\d %[^.;]*refus", re.IGNORECASE)


def bare_counts(page: str) -> list[str]:
    """Tables and conclusions that count refusals and do not say what stands beside a count."""
    plain = [html.unescape(re.sub(r"<[^>]+>", "", text)) for text in re.findall(r"<thead>.*?</thead>", page, re.DOTALL)]
    found = []
    for head in re.findall(r"<thead>(.*?)</thead>", page, re.DOTALL):
        names = [html.unescape(re.sub(r"<[^>]+>", "", one)) for one in re.findall(r"<th[^>]*>(.*?)</th>", head)]
        counts = [place for place, name in enumerate(names) if _COUNTS.search(name)]
        for place, following in pairwise([*counts, len(names)]):
            if HEADING not in names[place:following]:
                found.append(f"{names[place]} of {names}")
    assert plain
    for text in re.findall(r'<span class="verdict.*?</p>', page, re.DOTALL):
        said = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\u00a0", " ")
        if _TOLD.search(said) and "n = " not in said:
            found.append(said)
    return found
