"""``Dequantize_<format>``: stored bytes to the float32 weights that they mean, one function a format.

Each takes ``stored uint8[N, row_bytes]`` and gives ``f32[N, K]``; numbers equal those of
``ryzc.formats.get(name).decode`` bit for bit. A body cuts a stored block into byte fields, turns
them into codes ``q`` and sub-scales, and ends in the affine form of :mod:`ryzc.formats.weight_format`.
Layouts: the GGUF specification of the GGML types.
"""

from __future__ import annotations

from collections.abc import Sequence

_SHARED = (
    # Two bytes, low first, to a float: bytes uint8[N, B, 2] -> f32[N, B, 1]
    """
    HalfToFloat (bytes) => (y)
    {
        wide = Cast<to = 4> (bytes)
        sizes = Constant<value_ints = [1, 1]> ()
        low, high = Split<axis = 2> (wide, sizes)
        eight = Constant<value = uint16 {8}> ()
        shifted = BitShift<direction = "LEFT"> (high, eight)
        bits = BitwiseOr (low, shifted)
        half = BitCast<to = 10> (bits)
        y = Cast<to = 1> (half)
    }
    """,
    # Both nibbles of runs of `span` bytes: bytes uint8[N, B, R * span] -> uint8[N, B, R * 2 * span], where
    # the low nibbles of a run come before its high ones.
    """
    Nibbles <span> (bytes) => (y)
    {
        shifts = Constant<value = uint8[2, 1] {0, 4}> ()
        y = ai.ryzc.BitFields<span = @span, mask = 15> (bytes, shifts)
    }
    """,
    # Bit fields of runs of `span` bytes: [N, B, R * span] shifted right by each of shifts uint8[F, 1] and
    # masked -> uint8[N, B, R * F * span]
    """
    BitFields <span, mask> (bytes, shifts) => (y)
    {
        one = Constant<value_ints = [1]> ()
        span0 = Constant<value_int = @span> ()
        span1 = Reshape (span0, one)
        cut = Constant<value_ints = [0, 0, -1, 1]> ()
        shape = Concat<axis = 0> (cut, span1)
        runs = Reshape (bytes, shape)
        shifted = BitShift<direction = "RIGHT"> (runs, shifts)
        mask0 = Constant<value_int = @mask> ()
        mask8 = Cast<to = 2> (mask0)
        fields = BitwiseAnd (shifted, mask8)
        flat = Constant<value_ints = [0, 0, -1]> ()
        y = Reshape (fields, flat)
    }
    """,
    # low | high << shift, uint8
    """
    JoinBits <shift> (low, high) => (y)
    {
        shift0 = Constant<value_int = @shift> ()
        shift8 = Cast<to = 2> (shift0)
        raised = BitShift<direction = "LEFT"> (high, shift8)
        y = BitwiseOr (low, raised)
    }
    """,
    # The first digits in base 3 of bytes that TQ1_0 packs: bytes uint8[N, B, R] times powers of 3 uint8[D, 1], of which
    # a byte keeps what is not carried out yet -> uint8[N, B, D * R]
    """
    Digits (bytes, powers) => (y)
    {
        axis = Constant<value_ints = [2]> ()
        each = Unsqueeze (bytes, axis)
        wide = Cast<to = 4> (each)
        powers16 = Cast<to = 4> (powers)
        products = Mul (wide, powers16)
        byte = Constant<value = uint16 {255}> ()
        left = BitwiseAnd (products, byte)
        three = Constant<value = uint16 {3}> ()
        tripled = Mul (left, three)
        eight = Constant<value = uint16 {8}> ()
        carried = BitShift<direction = "RIGHT"> (tripled, eight)
        digits = Cast<to = 2> (carried)
        flat = Constant<value_ints = [0, 0, -1]> ()
        y = Reshape (digits, flat)
    }
    """,
    # q f32[N, B, K/B] times scale f32[N, B, G], each over a group of equal size -> f32[N, B, G, K/B/G]
    """
    ByGroup (q, scale) => (y)
    {
        keep = Constant<value_ints = [0, 0]> ()
        groups = Shape<start = 2, end = 3> (scale)
        rest = Constant<value_ints = [-1]> ()
        shape = Concat<axis = 0> (keep, groups, rest)
        q4 = Reshape (q, shape)
        last = Constant<value_ints = [3]> ()
        scale4 = Unsqueeze (scale, last)
        y = Mul (scale4, q4)
    }
    """,
    # The eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K: packed uint8[N, B, 12]
    """
    SixBitPairs (packed) => (scales, minima)
    {
        thirds = Constant<value_ints = [4, 4, 4]> ()
        a, b, c = Split<axis = 2> (packed, thirds)
        low6 = Constant<value = uint8 {63}> ()
        low4 = Constant<value = uint8 {15}> ()
        four = Constant<value = uint8 {4}> ()
        six = Constant<value = uint8 {6}> ()
        scales_first = BitwiseAnd (a, low6)
        minima_first = BitwiseAnd (b, low6)
        scales_low = BitwiseAnd (c, low4)
        minima_low = BitShift<direction = "RIGHT"> (c, four)
        scales_high = BitShift<direction = "RIGHT"> (a, six)
        minima_high = BitShift<direction = "RIGHT"> (b, six)
        scales_last = ai.ryzc.JoinBits<shift = 4> (scales_low, scales_high)
        minima_last = ai.ryzc.JoinBits<shift = 4> (minima_low, minima_high)
        scales = Concat<axis = 2> (scales_first, scales_last)
        minima = Concat<axis = 2> (minima_first, minima_last)
    }
    """,
)


