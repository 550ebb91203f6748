"""Where buffers lie in the arena: those alive at the same time must not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ryzc.bundle.plan import Buffer

ALIGNMENT = 64


@dataclass
class Request:
    """A buffer that wants a place.

    Attributes:
        name: unique in the plan.
        bytes: size.
        first, last: the phases between which it holds a value, both included.
    """

    name: str
    bytes: int
    first: int
    last: int


def place(requests: Sequence[Request]) -> tuple[list[Buffer], int]:
    """Offsets for all requests and the size of the arena.

    Greedy by size, each at the lowest gap that fits: with a transformer's few buffer sizes that is
    within a few percent of the lower bound.
    """
    placed: list[Buffer] = []
    for request in sorted(requests, key=lambda r: (-r.bytes, r.first, r.name)):
        size = -(-request.bytes // ALIGNMENT) * ALIGNMENT
        neighbours = sorted(
            (b for b in placed if b.first <= request.last and request.first <= b.last), key=lambda b: b.offset
        )
        offset = 0
        for other in neighbours:
            if offset + size <= other.offset:
                break
            offset = max(offset, other.offset + other.bytes)
        placed.append(Buffer(request.name, offset, size, request.first, request.last))
    return sorted(placed, key=lambda b: b.offset), max((b.offset + b.bytes for b in placed), default=0)
