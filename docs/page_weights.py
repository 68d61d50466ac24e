"""A hook of MkDocs: what a built site weighs, and its heaviest pages with the pictures that they show.

mkdocs build    # says it at the end
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

log = logging.getLogger("mkdocs.page_weights")


def weights(site: Path) -> dict[str, int]:
    """Bytes of each page and of the pictures of the site that it shows, the heaviest first."""
    found = {}
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        pictures = {(page.parent / name).resolve() for name in re.findall(r'<img[^>]* src="([^":]+)"', text)}
        size = page.stat().st_size + sum(one.stat().st_size for one in pictures if one.is_file())
        found[page.relative_to(site).as_posix()] = size
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def on_post_build(config: MkDocsConfig) -> None:
    found = weights(Path(config.site_dir))
    heaviest = ", ".join(f"{name} {size / 1000:,.0f} kB" for name, size in list(found.items())[:5])
    log.info("%d pages; the heaviest, with their pictures: %s", len(found), heaviest)
