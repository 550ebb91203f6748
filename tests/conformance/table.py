"""``make api-coverage``: run every suite, and write what they found into the docs."""

from __future__ import annotations

import sys
from pathlib import Path

from conformance.suites import SUITES

PAGE = Path(__file__).parents[2] / "docs" / "api-coverage.md"

HEAD = """\
# What suites of others say about the server

Programs that others wrote to test their clients and servers, run against `ryzc serve` by `make test-slow`. They come
from package registries, pinned by version and hash. A test that fails and is not listed here with a reason is an error,
and so is a listed one that passes. This page is written by `make api-coverage` and held against every run.
"""


def page(sections: list[str]) -> str:
    """The page's text."""
    return "\n".join([HEAD, *sections])


def main() -> int:
    """Run all suites; 1 where one of them found a fault."""
    outcomes = [run() for run in SUITES.values()]
    PAGE.write_text(page([outcome.section() for outcome in outcomes]))
    faults = [f"{outcome.name}: {fault}" for outcome in outcomes for fault in outcome.faults()]
    print("\n".join(faults) or f"{PAGE.name} is written", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
