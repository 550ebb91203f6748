"""BitNet's linear layers: ternary weights, and activations in eight bits under one scale a token. arXiv:2402.17764.

``scale = amax / 127`` and ``code = clip(round_half_even(x * (127 / amax)), -128, 127)`` in float32, where ``amax`` is
the largest magnitude of a token, and 1e-5 at least. The codes mean ``codes * scales``.
"""

FUNCTIONS = (
    # x f32[T, K] -> codes int8[T, K], scales f32[T, 1]
    """
    QuantizeTokens (x) => (codes, scales)
    {
        size = Abs (x)
        last = Constant<value_ints = [1]> ()
        largest = ReduceMax<keepdims = 1> (size, last)
        least = Constant<value_float = 0.00001> ()
        amax = Max (largest, least)
        top = Constant<value_float = 127.0> ()
        bottom = Constant<value_float = -128.0> ()
        scales = Div (amax, top)
        inverse = Div (top, amax)
        scaled = Mul (x, inverse)
        rounded = Round (scaled)
        within = Clip (rounded, bottom, top)
        codes = Cast<to = 3> (within)
    }
    """,
    # x f32[T, K], weight f32[K]
    """
    NormQuantizeTokens <epsilon> (x, weight) => (codes, scales)
    {
        y = RMSNormalization<axis = -1, epsilon = @epsilon> (x, weight)
        codes, scales = ai.ryzc.QuantizeTokens (y)
    }
    """,
    # codes int8[T, K], scales f32[T, 1] -> f32[T, K]
    """
    DequantizeTokens (codes, scales) => (y)
    {
        codes32 = Cast<to = 1> (codes)
        y = Mul (codes32, scales)
    }
    """,
    # The rounding as a model states it: f32[T, K] -> f32[T, K]
    """
    RoundTokens (x) => (y)
    {
        codes, scales = ai.ryzc.QuantizeTokens (x)
        y = ai.ryzc.DequantizeTokens (codes, scales)
    }
    """,
    # Master weights as a model takes them: one scale a matrix, its mean magnitude, and 1e-5 at least.
    # f32[N, K] -> f32[N, K]
    """
    RoundWeights (weight) => (y)
    {
        size = Abs (weight)
        mean = ReduceMean<keepdims = 0> (size)
        least = Constant<value_float = 0.00001> ()
        scale = Max (mean, least)
        one = Constant<value_float = 1.0> ()
        minus_one = Constant<value_float = -1.0> ()
        inverse = Div (one, scale)
        shares = Mul (weight, inverse)
        rounded = Round (shares)
        codes = Clip (rounded, minus_one, one)
        y = Mul (codes, scale)
    }
    """,
    """
    BitLinear (codes, scales, weight) => (y)
    {
        x = ai.ryzc.DequantizeTokens (codes, scales)
        y = ai.ryzc.LinearF32 (x, weight)
    }
    """,
    # residual f32[T, N]
    """
    BitLinearResidual (codes, scales, weight, residual) => (y)
    {
        product = ai.ryzc.BitLinear (codes, scales, weight)
        y = Add (residual, product)
    }
    """,
    """
    BitLinearGated <activation> (codes, scales, gate_weight, up_weight) => (y)
    {
        gate = ai.ryzc.BitLinear (codes, scales, gate_weight)
        up = ai.ryzc.BitLinear (codes, scales, up_weight)
        y = ai.ryzc.Gate<activation = @activation> (gate, up)
    }
    """,
)
