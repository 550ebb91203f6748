"""Keys and values in pages: the cache of a step over several sequences.

Position ``p`` of sequence ``s`` lives in slot ``p % page_tokens`` of page
``page_table[s, p / page_tokens]``. A layer has ``k_pages [pages, Hk, D, page_tokens]`` and
``v_pages [pages, Hk, page_tokens, D]``, f16 or f32. Entries of the page table that no token has
reached yet may name any page: what lies there is masked.
"""

ROTATED = """
        one = Constant<value_ints = [1]> ()
        heads0 = Constant<value_int = @heads> ()
        kv_heads0 = Constant<value_int = @kv_heads> ()
        head_dim0 = Constant<value_int = @head_dim> ()
        q_width0 = Mul (heads0, head_dim0)
        k_width0 = Mul (kv_heads0, head_dim0)
        q_width = Reshape (q_width0, one)
        k_width = Reshape (k_width0, one)
        widths = Concat<axis = 0> (q_width, k_width, k_width)
        q_raw, k_raw, v = Split<axis = 1> (qkv, widths)

        has_norms = OptionalHasElement (q_norm)
        q_normed, k_normed = If (has_norms) <
            then_branch = with_norms () => (q_yes, k_yes)
            {
                q_yes = ai.ryzc.HeadNorm<heads = @heads, epsilon = @epsilon> (q_raw, q_norm)
                k_yes = ai.ryzc.HeadNorm<heads = @kv_heads, epsilon = @epsilon> (k_raw, k_norm)
            },
            else_branch = without_norms () => (q_no, k_no)
            {
                q_no = Identity (q_raw)
                k_no = Identity (k_raw)
            }
        >
        q_rotated = ai.ryzc.Rope<heads = @heads, interleaved = @interleaved> (q_normed, cos, sin)
        k = ai.ryzc.Rope<heads = @kv_heads, interleaved = @interleaved> (k_normed, cos, sin)
"""
"""Queries, keys and values ``q_rotated``, ``k`` and ``v`` of ``qkv``: split, normed where norms are given, rotated."""

WHERE = """
        slots1 = Shape<start = 3, end = 4> (k_pages)
        entry = Div (positions, slots1)
        slot = Mod (positions, slots1)
        last = Constant<value_ints = [1]> ()
        sequences2 = Unsqueeze (sequences, last)
        entry2 = Unsqueeze (entry, last)
        cell = Concat<axis = 1> (sequences2, entry2)
        page = GatherND (page_table, cell)
"""
"""``page`` and ``slot`` of each token."""

FUNCTIONS = (
    # values [T, Hk * D] into pages [pages, page_tokens, Hk, D], at page[T], slot[T]
    """
    StorePaged (pages, values, page, slot) => (updated)
    {
        last = Constant<value_ints = [1]> ()
        page2 = Unsqueeze (page, last)
        slot2 = Unsqueeze (slot, last)
        where = Concat<axis = 1> (page2, slot2)
        tail = Shape<start = 2> (pages)
        keep = Constant<value_ints = [-1]> ()
        shape = Concat<axis = 0> (keep, tail)
        by_head = Reshape (values, shape)
        cells = CastLike (by_head, pages)
        updated = ScatterND (pages, where, cells)
    }
    """,
    # qkv f32[T, (Hq + 2 Hk) * D]; cos, sin f32[T, D/2]; page_table int64[S, P]; positions, sequences
    # int64[T]; q_norm, k_norm f32[D] or both absent. Norms (where given), rotates q and k, stores k and v.
    f"""
    RopeAppend <heads, kv_heads, head_dim, interleaved, epsilon>
    (qkv, cos, sin, k_pages, v_pages, page_table, positions, sequences, q_norm, k_norm)
    => (q, k_pages_out, v_pages_out)
    {{
        {ROTATED}
        q = Identity (q_rotated)

        {WHERE}
        k_rows = Transpose<perm = [0, 3, 1, 2]> (k_pages)
        k_stored = ai.ryzc.StorePaged (k_rows, k, page, slot)
        k_pages_out = Transpose<perm = [0, 2, 3, 1]> (k_stored)
        v_rows = Transpose<perm = [0, 2, 1, 3]> (v_pages)
        v_stored = ai.ryzc.StorePaged (v_rows, v, page, slot)
        v_pages_out = Transpose<perm = [0, 2, 1, 3]> (v_stored)
    }}
    """,
    # q f32[T, Hq * D], pages as above, page_table int64[S, P], positions, sequences int64[T]
    # -> f32[T, Hq * D]. All sequences' pages in a row are the keys; a token sees those of its own.
    """
    PagedAttention <heads, kv_heads, scale, window>
    (q, k_pages, v_pages, page_table, positions, sequences) => (y)
    {
        k_named = Gather<axis = 0> (k_pages, page_table)
        v_named = Gather<axis = 0> (v_pages, page_table)
        k_ordered = Transpose<perm = [0, 1, 4, 2, 3]> (k_named)
        v_ordered = Transpose<perm = [0, 1, 3, 2, 4]> (v_named)
        k_rows = Flatten<axis = 3> (k_ordered)
        v_rows = Flatten<axis = 3> (v_ordered)
        k = Cast<to = 1> (k_rows)
        v = Cast<to = 1> (v_rows)

        start = Constant<value_int = 0> ()
        step = Constant<value_int = 1> ()
        keys1 = Shape<start = 0, end = 1> (k)
        keys = Squeeze (keys1)
        index = Range (start, keys, step)
        entries1 = Shape<start = 1, end = 2> (page_table)
        slots1 = Shape<start = 2, end = 3> (v_pages)
        reach1 = Mul (entries1, slots1)
        key_position = Mod (index, reach1)
        key_sequence = Div (index, reach1)

        last = Constant<value_ints = [1]> ()
        of_query = Unsqueeze (positions, last)
        visible = ai.ryzc.Visible<window = @window> (of_query, key_position)
        sequence_of_query = Unsqueeze (sequences, last)
        own = Equal (sequence_of_query, key_sequence)
        mask = And (visible, own)
        y = ai.ryzc.MaskedAttention<heads = @heads, kv_heads = @kv_heads, scale = @scale> (q, k, v, mask)
    }
    """,
)
