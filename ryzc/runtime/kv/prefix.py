"""Pages by what they hold: a tree over token ids, a page a node.

A node stands for the tokens from the start of a sequence to the end of its page: the keys and values in the page depend
on all of them. Children are found by their page's tokens, byte by byte, so that two prefixes are never taken for one.
Each salt has a tree of its own: what one tenant sent can neither be found nor timed by another.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = Sequence[int] | npt.NDArray[np.int32]

_ID_BYTES = 4
_DIGEST_BYTES = 16


class Node:
    """A page in the tree.

    Attributes:
        parent: the page before; ``None`` for a root, which has no page.
        tokens: what the page holds, as in memory.
        page: its number.
        children: by their tokens.
        key: digest of the salt and of all tokens up to the end of the page; the same when it comes back.
    """

    __slots__ = ("children", "key", "page", "parent", "tokens")

    def __init__(self, parent: Node | None, tokens: bytes, page: int, key: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.page = page
        self.key = key
        self.children: dict[bytes, Node] = {}


class Root(Node):
    """Where the prefixes of a salt begin."""

    __slots__ = ("salt",)

    def __init__(self, salt: str) -> None:
        super().__init__(None, b"", -1, _digest(salt.encode("utf-8", "surrogatepass"), of=b"salt"))
        self.salt = salt


class PrefixTree:
    """All trees, by salt. A change of it is one store: it is whole at every moment.

    Args:
        page_tokens: tokens of a page.
    """

    def __init__(self, page_tokens: int) -> None:
        self._bytes = page_tokens * _ID_BYTES
        self._page_tokens = page_tokens
        self.roots: dict[str, Root] = {}

    def pages(self, ids: Ids, first: int, end: int) -> list[bytes]:
        """The tokens of pages ``first`` to ``end``, as in memory."""
        part = ids[first * self._page_tokens : end * self._page_tokens]
        raw = part.astype(np.int32, copy=False).tobytes() if isinstance(part, np.ndarray) else _bytes(part)
        size = self._bytes
        return [raw[at : at + size] for at in range(0, len(raw), size)]

    def walk(self, node: Node | None, pages: Sequence[bytes]) -> list[Node]:
        """The nodes below ``node`` that hold ``pages``, as far as they are there."""
        found: list[Node] = []
        for tokens in pages:
            node = node.children.get(tokens) if node is not None else None
            if node is None:
                break
            found.append(node)
        return found

    def insert(self, parent: Node, tokens: bytes, page: int) -> Node:
        """Put a page below its parent, which holds no page of these tokens."""
        node = Node(parent, tokens, page, _digest(parent.key.to_bytes(_DIGEST_BYTES, "little") + tokens))
        parent.children[tokens] = node
        return node

    def root(self, salt: str) -> Root:
        """The root of a salt, a new one if need be."""
        root = self.roots.get(salt)
        if root is None:
            self.roots[salt] = root = Root(salt)
        return root

    def remove(self, node: Node) -> None:
        """Take out a node and all below it; a root that is left alone goes too."""
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens]
        if isinstance(parent, Root) and not parent.children:
            del self.roots[parent.salt]

    def prune(self) -> None:
        """Take out roots without pages."""
        self.roots = {salt: root for salt, root in self.roots.items() if root.children}

    def __iter__(self) -> Iterator[Node]:
        """All nodes with pages, parents before their children."""
        waiting: list[Node] = list(self.roots.values())
        while waiting:
            children = waiting.pop().children.values()
            yield from children
            waiting += children


def path(node: Node) -> list[Node]:
    """The nodes from below the root to ``node``."""
    nodes = []
    while node.parent is not None:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]


def below(node: Node) -> Iterator[Node]:
    """A node and all below it, parents before their children."""
    yield node
    waiting = [node]
    while waiting:
        children = waiting.pop().children.values()
        yield from children
        waiting += children


def _bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def _digest(content: bytes, of: bytes = b"page") -> int:
    return int.from_bytes(blake2b(content, digest_size=_DIGEST_BYTES, person=of).digest(), "little")