def _dequantize(
    name: str,
    fields: Sequence[tuple[str, int]],
    codes: str,
    *,
    zero: int = 0,
    sub_scales: bool = False,
    minimum: str = "",
) -> str:
    """The function of one format.

    Args:
        fields: names and bytes of a stored block's parts in order; ``d`` (and ``m``) are f16.
        codes: lines that compute ``q`` (uint8 or int8 [N, B, block]) and, where the format has
            sub-scales, ``s`` (and ``t``), numbers [N, B, groups].
        zero: the code that stands for 0.
        sub_scales: whether ``codes`` gives ``s``.
        minimum: empty, ``Add`` or ``Sub``: what happens to ``m`` (times ``t`` where there are sub-scales).
    """
    block_bytes = sum(size for _, size in fields)
    sizes = ", ".join(str(size) for _, size in fields)
    lines = [
        f"cut = Constant<value_ints = [0, -1, {block_bytes}]> ()",
        "blocks = Reshape (stored, cut)",
        f"sizes = Constant<value_ints = [{sizes}]> ()",
        f"{', '.join(field for field, _ in fields)} = Split<axis = 2> (blocks, sizes)",
        "d32 = ai.ryzc.HalfToFloat (d)",
        codes,
        "q32 = Cast<to = 1> (q)",
        f"zero = Constant<value_float = {float(zero)}> ()",
        "centred = Sub (q32, zero)",
    ]
    if sub_scales:
        lines += ["s32 = Cast<to = 1> (s)", "ds = Mul (d32, s32)"]
    else:
        lines += ["ds = Identity (d32)"]
    lines += ["scaled = ai.ryzc.ByGroup (centred, ds)"]
    if minimum:
        lines += ["m32 = ai.ryzc.HalfToFloat (m)"]
        lines += ["t32 = Cast<to = 1> (t)", "mt = Mul (m32, t32)"] if sub_scales else ["mt = Identity (m32)"]
        lines += ["last = Constant<value_ints = [3]> ()", "mt4 = Unsqueeze (mt, last)", f"w = {minimum} (scaled, mt4)"]
    else:
        lines += ["w = Identity (scaled)"]
    lines += ["flat = Constant<value_ints = [0, -1]> ()", "y = Reshape (w, flat)"]
    return f"Dequantize_{name} (stored) => (y)\n{{\n" + "\n".join(lines) + "\n}"


