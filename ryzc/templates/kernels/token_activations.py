"""Activations with one scale a token, as models trained in BitNet's way round them (arXiv:2402.17764).

``codes`` is ``int8 [tokens, K]`` in ``-127 .. 127``. ``records`` is ``[tokens]`` of 8 bytes:

    offset 0   f32   scale: a code counts ``code * scale``
    offset 4   i32   minus the sum of the token's codes, which undoes the offset of unsigned weight codes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from ryzc.codegen.vector import F32, I8, I32, Function, Value, vec

RECORD_BYTES: Final = 8
SCALE, MINUS_SUM = 0, 4
LEAST: Final = 1e-5
"""The largest magnitude of a token counts as at least this."""
LANES: Final = 16


def quantize(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The meaning: ``float32 [T, K]`` to codes ``int8 [T, K]`` and scales ``float32 [T, 1]``.

    Per token, with ``amax`` its largest magnitude but at least 1e-5: ``scale = amax / 127`` and
    ``code = round_half_even(x * (127 / amax))``, in float32.
    """
    amax = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(LEAST))
    codes = np.rint(x * (np.float32(127) / amax)).astype(np.int8)
    return codes, amax / np.float32(127)


def records(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The records of quantized tokens, ``uint8 [T, 8]``."""
    words = np.stack([scales[:, 0].view(np.int32), -codes.sum(axis=1, dtype=np.int32)], axis=1)
    return np.ascontiguousarray(words).view(np.uint8)


def quantize_token(fn: Function, columns: int, sixteen: Callable[[Value], Value], codes: Value, record: Value) -> None:
    """Write the codes and the record of a token; ``sixteen(i)`` gives elements ``i .. i + 15``."""
    wide = vec(F32, LANES)
    with fn.loop(0, columns, LANES, [fn.const(wide, LEAST)]) as loop:
        loop.values = [loop.values[0].maximum(sixteen(loop.index).abs())]
    amax = loop.results[0].max()
    factor = (fn.const(F32, 127.0) / amax).splat(LANES)
    with fn.loop(0, columns, LANES, [fn.const(vec(I32, LANES), 0)]) as loop:
        found = (sixteen(loop.index) * factor).nearest()
        fn.store(found.to_int(I8), codes, loop.index, align=16)
        loop.values = [loop.values[0] - found]
    fn.store(amax / 127.0, record, SCALE, align=4)
    fn.store(loop.results[0].sum(), record, MINUS_SUM, align=4)
