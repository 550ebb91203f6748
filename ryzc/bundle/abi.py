"""The step ABI: the one struct that the runtime hands to native code.

``step(context*)`` runs a whole batch through the model on ``threads`` threads, which may be fewer than
there are; ``worker(context*, id)`` is the body of thread ``id >= 1`` and returns after
``stop(context*)``. Threads meet in the first five cache lines and in ``group_arrived``; the rest is
written by the runtime before a step and only read by native code. Nothing in a step allocates, calls
libm or calls back.

A batch is ``token_count`` tokens. Token ``i`` has id ``tokens[i]`` and sits at ``positions[i]`` of
sequence ``sequences[i]``; its keys and values go to slot ``position % page_tokens`` of page
``page_table[sequence * page_table_stride + position / page_tokens]``. Logits are computed for the
batch rows named in ``rows``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERSION: Final = 2
"""Changes whenever the struct, the entry points or their meaning change."""


@dataclass(frozen=True)
class Field:
    """A member of the context struct.

    Attributes:
        name: as used by kernels and the runtime.
        type: ``i32``, ``i64`` or ``ptr``.
        offset: bytes from the start of the struct.
        doc: what it holds; shapes in elements.
    """

    name: str
    type: str
    offset: int
    doc: str


MAX_GROUPS: Final = 32
"""Groups that a barrier has lines for; ``threads`` may be at most so many times ``group``."""
_GROUP_LINES: Final = 512


def _layout() -> tuple[Field, ...]:
    lines = [  # one cache line each: written by several threads
        ("job", "i64", "low half: counts steps, workers wait for a change; high half: threads that run this one"),
        ("arrived", "i32", "groups (threads, where there is one group) that are complete at the current barrier"),
        ("generation", "i32", "counts barriers; waiters spin on it"),
        ("sleepers", "i32", "workers in a futex wait on `job`"),
        ("stopping", "i32", "non-zero: workers return"),
    ]
    plain = [
        ("threads", "i64", "threads for the next step, the caller included"),
        ("spin", "i64", "pauses that an idle worker makes before it sleeps"),
        ("weights", "ptr", "data section of weights.safetensors, 64-byte aligned"),
        ("arena", "ptr", "Plan.arena_bytes of scratch, 64-byte aligned"),
        ("kv", "ptr", "KV pool: pages of KVSpec.page_bytes, 64-byte aligned"),
        ("page_table", "ptr", "i32 [sequences, page_table_stride]"),
        ("page_table_stride", "i64", "entries of a sequence's row in page_table"),
        ("token_count", "i64", "tokens in the batch, 1 .. Plan.max_tokens"),
        ("tokens", "ptr", "i32 [token_count], ids below Plan.vocab_size"),
        ("positions", "ptr", "i32 [token_count]"),
        ("sequences", "ptr", "i32 [token_count], rows of page_table"),
        ("row_count", "i64", "rows that want logits, 0 .. Plan.max_rows"),
        ("rows", "ptr", "i32 [row_count], indices into the batch"),
        ("logits", "ptr", "f32 [max_rows, logits_stride], written"),
        ("candidate_count", "i64", "top candidates wanted a row, 1 .. Plan.max_candidates"),
        ("candidate_ids", "ptr", "i32 [max_rows, max_candidates], written, best first"),
        ("candidate_logits", "ptr", "f32 [max_rows, max_candidates], written, descending"),
        ("row_max", "ptr", "f32 [max_rows], written: the largest logit"),
        ("row_sum", "ptr", "f32 [max_rows], written: sum of exp(logit - row_max) over the vocabulary"),
        ("group", "i64", "threads that meet each other first at a barrier: those under one L3"),
    ]
    fields = [Field(n, t, 64 * i, d) for i, (n, t, d) in enumerate(lines)]
    fields += [Field(n, t, 64 * len(lines) + 8 * i, d) for i, (n, t, d) in enumerate(plain)]
    counters = f"i32 a cache line, [{MAX_GROUPS}]: threads of each group that reached the current barrier"
    return (*fields, Field("group_arrived", "i32", _GROUP_LINES, counters))


FIELDS: Final = _layout()
BY_NAME: Final = {f.name: f for f in FIELDS}
SIZE: Final = _GROUP_LINES + 64 * MAX_GROUPS
"""Bytes of the struct; it starts at a multiple of 64."""
