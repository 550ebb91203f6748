"""One ternary digit a weight: blocks of 32 of -1, 0 and 1 under a float16 scale (2.5 bits a weight); ryzc's own.

Stored block, 10 bytes: 8 bytes of codes around 1, whose lowest two bits are elements 0-7, the next two bits elements
8-15 and so on, and ``d`` f16. The fourth code is never written. TQ2_0 is this with blocks of 256, which rows of many
models cannot be cut into.
"""

from __future__ import annotations

from ryzc.formats.trit_format import TritFormat

FORMAT = TritFormat(name="trit1", block=32, block_bytes=10, planes=(2,), zero=1)
