"""How a key or a value is kept in a page: bits of an element, scales and zero points, bytes.

=========== ======================================= ========================================
name        a key                                   a value
=========== ======================================= ========================================
``f32``     float32                                 float32
``f16``     float16                                 float16
``int16``   16-bit codes, one scale                 16-bit codes, one scale
``int8``    8-bit codes, a scale a block            8-bit codes, one scale
``int8-int4`` as ``int8``                           4-bit codes, scale and zero point a group
``int4``    4-bit codes, scale and zero point a group as ``int8-int4``
=========== ======================================= ========================================

A block has 32 elements (or as many as the largest power of two that divides the head), a group 16. Scales of
codes of 8 and 16 bits are bfloat16. Codes of 16 bits are scaled to a norm of :data:`NORM`, so that no sum of products
of two of them leaves 32 bits. Scales and zero points of 4-bit codes are bytes, see :func:`group_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GROUP: Final = 16
"""Elements that share a scale and a zero point where codes have 4 bits."""
_BLOCK: Final = 32
NORM: Final = 32639
"""The norm of codes of 16 bits before they are rounded: in 16 bits even where a scale is a part in 256 too small."""
SCALE_SHIFT: Final = 20
"""A scale byte moved up by so many bits has 5 bits in the exponent of a float32 and 3 in its fraction."""
SCALE_BIAS: Final = (127 - 21) << 23
"""The bits of the smallest scale of a group, 2 ** -21."""


@dataclass(frozen=True)
class KVFormat:
    """What a name stands for.

    Attributes:
        coded: whether elements are codes.
        key_bits, value_bits: of an element.
        bound: how much of f16's perplexity it may cost, as a share; 0 where no check is made.
    """

    name: str
    coded: bool
    key_bits: int
    value_bits: int
    bound: float

    @property
    def transformed(self) -> bool:
        """Whether queries, keys and values go through a Hadamard transform: codes of few bits gain by it."""
        return self.coded and self.key_bits <= 8


_ALL = (
    KVFormat("f32", False, 32, 32, 0.0),
    KVFormat("f16", False, 16, 16, 0.0),
    KVFormat("int16", True, 16, 16, 0.0),
    KVFormat("int8", True, 8, 8, 0.001),
    KVFormat("int8-int4", True, 8, 4, 0.005),
    KVFormat("int4", True, 4, 4, 0.005),
)
KV_FORMATS: Final = {format_.name: format_ for format_ in _ALL}
USUAL: Final = "int16"
"""As exact as f16 and faster; what is made where nobody asks for anything else."""


def fits(name: str, head_dim: int) -> bool:
    """Whether heads of a size can be kept so: codes of 4 bits lie in pairs of groups."""
    return KV_FORMATS[name].value_bits != 4 or head_dim % (2 * GROUP) == 0


def block(head_dim: int) -> int:
    """Elements that are transformed together, and share a scale where a key has 8 bits."""
    return min(_BLOCK, head_dim & -head_dim)


def key_bytes(name: str, head_dim: int) -> int:
    """Bytes of one head's key of a token, scales included."""
    return _bytes(KV_FORMATS[name].coded, KV_FORMATS[name].key_bits, head_dim, head_dim // block(head_dim))


def value_bytes(name: str, head_dim: int) -> int:
    """Bytes of one head's value of a token, scales included."""
    return _bytes(KV_FORMATS[name].coded, KV_FORMATS[name].value_bits, head_dim, 1)


def _bytes(coded: bool, bits: int, head_dim: int, scales_of_8: int) -> int:
    scales = {16: 2, 8: 2 * scales_of_8, 4: 2 * head_dim // GROUP}[bits] if coded else 0
    return head_dim * bits // 8 + scales