_NIBBLES_16 = "q = ai.ryzc.Nibbles<span = 16> (qs)"

# The fifth bit of element j is bit j of the four bytes qh.
_FIVE_BITS = """
    low = ai.ryzc.Nibbles<span = 16> (qs)
    each = Constant<value = uint8[8, 1] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    high = ai.ryzc.BitFields<span = 1, mask = 1> (qh, each)
    q = ai.ryzc.JoinBits<shift = 4> (low, high)
"""

_Q4_K = """
    q = ai.ryzc.Nibbles<span = 32> (qs)
    s, t = ai.ryzc.SixBitPairs (scales)
"""

# Bit g of byte l of qh belongs to element l of group g.
_Q5_K = """
    low = ai.ryzc.Nibbles<span = 32> (qs)
    each = Constant<value = uint8[8, 1] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    high = ai.ryzc.BitFields<span = 32, mask = 1> (qh, each)
    q = ai.ryzc.JoinBits<shift = 4> (low, high)
    s, t = ai.ryzc.SixBitPairs (scales)
"""

# Each half of 128 elements: nibbles of 64 bytes, and two more bits from each of 32 bytes.
_Q6_K = """
    low = ai.ryzc.Nibbles<span = 64> (ql)
    pairs = Constant<value = uint8[4, 1] {0, 2, 4, 6}> ()
    high = ai.ryzc.BitFields<span = 32, mask = 3> (qh, pairs)
    q = ai.ryzc.JoinBits<shift = 4> (low, high)
    s = BitCast<to = 3> (scales)
"""

_Q2_K = """
    pairs = Constant<value = uint8[4, 1] {0, 2, 4, 6}> ()
    q = ai.ryzc.BitFields<span = 32, mask = 3> (qs, pairs)
    low4 = Constant<value = uint8 {15}> ()
    four = Constant<value = uint8 {4}> ()
    s = BitwiseAnd (scales, low4)
    t = BitShift<direction = "RIGHT"> (scales, four)
"""

# The third bit of element l of group g is bit g of byte l of the mask. The sixteen 6-bit scales have
# their low nibbles in bytes 0-7 and their high pairs of bits in bytes 8-11.
_Q3_K = """
    pairs = Constant<value = uint8[4, 1] {0, 2, 4, 6}> ()
    low = ai.ryzc.BitFields<span = 32, mask = 3> (qs, pairs)
    each = Constant<value = uint8[8, 1] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    high = ai.ryzc.BitFields<span = 32, mask = 1> (hmask, each)
    q = ai.ryzc.JoinBits<shift = 2> (low, high)
    parts = Constant<value_ints = [8, 4]> ()
    nibbles, top = Split<axis = 2> (scales, parts)
    s_low = ai.ryzc.Nibbles<span = 8> (nibbles)
    s_high = ai.ryzc.BitFields<span = 4, mask = 3> (top, pairs)
    s_bits = ai.ryzc.JoinBits<shift = 4> (s_low, s_high)
    s_wide = Cast<to = 3> (s_bits)
    offset = Constant<value = int8 {32}> ()
    s = Sub (s_wide, offset)
"""

_TQ2_0 = """
    pairs = Constant<value = uint8[4, 1] {0, 2, 4, 6}> ()
    q = ai.ryzc.BitFields<span = 32, mask = 3> (qs, pairs)
"""

# Five digits of 32 bytes, five of 16 and four of 4.
_TQ1_0 = """
    five = Constant<value = uint8[5, 1] {1, 3, 9, 27, 81}> ()
    four = Constant<value = uint8[4, 1] {1, 3, 9, 27}> ()
    first = ai.ryzc.Digits (qs, five)
    second = ai.ryzc.Digits (qs16, five)
    last = ai.ryzc.Digits (qh, four)
    q = Concat<axis = 2> (first, second, last)
"""

_TRIT1 = """
    pairs = Constant<value = uint8[4, 1] {0, 2, 4, 6}> ()
    q = ai.ryzc.BitFields<span = 8, mask = 3> (qs, pairs)
"""

