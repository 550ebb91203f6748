"""Keys and values in pages of int8, one scale for a head of a token.

The pages are those of :mod:`.paged` with codes for elements; beside them stand ``k_scales`` and ``v_scales
[pages, Hk, page_tokens]``. Before they are quantized, queries, keys and values go through a Hadamard
transform, which keeps products and evens out what is large; the result of attention goes back through it.
"""

from ryzc.graph.ops.paged import ROTATED, WHERE

FUNCTIONS = (
    # x f32[T, H * D] -> the same shape: in blocks of n, the largest power of two that divides D,
    # y[i] = sum over j of (-1) ** (bits that i and j share) * x[j] / sqrt(n).
    """
    Hadamard <heads> (x) => (y)
    {
        heads0 = Constant<value_int = @heads> ()
        first = Constant<value_int = 0> ()
        step = Constant<value_int = 1> ()
        two = Constant<value_int = 2> ()
        rows = Constant<value_ints = [1]> ()
        columns = Constant<value_ints = [0]> ()
        width1 = Shape<start = 1, end = 2> (x)
        width = Squeeze (width1)
        head_dim = Div (width, heads0)
        negative = Neg (head_dim)
        size = BitwiseAnd (head_dim, negative)

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
    # x f32[T, H * D] -> codes f32[T, H * D], whole numbers in -127 .. 127, and scale f32[T, H]
    """
    QuantizeHeads <heads> (x) => (codes, scale)
    {
        heads0 = Constant<value_int = @heads> ()
        same = Constant<value_ints = [0]> ()
        rest = Constant<value_ints = [-1]> ()
        heads1 = Unsqueeze (heads0, same)
        by_head = Concat<axis = 0> (same, heads1, rest)
        x3 = Reshape (x, by_head)
        size = Abs (x3)
        amax = ReduceMax<keepdims = 1> (size, rest)
        tiny = Constant<value_float = 7.8886090522101181e-31> ()
        zero = Less (amax, tiny)
        most = Constant<value_float = 127.0> ()
        nothing = Constant<value_float = 0.0> ()
        inverse_or_more = Div (most, amax)
        inverse = Where (zero, nothing, inverse_or_more)
        scale_or_less = Div (amax, most)
        scale3 = Where (zero, nothing, scale_or_less)
        scaled = Mul (x3, inverse)
        rounded = Round (scaled)
        shape = Shape (x)
        codes = Reshape (rounded, shape)
        scale = Squeeze (scale3, rest)
    }
    """,
    # As RopeAppend; q comes out transformed.
    f"""
    RopeAppendInt8 <heads, kv_heads, head_dim, interleaved, epsilon>
    (qkv, cos, sin, k_pages, k_scales, v_pages, v_scales, page_table, positions, sequences, q_norm, k_norm)
    => (q, k_pages_out, k_scales_out, v_pages_out, v_scales_out)
    {{
        {ROTATED}
        q = ai.ryzc.Hadamard<heads = @heads> (q_rotated)
        k_even = ai.ryzc.Hadamard<heads = @kv_heads> (k)
        v_even = ai.ryzc.Hadamard<heads = @kv_heads> (v)
        k_codes, k_scale = ai.ryzc.QuantizeHeads<heads = @kv_heads> (k_even)
        v_codes, v_scale = ai.ryzc.QuantizeHeads<heads = @kv_heads> (v_even)

        {WHERE}
        k_rows = Transpose<perm = [0, 3, 1, 2]> (k_pages)
        k_stored = ai.ryzc.StorePaged (k_rows, k_codes, page, slot)
        k_pages_out = Transpose<perm = [0, 2, 3, 1]> (k_stored)
        v_rows = Transpose<perm = [0, 2, 1, 3]> (v_pages)
        v_stored = ai.ryzc.StorePaged (v_rows, v_codes, page, slot)
        v_pages_out = Transpose<perm = [0, 2, 1, 3]> (v_stored)
        k_scale_rows = Transpose<perm = [0, 2, 1]> (k_scales)
        k_scale_stored = ai.ryzc.StorePaged (k_scale_rows, k_scale, page, slot)
        k_scales_out = Transpose<perm = [0, 2, 1]> (k_scale_stored)
        v_scale_rows = Transpose<perm = [0, 2, 1]> (v_scales)
        v_scale_stored = ai.ryzc.StorePaged (v_scale_rows, v_scale, page, slot)
        v_scales_out = Transpose<perm = [0, 2, 1]> (v_scale_stored)
    }}
    """,
    # As PagedAttention, over transformed and quantized queries, keys and values. Probabilities times the
    # scales of their values are quantized page by page: 127 is the page's largest.
    """
    PagedAttentionInt8 <heads, kv_heads, scale, window>
    (q, k_pages, k_scales, v_pages, v_scales, page_table, positions, sequences) => (y)
    {
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

        k_named = Gather<axis = 0> (k_pages, page_table)
        v_named = Gather<axis = 0> (v_pages, page_table)
        k_scales_named = Gather<axis = 0> (k_scales, page_table)
        v_scales_named = Gather<axis = 0> (v_scales, page_table)
        k_ordered = Transpose<perm = [2, 3, 0, 1, 4]> (k_named)
        v_ordered = Transpose<perm = [2, 0, 1, 3, 4]> (v_named)
        k_scales_ordered = Transpose<perm = [2, 0, 1, 3]> (k_scales_named)
        v_scales_ordered = Transpose<perm = [2, 0, 1, 3]> (v_scales_named)
        k_shape = Concat<axis = 0> (kv_heads1, head_dim1, rest1)
        v_shape = Concat<axis = 0> (kv_heads1, rest1, head_dim1)
        scales_shape = Concat<axis = 0> (kv_heads1, one1, rest1)
        k_codes = Reshape (k_ordered, k_shape)
        v_codes = Reshape (v_ordered, v_shape)
        k_scale = Reshape (k_scales_ordered, scales_shape)
        v_scale = Reshape (v_scales_ordered, scales_shape)
        k = Cast<to = 1> (k_codes)
        v = Cast<to = 1> (v_codes)

        q_codes, q_scale = ai.ryzc.QuantizeHeads<heads = @heads> (q)
        by_head = Concat<axis = 0> (first1, heads1, rest1)
        q3 = Reshape (q_codes, by_head)
        q_rows = Transpose<perm = [1, 0, 2]> (q3)
        q_shape = Concat<axis = 0> (kv_heads1, rest1, head_dim1)
        q_group = Reshape (q_rows, q_shape)
        q_scale_rows = Transpose<perm = [1, 0]> (q_scale)
        q_scale_shape = Concat<axis = 0> (kv_heads1, rest1, one1)
        q_scale_group = Reshape (q_scale_rows, q_scale_shape)

        dots = MatMul (q_group, k)
        of_keys = Mul (dots, k_scale)
        of_both = Mul (of_keys, q_scale_group)
        factor = Constant<value_float = @scale> ()
        scores = Mul (of_both, factor)

        start = Constant<value_int = 0> ()
        step = Constant<value_int = 1> ()
        keys1 = Shape<start = 2, end = 3> (k)
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

        v_scale4 = Unsqueeze (v_scale, one1)
        weight_or_more = Mul (chance, v_scale4)
        weight = Where (mask, weight_or_more, nothing)
        rows1 = Shape<start = 0, end = 1> (page_table)
        pages1 = Mul (rows1, entries1)
        all_pages = Concat<axis = 0> (kv_heads1, rest1, tokens1, pages1, slots1)
        weights5 = Reshape (weight, all_pages)
        largest_or_none = ReduceMax<keepdims = 1> (weights5, rest1)
        tiny = Constant<value_float = 7.8886090522101181e-31> ()
        largest = Max (largest_or_none, tiny)
        most = Constant<value_float = 127.0> ()
        inverse = Div (most, largest)
        scaled = Mul (weights5, inverse)
        codes5 = Round (scaled)
        page_step = Div (largest, most)
        kept5 = Mul (codes5, page_step)
        group_shape = Concat<axis = 0> (kv_heads1, rest1, keys1)
        kept = Reshape (kept5, group_shape)
        sums = MatMul (kept, v)
        total_shape = Concat<axis = 0> (kv_heads1, rest1, one1)
        totals = Reshape (total, total_shape)
        results = Div (sums, totals)
        head_shape = Concat<axis = 0> (heads1, tokens1, head_dim1)
        head_rows = Reshape (results, head_shape)
        token_rows = Transpose<perm = [1, 0, 2]> (head_rows)
        flat_shape = Concat<axis = 0> (tokens1, rest1)
        flat = Reshape (token_rows, flat_shape)
        y = ai.ryzc.Hadamard<heads = @heads> (flat)
    }
    """,
)
