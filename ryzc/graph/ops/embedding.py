"""Embedding: rows of a table, scaled."""

FUNCTIONS = (
    # tokens int64[T], table f32[V, K] -> f32[T, K]
    """
    Embedding <scale> (tokens, table) => (y)
    {
        rows = Gather<axis = 0> (table, tokens)
        factor = Constant<value_float = @scale> ()
        y = Mul (rows, factor)
    }
    """,
)
