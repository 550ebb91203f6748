"""Rotary position embedding (arXiv:2104.09864)."""

FUNCTIONS = (
    # The angles are computed in float64, so that far positions lose nothing:
    # positions int64[T], inv_freq f64[D/2] -> cos, sin f32[T, D/2]
    """
    RopeAngles (positions, inv_freq) => (cos, sin)
    {
        last = Constant<value_ints = [1]> ()
        column = Unsqueeze (positions, last)
        steps = Cast<to = 11> (column)
        angles = Mul (steps, inv_freq)
        cos64 = Cos (angles)
        sin64 = Sin (angles)
        cos = Cast<to = 1> (cos64)
        sin = Cast<to = 1> (sin64)
    }
    """,
    # x f32[T, heads * D], cos, sin f32[T, D/2] -> f32[T, heads * D].
    # interleaved 1 turns the pairs (2i, 2i + 1) of a head, 0 the pairs (i, i + D/2).
    """
    Rope <heads, interleaved> (x, cos, sin) => (y)
    {
        first = Constant<value_ints = [0]> ()
        batch = Unsqueeze (x, first)
        cos3 = Unsqueeze (cos, first)
        sin3 = Unsqueeze (sin, first)
        turned = RotaryEmbedding<interleaved = @interleaved, num_heads = @heads> (batch, cos3, sin3)
        y = Squeeze (turned, first)
    }
    """,
)