_TRIT2 = """
    pairs = Constant<value = uint8[4, 1] {0, 2, 4, 6}> ()
    low = ai.ryzc.BitFields<span = 8, mask = 3> (qs, pairs)
    each = Constant<value = uint8[8, 1] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    high = ai.ryzc.BitFields<span = 4, mask = 1> (qh, each)
    q = ai.ryzc.JoinBits<shift = 2> (low, high)
"""

# A row's scale, then four codes a byte, lowest bits first: stored uint8[N, 4 + K/4]. The bytes of the scale lie in
# memory as those of a float32 do.
_TERNARY = """
    Dequantize_ternary (stored) => (y)
    {
        starts = Constant<value_ints = [0]> ()
        header = Constant<value_ints = [4]> ()
        ends = Constant<value_ints = [9223372036854775807]> ()
        columns = Constant<value_ints = [1]> ()
        bytes = Slice (stored, starts, header, columns)
        packed = Slice (stored, header, ends, columns)
        wide = Cast<to = 12> (bytes)
        shifts = Constant<value = uint32[1, 4] {0, 8, 16, 24}> ()
        placed = BitShift<direction = "LEFT"> (wide, shifts)
        word = ReduceSum<keepdims = 1> (placed, columns)
        scale = BitCast<to = 1> (word)
        last = Constant<value_ints = [2]> ()
        codes3 = Unsqueeze (packed, last)
        pairs = Constant<value = uint8[1, 1, 4] {0, 2, 4, 6}> ()
        shifted = BitShift<direction = "RIGHT"> (codes3, pairs)
        mask = Constant<value = uint8 {3}> ()
        fields = BitwiseAnd (shifted, mask)
        flat = Constant<value_ints = [0, -1]> ()
        codes = Reshape (fields, flat)
        numbers = Cast<to = 1> (codes)
        one = Constant<value_float = 1.0> ()
        trits = Sub (numbers, one)
        y = Mul (trits, scale)
    }
"""

FUNCTIONS = (
    *_SHARED,
    _TERNARY,
    _dequantize("q4_0", [("d", 2), ("qs", 16)], _NIBBLES_16, zero=8),
    _dequantize("q4_1", [("d", 2), ("m", 2), ("qs", 16)], _NIBBLES_16, minimum="Add"),
    _dequantize("q5_0", [("d", 2), ("qh", 4), ("qs", 16)], _FIVE_BITS, zero=16),
    _dequantize("q5_1", [("d", 2), ("m", 2), ("qh", 4), ("qs", 16)], _FIVE_BITS, minimum="Add"),
    _dequantize("q8_0", [("d", 2), ("qs", 32)], "q = BitCast<to = 3> (qs)"),
    _dequantize("q2_k", [("scales", 16), ("qs", 64), ("d", 2), ("m", 2)], _Q2_K, sub_scales=True, minimum="Sub"),
    _dequantize("q3_k", [("hmask", 32), ("qs", 64), ("scales", 12), ("d", 2)], _Q3_K, zero=4, sub_scales=True),
    _dequantize("q4_k", [("d", 2), ("m", 2), ("scales", 12), ("qs", 128)], _Q4_K, sub_scales=True, minimum="Sub"),
    _dequantize(
        "q5_k", [("d", 2), ("m", 2), ("scales", 12), ("qh", 32), ("qs", 128)], _Q5_K, sub_scales=True, minimum="Sub"
    ),
    _dequantize("q6_k", [("ql", 128), ("qh", 64), ("scales", 16), ("d", 2)], _Q6_K, zero=32, sub_scales=True),
    _dequantize("tq1_0", [("qs", 32), ("qs16", 16), ("qh", 4), ("d", 2)], _TQ1_0, zero=1),
    _dequantize("tq2_0", [("qs", 64), ("d", 2)], _TQ2_0, zero=1),
    _dequantize("trit1", [("qs", 8), ("d", 2)], _TRIT1, zero=1),
    _dequantize("trit2", [("qs", 8), ("qh", 4), ("d", 2)], _TRIT2, zero=4),
)
