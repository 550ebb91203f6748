"""What a suite found, and what it was expected to find."""

from __future__ import annotations

import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).parent / "expected"


@dataclass(frozen=True)
class Case:
    """One run of a test.

    Attributes:
        test: its name; variants of a test (sync and async, strict and loose) share one.
        passed: or ``None`` for one that the suite itself skips.
        message: why it failed.
    """

    test: str
    passed: bool | None
    message: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a suite found.

    Attributes:
        name: of the suite, and of its file of expected failures.
        title: as the docs name it, with its version.
        scope: what of it is run.
        cases: each.
    """

    name: str
    title: str
    scope: str
    cases: Sequence[Case]

    @property
    def failures(self) -> Mapping[str, Sequence[Case]]:
        """Cases that failed, by test."""
        found: dict[str, list[Case]] = defaultdict(list)
        for case in self.cases:
            if case.passed is False:
                found[case.test].append(case)
        return found

    def count(self, passed: bool | None) -> int:
        """Cases that passed, failed (``False``) or were skipped (``None``)."""
        return sum(case.passed is passed for case in self.cases)

    def faults(self) -> list[str]:
        """What is wrong: failures that nobody expected, and expected ones that did not come."""
        reasons, failures = expected(self.name), self.failures
        ran = {case.test for case in self.cases}
        passed = {case.test for case in self.cases if case.passed}
        return [
            *(f"{test}: {cases[0].message}" for test, cases in failures.items() if test not in reasons),
            *(
                f"{test}: expected to fail, and it passes; take it off the list"
                for test in sorted(passed & set(reasons))
            ),
            *(f"{test}: expected to fail, and there is no such test" for test in sorted(set(reasons) - ran)),
        ]

    def section(self) -> str:
        """What the docs say about it."""
        reasons = expected(self.name)
        skipped = self.count(None)
        counts = f"{len(self.cases) - skipped} run, {self.count(True)} passed, {self.count(False)} expected to fail"
        lines = [
            f"## {self.title}",
            "",
            f"{self.scope} {counts}{f', {skipped} skipped by the suite' if skipped else ''}.",
        ]
        by_reason: dict[str, list[str]] = defaultdict(list)
        for test in self.failures:
            by_reason[reasons.get(test, "not expected")].append(test)
        if by_reason:
            lines += ["", "| expected to fail | why |", "|---|---|"]
            lines += [f"| {_listed(tests)} | {reason} |" for reason, tests in by_reason.items()]
        return "\n".join(lines) + "\n"


def expected(name: str) -> Mapping[str, str]:
    """Tests that fail, with the reason.

    The file is a list of tables ``[[failures]]``, each with a ``reason`` and ``tests``.
    """
    path = EXPECTED / f"{name}.toml"
    if not path.is_file():
        return {}
    groups = tomllib.loads(path.read_text())["failures"]
    return {test: group["reason"] for group in groups for test in group["tests"]}


def run(command: Sequence[str], timeout: float, **options: Any) -> str:
    """Run a suite; what it printed. Its exit code is not asked: failures may be expected."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False, **options
    )
    return str(done.stdout)


def _listed(tests: Iterable[str]) -> str:
    return ", ".join(f"`{test}`" for test in sorted(tests))
