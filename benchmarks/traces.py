"""Traces of requests for ``ryzc bench --requests``, drawn to the shapes of public ones.

::

    python -m benchmarks.traces conversation -n 200 --rate 2 -o chat.jsonl
    ryzc bench model.ryzc --requests chat.jsonl

``conversation``: many short chats. Prompts and answers have the lengths of the conversation trace that Azure published
(Patel et al., "Splitwise", ISCA 2024: medians of about 1,020 and 129 tokens, both spread log-normally), scaled down by
``--scale`` to what a small model on a CPU serves; arrivals are a Poisson process; each chat goes on with the turns
before it as its beginning, and all share one of a few system prompts.

``agent``: tools that ask again and again about a long document. As in the tool-and-agent trace that Mooncake published
(Qin et al., FAST 2025) prompts are long, answers short, and most of a prompt was seen before; arrivals come in bursts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK = 512
"""Tokens of a block, see :mod:`ryzc.runtime.replay`."""

Entry = dict[str, int | list[int]]


def conversation(count: int, rate: float, scale: float, seed: int) -> Iterator[Entry]:
    """Chats of several turns, ``rate`` requests a second."""
    random = np.random.default_rng(seed)
    now, blocks = 0.0, 0
    chats: list[tuple[int, list[int]]] = []
    for _ in range(count):
        now += random.exponential(1 / rate)
        if chats and random.random() < 0.6:
            length, hashes = chats.pop(int(random.integers(len(chats))))
        else:
            length, hashes = BLOCK, [int(random.integers(4))]
        question = max(8, int(random.lognormal(np.log(1020 * scale), 1.0)))
        answer = max(4, int(random.lognormal(np.log(129 * scale), 0.9)))
        length += question
        while len(hashes) < length // BLOCK:
            blocks += 1
            hashes = [*hashes, 1000 + blocks]
        if length + answer > 16 * BLOCK * scale + 2 * BLOCK:
            length, hashes = BLOCK + question, hashes[:1]
        yield _entry(now, length, answer, hashes)
        chats.append((length + answer, hashes))


def agent(count: int, rate: float, scale: float, seed: int) -> Iterator[Entry]:
    """Short answers about long documents, in bursts."""
    random = np.random.default_rng(seed)
    now = 0.0
    while count > 0:
        now += random.exponential(8 / rate)
        document = int(random.zipf(1.5)) % 50
        pages = np.random.default_rng(document)
        length = int(BLOCK * max(1, round(pages.lognormal(np.log(12 * scale), 0.5))))
        hashes = [10_000 + 100 * document + i for i in range(min(100, length // BLOCK))]
        for _ in range(min(count, 1 + int(random.poisson(7)))):
            now += random.exponential(0.1 / rate)
            question = max(8, int(random.lognormal(np.log(80), 0.7)))
            yield _entry(now, length + question, max(4, int(random.lognormal(np.log(60 * scale), 0.8))), hashes)
            count -= 1


def _entry(seconds: float, input_length: int, output_length: int, hashes: list[int]) -> Entry:
    return {
        "timestamp": int(1000 * seconds),
        "input_length": input_length,
        "output_length": output_length,
        "hash_ids": hashes[: input_length // BLOCK],
    }


KINDS = {"conversation": conversation, "agent": agent}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("-n", "--requests", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second, in the mean")
    parser.add_argument("--scale", type=float, default=0.25, help="lengths, as a share of the public trace's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="a file; by default stdout")
    arguments = parser.parse_args()
    entries = KINDS[arguments.kind](arguments.requests, arguments.rate, arguments.scale, arguments.seed)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
