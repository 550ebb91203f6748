"""Buffers alive together never overlap, and the arena is no larger than it must be by much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ryzc.lower.arena import ALIGNMENT, Request, place

spans = st.tuples(st.integers(1, 10_000), st.integers(0, 20), st.integers(0, 20))


@given(st.lists(spans, max_size=30))
def test_buffers_alive_together_are_apart(drawn: list[tuple[int, int, int]]) -> None:
    requests = [Request(f"b{i}", size, min(a, b), max(a, b)) for i, (size, a, b) in enumerate(drawn)]
    buffers, total = place(requests)
    assert {b.name for b in buffers} == {r.name for r in requests}
    for i, one in enumerate(buffers):
        assert one.offset % ALIGNMENT == 0
        assert one.offset + one.bytes <= total
        for other in buffers[i + 1 :]:
            if one.first <= other.last and other.first <= one.last:
                assert one.offset + one.bytes <= other.offset or other.offset + other.bytes <= one.offset


def test_buffers_that_follow_each_other_share_memory() -> None:
    buffers, total = place([Request(f"b{i}", 4096, i, i) for i in range(10)])
    assert total == 4096
    assert {b.offset for b in buffers} == {0}
