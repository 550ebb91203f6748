"""Choosing the next token of a request: what native code is told about its rows, and the state behind it.

:class:`SamplingParams` says how, a :class:`Sampler` follows one request and fills the :class:`RowParameters` of
a step, native code draws (:mod:`.reference` is its meaning), and the sampler accepts the token. The token at a
position depends on the logits there, the seed and the position alone: not on neighbours, chunks or drafts.
"""

from __future__ import annotations

from ryzc.runtime.sampling.grammar import Grammar, GrammarTokens
from ryzc.runtime.sampling.params import SamplingParams
from ryzc.runtime.sampling.rows import RowParameters
from ryzc.runtime.sampling.sampler import Sampler

__all__ = ["Grammar", "GrammarTokens", "RowParameters", "Sampler", "SamplingParams"]
