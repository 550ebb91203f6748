"""A stand-in for a compiled model: real paging and batching, toy arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ryzc.runtime.engine import Engine
from ryzc.runtime.loading import Loaded
from ryzc.runtime.model import Model
from ryzc.runtime.sampling import RowParameters, reference
from ryzc.runtime.step import CompiledModel, StepResult
from ryzc.runtime.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz .é"
BOS, EOS, HALF = 0, 1, 2
FIRST_LETTER = 3
VOCAB = FIRST_LETTER + len(LETTERS) + 1


@dataclass
class Batch:
    """What one step was asked."""

    tokens: list[int]
    positions: list[int]
    rows: list[int]
    candidates: int


class ToyStep:
    """Keeps tokens in pages; the logits of a position depend on every token up to it, read back from there."""

    def __init__(
        self,
        context: int = 64,
        *,
        max_tokens: int = 8,
        max_rows: int = 4,
        max_candidates: int = 6,
        sequences: int = 9,
        pages: int | None = None,
        script: Sequence[int] = (),
    ) -> None:
        self.context, self.max_tokens, self.max_rows, self.max_candidates = (
            context,
            max_tokens,
            max_rows,
            max_candidates,
        )
        self.vocab_size, self.page_tokens = VOCAB, 4
        per_sequence = -(-context // self.page_tokens)
        self.pages = per_sequence if pages is None else pages
        self.page_table = np.zeros((sequences, per_sequence), np.int32)
        self.row_parameters = RowParameters(max_rows, 128)
        self.pool = np.full((self.pages, self.page_tokens), -1, np.int64)
        self.plan = SimpleNamespace(
            context_length=256, macs_per_token=9, head_macs=1, kv=SimpleNamespace(page_bytes=64)
        )
        self.target, self.threads, self.weights = SimpleNamespace(name="toy"), 1, "copy"
        self.script = list(script)
        """Where it is not empty: the tokens that follow the prompt, whatever it is."""
        self.prompt_length = 0
        self.batches: list[Batch] = []
        self.interrupt_at: int | None = None
        self.fail_next = False
        self.closed = False

    def step(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        sequences: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int32],
        candidates: int = 1,
    ) -> StepResult:
        assert 1 <= len(tokens) <= self.max_tokens
        assert len(rows) <= self.max_rows
        assert 1 <= candidates <= self.max_candidates
        assert max(positions) < self.context
        if self.interrupt_at == len(self.batches):
            self.interrupt_at = None
            raise KeyboardInterrupt
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("a wire came loose")
        self.batches.append(Batch(list(tokens), list(positions), list(rows), candidates))
        for token, position, sequence in zip(tokens, positions, sequences, strict=True):
            self.pool[self.page_table[sequence, position // self.page_tokens], position % self.page_tokens] = token
        logits = np.stack(
            [self.logits(self.read(positions[r] + 1, sequences[r])) for r in rows] or [np.zeros(VOCAB, np.float32)]
        )
        logits = logits.astype(np.float32)[: len(rows)]
        parameters = self.row_parameters
        for i, row in enumerate(logits):
            row[:] = reference.adjusted(row, parameters, i)
        drawn = [reference.draw(row, parameters.records[i], self.max_candidates) for i, row in enumerate(logits)]
        parameters.clear()
        order = np.argsort(-logits, axis=1, kind="stable")[:, :candidates].astype(np.int32)
        top = logits.max(axis=1, initial=-np.inf)
        sums = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float32)
        return StepResult(
            order,
            np.take_along_axis(logits, order, axis=1),
            top,
            sums,
            logits,
            np.array(drawn, np.int32),
            1e-3 + 1e-4 * len(tokens),
        )

    def give_back(self, pages: Sequence[int]) -> None:
        self.pool[list(pages)] = -1

    def copy_page(self, source: int, target: int) -> None:
        self.pool[target] = self.pool[source]

    def read(self, count: int, sequence: int) -> list[int]:
        """The tokens of a sequence's first ``count`` positions, as the page table leads to them."""
        used = self.page_table[sequence, : -(-count // self.page_tokens)]
        return [int(token) for token in self.pool[used].reshape(-1)[:count]]

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits that follow ``tokens``."""
        if self.script:
            done = len(tokens) - self.prompt_length
            row = np.zeros(VOCAB, np.float32)
            row[self.script[min(done, len(self.script) - 1)]] = 10
            return row
        generator = np.random.default_rng(list(tokens))
        return generator.standard_normal(VOCAB).astype(np.float32) * 2

    def close(self) -> None:
        self.closed = True


class ToyTokenizer:
    """A letter a token; é takes two."""

    vocab_size = VOCAB
    bos_id: int | None = BOS
    eos_ids = frozenset([EOS])

    def __init__(self, *, add_bos: bool = True) -> None:
        self._before = [BOS] if add_bos else []

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        ids: list[int] = []
        for part in text.replace("<s>", "\0").replace("</s>", "\1"):
            if part in "\0\1":
                ids.append(ord(part))
            else:
                ids += (
                    [HALF, FIRST_LETTER + LETTERS.index(part)] if part == "é" else [FIRST_LETTER + LETTERS.index(part)]
                )
        return [*self._before, *ids] if add_special else ids

    def piece(self, id_: int, *, special: bool = False) -> bytes:
        if id_ in (BOS, EOS):
            return (b"<s>", b"</s>")[id_] if special else b""
        if id_ == HALF:
            return "é".encode()[:1]
        letter = LETTERS[id_ - FIRST_LETTER : id_ - FIRST_LETTER + 1]
        return letter.encode()[-1:]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.piece, ids)).decode(errors="replace")

    def stream(self) -> object:
        import codecs

        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        class Stream:
            def push(_, id_: int) -> str:  # noqa: N805
                return decoder.decode(self.piece(id_))

            def flush(_) -> str:  # noqa: N805
                return decoder.decode(b"", final=True)

        return Stream()


def toy(step: ToyStep | None = None, *, template: str | None = None, add_bos: bool = True) -> tuple[Model, ToyStep]:
    """A model around a toy step."""
    step = step or ToyStep()
    tokenizer = cast(Tokenizer, ToyTokenizer(add_bos=add_bos))
    return Model(cast(CompiledModel, step), tokenizer, template, speculate="off"), step


def toy_engine(step: ToyStep | None = None, **options: Any) -> tuple[Engine, ToyStep]:
    """An engine around a toy step, without a thread of its own unless asked for one."""
    step = step or ToyStep()
    options = {"sequences": len(step.page_table) - 1, "background": False, "speculate": "off", **options}
    tokenizer = cast(Tokenizer, ToyTokenizer())
    return Engine(Loaded(cast(CompiledModel, step), tokenizer), **options), step


def scripted(text: str, *, end: bool = True, prompt: int, **options: int) -> tuple[Model, ToyStep]:
    """A model that says ``text`` after a prompt of so many tokens, and then ends."""
    ids = ToyTokenizer().encode(text, add_special=False)
    step = ToyStep(script=[*ids, EOS] if end else ids, **options)
    step.prompt_length = prompt
    return toy(step)


def greedy(step: ToyStep, ids: Sequence[int], count: int) -> Iterator[int]:
    """What the toy would say, without any cache."""
    ids = list(ids)
    for _ in range(count):
        id_ = int(step.logits(ids).argmax())
        ids.append(id_)
        yield id_
        if id_ == EOS:
            return
