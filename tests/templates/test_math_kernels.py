"""The elementary functions over float32, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from harness import close, for_every_isa, run, same_bits
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, vec
from ryzc.templates.kernels import scalar_math
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, share

F64 = npt.NDArray[np.float64]
UNIT = 2.0**-24


@dataclass(frozen=True)
class Elementwise(Kernel):
    """``out[i] = function(x[i])``, some lanes at a time."""

    function: str
    lanes: int

    operands: ClassVar[tuple[str, ...]] = ("x", "out")

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        apply = getattr(scalar_math, self.function)
        kind = vec(F32, self.lanes) if self.lanes > 1 else F32
        with fn.loop(*share(fn, context_field(fn, "token_count") // self.lanes)) as i:
            at = i.index * (4 * self.lanes)
            fn.store(apply(fn, fn.load(kind, fn.args["x"], at, align=4)), fn.args["out"], at, align=4)
        fn.finish()


def apply(target: str, function: str, x: npt.NDArray[np.float32], lanes: int = 16) -> npt.NDArray[np.float32]:
    out = np.full_like(x, 7)
    run(Elementwise(function, lanes), target, [x, out], token_count=x.size)
    return out


def samples(low: float, high: float) -> npt.NDArray[np.float32]:
    """Evenly and at random, and both sides of every half integer and half integer
    multiple of ln 2 (where exp2's and exp's ranges split)."""
    rng = np.random.default_rng(5)
    halves = np.arange(math.ceil(low / math.log(2)), high / math.log(2)) + 0.5
    edges = np.concatenate([halves, halves * math.log(2)])
    near = edges.astype(np.float32)[:, None] + np.array([-1e-5, 0, 1e-5], np.float32)
    small = 2.0 ** rng.uniform(-40, 0, 1000) * rng.choice([-1, 1], 1000)
    parts = [np.linspace(low, high, 20001), rng.uniform(low, high, 20000), near.ravel(), small, [low, high, 0.0, -0.0]]
    x = np.concatenate(parts).clip(low, high).astype(np.float32)
    return x[: x.size // 16 * 16]


def sigmoid(x: F64) -> F64:
    y: F64 = 1 / (1 + np.exp(-x))
    return y


def gelu_tanh(x: F64) -> F64:
    y: F64 = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


@for_every_isa
def test_exp(target: str) -> None:
    x = samples(-87, 88)
    expected = np.exp(x.astype(np.float64))
    close(apply(target, "exp", x), expected, 2e-7 * expected)


@for_every_isa
def test_exp2(target: str) -> None:
    """Of what is not positive, as differences from a maximum are; the maximum itself counts exactly one."""
    x = samples(-125, 0)
    expected = np.exp2(x.astype(np.float64))
    found = apply(target, "exp2", x)
    close(found, expected, 2e-7 * expected)
    assert (found[x == 0] == 1).all()
    low = np.array([-125, -125.5, -1e30, -np.inf] * 4, np.float32)
    assert (apply(target, "exp2", low) == 2.0**-125).all()


@for_every_isa
def test_exp_is_clamped(target: str) -> None:
    x = np.array([-1e30, -np.inf, -88, -87.5, -87, 88, 88.5, 1e30, np.inf, 0, np.nan, 1, 1, 1, 1, 1], np.float32)
    found = apply(target, "exp", x)
    assert (found[:5] == found[4]).all()
    assert (found[5:9] == found[5]).all()
    assert found[9] == 1
    assert np.isfinite(found).all()


@for_every_isa
def test_log(target: str) -> None:
    """Relative also near one, where the logarithm itself goes to zero."""
    rng = np.random.default_rng(4)
    parts = [2.0 ** rng.uniform(-126, 127, 40000), np.linspace(0.4, 2.1, 40000), 1 + rng.normal(size=16000) * 1e-4]
    x = np.concatenate([*parts, [1.0] * 16]).astype(np.float32)
    expected = np.log(x.astype(np.float64))
    close(apply(target, "log", x), expected, 2e-7 * np.abs(expected))


@for_every_isa
def test_reciprocal(target: str) -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([np.linspace(1, 4, 30000), 2.0 ** rng.uniform(0, 125, 30000)]).astype(np.float32)
    expected = 1 / x.astype(np.float64)
    close(apply(target, "reciprocal", x), expected, 1.5e-7 * expected)


# Relative error of e**-x, of the sum and of the quotient; past x = -87, where the exponential is clamped,
# results are below 1e-35 and meant to be zero.
@for_every_isa
@pytest.mark.parametrize(
    ("function", "exact"), [("sigmoid", sigmoid), ("silu", lambda x: x * sigmoid(x))], ids=["sigmoid", "silu"]
)
def test_sigmoid_and_silu(target: str, function: str, exact: Callable[[F64], F64]) -> None:
    x = samples(-120, 120)
    expected = exact(x.astype(np.float64))
    close(apply(target, function, x), expected, (2e-7 + 3 * UNIT) * np.abs(expected) + 1e-35)


@for_every_isa
def test_gelu_tanh(target: str) -> None:
    """The error of ``2 z`` counts relatively in ``e**-2z``: the bound grows with ``|z|``."""
    x = samples(-20, 20)
    wide = x.astype(np.float64)
    expected = gelu_tanh(wide)
    doubled = np.abs(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)).clip(max=90)
    # Below -87 the exponential is clamped, and 1 + tanh cancels in the reference itself: 1e-15 of x.
    bound = (2e-7 + (4 + 6 * doubled) * UNIT) * np.abs(expected) + 1e-15 * np.abs(wide)
    close(apply(target, "gelu_tanh", x), expected, bound)


@for_every_isa
@pytest.mark.parametrize("function", ["exp", "exp2", "sigmoid", "silu", "gelu_tanh"])
def test_results_do_not_depend_on_the_vector_width(target: str, function: str) -> None:
    x = samples(-90, 0 if function == "exp2" else 90)
    wide = apply(target, function, x)
    for lanes in (1, 8):
        assert same_bits(apply(target, function, x, lanes), wide)


@for_every_isa
@pytest.mark.parametrize("function", ["sigmoid", "silu", "gelu_tanh"])
def test_infinities(target: str, function: str) -> None:
    x = np.zeros(16, np.float32)
    x[:3] = 1e9, -1e9, -200
    found: npt.NDArray[Any] = apply(target, function, x)
    assert found[0] == (1 if function == "sigmoid" else x[0])
    assert (np.abs(found[1:3]) < 1e-28).all()
