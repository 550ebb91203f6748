"""How a key or a value is kept in a page: bits of an element, scales and zero points, bytes.

=========== ======================================= ========================================
name        a key                                   a value
=========== ======================================= ========================================
``f32``     float32                                 float32
``f16``     float16                                 float16
``int8``    8-bit codes, a scale a block            8-bit codes, one scale
``int8-int4`` as ``int8``                           4-bit codes, scale and zero point a group
``int4``    4-bit codes, scale and zero point a group as ``int8-int4``
=========== ======================================= ========================================

A block has 32 elements (or as many as the largest power of two that divides the head), a group 16. Scales of
8-bit codes are bfloat16. Scales and zero points of 4-bit codes are bytes, see :func:`group_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GROUP: Final = 16
"""Elements that share a scale and a zero point where codes have 4 bits."""
_BLOCK: Final = 32
SCALE_SHIFT: Final = 20
"""A scale byte moved up by so many bits has 5 bits in the exponent of a float32 and 3 in its fraction."""
SCALE_BIAS: Final = (127 - 21) << 23
"""The bits of the smallest scale of a group, 2 ** -21."""


@dataclass(frozen=True)
class KVFormat:
    """What a name stands for.

    Attributes:
        key_bits, value_bits: of an element; 8 and below are codes.
        bound: how much of f16's perplexity it may cost, as a share; 0 where no check is made.
    """

    name: str
    key_bits: int
    value_bits: int
    bound: float

    @property
    def coded(self) -> bool:
        """Whether keys and values are codes."""
        return self.key_bits <= 8


_ALL = (
    KVFormat("f32", 32, 32, 0.0),
    KVFormat("f16", 16, 16, 0.0),
    KVFormat("int8", 8, 8, 0.001),
    KVFormat("int8-int4", 8, 4, 0.005),
    KVFormat("int4", 4, 4, 0.005),
)
KV_FORMATS: Final = {format_.name: format_ for format_ in _ALL}


def fits(name: str, head_dim: int) -> bool:
    """Whether heads of a size can be kept so: codes of 4 bits lie in pairs of groups."""
    return KV_FORMATS[name].value_bits != 4 or head_dim % (2 * GROUP) == 0


def block(head_dim: int) -> int:
    """Elements that are transformed together, and share a scale where a key has 8 bits."""
    return min(_BLOCK, head_dim & -head_dim)


def key_bytes(name: str, head_dim: int) -> int:
    """Bytes of one head's key of a token, scales included."""
    bits = KV_FORMATS[name].key_bits
    scales = 2 * head_dim // block(head_dim) if bits == 8 else 2 * head_dim // GROUP if bits == 4 else 0
    return head_dim * bits // 8 + scales


def value_bytes(name: str, head_dim: int) -> int:
    """Bytes of one head's value of a token, scales included."""
    bits = KV_FORMATS[name].value_bits
    scales = 2 if bits == 8 else 2 * head_dim // GROUP if bits == 4 else 0
    return head_dim * bits // 8 + scales
