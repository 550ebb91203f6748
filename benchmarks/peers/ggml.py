"""What llama.cpp and ik_llama.cpp have in common: their interface for batches, and how it is timed."""

from __future__ import annotations

import ctypes
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import workload

MICROBATCH = 512
SAMPLE = 512
"""Tokens that an imitated context repeats, see :meth:`benchmarks.peers.Peer.fill`."""


class Use(Enum):
    """What a context is for; an engine may have a best setting for each."""

    LONE = "one sequence, prompts above all"
    DEEP = "one sequence that generates after thousands of tokens"
    TOGETHER = "several short sequences"


@dataclass
class Lone:
    """A context with one sequence.

    Attributes:
        held: its tokens.
        imitated: how many of them take room in the cache, but no positions.
    """

    context: Any
    held: list[int] = field(default_factory=list)
    imitated: int = 0


class GgmlPeer(ABC):
    """A model in an engine of the ggml family, with a context for each :class:`Use`.

    Attributes:
        lib: the module that holds the engine's C functions.
        vocab_size: rows of the head.
    """

    lib: Any
    vocab_size: int

    def __init__(self, *, context: int, sequences: int, each: int) -> None:
        self._room, self._each = context, each
        self._batch = self.lib.llama_batch_init(MICROBATCH, 0, 1)
        self._lone = Lone(self._open(context, 1, Use.LONE))
        deep = context > workload.DEEP
        self._deep = Lone(self._open(context, -(-context // SAMPLE), Use.DEEP)) if deep else self._lone
        self._together = self._open(each * sequences, sequences, Use.TOGETHER) if sequences > 1 else None
        self._prompt: list[int] = []  # of the sequences that step together
        self._lengths = [0] * sequences
        self._last = self._lone  # that was filled or cleared

    @abstractmethod
    def _open(self, tokens: int, sequences: int, use: Use) -> Any:
        """A context for so many tokens in all."""

    @abstractmethod
    def _forget(self, context: Any) -> None:
        """Empty a context."""

    @abstractmethod
    def _cut(self, context: Any, sequence: int, length: int) -> None:
        """Forget what a sequence holds from position ``length`` on."""

    @abstractmethod
    def _repeat(self, context: Any, copies: int) -> None:
        """Let sequence 0 hold what it holds ``copies`` times over, at the same positions."""

    @abstractmethod
    def _synchronize(self, context: Any) -> None:
        """Wait until the engine has done what it was told."""

    def _step(self, context: Any, entries: Iterable[tuple[int, int, int, bool]]) -> float:
        """Run one batch of ``(token, position, sequence, whether its logits are wanted)``.

        Returns:
            Seconds that the engine took, filling of its batch left out.
        """
        batch, count = self._batch, 0
        for token, position, sequence, wanted in entries:
            batch.token[count] = token
            batch.pos[count] = position
            batch.n_seq_id[count] = 1
            batch.seq_id[count][0] = sequence
            batch.logits[count] = wanted
            count += 1
        batch.n_tokens = count
        start = time.perf_counter()
        status = self.lib.llama_decode(context, batch)
        self._synchronize(context)
        seconds = time.perf_counter() - start
        if status:
            raise RuntimeError(f"llama_decode answers {status} for a batch of {count}")
        return seconds

    def append(self, tokens: Sequence[int], *, every: bool = False) -> float:
        """Append tokens to the sequence that was filled or cleared last, :data:`MICROBATCH` at a time.

        Args:
            every: whether every token's logits are made, not only the last one's.

        Raises:
            RuntimeError: they do not fit.
        """
        one, start, seconds = self._last, len(self._last.held), 0.0
        if start + len(tokens) > self._room:
            raise RuntimeError(f"{start + len(tokens)} tokens do not fit into a context of {self._room}")
        entries = [
            (token, start - one.imitated + i, 0, every or i == len(tokens) - 1) for i, token in enumerate(tokens)
        ]
        for first in range(0, len(tokens), MICROBATCH):
            seconds += self._step(one.context, entries[first : first + MICROBATCH])
        one.held += tokens
        return seconds

    def clear(self) -> None:
        """Forget the lone sequence; what is appended next starts a new one."""
        self._clear(self._lone)

    def _clear(self, one: Lone) -> None:
        self._forget(one.context)
        one.held, one.imitated = [], 0
        self._last = one

    def prefill(self, tokens: Sequence[int]) -> float:
        self.clear()
        return self.append(tokens)

    def fill(self, tokens: Sequence[int], sequences: int, imitate: bool) -> None:
        if sequences > 1:
            if self._prompt != list(tokens):
                self._forget(self._together)
                self._prompt, self._lengths = list(tokens), [0] * len(self._lengths)
            for sequence, length in enumerate(self._lengths):
                if sequence >= sequences:
                    self._cut(self._together, sequence, 0)
                    self._lengths[sequence] = 0
                elif length:
                    self._cut(self._together, sequence, len(tokens))
                else:
                    self._step(self._together, [(t, i, sequence, i == len(tokens) - 1) for i, t in enumerate(tokens)])
            self._lengths[:sequences] = [len(tokens)] * sequences
            return
        one = self._deep if len(tokens) >= workload.DEEP else self._lone
        if one.held[: len(tokens)] == list(tokens):
            self._cut(one.context, 0, len(tokens) - one.imitated)
            one.held, self._last = list(tokens), one
            return
        self._clear(one)
        if imitate:
            self.append(tokens[:SAMPLE])
            copies = len(tokens) // SAMPLE
            self._repeat(one.context, copies)
            one.held, one.imitated = list(tokens[: copies * SAMPLE]), (copies - 1) * SAMPLE
        if rest := tokens[len(one.held) :]:
            self.append(rest)

    def decode(self, tokens: Sequence[int], sequences: int, at_once: int) -> float:
        if sequences == 1:
            parts = [tokens[i : i + at_once] for i in range(0, len(tokens), at_once)]
            return sum(self.append(part, every=True) for part in parts)
        seconds, start = 0.0, self._lengths[0]
        if start + len(tokens) > self._each:
            raise RuntimeError(f"{start + len(tokens)} tokens do not fit into a context of {self._each}")
        for first in range(0, len(tokens), at_once):
            part = list(enumerate(tokens[first : first + at_once], start + first))
            seconds += self._step(self._together, [(t, p, s, True) for s in range(sequences) for p, t in part])
        self._lengths[:sequences] = [start + len(tokens)] * sequences
        return seconds

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits ``float32 [T, V]`` after each token of a sequence that starts with ``tokens``."""
        self.clear()
        result = np.empty((len(tokens), self.vocab_size), np.float32)
        for start in range(0, len(tokens), MICROBATCH):
            part = tokens[start : start + MICROBATCH]
            self.append(part, every=True)
            for i in range(len(part)):
                row = self.lib.llama_get_logits_ith(self._lone.context, i)
                result[start + i] = np.ctypeslib.as_array(row, (self.vocab_size,))
        return result

    def nll(self, windows: Sequence[Sequence[int]]) -> float:
        # In a context of its own: ik_llama.cpp clears room for the most logits that a context ever made in every step.
        timed, self._lone = self._lone, Lone(self._open(MICROBATCH, 1, Use.LONE))
        costs: list[float] = []
        for window in windows:
            first = len(window) // 2
            rows = self.logits(window[:-1])[first:].astype(np.float64)
            largest = rows.max(axis=1)
            norms = largest + np.log(np.exp(rows - largest[:, None]).sum(axis=1))
            costs += (norms - rows[np.arange(len(rows)), window[first + 1 :]]).tolist()
        self.lib.llama_free(self._lone.context)
        self._lone = self._last = timed
        return float(np.mean(costs))

    def close(self) -> None:
        self.lib.llama_batch_free(self._batch)
        contexts = {id(one): one.context for one in (self._lone, self._deep)}.values()
        for context in filter(None, [*contexts, self._together]):
            self.lib.llama_free(context)


def silence(level: int, text: bytes, data: Any) -> None:
    """A log callback that says nothing."""
    del level, text, data


SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(silence)
"""Kept here, or it would be freed while an engine holds it."""
