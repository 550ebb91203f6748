"""How a request wants its tokens chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ryzc.errors import UsageError

MOST_BIAS = 1e30
"""Larger biases might leave float32."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose a token; the defaults are llama.cpp's.

    The order is llama.cpp's too: repeat penalty, presence and frequency penalty, bias, top-k, typical, top-p, min-p,
    temperature, draw. Of equal logits the lower id counts as the better one.

    Attributes:
        temperature: divides the logits; 0 always takes the best token.
        top_k: only so many of the best tokens are considered; 0 is all.
        top_p: only the fewest tokens whose probabilities reach this together; 1 is all.
        min_p: only tokens at least this probable, relative to the best one; 0 is all.
        seed: of the random numbers; ``None`` draws one.
        repeat_penalty: divides positive and multiplies negative logits of recent tokens; 1 is off.
        repeat_last_n: how many tokens are recent, the prompt's included; 0 is off, -1 is all.
        typical_p: only the most typical tokens whose probabilities reach this together; 1 is all. It looks at no
            more than the candidates that a step can find (256).
        presence_penalty: is subtracted from the logits of tokens that were generated before; 0 is off.
        frequency_penalty: is subtracted once for every time that a token was generated; 0 is off.
        logit_bias: is added to the logits of tokens, by id; -inf bans one.

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more")
        _require(self.top_k >= 0, "top-k", self.top_k, "0 (off) or more")
        _require(0 <= self.top_p <= 1, "top-p", self.top_p, "between 0 and 1 (off)")
        _require(0 <= self.min_p <= 1, "min-p", self.min_p, "between 0 (off) and 1")
        _require(self.repeat_penalty > 0, "repeat-penalty", self.repeat_penalty, "above 0; 1 is off")
        _require(self.repeat_last_n >= -1, "repeat-last-n", self.repeat_last_n, "-1 (all), 0 (off) or more")
        _require(0 <= self.typical_p <= 1, "typical-p", self.typical_p, "between 0 and 1 (off)")
        for name, value in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            _require(abs(value) <= MOST_BIAS, f"{name}-penalty", value, "near 0 (off)")
        if self.seed is not None:
            _require(0 <= self.seed < 1 << 64, "seed", self.seed, "between 0 and 2^64 - 1")
        for id_, bias in self.logit_bias.items():
            _require(id_ >= 0, "the id of a logit-bias", id_, "that the model knows")
            if bias != -math.inf:
                _require(
                    abs(bias) <= MOST_BIAS, f"the logit-bias of token {id_}", bias, "near 0 (off), or -inf (never)"
                )

    @property
    def penalizes_recent(self) -> bool:
        """Whether recent tokens matter."""
        return self.repeat_penalty != 1 and self.repeat_last_n != 0

    @property
    def penalizes_generated(self) -> bool:
        """Whether it matters how often a token was generated."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


def _require(holds: bool, name: str, value: float, range_: str) -> None:
    if not holds or not math.isfinite(value):
        raise UsageError(f"{name} cannot be {value}", hint=f"choose a value {range_}")
