"""Ctrl-C at any moment of a change to the pool: afterwards it is sound, and sequences hold what they say."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import numpy as np
import pytest
from test_page_sharing import PAGE, Store, chat

POINTS = 200
"""Of the byte codes of an action, so many are interrupted, evenly spread."""

LENGTHS = {0: 10, 1: 9, 2: 6}


@contextmanager
def interrupted_at(count: int) -> Iterator[None]:
    """Raise KeyboardInterrupt before the ``count``-th byte code of the KV pool's code."""
    left = count

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if "/runtime/kv/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def busy() -> Store:
    """A pool with something of everything; sequence 3 is empty, and 0, 1 and 2 hold what LENGTHS says."""
    store = Store(pages=12)
    store.run(3, chat(13, 500))
    store.run(3, chat(8, 700), salt="a")
    store.append(0, chat(10))
    store.pool.publish(0, chat(5))
    store.pool.fork(0, 1, 9)
    store.append(2, chat(6))
    return store


def interrupted_publish(store: Store) -> None:
    store.pool.publish(2, chat(4))
    store.pool.publish(1, chat(8))


ACTIONS: dict[str, Callable[[Store], object]] = {
    "grow, evicting": lambda store: store.pool.resize(2, 24),
    "copy on write": lambda store: store.pool.resize(1, 11),
    "rewrite": lambda store: store.pool.resize(0, 12, writable_from=2),
    "truncate": lambda store: store.pool.resize(0, 3),
    "truncate and rewrite": lambda store: store.pool.resize(0, 7, writable_from=1),
    "adopt": lambda store: store.pool.adopt(3, chat(13, 500)),
    "adopt in place of its own": lambda store: store.pool.adopt(2, chat(10)),
    "publish, shared": interrupted_publish,
    "fork": lambda store: store.pool.fork(2, 3, 5),
    "release": lambda store: store.pool.release(0),
    "shrink": lambda store: store.pool.shrink(7),
    "shrink and grow": lambda store: (store.pool.shrink(6), store.pool.grow(12)),
    "clear": lambda store: store.pool.clear(),
}


def byte_codes(action: Callable[[Store], object]) -> int:
    """How many an action takes, to within a few."""
    low, high = 0, 1 << 16
    while low + 1 < high:
        middle = (low + high) // 2
        store = busy()
        try:
            with interrupted_at(middle):
                action(store)
            high = middle
        except KeyboardInterrupt:
            low = middle
    return high


@pytest.mark.parametrize("name", list(ACTIONS))
def test_an_interrupted_pool_is_sound(name: str) -> None:
    action = ACTIONS[name]
    total = byte_codes(action)
    assert total > 30
    for count in range(0, total, -(-total // POINTS)):
        store = busy()
        with pytest.raises(KeyboardInterrupt), interrupted_at(count):
            action(store)
        if count % 2:  # and once more, while it is mended
            with suppress(KeyboardInterrupt), interrupted_at(count % 400):
                store.pool.match(chat(4))
        check(store)


def check(store: Store) -> None:
    pool = store.pool
    pool.check_integrity()
    for sequence, length in LENGTHS.items():
        # What the interrupted action had not reached, or what it was to give up, is as it was.
        sound = min(length, pool.tokens(sequence))
        assert store.read(sequence, sound) == chat(10)[:sound]
    for ids, salt in ((chat(13, 500), ""), (chat(8, 700), "a"), (chat(10), "")):
        pages = pool.find(ids, salt)
        np.testing.assert_array_equal(store.pages[pages].reshape(-1), ids[: PAGE * len(pages)])
    for sequence in range(4):
        pool.release(sequence)
    assert pool.used == 0
    pool.grow(pool.pages)
    pool.resize(3, 24)
    pool.check_integrity()
    pool.release(3)
    pool.clear()
    assert pool.free == pool.pages
