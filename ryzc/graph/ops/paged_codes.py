"""Keys and values in pages of codes; the formats are those of :mod:`ryzc.kv_formats`.

The pages are those of :mod:`.paged` with codes for elements. Beside them stand ``k_scales`` and ``v_scales``,
``[pages, Hk, page_tokens, blocks of a head]``, and ``k_zeros`` and ``v_zeros`` likewise where codes have 4 bits: these
are bytes that count half steps. Codes of 8 and 4 bits stand for what came out of a Hadamard transform, which keeps
products and evens out what is large: queries go through it, too, and the result of attention goes back.
"""

from __future__ import annotations

from ryzc.graph.ops.paged import ROTATED, WHERE
from ryzc.kv_formats import GROUP, KV_FORMATS, NORM

_POWERS = ", ".join(repr(2.0**e) for e in range(-21, 11))


def _rounding(name: str, measure: str, top: float, tiny: float, *, kept: bool) -> str:
    """Blocks of ``x f32[T, W]`` as whole multiples of a part, ``1 / top``, of what measures them.

    What is kept are codes ``f32[T, W]``, whole numbers, and scales ``f32[T, W / block]``, bfloat16 numbers; else comes
    their product. Blocks that measure less than ``tiny`` are zero.
    """
    if kept:
        outputs = "codes, scale"
        steps = """
        short = Cast<to = 16> (exact)
        scale_or_less = Cast<to = 1> (short)
        inverse_or_more = Div (one, scale_or_less)"""
        end = """
        codes = Reshape (rounded, shape)
        scale = Squeeze (scale3, last)"""
    else:
        outputs = "y"
        steps = """
        scale_or_less = Identity (exact)
        inverse_or_more = Div (top, size)"""
        end = """
        multiples = Mul (rounded, scale3)
        y = Reshape (multiples, shape)"""
    return f"""
    {name} <block> (x) => ({outputs})
    {{
        block0 = Constant<value_int = @block> ()
        axis0 = Constant<value_ints = [0]> ()
        last = Constant<value_ints = [-1]> ()
        block1 = Unsqueeze (block0, axis0)
        by_block = Concat<axis = 0> (axis0, last, block1)
        x3 = Reshape (x, by_block)
        magnitude = Abs (x3)
        size = {measure}<keepdims = 1> (magnitude, last)
        tiny = Constant<value_float = {tiny!r}> ()
        zero = Less (size, tiny)
        top = Constant<value_float = {top}> ()
        nothing = Constant<value_float = 0.0> ()
        one = Constant<value_float = 1.0> ()
        exact = Div (size, top){steps}
        scale3 = Where (zero, nothing, scale_or_less)
        inverse = Where (zero, nothing, inverse_or_more)
        scaled = Mul (x3, inverse)
        rounded = Round (scaled)
        shape = Shape (x){end}
    }}
    """


