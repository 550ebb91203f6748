"""What serving costs a step: ``python -m benchmarks.serve_overhead BUNDLE [--chats 32 -r 5 --write docs/server.md]``.

Chats are held once over HTTP and written down: prompts in messages and in tokens, seeds, lengths. A round replays all
of them through an engine in a process of its own, in which nothing else happens, and through ``ryzc serve``, where
clients read every answer as a stream; both engines have one thread, guess nothing ahead, and make the same tokens.
Ratios are taken within a round, their medians count; CPU time of the server's threads but the engine's is what serving
costs, whoever else disturbs the machine. The client has the last CPU. The server is measured in two places:
on the first CPU alone, as the engine is, where all that it does adds to the steps; and free to use that and the last
CPU beside the client, where its event loop can work while native code computes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import machine, marks
from benchmarks.serve_load import ASKS, TOPICS, events, totals
from ryzc.runtime.engine import Engine
from ryzc.runtime.sampling import SamplingParams

TURNS, CONTEXT = 2, 1024
LEAST, MOST = 64, 128
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Turn:
    """One request.

    Attributes:
        messages: as a client sends them.
        ids: the same as the engine gets them.
        max_tokens: of the answer, which never ends earlier.
        seed: of its tokens.
    """

    messages: list[dict[str, str]]
    ids: list[int]
    max_tokens: int
    seed: int

    def body(self, salt: str) -> bytes:
        """Of HTTP; a salt's prefixes are known to its own requests only."""
        fields = {"max_tokens": self.max_tokens, "seed": self.seed, "temperature": TEMPERATURE, "cache_salt": salt}
        return json.dumps({"messages": self.messages, "ignore_eos": True, "stream": True, **fields}).encode()


def alone(bundle: str, chats: int, cpu: int, pipe: Connection) -> None:
    """A process that replays through an engine, in one thread: it gets turns by chat, then a salt a round."""
    os.sched_setaffinity(0, {cpu})
    with Engine(bundle, context=CONTEXT, sequences=chats, threads=1, speculate="off", background=False) as engine:
        turns: list[list[Turn]] = pipe.recv()
        while (salt := pipe.recv()) is not None:
            before = engine.metrics.step_seconds.total, engine.metrics.schedule_seconds.total, engine.metrics.steps
            start = time.perf_counter()
            _replay(engine, turns, salt)
            wall = time.perf_counter() - start
            after = engine.metrics.step_seconds.total, engine.metrics.schedule_seconds.total, engine.metrics.steps
            native, schedule, steps = (b - a for a, b in zip(before, after, strict=True))
            pipe.send({"wall": wall, "native": native, "schedule": schedule, "steps": steps})


def _replay(engine: Engine, turns: Sequence[Sequence[Turn]], salt: str) -> None:
    """Hold all chats, reading what each step brought."""

    def ask(turn: Turn) -> Any:
        sampling = SamplingParams(temperature=TEMPERATURE, seed=turn.seed)
        return engine.submit(turn.ids, sampling=sampling, max_tokens=turn.max_tokens, ignore_eos=True, salt=salt)

    waiting = [list(chat) for chat in turns]
    streams = {i: ask(chat.pop(0)) for i, chat in enumerate(waiting)}
    while streams:
        engine.step()
        for i, stream in list(streams.items()):
            items = stream.request.outbox.items
            while not items.empty() and next(stream, None) is not None:
                pass
            if stream.finished:
                if waiting[i]:
                    streams[i] = ask(waiting[i].pop(0))
                else:
                    del streams[i]


@contextmanager
def served(bundle: Path, chats: int, cpus: Sequence[int]) -> Iterator[tuple[str, int]]:
    """``ryzc serve`` on some CPUs; its URL and the id of its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "-t", "1", "-c", str(CONTEXT), "-np", str(chats)]
    options += ["--speculate", "off", "--log-level", "error"]
    command = ["taskset", "-c", ",".join(map(str, cpus)), sys.executable, "-m", "ryzc", "serve", str(bundle), *options]
    process = subprocess.Popen(command)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while process.poll() is None and time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(f"{url}/ready"):
                break
            time.sleep(0.05)
        else:
            sys.exit("error: the server does not start")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of each thread of a process."""
    paths = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return {path.parent.name: int(path.read_text(encoding="ascii").split()[0]) / 1e9 for path in paths}


async def record(url: str, chats: int) -> list[list[Turn]]:
    """Hold the chats for the first time."""

    async def chat(number: int) -> list[Turn]:
        draw, messages, turns = random.Random(number), list[dict[str, str]](), list[Turn]()
        for _ in range(TURNS):
            messages = [*messages, {"role": "user", "content": draw.choice(ASKS).format(draw.choice(TOPICS))}]
            told = await asyncio.to_thread(_post, f"{url}/tokenize", {"messages": messages})
            turns.append(Turn(messages, told["tokens"], draw.randrange(LEAST, MOST), draw.getrandbits(32)))
            pieces = [json.loads(line)["choices"][0]["delta"] async for line in events(url, turns[-1].body(""))]
            text = "".join(piece.get("content", "") for piece in pieces)
            messages = [*messages, {"role": "assistant", "content": text}]
        return turns

    return await asyncio.gather(*(chat(number) for number in range(chats)))


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


