"""What is timed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 16
"""Steps of a test that has several tokens in each."""
SHALLOW = 64
"""Tokens that each of several sequences, or one that verifies drafts, holds at the start."""
DEEP = 2048
"""Tokens from which on a context is imitated where it can be, see :meth:`benchmarks.peers.Peer.fill`."""
FORM = "pp512, tg128, tg32@4096, batch8 or verify4"


@dataclass(frozen=True)
class Test:
    """Tokens taken in by one or several sequences.

    Attributes:
        name: as in the tables; the kinds are llama-bench's and two more, see :func:`parse`.
        tokens: of each sequence.
        depth: tokens that each sequence holds before.
        sequences: how many step together.
        at_once: tokens of each sequence in a step; 0: as many as fit, as a prompt, of which only the last needs logits.
    """

    name: str
    tokens: int
    depth: int = 0
    sequences: int = 1
    at_once: int = 1

    @property
    def is_prompt(self) -> bool:
        """Whether a prompt is taken in."""
        return self.at_once == 0

    @property
    def drafts(self) -> int:
        """Draft tokens that a step verifies; its cost is then measured beside that of a step of one token."""
        return max(0, self.at_once - 1)

    @property
    def start(self) -> int:
        """Tokens before the timed ones; a sequence has at least one, because something has to come first."""
        return 0 if self.is_prompt else max(self.depth, 1)

    @property
    def reach(self) -> int:
        """Tokens of a sequence at the end of the test."""
        return self.start + self.tokens

    @property
    def total(self) -> int:
        """Tokens timed, of all sequences."""
        return self.tokens * self.sequences

    def steps(self, most: int) -> tuple[list[list[tuple[int, int]]], list[int]]:
        """For each step: first position and number of tokens of every sequence, and the rows of logits.

        Args:
            most: tokens of a prompt that a step takes.
        """
        size = self.at_once or most
        firsts = range(self.start, self.reach, size)
        spans = [[(first, min(size, self.reach - first))] * self.sequences for first in firsts]
        if self.is_prompt:
            return spans, [int(first + size >= self.reach) for first in firsts]
        return spans, [size * self.sequences] * len(spans)


def parse(text: str) -> Test:
    """The test of a name.

    ``ppN`` takes in a prompt of N tokens; ``tgN`` generates N tokens one by one, ``tgN@D`` after D others; ``batchB``
    generates in B sequences together; ``verifyK`` takes steps of one token and K drafts with the logits of all.

    Raises:
        ValueError: it names none.
    """
    match = re.fullmatch(r"(pp|tg|batch|verify)([1-9]\d*)(?:@(\d+))?", text.replace(" ", "").replace("@d", "@"))
    if match is None or (match[3] and match[1] != "tg"):
        raise ValueError(f"{text!r} is no test such as {FORM}")
    kind, number, depth = match[1], int(match[2]), int(match[3] or 0)
    if kind == "pp":
        return Test(f"pp{number}", number, at_once=0)
    if kind == "tg":
        return Test(f"tg{number}" + (f" @ d{depth}" if depth else ""), number, depth)
    if kind == "batch":
        return Test(f"batch {number}", STEPS, SHALLOW, sequences=number)
    return Test(f"verify {number}", STEPS * (number + 1), SHALLOW, at_once=number + 1)


def tests(names: Sequence[str]) -> list[Test]:
    """The tests of several names."""
    return [parse(name) for name in names]


QUICK = ("pp512", "tg128", "batch2", "batch4", "batch8", "batch16", "verify4", "verify8")
FULL = (*QUICK, "pp4096", "tg32@4096", "tg32@16384")
