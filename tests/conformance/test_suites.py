"""Every suite finds what it is expected to find, and the docs say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance import outcome
from conformance.outcome import Case, Outcome
from conformance.registry import UnreachableError
from conformance.suites import SUITES
from conformance.table import PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_a_suite(name: str) -> None:
    try:
        found = SUITES[name]()
    except UnreachableError as error:
        pytest.skip(str(error))
    assert not found.faults()
    assert found.count(True) > 0
    assert found.section() in PAGE.read_text(), f"`make api-coverage` would write:\n{found.section()}"


def test_every_suite_has_its_section() -> None:
    assert set(SUITES) >= {path.stem for path in outcome.EXPECTED.glob("*.toml")}
    assert PAGE.read_text().count("\n## ") == len(SUITES)


def test_every_reason_is_on_the_page() -> None:
    text = PAGE.read_text()
    for name in SUITES:
        for test, reason in outcome.expected(name).items():
            assert f"`{test}`" in text
            assert f"| {reason} |" in text


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "EXPECTED", tmp_path)
    (tmp_path / "made.toml").write_text('[[failures]]\nreason = "It is so."\ntests = ["a", "b"]\n')


@pytest.mark.parametrize(
    ("cases", "fault"),
    [
        ([Case("a", False), Case("b", False), Case("c", True)], None),
        ([Case("a", False), Case("b", False), Case("c", False, "broken")], "c: broken"),
        ([Case("a", True), Case("b", False)], "a: expected to fail, and it passes; take it off the list"),
        (
            [Case("a", False), Case("a", True), Case("b", False)],
            "a: expected to fail, and it passes; take it off the list",
        ),
        ([Case("a", False)], "b: expected to fail, and there is no such test"),
    ],
)
def test_a_list_can_only_become_shorter(listed: None, cases: list[Case], fault: str | None) -> None:
    found = Outcome("made", "A suite", "Made up.", cases)
    assert found.faults() == ([] if fault is None else [fault])
    assert f"{len(cases)} run, {sum(case.passed is True for case in cases)} passed" in found.section()