async def through_http(url: str, pid: int, turns: Sequence[Sequence[Turn]], salt: str) -> dict[str, float]:
    """Replay the chats, reading every stream."""

    async def chat(mine: Sequence[Turn]) -> None:
        for turn in mine:
            async for _ in events(url, turn.body(salt)):
                pass

    before, threads, own = await totals(url), thread_seconds(pid), time.process_time()
    start = time.perf_counter()
    await asyncio.gather(*(chat(mine) for mine in turns))
    wall, own = time.perf_counter() - start, time.process_time() - own
    # The engine's thread is the one that computes, so the busiest; all others serve.
    spent = sorted(seconds - threads.get(thread, 0.0) for thread, seconds in thread_seconds(pid).items())
    after = await totals(url)
    native, schedule, steps = (
        after[name] - before[name]
        for name in ("ryzc_step_seconds_sum", "ryzc_schedule_seconds_sum", "ryzc_steps_total")
    )
    return {
        "wall": wall,
        "native": native,
        "schedule": schedule,
        "steps": steps,
        "serving": sum(spent[:-1]),
        "client": own,
    }


def measure(bundle: Path, chats: int, rounds: int) -> dict[str, Any]:
    """The figures of each place of the server."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        sys.exit("error: one CPU is too few: the client would be measured with the server")
    os.sched_setaffinity(0, {cpus[-1]})
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    engine = multiprocessing.get_context("spawn").Process(
        target=alone, args=(str(bundle), chats, cpus[0], theirs), daemon=True
    )
    engine.start()
    found: dict[str, Any] = {}
    tokens = 0
    with ExitStack() as stack:
        chosen = {"one CPU": cpus[:1], "two CPUs": [cpus[0], cpus[-1]]}
        servers = {place: stack.enter_context(served(bundle, chats, own)) for place, own in chosen.items()}
        turns = asyncio.run(record(servers["one CPU"][0], chats))
        ours.send(turns)
        tokens = sum(turn.max_tokens for chat in turns for turn in chat)
        samples: dict[str, list[dict[str, float]]] = {place: [] for place in ("alone", *servers)}
        for attempt in range(rounds + 1):
            salt = f"round {attempt}"
            ours.send(salt)
            round_ = {"alone": ours.recv()}
            for place, (url, pid) in servers.items():
                round_[place] = asyncio.run(through_http(url, pid, turns, salt))
            if attempt:  # the first warms up
                for place, sample in round_.items():
                    samples[place].append(sample)
                print(json.dumps(round_), file=sys.stderr, flush=True)
    ours.send(None)
    engine.join(30)
    found = {"chats": chats, "tokens": tokens, "alone": _figures(samples["alone"], samples["alone"], tokens)}
    return found | {place: _figures(samples[place], samples["alone"], tokens) for place in servers}


def _figures(samples: Sequence[dict[str, float]], alone: Sequence[dict[str, float]], tokens: int) -> dict[str, float]:
    """Medians over rounds; times are milliseconds of a step."""
    rows = []
    for one, other in zip(samples, alone, strict=True):
        a_step = 1000 / one["steps"]
        row = {"tok/s": tokens / one["wall"], "native": one["native"] * a_step, "engine": one["schedule"] * a_step}
        row["between"] = (one["wall"] - one["native"] - one["schedule"]) * a_step
        row["cost"] = one["wall"] / other["wall"] - 1
        if "serving" in one:
            row["serving"], row["client"] = one["serving"] * a_step, one["client"] * a_step
            row["share"] = row["serving"] / (1000 * other["wall"] / other["steps"])
        rows.append(row)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


ROWS = (
    ("tokens/s", "tok/s", "{:.0f}"),
    ("longer than alone", "cost", "{:+.1%}"),
    ("native code, ms a step", "native", "{:.2f}"),
    ("the engine's Python, ms a step", "engine", "{:.2f}"),
    ("between steps, ms a step", "between", "{:.2f}"),
    ("CPU time of HTTP, templates and tokenizing, ms a step", "serving", "{:.2f}"),
    ("**the same, of a step alone**", "share", "**{:.1%}**"),
    ("CPU time of the client, ms a step", "client", "{:.2f}"),
)


def table(found: dict[str, Any], bundle: Path) -> str:
    """Markdown."""
    columns = ["alone", "one CPU", "two CPUs"]
    lines = ["| | engine alone | served on one CPU | served on two CPUs |", "|---|--:|--:|--:|"]
    for title, name, form in ROWS:
        cells = [form.format(found[column][name]) if name in found[column] else "" for column in columns]
        cells[0] = "" if name == "cost" else cells[0]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    facts = machine.facts()
    what = f"{found['chats']} chats, {found['tokens']:,} tokens a round, one thread"
    return "\n".join([*lines, "", f"{bundle.stem}, {what}; {facts['cpu']}; ryzc {facts['commit']}, {facts['date']}."])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve_overhead", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--chats", type=int, default=32)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a page with marks to put the table between")
    arguments = parser.parse_args()
    found = measure(arguments.bundle, arguments.chats, arguments.rounds)
    print(json.dumps(found, indent=1))
    if arguments.write:
        marks.put(arguments.write, table(found, arguments.bundle), "overhead")


if __name__ == "__main__":
    main()
