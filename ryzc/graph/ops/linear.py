"""Linear layers ``y = x @ W.T`` with what is fused into them, weights ``W f32[N, K]``.

The F32 forms take float activations ``x f32[T, K]``. The others take ``codes int8[T, K]`` with
``scales f32[T, K/32]`` (see :mod:`ryzc.graph.ops.quantize`), whose meaning is ``codes * scales``.
"""

FUNCTIONS = (
    """
    LinearF32 (x, weight) => (y)
    {
        columns = Transpose<perm = [1, 0]> (weight)
        y = MatMul (x, columns)
    }
    """,
    # residual f32[T, N]
    """
    LinearF32Residual (x, weight, residual) => (y)
    {
        product = ai.ryzc.LinearF32 (x, weight)
        y = Add (residual, product)
    }
    """,
    """
    LinearF32Gated <activation> (x, gate_weight, up_weight) => (y)
    {
        gate = ai.ryzc.LinearF32 (x, gate_weight)
        up = ai.ryzc.LinearF32 (x, up_weight)
        y = ai.ryzc.Gate<activation = @activation> (gate, up)
    }
    """,
    # SwiGLU ("silu") and GeGLU ("gelu_tanh"): arXiv:2002.05202; squared ReLU ("relu2"): arXiv:2109.08668. The evaluator
    # compares only strings of one numpy type, which passing through one tensor gives them.
    """
    Gate <activation> (gate, up) => (y)
    {
        wanted = Constant<value_string = @activation> ()
        one = Constant<value_ints = [1]> ()
        wanted1 = Reshape (wanted, one)
        known = Constant<value_strings = ["silu", "relu2"]> ()
        names = Concat<axis = 0> (wanted1, known)
        sizes = Constant<value_ints = [1, 1, 1]> ()
        given, silu_name, relu2_name = Split<axis = 0> (names, sizes)
        is_silu = Equal (given, silu_name)
        is_relu2 = Equal (given, relu2_name)
        sigmoid = Sigmoid (gate)
        silu = Mul (gate, sigmoid)
        relu = Relu (gate)
        relu2 = Mul (relu, relu)
        gelu = ai.ryzc.GeluTanh (gate)
        relu2_or_gelu = Where (is_relu2, relu2, gelu)
        active = Where (is_silu, silu, relu2_or_gelu)
        y = Mul (active, up)
    }
    """,
    # What ONNX's Gelu with approximate = "tanh" means, spelt out because the evaluator cannot derive
    # Gelu within a function: arXiv:1606.08415
    """
    GeluTanh (x) => (y)
    {
        coefficient = Constant<value_float = 0.044715> ()
        factor = Constant<value_float = 0.7978845608> ()
        half = Constant<value_float = 0.5> ()
        one = Constant<value_float = 1.0> ()
        square = Mul (x, x)
        cube = Mul (square, x)
        bent = Mul (coefficient, cube)
        sum = Add (x, bent)
        inner = Mul (factor, sum)
        tanh = Tanh (inner)
        gain = Add (one, tanh)
        half_x = Mul (half, x)
        y = Mul (half_x, gain)
    }
    """,
    """
    Linear (codes, scales, weight) => (y)
    {
        x = DequantizeLinear<axis = 1, block_size = 32> (codes, scales)
        y = ai.ryzc.LinearF32 (x, weight)
    }
    """,
    """
    LinearResidual (codes, scales, weight, residual) => (y)
    {
        product = ai.ryzc.Linear (codes, scales, weight)
        y = Add (residual, product)
    }
    """,
    """
    LinearGated <activation> (codes, scales, gate_weight, up_weight) => (y)
    {
        gate = ai.ryzc.Linear (codes, scales, gate_weight)
        up = ai.ryzc.Linear (codes, scales, up_weight)
        y = ai.ryzc.Gate<activation = @activation> (gate, up)
    }
    """,
    """
    LinearGatedQuantize <activation> (codes, scales, gate_weight, up_weight) => (gated_codes, gated_scales)
    {
        y = ai.ryzc.LinearGated<activation = @activation> (codes, scales, gate_weight, up_weight)
        gated_codes, gated_scales = ai.ryzc.Quantize (y)
    }
    """,
)
