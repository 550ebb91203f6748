"""Activations to int8 with one scale a block of 32.

``scale = amax / 127`` and ``code = round_half_even(y * (127 / amax))`` in float32; a block of zeros
has scale 0 and codes 0.
"""

FUNCTIONS = (
    # x f32[T, K] -> codes int8[T, K], scales f32[T, K/32]
    """
    Quantize (x) => (codes, scales)
    {
        split = Constant<value_ints = [0, -1, 32]> ()
        blocks = Reshape (x, split)
        size = Abs (blocks)
        last = Constant<value_ints = [2]> ()
        amax = ReduceMax<keepdims = 1> (size, last)
        top = Constant<value_float = 127.0> ()
        scales3 = Div (amax, top)
        scales = Squeeze (scales3, last)
        zero = Constant<value_float = 0.0> ()
        one = Constant<value_float = 1.0> ()
        empty = Equal (amax, zero)
        divisor = Where (empty, one, amax)
        inverse = Div (top, divisor)
        scaled = Mul (blocks, inverse)
        rounded = Round (scaled)
        codes3 = Cast<to = 3> (rounded)
        flat = Constant<value_ints = [0, -1]> ()
        codes = Reshape (codes3, flat)
    }
    """,
    # x f32[T, K], weight f32[K]
    """
    NormQuantize <epsilon> (x, weight) => (codes, scales)
    {
        y = RMSNormalization<axis = -1, epsilon = @epsilon> (x, weight)
        codes, scales = ai.ryzc.Quantize (y)
    }
    """,
)
