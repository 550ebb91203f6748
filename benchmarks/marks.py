"""Figures in pages of the docs, each between two marks."""

from __future__ import annotations

import sys
from pathlib import Path


def put(page: Path, text: str, name: str = "measured") -> None:
    """Replace what stands between a page's marks ``<!-- NAME: start -->`` and ``<!-- NAME: end -->``."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    if end not in rest:
        sys.exit(f"error: {page} lacks the lines {start} and {end}")
    page.write_text(f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
