"""The step ABI: the one struct that the runtime hands to native code.

``step(context*)`` runs a whole batch through the model on ``threads`` threads, which may be fewer than
there are; ``worker(context*, id)`` is the body of thread ``id >= 1`` and returns after
``stop(context*)``. Threads meet in the first five cache lines and in ``group_arrived``; the rest is
written by the runtime before a step and only read by native code. Nothing in a step allocates, calls
libm or calls back.

A batch is ``token_count`` tokens. Token ``i`` has id ``tokens[i]`` and sits at ``positions[i]`` of
sequence ``sequences[i]``; its keys and values go to slot ``position % page_tokens`` of page
``page_table[sequence * page_table_stride + position / page_tokens]``. Logits are computed for the
batch rows named in ``rows``, adjusted and masked as their parameters say, and a token is drawn from each.

What one row wants is a record of :data:`ROW_FIELDS`; all zeros ask for the best token and change no logit.
Native code bounds whatever a record says by the sizes in the context: no record makes it leave a buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERSION: Final = 4
"""Changes whenever the struct, the entry points or their meaning change."""


@dataclass(frozen=True)
class Field:
    """A member of the context struct.

    Attributes:
        name: as used by kernels and the runtime.
        type: ``i32``, ``i64``, ``f32`` or ``ptr``.
        offset: bytes from the start of the struct.
        doc: what it holds; shapes in elements.
    """

    name: str
    type: str
    offset: int
    doc: str


MAX_GROUPS: Final = 32
"""Groups that a barrier has lines for; ``threads`` may be at most so many times ``group``."""
_GROUP_LINES: Final = 576


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
        ("logits", "ptr", "f32 [max_rows, logits_stride], written: those that tokens are drawn from"),
        ("candidate_count", "i64", "top candidates wanted a row, 1 .. Plan.max_candidates"),
        ("candidate_ids", "ptr", "i32 [max_rows, max_candidates], written, best first"),
        ("candidate_logits", "ptr", "f32 [max_rows, max_candidates], written, descending"),
        ("row_max", "ptr", "f32 [max_rows], written: the largest logit"),
        ("row_sum", "ptr", "f32 [max_rows], written: sum of exp(logit - row_max) over the vocabulary"),
        ("group", "i64", "threads that meet each other first at a barrier: those under one L3"),
        ("row_parameters", "ptr", "records of ROW_FIELDS, [max_rows]"),
        ("token_masks", "ptr", "bits, [max_rows, logits_stride]: the allowed tokens, lowest bit first"),
        ("adjustment_ids", "ptr", "i32 [adjustment_capacity]"),
        ("adjustment_factors", "ptr", "f32 [adjustment_capacity]: divides positive logits, multiplies the others"),
        ("adjustment_offsets", "ptr", "f32 [adjustment_capacity]: added afterwards"),
        ("adjustment_capacity", "i64", "entries of the three, which rows take spans of"),
        ("drawn", "ptr", "i32 [max_rows], written: the token drawn, -1 where the largest logit is not finite"),
    ]
    fields = [Field(n, t, 64 * i, d) for i, (n, t, d) in enumerate(lines)]
    fields += [Field(n, t, 64 * len(lines) + 8 * i, d) for i, (n, t, d) in enumerate(plain)]
    assert fields[-1].offset < _GROUP_LINES
    counters = f"i32 a cache line, [{MAX_GROUPS}]: threads of each group that reached the current barrier"
    return (*fields, Field("group_arrived", "i32", _GROUP_LINES, counters))


FIELDS: Final = _layout()
BY_NAME: Final = {f.name: f for f in FIELDS}
SIZE: Final = _GROUP_LINES + 64 * MAX_GROUPS
"""Bytes of the struct; it starts at a multiple of 64."""


ROW_SIZE: Final = 64
"""Bytes of a row's record."""

ROW_FIELDS: Final = (
    Field("seed", "i64", 0, "of the row's noise, 64 bits"),
    Field("position", "i64", 8, "place of the token that is drawn; with the seed it settles the noise"),
    Field("inverse_temperature", "f32", 16, "multiplies logits; 0 takes the best token"),
    Field("top_p", "f32", 20, "share of probability that the best tokens must reach; 1 and more is off"),
    Field("log_min_p", "f32", 24, "how far below the best logit a token may lie, at most 0; -inf is off"),
    Field("typical_p", "f32", 28, "share that the most typical candidates must reach; 1 and more is off"),
    Field("top_k", "i32", 32, "best tokens considered; up to max_candidates the step must find as many; 0 is all"),
    Field("masked", "i32", 36, "non-zero: only tokens of the row's mask"),
    Field("adjustment_start", "i32", 40, "the row's first adjustment"),
    Field("adjustment_count", "i32", 44, "how many it has"),
)
ROW_BY_NAME: Final = {f.name: f for f in ROW_FIELDS}