_BASIC = (
    # x f32[T, W] -> the same shape: in blocks of n, a power of two,
    # y[i] = sum over j of (-1) ** (bits that i and j share) * x[j] / sqrt(n).
    """
    Hadamard <block> (x) => (y)
    {
        size = Constant<value_int = @block> ()
        first = Constant<value_int = 0> ()
        step = Constant<value_int = 1> ()
        two = Constant<value_int = 2> ()
        rows = Constant<value_ints = [1]> ()
        columns = Constant<value_ints = [0]> ()

        index = Range (first, size, step)
        i = Unsqueeze (index, rows)
        j = Unsqueeze (index, columns)
        shared = BitwiseAnd (i, j)
        powers = Constant<value_ints = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]> ()
        last = Constant<value_ints = [-1]> ()
        shared3 = Unsqueeze (shared, last)
        shifted = Div (shared3, powers)
        bits = Mod (shifted, two)
        count = ReduceSum<keepdims = 0> (bits, last)
        odd = Mod (count, two)
        odd_f = CastLike (odd, x)
        two_f = CastLike (two, x)
        one_f = CastLike (step, x)
        twice = Mul (two_f, odd_f)
        signs = Sub (one_f, twice)
        size_f = CastLike (size, x)
        root = Sqrt (size_f)
        matrix = Div (signs, root)

        size1 = Reshape (size, rows)
        in_blocks = Concat<axis = 0> (last, size1)
        blocks = Reshape (x, in_blocks)
        products = MatMul (blocks, matrix)
        shape = Shape (x)
        y = Reshape (products, shape)
    }
    """,
    # codes in -127 .. 127
    _rounding("QuantizeBlocks", "ReduceMax", 127.0, 2.0**-100, kept=True),
    # multiples of the largest magnitude / 32258
    _rounding("RoundQueries", "ReduceMax", 32258.0, 2.0**-100, kept=False),
    # codes whose norm is 32639 before they are rounded
    _rounding("QuantizeHeads", "ReduceL2", float(NORM), 2.0**-50, kept=True),
    # multiples of the norm / 32639
    _rounding("RoundHeads", "ReduceL2", float(NORM), 2.0**-50, kept=False),
    # x f32[T, W] -> codes f32[T, W], whole numbers in 0 .. 15, scale f32[T, W / block] and zero f32[T, W / block],
    # whole numbers in 0 .. 30. Of six grids the first with the least squared error: the smallest of 256 scales that
    # holds the block and the next smaller one, each with the codes around the block's middle, or half a step aside.
    f"""
    QuantizeGroups <block> (x) => (codes, scale, zero)
    {{
        size = Constant<value_int = @block> ()
        axis0 = Constant<value_ints = [0]> ()
        last = Constant<value_ints = [-1]> ()
        size1 = Unsqueeze (size, axis0)
        by_block = Concat<axis = 0> (axis0, last, size1)
        x3 = Reshape (x, by_block)
        nothing = Constant<value_float = 0.0> ()
        half = Constant<value_float = 0.5> ()
        one = Constant<value_float = 1.0> ()
        two = Constant<value_float = 2.0> ()
        middle = Constant<value_float = 15.0> ()
        end = Constant<value_float = 30.0> ()
        step = Constant<value_float = 0.0333333333333333333> ()
        largest = ReduceMax<keepdims = 1> (x3, last)
        smallest = ReduceMin<keepdims = 1> (x3, last)
        high = Max (largest, nothing)
        low = Min (smallest, nothing)
        span = Sub (high, low)
        least = Mul (span, step)

        powers = Constant<value_floats = [{_POWERS}]> ()
        eighths = Constant<value_floats = [1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875]> ()
        powers2 = Unsqueeze (powers, last)
        table2 = Mul (powers2, eighths)
        table = Reshape (table2, last)
        smaller = Less (table, least)
        smaller_i = Cast<to = 7> (smaller)
        place_or_more = ReduceSum<keepdims = 1> (smaller_i, last)
        top = Constant<value_int = 255> ()
        place = Min (place_or_more, top)
        down = Constant<value_ints = [0, 0, 0, 1, 1, 1]> ()
        aside = Constant<value_floats = [0.0, -1.0, 1.0, 0.0, -1.0, 1.0]> ()
        none = Constant<value_int = 0> ()
        places_or_less = Sub (place, down)
        places = Max (places_or_less, none)
        scales = Gather<axis = 0> (table, places)
        inverses = Div (one, scales)
        both = Add (low, high)
        steps = Mul (both, inverses)
        half_steps = Mul (steps, half)
        offset = Sub (middle, half_steps)
        offset_whole = Round (offset)
        moved_aside = Add (offset_whole, aside)
        zeros = Clip (moved_aside, nothing, end)

        grid = Constant<value_ints = [2]> ()
        x4 = Unsqueeze (x3, grid)
        inverses4 = Unsqueeze (inverses, last)
        zeros4 = Unsqueeze (zeros, last)
        scaled = Mul (x4, inverses4)
        moved = Add (scaled, zeros4)
        halved = Mul (moved, half)
        rounded = Round (halved)
        within = Clip (rounded, nothing, middle)
        doubled = Mul (within, two)
        kept = Sub (doubled, zeros4)
        error = Sub (scaled, kept)
        squared = Mul (error, error)
        sums = ReduceSum<keepdims = 0> (squared, last)
        unit = Mul (scales, scales)
        errors = Mul (sums, unit)
        best = ArgMin<axis = 2, keepdims = 1> (errors)
        scale3 = GatherElements<axis = 2> (scales, best)
        zero3 = GatherElements<axis = 2> (zeros, best)
        scale = Squeeze (scale3, last)
        zero = Squeeze (zero3, last)
        best4 = Unsqueeze (best, last)
        shape4 = Shape (x4)
        best_of_each = Expand (best4, shape4)
        codes4 = GatherElements<axis = 2> (within, best_of_each)
        shape = Shape (x)
        codes = Reshape (codes4, shape)
    }}
    """,
    # codes [.., D], zero [.., blocks] -> f32[.., D]: 2 * code - zero
    """
    Centred (codes, zero) => (y)
    {
        two = Constant<value_float = 2.0> ()
        last = Constant<value_ints = [-1]> ()
        codes_f = Cast<to = 1> (codes)
        zero_f = Cast<to = 1> (zero)
        leading = Shape (zero)
        by_block = Concat<axis = 0> (leading, last)
        blocks = Reshape (codes_f, by_block)
        doubled = Mul (two, blocks)
        zero_of_each = Unsqueeze (zero_f, last)
        less = Sub (doubled, zero_of_each)
        shape = Shape (codes)
        y = Reshape (less, shape)
    }
    """,
    # codes f32[.., D], scale f32[.., blocks] -> f32[.., D]: code * scale
    """
    Scaled (codes, scale) => (y)
    {
        last = Constant<value_ints = [-1]> ()
        leading = Shape (scale)
        by_block = Concat<axis = 0> (leading, last)
        blocks = Reshape (codes, by_block)
        scale_of_each = Unsqueeze (scale, last)
        products = Mul (blocks, scale_of_each)
        shape = Shape (codes)
        y = Reshape (products, shape)
    }
    """,
)

