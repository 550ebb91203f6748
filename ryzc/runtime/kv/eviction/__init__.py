"""Which cached page goes when one is needed: policies, one file each. ``get("lru")`` finds one by its file's name.

A policy ranks keys and holds nothing else. Its user tells it what happens to a key:

- :meth:`~EvictionPolicy.insert`: it came in;
- :meth:`~EvictionPolicy.hit`: it was there when it was wanted;
- :meth:`~EvictionPolicy.touch`: it was in use until now. Counts as recent, not as another use;
- :meth:`~EvictionPolicy.offer`, :meth:`~EvictionPolicy.withdraw`: it may, or may not, be evicted from now on;
- :meth:`~EvictionPolicy.remove`: it is gone for reasons of the user's own.

:meth:`~EvictionPolicy.evict` then names the worst of the keys on offer. In the prefix tree, those are leaves that no
sequence holds; in a plain cache, every key is offered as it comes in. A policy never looks at keys that are not on
offer, however many there are.

A policy's file defines ``Policy``, a class that is made with the most keys that there can be.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, TypeAlias

from ryzc.errors import UsageError

__all__ = ["DEFAULT", "EvictionPolicy", "Key", "get", "names"]

Key: TypeAlias = Hashable
DEFAULT = "arc"
"""Never far from the best: frequency counts between conversations, recency within one."""


class EvictionPolicy(Protocol):
    """An order of eviction. Keys stand for contents: one that was evicted and comes back has the same key."""

    def insert(self, key: Key) -> None:
        """A new key; it is not on offer."""

    def hit(self, key: Key) -> None:
        """A use of a key that is there."""

    def touch(self, key: Key) -> None:
        """The end of a use that was counted before."""

    def offer(self, key: Key) -> None:
        """The key may be evicted from now on."""

    def withdraw(self, key: Key) -> None:
        """The key may no longer be evicted."""

    def evict(self, incoming: Key | None = None) -> Key | None:
        """Take out the key that is worth least of those on offer; ``None`` where none is.

        Args:
            incoming: the key that needs the room, if that is known.
        """

    def remove(self, key: Key) -> None:
        """Take out a key, and do as if it had never been there."""

    def resize(self, capacity: int) -> None:
        """There can be so many keys at most from now on."""

    def clear(self) -> None:
        """Forget everything. Works from every state, a half-changed one too."""

    def offered(self) -> frozenset[Key]:
        """The keys on offer."""

    def __contains__(self, key: object) -> bool: ...

    def __iter__(self) -> Iterator[Key]: ...

    def __len__(self) -> int: ...


@cache
def names() -> tuple[str, ...]:
    """The names of all policies, sorted."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))


def get(name: str) -> Callable[[int], EvictionPolicy]:
    """The policy of that name: call it with the most keys that there can be.

    Raises:
        UsageError: where there is none.
    """
    if name not in names():
        raise UsageError(f"eviction policy {name!r} is not known", hint=f"choose one of {', '.join(names())}")
    policy: Callable[[int], EvictionPolicy] = import_module(f"{__name__}.{name}").Policy
    return policy
