"""How often eviction policies find what is wanted, on traces that everybody can make.

``python -m benchmarks.eviction`` prints hit ratios of every policy in :mod:`ryzc.runtime.kv.eviction`, as a plain cache
on synthetic traces and inside a page pool on made-up conversations, beside the best that any policy could do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ryzc.runtime.kv import EvictionPolicy, PagePool, eviction

Trace = list[int]

CAPACITY = 200
PAGE_TOKENS = 16


def zipf(count: int, keys: int, *, skew: float = 0.9, seed: int = 0, first: int = 0) -> Trace:
    """Independent draws among ``keys`` keys; the n-th most popular is drawn in proportion to ``n ** -skew``."""
    weights = np.arange(1, keys + 1) ** -skew
    drawn = np.random.default_rng(seed).choice(keys, count, p=weights / weights.sum())
    return [first + int(key) for key in drawn]


def scan(count: int, *, first: int = 0) -> Trace:
    """Every key once."""
    return list(range(first, first + count))


def loop(count: int, length: int) -> Trace:
    """The same keys in the same order again and again."""
    return [i % length for i in range(count)]


def zipf_and_scans(count: int, keys: int, *, every: int = 1000, length: int = 400, seed: int = 0) -> Trace:
    """Popular keys, interrupted again and again by a scan over keys that never come back."""
    popular, trace = zipf(count, keys, seed=seed), []
    for start in range(0, count, every):
        trace += popular[start : start + every]
        trace += scan(length, first=keys + start * length)
    return trace


def shifting(count: int, keys: int, *, phases: int = 8, seed: int = 0) -> Trace:
    """Popularity that moves to other keys from phase to phase."""
    part = count // phases
    return [key for i in range(phases) for key in zipf(part, keys, seed=seed + i, first=i * keys)]


def mixed(count: int, keys: int, *, seed: int = 0) -> Trace:
    """Popular keys, loops and scans by turns."""
    part = count // 6
    trace: Trace = []
    for i in range(2):
        trace += zipf(part, keys, seed=seed + i)
        trace += [keys + key for key in loop(part, keys // 4)]
        trace += scan(part // 2, first=(i + 2) * 10 * count)
    return trace


@dataclass
class Replay:
    """What became of a trace.

    Attributes:
        hits: for each access, whether the key was there.
        evicted: keys in the order in which they went.
    """

    hits: list[bool] = field(default_factory=list)
    evicted: list[object] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return sum(self.hits) / max(1, len(self.hits))


def replay(policy: EvictionPolicy, trace: Sequence[int], capacity: int) -> Replay:
    """Let a policy rule a plain cache of ``capacity`` keys."""
    result = Replay()
    for key in trace:
        hit = key in policy
        result.hits.append(hit)
        if hit:
            policy.hit(key)
            continue
        if len(policy) >= capacity:
            result.evicted.append(policy.evict(key))
        policy.insert(key)
        policy.offer(key)
    return result


def best(trace: Sequence[int], capacity: int) -> Replay:
    """The most hits that are possible (Belady 1966): what is used again last goes, the newcomer itself included."""
    never = len(trace)
    following = [never] * len(trace)
    after: dict[int, int] = {}
    for i in range(len(trace) - 1, -1, -1):
        following[i] = after.get(trace[i], never)
        after[trace[i]] = i
    result, cached = Replay(), dict[int, int]()
    for key, again in zip(trace, following, strict=True):
        result.hits.append(key in cached)
        cached[key] = again
        if len(cached) > capacity:
            worst = max(cached, key=cached.__getitem__)
            del cached[worst]
            result.evicted.append(worst)
    return result


@dataclass(frozen=True)
class Request:
    """A prompt, and the answer that is known in advance here."""

    prompt: npt.NDArray[np.int32]
    answer: npt.NDArray[np.int32]


def conversations(count: int, *, seed: int = 0) -> list[Request]:
    """Chats of several turns, of which many are open at a time, and long documents that come once.

    All chats begin with one of a few system prompts, some more popular than others; each turn's prompt is all that
    was said before, and a question.
    """
    random = np.random.default_rng(seed)

    def text(tokens: int) -> npt.NDArray[np.int32]:
        return random.integers(0, 1 << 15, tokens, np.int32)

    systems = [text(int(tokens)) for tokens in random.integers(4, 24, 8) * PAGE_TOKENS]
    popularity = np.arange(1, len(systems) + 1) ** -1.0
    open_chats: list[npt.NDArray[np.int32]] = []
    requests = []
    for _ in range(count):
        if random.random() < 0.15:
            requests.append(Request(text(60 * PAGE_TOKENS), text(PAGE_TOKENS)))
            continue
        if open_chats and random.random() < 0.6:
            said = open_chats.pop(-1 - min(int(random.geometric(0.15)) - 1, len(open_chats) - 1))
        else:
            said = systems[int(random.choice(len(systems), p=popularity / popularity.sum()))]
        prompt, answer = np.concatenate([said, text(2 * PAGE_TOKENS)]), text(4 * PAGE_TOKENS)
        requests.append(Request(prompt, answer))
        if random.random() < 0.8 and len(prompt) < 80 * PAGE_TOKENS:
            open_chats.append(np.concatenate([prompt, answer]))
    return requests


def serve(policy: EvictionPolicy, requests: Sequence[Request], pages: int, sequences: int = 4) -> float:
    """Answer requests in order, a few at a time; the share of their prompts' tokens that the pool's pages held."""
    longest = max(len(request.prompt) + len(request.answer) for request in requests)
    table = np.zeros((sequences, -(-longest // PAGE_TOKENS)), np.int32)
    pool = PagePool(pages, PAGE_TOKENS, table, copy_page=lambda source, target: None, policy=policy)
    for i, request in enumerate(requests):
        sequence = i % sequences
        pool.release(sequence)
        while pool.available < -(-(len(request.prompt) + len(request.answer)) // PAGE_TOKENS):
            pool.release((sequence + 1) % sequences)
            sequence = (sequence + 1) % sequences
        whole = np.concatenate([request.prompt, request.answer])
        pool.adopt(sequence, request.prompt[:-1])
        pool.resize(sequence, len(request.prompt))
        pool.publish(sequence, request.prompt)
        pool.resize(sequence, len(whole))
        pool.publish(sequence, whole)
    return pool.hit_tokens / max(1, pool.queried_tokens)


def traces(count: int = 30_000) -> dict[str, Trace]:
    """The traces of the table."""
    return {
        "zipf": zipf(count, 5 * CAPACITY),
        "zipf and scans": zipf_and_scans(count, 5 * CAPACITY),
        "shifting zipf": shifting(count, 5 * CAPACITY),
        "loop": loop(count, CAPACITY + CAPACITY // 4),
        "scan": scan(count),
        "mixed": mixed(count, 5 * CAPACITY),
    }


def _row(name: str, values: Sequence[float | None]) -> str:
    cells = "".join("       —" if value is None else f"{value:8.3f}" for value in values)
    return f"{name:<16}{cells}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=30_000, help="accesses of a trace")
    parser.add_argument("--pages", type=int, default=400, help="of the pool that conversations share")
    arguments = parser.parse_args()
    policies: dict[str, Callable[[int], EvictionPolicy]] = {name: eviction.get(name) for name in eviction.names()}
    print(f"{'':<16}" + "".join(f"{name[:9]:>8}" if len(name) < 9 else f" {name}" for name in (*policies, "best")))
    for name, trace in traces(arguments.n).items():
        ratios = [replay(policy(CAPACITY), trace, CAPACITY).ratio for policy in policies.values()]
        print(_row(name, [*ratios, best(trace, CAPACITY).ratio]))
    requests = conversations(arguments.n // 20)
    shares = [serve(policy(arguments.pages), requests, arguments.pages) for policy in policies.values()]
    print(_row("conversations", [*shares, None]))


if __name__ == "__main__":
    main()
