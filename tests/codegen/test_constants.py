"""Constants of the vector layer."""

from __future__ import annotations

import pytest
from llvmlite import ir

from ryzc.codegen.vector import F16, F32, I32, constant, vec

SEVERAL = [0.0, -0.0, 1.0, -1.5, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("type_", [F32, F16, vec(F32, 16)])
def test_constants_are_what_llvmlite_writes(type_: ir.Type) -> None:
    """Zeros of either sign are equal numbers, but not the same constant; asked for in any order, and again."""
    for number in SEVERAL + SEVERAL[::-1]:
        whole = [number] * type_.count if isinstance(type_, ir.VectorType) else number
        assert str(constant(type_, number)) == str(ir.Constant(type_, whole))
    assert str(constant(type_, 0.0)) != str(constant(type_, -0.0))


def test_lanes_of_their_own() -> None:
    assert str(constant(vec(F32, 2), [0.0, -0.0])) == str(ir.Constant(vec(F32, 2), [0.0, -0.0]))
    assert str(constant(vec(F32, 2), [-0.0, 0.0])) == str(ir.Constant(vec(F32, 2), [-0.0, 0.0]))
    assert str(constant(vec(I32, 2), range(2))) == str(ir.Constant(vec(I32, 2), [0, 1]))
