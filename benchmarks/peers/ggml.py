"""What llama.cpp and ik_llama.cpp have in common: their interface for batches, and how it is timed."""

from __future__ import annotations

import ctypes
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MICROBATCH = 512
SAMPLE = 512
"""Tokens that an imitated context repeats, see :meth:`benchmarks.peers.Peer.fill`."""


class GgmlPeer(ABC):
    """A model in an engine of the ggml family, with a context for one long sequence and one for several short ones.

    Attributes:
        lib: the module that holds the engine's C functions.
        vocab_size: rows of the head.
    """

    lib: Any
    vocab_size: int

    def __init__(self, *, context: int, sequences: int, each: int) -> None:
        self._context, self._sequences, self._each = context, sequences, each
        self._batch = self.lib.llama_batch_init(MICROBATCH, 0, 1)
        copies = -(-context // SAMPLE)
        self._lone = self._open(context, copies, shared=True)
        self._together = self._open(each * sequences, sequences, shared=False) if sequences > 1 else None
        self._held: list[int] = []
        self._imitated = 0  # tokens of `_held` that take room in the cache, but no positions
        self._prompt: list[int] = []  # of the sequences that step together
        self._lengths = [0] * sequences

    @abstractmethod
    def _open(self, tokens: int, sequences: int, *, shared: bool) -> Any:
        """A context for so many tokens in all, in a cache that the sequences share or in one for each."""

    @abstractmethod
    def _forget(self, context: Any) -> None:
        """Empty a context."""

    @abstractmethod
    def _cut(self, context: Any, sequence: int, length: int) -> None:
        """Forget what a sequence holds from position ``length`` on."""

    @abstractmethod
    def _repeat(self, context: Any, copies: int) -> None:
        """Let the lone sequence hold what it holds ``copies`` times over, at the same positions."""

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
        """Append tokens to the lone sequence, :data:`MICROBATCH` at a time.

        Args:
            every: whether every token's logits are made, not only the last one's.

        Raises:
            RuntimeError: they do not fit.
        """
        start, seconds = len(self._held), 0.0
        if start + len(tokens) > self._context:
            raise RuntimeError(f"{start + len(tokens)} tokens do not fit into a context of {self._context}")
        entries = [
            (token, start - self._imitated + i, 0, every or i == len(tokens) - 1) for i, token in enumerate(tokens)
        ]
        for first in range(0, len(tokens), MICROBATCH):
            seconds += self._step(self._lone, entries[first : first + MICROBATCH])
        self._held += tokens
        return seconds

    def clear(self) -> None:
        """Forget the lone sequence."""
        self._forget(self._lone)
        self._held, self._imitated = [], 0

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
        elif self._held[: len(tokens)] == list(tokens):
            self._cut(self._lone, 0, len(tokens) - self._imitated)
            self._held = list(tokens)
        elif imitate:
            self.prefill(tokens[:SAMPLE])
            self._repeat(self._lone, len(tokens) // SAMPLE)
            self._imitated = len(tokens) // SAMPLE * SAMPLE - SAMPLE
            self._held = [*tokens[: SAMPLE + self._imitated]]
            self.append(tokens[len(self._held) :])
        else:
            self.prefill(tokens)

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
                row = self.lib.llama_get_logits_ith(self._lone, i)
                result[start + i] = np.ctypeslib.as_array(row, (self.vocab_size,))
        return result

    def nll(self, windows: Sequence[Sequence[int]]) -> float:
        # In a context of its own: ik_llama.cpp clears room for the most logits that a context ever made in every step.
        timed, self._lone = self._lone, self._open(MICROBATCH, 1, shared=True)
        costs: list[float] = []
        for window in windows:
            first = len(window) // 2
            rows = self.logits(window[:-1])[first:].astype(np.float64)
            largest = rows.max(axis=1)
            norms = largest + np.log(np.exp(rows - largest[:, None]).sum(axis=1))
            costs += (norms - rows[np.arange(len(rows)), window[first + 1 :]]).tolist()
        self.clear()
        self.lib.llama_free(self._lone)
        self._lone = timed
        return float(np.mean(costs))

    def close(self) -> None:
        self.lib.llama_batch_free(self._batch)
        for context in filter(None, [self._lone, self._together]):
            self.lib.llama_free(context)


def silence(level: int, text: bytes, data: Any) -> None:
    """A log callback that says nothing."""
    del level, text, data


SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(silence)
"""Kept here, or it would be freed while an engine holds it."""
