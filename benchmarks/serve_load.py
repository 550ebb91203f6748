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
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

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


async def answer(url: str, messages: list[dict[str, str]], max_tokens: int, seen: Seen) -> str:
    """One request, read to its end."""
    parts = urlsplit(url)
    body = json.dumps({"messages": messages, "max_tokens": max_tokens, "temperature": 0.7, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    last = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    text, tokens = "", 0
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise ConnectionError(status.decode().strip())
        while line := await reader.readline():
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            choices = json.loads(line[6:]).get("choices") or [{}]
            piece = choices[0].get("delta", {}).get("content")
            if not piece:
                continue
            now = time.perf_counter()
            (seen.gaps if tokens else seen.first).append(now - last)
            last, tokens, text = now, tokens + 1, text + piece
        seen.requests += 1
    finally:
        writer.close()
    seen.tokens += tokens
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
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
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
    """Every server in turn, round after round; medians."""
    result: dict[str, list[dict[str, float | int]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, url in servers.items():
            before = await totals(url)
            figures = (await load(url, chats, seconds)).figures()
            after = await totals(url)
            if "ryzc_step_seconds_sum" in after:
                spent = {key: after[key] - before.get(key, 0.0) for key in after}
                native, other = spent["ryzc_step_seconds_sum"], spent["ryzc_schedule_seconds_sum"]
                figures["schedule share"] = round(other / (native + other), 4)
                figures["native share of the time"] = round(native / seconds, 4)
            result[name].append(figures)
    return {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in result.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=(__doc__ or "").split(":")[0])
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--chats", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-r", "--rounds", type=int, default=1)
    arguments = parser.parse_args()
    servers = dict(entry.split("=", 1) for entry in arguments.servers)
    print(json.dumps(asyncio.run(run(servers, arguments.chats, arguments.seconds, arguments.rounds)), indent=1))


if __name__ == "__main__":
    main()
