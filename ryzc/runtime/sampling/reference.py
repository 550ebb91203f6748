"""The meaning of what native code draws, in numpy: one row at a time, one filter after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ryzc.runtime.sampling import noise
from ryzc.runtime.sampling.rows import RowParameters

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def adjusted(logits: F32, rows: RowParameters, row: int) -> F32:
    """A row of logits as the row's parameters change it, to the bit."""
    out, record = logits.copy(), rows.records[row]
    start = int(record["adjustment_start"])
    for i in range(start, start + int(record["adjustment_count"])):
        id_, factor = rows.ids[i], rows.factors[i]
        out[id_] = (out[id_] / factor if out[id_] > 0 else out[id_] * factor) + rows.offsets[i]
    if record["masked"]:
        allowed = np.unpackbits(rows.masks[row].view(np.uint8), bitorder="little")[: len(out)]
        out[allowed == 0] = -np.inf
    return out


def draw(logits: F32, record: Any, max_candidates: int) -> int:
    """The token drawn from an adjusted row of logits."""
    if not np.isfinite(logits.max()):
        return -1
    if record["inverse_temperature"] == 0:
        return int(logits.argmax())
    ids, scores = race(logits, record, max_candidates)
    return int(ids[scores == scores.max()].min())


def race(logits: F32, record: Any, max_candidates: int, *, slack: float = 0.0) -> tuple[I64, F64]:
    """The tokens that the filters leave, and their scores, of which the largest wins.

    ``slack`` makes the shares of ``typical_p`` and ``top_p`` larger by so much, or smaller.
    """
    ids = np.argsort(-logits, kind="stable")
    ids = ids[logits[ids] > -np.inf]
    top_k = int(record["top_k"])
    if top_k > 0:
        ids = ids[:top_k]
    if 0 < top_k <= max_candidates and record["typical_p"] < 1:
        ids = ids[_typical(logits[ids], float(record["typical_p"]) + slack)]
    weights = _weights(logits[ids])
    if record["top_p"] < 1:
        before = np.cumsum(weights) - weights
        keep = before < (float(record["top_p"]) + slack) * weights.sum()
        keep[0] = True
        ids = ids[keep]
    best = logits[ids[0]]
    ids = ids[logits[ids] >= best + record["log_min_p"]]
    tempered = (logits[ids].astype(np.float64) - best) * float(record["inverse_temperature"])
    return ids, tempered + noise.gumbel(int(record["seed"]), int(record["position"]), ids)


def _weights(logits: F32) -> F64:
    wide = logits.astype(np.float64)
    weights: F64 = np.exp(wide - wide.max())
    return weights


def _typical(logits: F32, share: float) -> npt.NDArray[np.bool_]:
    """Which of the candidates are the most typical ones that reach a share together."""
    weights = _weights(logits)
    wide = logits.astype(np.float64)
    order = np.argsort(np.abs(wide - (weights * wide).sum() / weights.sum()), kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    keep = np.zeros(len(logits), np.bool_)
    keep[order[before <= share * weights.sum()]] = True
    keep[order[0]] = True
    return keep
