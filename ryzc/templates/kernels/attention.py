"""Grouped-query attention over the paged cache, by online softmax.

A query takes its keys page by page in ascending order, always by the same operations, so its result
depends on its own sequence alone, never on the batch. What may differ is who shares a load: consecutive
tokens of one sequence, as in a prompt, go through the pages together, any other token alone. The math is
in :mod:`.attention_rows`; here stand the parameters and who does what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import I32, I64, Function, Value
from ryzc.errors import UnsupportedError
from ryzc.kv_formats import GROUP, KV_FORMATS, KVFormat
from ryzc.templates.kernels.attention_codes import CodeRows
from ryzc.templates.kernels.attention_float import FloatRows
from ryzc.templates.kernels.attention_pairs import PairRows
from ryzc.templates.kernels.attention_rows import LANES, MOST, Rows
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, mine, require_multiple
from ryzc.templates.kernels.pages import Pages

SPAN = 16
"""Blocks of a prompt's tokens that meet a head's keys and values before the next head does."""


@dataclass(frozen=True)
class Attention(Kernel):
    """Parameters.

    Attributes:
        heads, kv_heads, head_dim: of the layer; ``head_dim`` is a multiple of 16.
        page_tokens, page_bytes, dtype: of the cache; ``page_tokens`` is a multiple of 16.
        scale: factor of the scores.
        window: how many tokens back attention reaches, the query's own included; 0 is all.
        group: query heads of one KV head that a token alone takes together, sharing its loads, at most
            12; half as many where threads would be idle. Changes no bit of the result.
    """

    heads: int
    kv_heads: int
    head_dim: int
    page_tokens: int
    page_bytes: int
    dtype: str
    scale: float
    window: int
    group: int

    operands: ClassVar[tuple[str, ...]] = ("q", "cache", "out")

    def __post_init__(self) -> None:
        require_multiple(self, LANES, head_dim=self.head_dim, page_tokens=self.page_tokens)
        require_multiple(self, self.kv_heads * self.group, heads=self.heads)
        if KV_FORMATS[self.dtype].value_bits == 4:
            require_multiple(self, 2 * GROUP, head_dim=self.head_dim)
        if self.group > MOST:
            raise UnsupportedError(
                f"Attention: a group of {self.group} heads, more than {MOST}", hint="take a divisor of it"
            )

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        pages = Pages(fn, fn.args["cache"], self.head_dim, self.page_tokens, self.page_bytes, self.dtype)
        width, heads = _block(self.group)
        make = _rows_of(KV_FORMATS[self.dtype])
        together = make(isa, pages, width, heads, self.window)
        alone = make(isa, pages, 1, self.group, self.window)
        apart = make(isa, pages, 1, self.group // 2 if self.group % 2 == 0 else 1, self.window)
        count = context_field(fn, "token_count")
        few = (count * (self.heads // self.group)).compare("<", fn.args["threads"])
        with fn.loop(0, count, width * SPAN) as span:
            stop = fn.below(span.index + width * SPAN, count)
            whole = self._is_run(fn, span.index, stop, width * SPAN)
            size = whole.select(fn.i64(width * SPAN), width)
            with fn.loop(0, (stop - span.index + (size - 1)) // size) as part:
                first = span.index + part.index * size
                last = fn.below(first + size, stop)
                run = whole | self._is_run(fn, first, last, width)
                with fn.when(run):
                    self._share(pages, together, first, last)
                with fn.loop(run.select(last, first), last) as token:
                    with fn.when(few):
                        self._share(pages, apart, token.index, token.index + 1)
                    with fn.when(few ^ 1):
                        self._share(pages, alone, token.index, token.index + 1)
        fn.finish()

    def _is_run(self, fn: Function, first: Value, last: Value, width: int) -> Value:
        """Whether a block is whole and holds consecutive tokens of one sequence."""
        position, sequence = _place(fn, first)
        with fn.loop(first, last, 1, [(last - first).compare("==", width)]) as token:
            p, s = _place(fn, token.index)
            follows = p.compare("==", position + (token.index - first)) & s.compare("==", sequence)
            token.values = [token.values[0] & follows]
        return token.results[0]

    def _share(self, pages: Pages, rows: Rows, first: Value, last: Value) -> None:
        """Attend for this thread's share of the heads, for tokens ``first .. last``, as many at a time as rows hold.

        A head's keys and values stay in the cache until all these tokens have met them. Threads take items in turn: of
        a prompt the later ones cost more.
        """
        fn, units = pages.fn, self.heads // rows.group
        stride = 4 * self.heads * self.head_dim
        with fn.loop(0, units) as unit, fn.loop(first, last, rows.tokens) as token:
            item = token.index // rows.tokens * units + unit.index
            with fn.when(mine(fn, item)):
                position, sequence = _place(fn, token.index)
                offset = token.index * stride + unit.index * (4 * rows.group * self.head_dim)
                rows.read(fn.at(fn.args["q"], offset), stride, self.scale)
                rows.attend(pages.table(sequence), unit.index // (units // self.kv_heads), position)
                rows.write(fn.at(fn.args["out"], offset), stride)


KERNEL = Attention


def _rows_of(format_: KVFormat) -> type[Rows]:
    """What goes through pages of a format."""
    if not format_.coded:
        return FloatRows
    return CodeRows if format_.transformed else PairRows


def _block(group: int) -> tuple[int, int]:
    """Tokens and heads whose queries go through the pages together: as many as the registers hold sums for."""
    heads = max((h for h in range(1, group + 1) if group % h == 0), key=lambda h: (MOST // h * h, h))
    return max(1, MOST // heads), heads


def _place(fn: Function, token: Value) -> tuple[Value, Value]:
    """Position and sequence of a token of the batch."""
    position, sequence = (
        fn.load(I32, context_field(fn, name), token << 2, align=4).to_int(I64) for name in ("positions", "sequences")
    )
    return position, sequence


def reference(
    q: npt.NDArray[np.float32],
    k: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    *,
    scale: float,
    window: int,
) -> npt.NDArray[np.float64]:
    """The meaning for the last query of one sequence.

    Args:
        q: ``[Hq, D]``, at the position of the last key.
        k, v: ``[tokens, Hk, D]``.

    Returns:
        ``float64 [Hq, D]``.
    """
    first = max(0, len(k) - window) if window else 0
    per_kv = q.shape[0] // k.shape[1]
    keys, values = (np.repeat(a[first:].astype(np.float64), per_kv, axis=1) for a in (k, v))
    scores = np.einsum("hd,thd->ht", q.astype(np.float64), keys) * scale
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = np.einsum("ht,thd->hd", chances, values)
    return result
