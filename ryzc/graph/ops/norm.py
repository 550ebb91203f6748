"""RMS norms that ONNX has no single operator for. RMSNorm: arXiv:1910.07467."""

FUNCTIONS = (
    # One norm a head: x f32[T, heads * D], weight f32[D] -> f32[T, heads * D]
    """
    HeadNorm <heads, epsilon> (x, weight) => (y)
    {
        count = Constant<value_int = @heads> ()
        one = Constant<value_ints = [1]> ()
        keep = Constant<value_ints = [0]> ()
        rest = Constant<value_ints = [-1]> ()
        heads1 = Reshape (count, one)
        split = Concat<axis = 0> (keep, heads1, rest)
        by_head = Reshape (x, split)
        normed = RMSNormalization<axis = -1, epsilon = @epsilon> (by_head, weight)
        flat = Constant<value_ints = [0, -1]> ()
        y = Reshape (normed, flat)
    }
    """,
    # The norm after a block (Gemma's sandwich): x, residual f32[T, K], weight f32[K] -> f32[T, K]
    """
    NormAdd <epsilon> (x, weight, residual) => (y)
    {
        normed = RMSNormalization<axis = -1, epsilon = @epsilon> (x, weight)
        y = Add (residual, normed)
    }
    """,
)
