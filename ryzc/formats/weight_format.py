"""What a weight format is: how a file stores a matrix, and what the stored bytes mean.

Three kinds cover every format that ryzc reads:

* :class:`AffineFormat`: small unsigned codes with shared scales. With ``block`` elements under one
  ``d`` (and ``m``), and ``group`` elements under one sub-scale ``s`` (and ``t``), the weight is

      w[n, k] = (d * s) * (q[n, k] - zero) + min_sign * (m * t)

  computed in float32 in that order, where a format without sub-scales has ``s = t = 1`` and one
  without minima has no second term.
* :class:`FloatFormat`: one float an element.
* :class:`TernaryFormat`: weights of -1, 0 and 1 under one scale a row.

A format is a file of this package that defines ``FORMAT``; the file's name is the format's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc.errors import UnsupportedError

U8: TypeAlias = npt.NDArray[np.uint8]
I8: TypeAlias = npt.NDArray[np.int8]
F32: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Codes:
    """The fields of an affine matrix of shape ``[N, K]``, taken apart.

    Attributes:
        q: ``uint8 [N, K]``, the codes, offset by the format's ``zero``.
        d: ``float16 [N, K/block]``, the scale of a block.
        s: ``int8 [N, K/group]``, the factor of ``d`` in a group, or ``None``.
        m: ``float16 [N, K/block]``, the minimum of a block, or ``None``.
        t: ``int8 [N, K/group]``, the factor of ``m`` in a group, or ``None``.
    """

    q: U8
    d: npt.NDArray[np.float16]
    s: npt.NDArray[np.int8] | None = None
    m: npt.NDArray[np.float16] | None = None
    t: npt.NDArray[np.int8] | None = None


@dataclass(frozen=True)
class WeightFormat(ABC):
    """A format's name and the arithmetic of its rows.

    Attributes:
        name: as in the file name and in every plan, e.g. ``q4_1``.
        block: elements that are stored together; ``K`` is a multiple of it.
        block_bytes: bytes of one stored block.
        header_bytes: bytes in front of a row's blocks.
    """

    name: str
    block: int
    block_bytes: int
    header_bytes: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Of the blocks: what a row has in front of them is left out."""
        return 8.0 * self.block_bytes / self.block

    def row_bytes(self, k: int) -> int:
        """Bytes of a stored row of ``k`` elements.

        Raises:
            ValueError: where ``k`` is not a positive multiple of ``block``.
        """
        if k <= 0 or k % self.block:
            raise ValueError(f"{self.name}: rows of {k} elements are not whole blocks of {self.block}")
        return self.header_bytes + k // self.block * self.block_bytes

    def columns(self, row_bytes: int) -> int:
        """The elements of a stored row: the inverse of :meth:`row_bytes`."""
        return (row_bytes - self.header_bytes) // self.block_bytes * self.block

    @abstractmethod
    def decode(self, stored: U8) -> F32:
        """The meaning: stored ``uint8 [..., row_bytes]`` to ``float32 [..., K]``."""

    def quantize(self, weights: F32) -> U8:
        """``float32 [N, K]`` to stored ``uint8 [N, row_bytes]``, rounded as the format's file says.

        Raises:
            UnsupportedError: where ryzc only reads this format, or it cannot hold a value.
            ValueError: where ``K`` is no multiple of ``block``.
        """
        raise UnsupportedError(f"ryzc reads weights in {self.name}, but does not make them")


@dataclass(frozen=True)
class FloatFormat(WeightFormat):
    """One float an element; ``block`` is 1."""


@dataclass(frozen=True)
class TernaryFormat(WeightFormat):
    """Weights ``t * scale`` with ``t`` in -1, 0, 1 and a float32 scale a row; ``K`` is a multiple of ``block``."""

    @abstractmethod
    def parse(self, stored: U8) -> tuple[I8, F32]:
        """Take stored ``uint8 [N, row_bytes]`` apart: ``t`` as ``int8 [N, K]``, scales ``float32 [N]``."""

    @abstractmethod
    def unparse(self, trits: I8, scales: F32) -> U8:
        """The exact inverse of :meth:`parse`."""

    def decode(self, stored: U8) -> F32:
        trits, scales = self.parse(stored.reshape(-1, stored.shape[-1]))
        return (trits.astype(np.float32) * scales[:, None]).reshape(*stored.shape[:-1], -1)


@dataclass(frozen=True)
class AffineFormat(WeightFormat):
    """Codes with shared scales, see the module.

    Attributes:
        group: elements under one sub-scale: 16 or 32; 32 where there are no sub-scales.
        planes: widths of the bit planes that make up a code, low bits first: ``(4,)``, ``(4, 1)``,
            ``(4, 2)``, ``(8,)``; codes are below ``2 ** sum(planes)``.
        zero: the code that stands for 0 before the minimum.
        scale_bits: width of ``s``: 0 none, 4 or 6 unsigned (or offset 32 and signed), 8 signed.
        scale_zero: what is subtracted from the stored ``s``: 32 in Q3_K, else 0.
        min_sign: 0 no minimum, +1 added, -1 subtracted.
        min_bits: width of ``t``: 0 none, 4 or 6 unsigned.
    """

    group: int = 32
    planes: tuple[int, ...] = (4,)
    zero: int = 0
    scale_bits: int = 0
    scale_zero: int = 0
    min_sign: int = 0
    min_bits: int = 0

    @abstractmethod
    def parse(self, stored: U8) -> Codes:
        """Take stored ``uint8 [N, row_bytes]`` apart; loses nothing."""

    @abstractmethod
    def unparse(self, codes: Codes) -> U8:
        """The exact inverse of :meth:`parse`."""

    def decode(self, stored: U8) -> F32:
        codes = self.parse(stored.reshape(-1, stored.shape[-1]))
        return self.meaning(codes).reshape(*stored.shape[:-1], -1)

    def meaning(self, codes: Codes) -> F32:
        """``float32 [N, K]`` of the fields, by the formula of the module."""
        n, k = codes.q.shape
        groups = self.block // self.group

        def by_group(per_block: npt.NDArray[np.float16], factor: npt.NDArray[np.int8] | None) -> F32:
            values = per_block.astype(np.float32).reshape(n, -1, 1, 1)
            return values if factor is None else values * factor.astype(np.float32).reshape(n, -1, groups, 1)

        w = codes.q.astype(np.float32).reshape(n, -1, groups, self.group)
        w -= np.float32(self.zero)
        w *= by_group(codes.d, codes.s)
        if codes.m is not None:
            w += np.float32(self.min_sign) * by_group(codes.m, codes.t)
        return w.reshape(n, k)

    def blocks(self, weights: F32) -> F32:
        """``float32 [N, K]`` as ``[N, K / block, block]``.

        Raises:
            ValueError: where ``K`` is no multiple of ``block``.
        """
        self.row_bytes(weights.shape[1])
        return np.asarray(weights, np.float32).reshape(len(weights), -1, self.block)