_SUFFIXES = {"int16": "Int16", "int8": "Int8", "int8-int4": "Int8Int4", "int4": "Int4"}


def suffix(name: str) -> str:
    """What the names of a format's operators end with; nothing where keys and values are floats."""
    return _SUFFIXES.get(name, "")


def cache(name: str) -> list[str]:
    """Names of what keeps a layer's keys and values in a format, in the order of its operators' operands."""
    format_ = KV_FORMATS[name]
    found = []
    for letter, bits in (("k", format_.key_bits), ("v", format_.value_bits)):
        found.append(f"{letter}_pages")
        found += [f"{letter}_scales"] * format_.coded + [f"{letter}_zeros"] * (bits == 4)
    return found


def _quantized(letter: str, bits: int, block: str) -> str:
    """Codes of ``{letter}_even`` with all that belongs to them."""
    if bits >= 8:
        quantize = "QuantizeHeads" if bits == 16 else "QuantizeBlocks"
        return f"{letter}_codes, {letter}_scale = ai.ryzc.{quantize}<block = {block}> ({letter}_even)"
    outputs = f"{letter}_codes, {letter}_scale, {letter}_zero"
    return f"{outputs} = ai.ryzc.QuantizeGroups<block = {GROUP}> ({letter}_even)"


_STORED = {"pages": "codes", "scales": "scale", "zeros": "zero"}


def _stored(part: str) -> str:
    """What was quantized goes to its slots; keys' codes lie ``[D, page_tokens]``, all else ``[page_tokens, ..]``."""
    letter, kind = part.split("_")
    to, back = ("[0, 3, 1, 2]", "[0, 2, 3, 1]") if part == "k_pages" else ("[0, 2, 1, 3]", "[0, 2, 1, 3]")
    return f"""
        {part}_rows = Transpose<perm = {to}> ({part})
        {part}_stored = ai.ryzc.StorePaged ({part}_rows, {letter}_{_STORED[kind]}, page, slot)
        {part}_out = Transpose<perm = {back}> ({part}_stored)"""


