"""Whether what a pool keeps about its pages is true: everything counted again, from nothing but sequences and tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ryzc.errors import InternalError
from ryzc.runtime.kv.eviction import EvictionPolicy, Key
from ryzc.runtime.kv.prefix import Node, PrefixTree, path


@dataclass(frozen=True)
class Books:
    """What a pool keeps; see :class:`ryzc.runtime.kv.pool.PagePool`."""

    pages: int
    page_tokens: int
    capacity: int
    table: npt.NDArray[np.int32]
    held: Sequence[Sequence[int]]
    tokens: Sequence[int]
    tree: PrefixTree
    refs: Sequence[int]
    nodes: Sequence[Node | None]
    by_key: Mapping[Key, Node]
    published: Sequence[int]
    own: Sequence[int]
    free: Sequence[int]
    retired: Sequence[int]
    live: int
    idle: int
    policy: EvictionPolicy


def check(books: Books) -> None:
    """Check all of it.

    Raises:
        InternalError: names the first thing that is not true.
    """
    for fault in _faults(books):
        raise InternalError(f"KV pool: {fault}")


def _faults(books: Books) -> Iterator[str]:
    yield from _sequences(books)
    yield from _tree(books)
    yield from _pages(books)
    yield from _invariant(books)
    yield from _policy(books)


def _sequences(books: Books) -> Iterator[str]:
    for sequence, (row, held, tokens) in enumerate(zip(books.table, books.held, books.tokens, strict=True)):
        if len(held) != -(-tokens // books.page_tokens) or not all(0 <= page < books.pages for page in held):
            yield f"sequence {sequence} holds {list(held)} for {tokens} tokens"
        if len(set(held)) < len(held):
            yield f"sequence {sequence} holds a page twice"
        if row[: len(held)].tolist() != held or row[len(held) :].any():
            yield f"the page table of sequence {sequence} is not what it holds"


def _tree(books: Books) -> Iterator[str]:
    nodes = list(books.tree)
    if len({node.page for node in nodes}) < len(nodes):
        yield "a page is in the tree twice"
    by_page = {node.page: node for node in nodes}
    if list(books.nodes) != [by_page.get(page) for page in range(books.pages)]:
        yield "a page's place in the tree is wrong"
    if books.by_key != {node.key: node for node in nodes}:
        yield "a key leads to a wrong place in the tree"
    for salt, root in books.tree.roots.items():
        if root.salt != salt or not root.children:
            yield f"the tree of salt {salt!r} is empty or another's"
    for node in nodes:
        if node.parent is None or node.parent.children.get(node.tokens) is not node:
            yield f"page {node.page} is not a child of its parent"
        if len(node.tokens) != 4 * books.page_tokens:
            yield f"page {node.page} is in the tree, but not full"


def _invariant(books: Books) -> Iterator[str]:
    for sequence, held in enumerate(books.held):
        for i, page in enumerate(held):
            node = books.nodes[page]
            if node is not None and [n.page for n in path(node)] != list(held[: i + 1]):
                yield f"sequence {sequence} holds page {page}, but not what comes before it in the tree"
        if any(books.nodes[page] is None for page in held[: books.published[sequence]]):
            yield f"a published page of sequence {sequence} is not in the tree"
        for page in held[books.own[sequence] :]:
            if books.refs[page] != 1 or books.nodes[page] is not None:
                yield f"page {page} of sequence {sequence} counts as its own, but is not"


def _pages(books: Books) -> Iterator[str]:
    refs = Counter(page for held in books.held for page in held)
    if list(books.refs) != [refs[page] for page in range(books.pages)]:
        yield "a page is held by more or fewer sequences than counted"
    idle = {page for page in range(books.pages) if books.nodes[page] is not None and not refs[page]}
    if (books.live, books.idle) != (len(refs), len(idle)):
        yield f"{len(refs)} pages are held and {len(idle)} cached, but {books.live} and {books.idle} were counted"
    everywhere = [*refs, *idle, *books.free, *books.retired]
    if sorted(everywhere) != list(range(books.pages)):
        yield "a page is lost or held twice"
    if len(refs) + len(idle) + len(books.free) < books.capacity:
        yield "a page within the capacity was retired"


def _policy(books: Books) -> Iterator[str]:
    policy = books.policy
    if len(policy) != len(books.by_key) or set(policy) != set(books.by_key):
        yield "the policy ranks other pages than the tree holds"
    leaves = {key for key, node in books.by_key.items() if not node.children and not books.refs[node.page]}
    if policy.offered() != leaves:
        yield "the policy may evict a page that it must not, or may not evict one that it may"
