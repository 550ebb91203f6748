"""How probable a token was, from a row of logits."""

from __future__ import annotations

import math

from ryzc.runtime.request import TokenLogprob
from ryzc.runtime.step import StepResult


def token_logprob(result: StepResult, row: int, id_: int, top: int) -> TokenLogprob:
    """The logarithm of a token's probability in a row, beside those of the ``top`` best candidates that were found."""
    least = float(result.row_max[row]) + math.log(float(result.row_sum[row]))
    best = zip(result.ids[row, :top].tolist(), result.logits[row, :top].tolist(), strict=True)
    return TokenLogprob(id_, float(result.full(row)[id_]) - least, tuple((i, logit - least) for i, logit in best))