def _transform(name: str) -> str:
    """What queries, keys, values and results go through."""
    return "ai.ryzc.Hadamard<block = @block>" if KV_FORMATS[name].transformed else "Identity"


def _append(name: str) -> str:
    """As RopeAppend; q comes out transformed where keys are."""
    format_, parts = KV_FORMATS[name], cache(name)
    # A value of 8 or 16 bits has one scale: its block is the head.
    return f"""
    RopeAppend{suffix(name)} <heads, kv_heads, head_dim, interleaved, epsilon, block>
    (qkv, cos, sin, {", ".join(parts)}, page_table, positions, sequences, q_norm, k_norm)
    => (q, {", ".join(f"{part}_out" for part in parts)})
    {{
        {ROTATED}
        q = {_transform(name)} (q_rotated)
        k_even = {_transform(name)} (k)
        v_even = {_transform(name)} (v)
        {_quantized("k", format_.key_bits, "@block")}
        {_quantized("v", format_.value_bits, "@head_dim")}

        {WHERE}
        {"".join(_stored(part) for part in parts)}
    }}
    """


def _named(part: str) -> str:
    """The pages that the table names, one after the other: ``[Hk, keys, ..]``."""
    order = "[2, 0, 1, 4, 3]" if part == "k_pages" else "[2, 0, 1, 3, 4]"
    return f"""
        {part}_named = Gather<axis = 0> ({part}, page_table)
        {part}_ordered = Transpose<perm = {order}> ({part}_named)
        {part}_last = Shape<start = 4, end = 5> ({part}_ordered)
        {part}_shape = Concat<axis = 0> (kv_heads1, rest1, {part}_last)
        {part}_all = Reshape ({part}_ordered, {part}_shape)"""


def _signed(letter: str, bits: int) -> str:
    if bits >= 8:
        return f"{letter}_signed = Cast<to = 1> ({letter}_pages_all)"
    return f"{letter}_signed = ai.ryzc.Centred ({letter}_pages_all, {letter}_zeros_all)"


