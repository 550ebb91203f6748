"""Two ternary digits a weight, ``d (3 t1 + t2)``: blocks of 32 under a float16 scale (3.5 bits a weight); ryzc's own.

Two trits under scales in the ratio 3 are the whole numbers from -4 to 4. The ninth, 4, is left out, so that a code has
three bits; where a block's largest weight is positive its scale is negative. Against nine numbers that costs 6 % of the
error and saves a bit; scales of any ratio would save 3 % of it, and their codes would not be affine.

Stored block, 14 bytes: 8 bytes of the lower two bits of codes around 4, ordered as in ``trit1``; 4 bytes of the third
bit, whose lowest bits are elements 0-3 and so on; ``d`` f16.
"""

from __future__ import annotations

from ryzc.formats.trit_format import TritFormat

FORMAT = TritFormat(name="trit2", block=32, block_bytes=14, planes=(2, 1), zero=4)
