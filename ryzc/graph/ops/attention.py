"""Attention of one sequence over itself."""

FUNCTIONS = (
    # Key j is seen by query i where position j <= position i and, unless window is 0,
    # position i - position j < window. q f32[T, Hq * D], k, v f32[T, Hk * D], positions int64[T].
    """
    CausalAttention <heads, kv_heads, scale, window> (q, k, v, positions) => (y)
    {
        rows = Constant<value_ints = [1]> ()
        columns = Constant<value_ints = [0]> ()
        of_query = Unsqueeze (positions, rows)
        of_key = Unsqueeze (positions, columns)
        mask = ai.ryzc.Visible<window = @window> (of_query, of_key)
        y = ai.ryzc.MaskedAttention<heads = @heads, kv_heads = @kv_heads, scale = @scale> (q, k, v, mask)
    }
    """,
    # of_query, of_key int64, broadcast against each other -> bool
    """
    Visible <window> (of_query, of_key) => (mask)
    {
        distance = Sub (of_query, of_key)
        zero = Constant<value_int = 0> ()
        reach = Constant<value_int = @window> ()
        past = GreaterOrEqual (distance, zero)
        near = Less (distance, reach)
        unlimited = Equal (reach, zero)
        reached = Or (near, unlimited)
        mask = And (past, reached)
    }
    """,
    # q f32[T, Hq * D], k, v f32[S, Hk * D], mask bool[T, S] -> f32[T, Hq * D]
    """
    MaskedAttention <heads, kv_heads, scale> (q, k, v, mask) => (y)
    {
        first = Constant<value_ints = [0]> ()
        q3 = Unsqueeze (q, first)
        k3 = Unsqueeze (k, first)
        v3 = Unsqueeze (v, first)
        y3 = Attention<q_num_heads = @heads, kv_num_heads = @kv_heads, scale = @scale> (q3, k3, v3, mask)
        y = Squeeze (y3, first)
    }
    """,
)