def _attention(name: str) -> str:
    """As PagedAttention, over quantized queries, keys and values, transformed where the format is.

    Probabilities times the scales of their values are quantized page by page, for each block of a value that has a
    scale: 127 is the page's largest, or 32639 the sum of the page's beside keys and values of 16 bits.
    """
    format_, parts = KV_FORMATS[name], cache(name)
    rounded, most, together = (
        ("RoundQueries", 127.0, "ReduceMax") if format_.transformed else ("RoundHeads", float(NORM), "ReduceSum")
    )
    return f"""
    PagedAttention{suffix(name)} <heads, kv_heads, scale, window, block>
    (q, {", ".join(parts)}, page_table, positions, sequences) => (y)
    {{
        heads0 = Constant<value_int = @heads> ()
        kv_heads0 = Constant<value_int = @kv_heads> ()
        first1 = Constant<value_ints = [0]> ()
        heads1 = Unsqueeze (heads0, first1)
        kv_heads1 = Unsqueeze (kv_heads0, first1)
        one1 = Constant<value_ints = [1]> ()
        rest1 = Constant<value_ints = [-1]> ()
        slots1 = Shape<start = 2, end = 3> (v_pages)
        tokens1 = Shape<start = 0, end = 1> (q)
        head_dim1 = Shape<start = 3, end = 4> (v_pages)
        {"".join(_named(part) for part in parts)}
        {_signed("k", format_.key_bits)}
        {_signed("v", format_.value_bits)}
        k = ai.ryzc.Scaled (k_signed, k_scales_all)

        q_kept = ai.ryzc.{rounded}<block = @block> (q)
        by_head = Concat<axis = 0> (first1, heads1, rest1)
        q3 = Reshape (q_kept, by_head)
        q_rows = Transpose<perm = [1, 0, 2]> (q3)
        q_shape = Concat<axis = 0> (kv_heads1, rest1, head_dim1)
        q_group = Reshape (q_rows, q_shape)
        k_columns = Transpose<perm = [0, 2, 1]> (k)
        products = MatMul (q_group, k_columns)
        factor = Constant<value_float = @scale> ()
        scores = Mul (products, factor)

        start = Constant<value_int = 0> ()
        step = Constant<value_int = 1> ()
        keys1 = Shape<start = 1, end = 2> (k)
        keys = Squeeze (keys1)
        index = Range (start, keys, step)
        entries1 = Shape<start = 1, end = 2> (page_table)
        reach1 = Mul (entries1, slots1)
        key_position = Mod (index, reach1)
        key_sequence = Div (index, reach1)
        of_query = Unsqueeze (positions, one1)
        visible = ai.ryzc.Visible<window = @window> (of_query, key_position)
        sequence_of_query = Unsqueeze (sequences, one1)
        own = Equal (sequence_of_query, key_sequence)
        mask = And (visible, own)

        by_token = Concat<axis = 0> (kv_heads1, rest1, tokens1, keys1)
        scores4 = Reshape (scores, by_token)
        lowest = Constant<value_float = -1.0e30> ()
        nothing = Constant<value_float = 0.0> ()
        seen = Where (mask, scores4, lowest)
        best = ReduceMax<keepdims = 1> (seen, rest1)
        lead = Sub (seen, best)
        chance_or_more = Exp (lead)
        chance = Where (mask, chance_or_more, nothing)
        total = ReduceSum<keepdims = 1> (chance, rest1)

        v_scale_columns = Transpose<perm = [0, 2, 1]> (v_scales_all)
        axes = Constant<value_ints = [2, 3]> ()
        v_scale5 = Unsqueeze (v_scale_columns, axes)
        chance5 = Unsqueeze (chance, one1)
        weight_or_more = Mul (chance5, v_scale5)
        weight = Where (mask, weight_or_more, nothing)
        blocks1 = Shape<start = 1, end = 2> (v_scale_columns)
        rows1 = Shape<start = 0, end = 1> (page_table)
        pages1 = Mul (rows1, entries1)
        all_pages = Concat<axis = 0> (kv_heads1, blocks1, rest1, pages1, slots1)
        weights5 = Reshape (weight, all_pages)
        together_or_none = {together}<keepdims = 1> (weights5, rest1)
        tiny = Constant<value_float = 7.8886090522101181e-31> ()
        together = Max (together_or_none, tiny)
        most = Constant<value_float = {most}> ()
        inverse = Div (most, together)
        scaled = Mul (weights5, inverse)
        codes5 = Round (scaled)
        page_step = Div (together, most)
        kept5 = Mul (codes5, page_step)
        kept_shape = Concat<axis = 0> (kv_heads1, blocks1, rest1, keys1)
        kept = Reshape (kept5, kept_shape)
        v_shape = Concat<axis = 0> (kv_heads1, keys1, blocks1, rest1)
        v_blocks = Reshape (v_signed, v_shape)
        v_by_block = Transpose<perm = [0, 2, 1, 3]> (v_blocks)
        sums4 = MatMul (kept, v_by_block)
        sums_by_row = Transpose<perm = [0, 2, 1, 3]> (sums4)
        sums_shape = Concat<axis = 0> (kv_heads1, rest1, head_dim1)
        sums = Reshape (sums_by_row, sums_shape)
        total_shape = Concat<axis = 0> (kv_heads1, rest1, one1)
        totals = Reshape (total, total_shape)
        results = Div (sums, totals)
        head_shape = Concat<axis = 0> (heads1, tokens1, head_dim1)
        head_rows = Reshape (results, head_shape)
        token_rows = Transpose<perm = [1, 0, 2]> (head_rows)
        flat_shape = Concat<axis = 0> (tokens1, rest1)
        flat = Reshape (token_rows, flat_shape)
        y = {_transform(name)} (flat)
    }}
    """


FUNCTIONS = (*_BASIC, *(make(name) for name in _SUFFIXES for make in (_append, _attention)))
