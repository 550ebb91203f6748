"""Many streaming chats against a server: ``python -m benchmarks.serve_load NAME=URL … [--chats 32 --seconds 60]``.

Each of so many callers holds one conversation after the other: it sends a message, reads the answer as it comes, sends
the next. All servers get the same conversations, one server after the other in turns. For ryzc, what serving costs is
read off its own metrics: the share of the engine's time that was spent outside of native code, and the tokens/s that
its native steps alone would have given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import machine, marks

TOPICS = ("the sea", "bread", "winter", "trains", "a garden", "the moon", "sorting", "maps", "rivers", "clocks")
ASKS = ("Tell me about {}.", "Why do people like {}?", "Write a short poem about {}.", "List five facts about {}.")


@dataclass
class Seen:
    """What callers saw of one server."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    requests: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, float | int]:
        """For people."""
        return {
            "requests": self.requests,
            "errors": len(self.errors),
            "tok/s": round(self.tokens / self.seconds, 1),
            "ttft p50 ms": round(1000 * _cut(self.first, 50), 1),
            "ttft p95 ms": round(1000 * _cut(self.first, 95), 1),
            "inter-token p50 ms": round(1000 * _cut(self.gaps, 50), 1),
            "inter-token p95 ms": round(1000 * _cut(self.gaps, 95), 1),
            "longest gap ms": round(1000 * max(self.gaps, default=0.0), 1),
        }


def _cut(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else 0.0


async def events(url: str, body: bytes) -> AsyncIterator[bytes]:
    """The events of a chat's answer, as JSON.

    Raises:
        ConnectionError: it is refused, or breaks off.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise ConnectionError(status.decode().strip())
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                yield line[6:]
        raise ConnectionError("an answer breaks off")
    finally:
        writer.close()


async def answer(url: str, messages: list[dict[str, str]], max_tokens: int, seen: Seen) -> str:
    """One request, read to its end."""
    fields = {"max_tokens": max_tokens, "temperature": 0.7, "stream": True, "stream_options": {"include_usage": True}}
    last, text = time.perf_counter(), ""
    async for event in events(url, json.dumps({"messages": messages, **fields}).encode()):
        document = json.loads(event)
        # A chunk may hold several tokens, so that only the server can count them.
        seen.tokens += (document.get("usage") or {}).get("completion_tokens", 0)
        piece = document["choices"][0]["delta"].get("content") if document.get("choices") else None
        if piece:
            now = time.perf_counter()
            (seen.gaps if text else seen.first).append(now - last)
            last, text = now, text + piece
    seen.requests += 1
    return text


async def caller(url: str, number: int, end: float, seen: Seen) -> None:
    """Conversations until the time is up."""
    draw = random.Random(number)
    while time.perf_counter() < end:
        messages: list[dict[str, str]] = []
        for _ in range(3):
            if time.perf_counter() >= end:
                return
            messages.append({"role": "user", "content": draw.choice(ASKS).format(draw.choice(TOPICS))})
            try:
                text = await answer(url, messages, draw.randrange(48, 128), seen)
            except (OSError, ValueError) as error:
                seen.errors.append(repr(error))
                return
            messages.append({"role": "assistant", "content": text})


async def load(url: str, chats: int, seconds: float) -> Seen:
    """All callers against one server."""
    seen = Seen()
    start = time.perf_counter()
    await asyncio.gather(*(caller(url, i, start + seconds, seen) for i in range(chats)))
    seen.seconds = time.perf_counter() - start
    return seen


async def totals(url: str) -> dict[str, float]:
    """Sums of a ryzc server's metrics; empty for others, and for one that has died."""
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except OSError:
        return {}
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
    found: dict[str, float] = {}
    for line in (await reader.read()).decode(errors="replace").splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("ryzc_") and "_bucket" not in name:
            found[name.partition("{")[0]] = found.get(name.partition("{")[0], 0.0) + float(value)
    writer.close()
    return found


async def run(servers: dict[str, str], chats: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Every server in turn, round after round; medians, and the first one's speed as a multiple of each other's."""
    result: dict[str, list[dict[str, float | int]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, url in servers.items():
            before = await totals(url)
            seen = await load(url, chats, seconds)
            figures = seen.figures()
            after = await totals(url)
            if "ryzc_step_seconds_sum" in after:
                spent = {key: after[key] - before.get(key, 0.0) for key in after}
                native, other = spent["ryzc_step_seconds_sum"], spent["ryzc_schedule_seconds_sum"]
                figures["schedule share"] = round(other / (native + other), 4)
                figures["native share of the time"] = round(native / seen.seconds, 4)
            result[name].append(figures)
            print(json.dumps({name: figures, "first errors": seen.errors[:3]}), file=sys.stderr, flush=True)
    first = next(iter(servers))
    medians: dict[str, dict[str, float]] = {}
    for name, found in result.items():
        medians[name] = {key: statistics.median(one[key] for one in found) for key in found[0]}
        ratios = [ours["tok/s"] / one["tok/s"] for ours, one in zip(result[first], found, strict=True) if one["tok/s"]]
        if name != first and ratios:
            medians[name][f"{first} ÷ {name}"] = round(statistics.median(ratios), 2)
    return medians


def table(found: dict[str, dict[str, float]], conditions: str) -> str:
    """Markdown of what :func:`run` gives, a column a server."""
    first = next(iter(found))
    lines = [f"| | {' | '.join(found)} |", f"|---|{'--:|' * len(found)}"]
    shared = [row for row in found[first] if all(row in each for each in found.values())]
    lines += [f"| {row} | {' | '.join(f'{each[row]:,}' for each in found.values())} |" for row in shared]
    ratios = [each.get(f"{first} ÷ {name}") for name, each in found.items()]
    lines.append(f"| **{first} ÷ this, tok/s** | {' | '.join(f'**{r}×**' if r else '' for r in ratios)} |")
    facts = machine.facts()
    return "\n".join([*lines, "", f"{conditions}; {facts['cpu']}; ryzc {facts['commit']}, {facts['date']}."])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=(__doc__ or "").split(":")[0])
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--chats", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-r", "--rounds", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a page with marks to put the table between")
    parser.add_argument("--note", default="", help="what is served, and how, for the page")
    arguments = parser.parse_args()
    servers = dict(entry.split("=", 1) for entry in arguments.servers)
    found = asyncio.run(run(servers, arguments.chats, arguments.seconds, arguments.rounds))
    print(json.dumps(found, indent=1, ensure_ascii=False))
    if arguments.write:
        chosen = f"{arguments.note}{', ' if arguments.note else ''}{arguments.chats} chats"
        turns = f"{chosen}, medians of {arguments.rounds} turns of {arguments.seconds:.0f} s"
        marks.put(arguments.write, table(found, turns), "load")


if __name__ == "__main__":
    main()
