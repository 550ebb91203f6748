"""Which page of the KV pool holds which part of which sequence.

A page is shared by reference: among sequences that begin alike, and with the prefix tree, which keeps pages findable
after the sequences that filled them have ended. Nobody writes a shared page: it is copied first.

**Interruptions.** What counts are the pages and the length of each sequence, and the tree. Each of them changes in
single stores, and whatever lies between two of those is a sound state. All else (reference counts, free pages, the
page table, the policy's ranks) follows from them; it is kept up to date as they change, and found out anew where an
exception, such as Ctrl-C, came in between.

**Invariant.** A sequence that holds a page of the tree holds the pages of all its ancestors too. So pages that no
sequence holds can all be evicted, the last of a prefix first, and counting them tells how many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ryzc.errors import ContextError, InternalError, PoolFullError
from ryzc.runtime.kv import integrity
from ryzc.runtime.kv.eviction import EvictionPolicy, Key, lru
from ryzc.runtime.kv.prefix import Ids, Node, PrefixTree, below


def _cannot_copy(source: int, target: int) -> None:
    raise InternalError(f"KV pool: page {source} is shared, and nothing was given that copies pages")


class PagePool:
    """Hands pages to sequences and writes the page table that native code reads.

    The page freed last is handed out first, while it may still be in a cache.

    Args:
        pages: pages in the pool.
        page_tokens: tokens that a page holds.
        page_table: ``int32 [sequences, pages of a full context]``; only this class writes it. Entries
            that a sequence does not use are 0.
        copy_page: copies a page, from the first to the second; only needed where pages are shared.
        policy: which cached page goes first; by default the least recently used.

    Attributes:
        capacity: pages that sequences and cache may take together; see :meth:`shrink`.
        queried_tokens: tokens that prefixes were looked up for.
        hit_tokens: how many of them were found.
        evicted: cached pages that were given up for others.
    """

    def __init__(
        self,
        pages: int,
        page_tokens: int,
        page_table: npt.NDArray[np.int32],
        *,
        copy_page: Callable[[int, int], None] = _cannot_copy,
        policy: EvictionPolicy | None = None,
    ) -> None:
        self.pages = self.capacity = pages
        self.page_tokens = page_tokens
        self.queried_tokens = self.hit_tokens = self.evicted = 0
        self._table = page_table
        self._copy_page = copy_page
        self._policy: EvictionPolicy = lru.Policy(pages) if policy is None else policy
        self._touched = bytearray(pages)
        self._held: list[list[int]] = [[] for _ in page_table]
        self._tokens = [0] * len(page_table)
        self._tree = PrefixTree(page_tokens)
        self._derive()

    def _derive(self) -> None:
        """Find out everything that follows from sequences and tree."""
        self._changing = True
        self._tree.prune()
        nodes = list(self._tree)
        self._nodes: list[Node | None] = [None] * self.pages
        """By page, its place in the tree."""
        self._by_key: dict[Key, Node] = {}
        for node in nodes:
            self._nodes[node.page] = self._by_key[node.key] = node
        self._published = [0] * len(self._held)
        """By sequence, pages at its start that are in the tree; there may be more."""
        self._own = [0] * len(self._held)
        """By sequence, pages at its start, the rest of which nobody else has; there may be fewer."""
        for sequence in range(len(self._held)):
            self._mend(sequence)
        self._refs = [0] * self.pages
        """By page, sequences that hold it."""
        for held in self._held:
            for page in held:
                self._refs[page] += 1
        self._live = self.pages - self._refs.count(0)
        self._idle = sum(self._refs[node.page] == 0 for node in nodes)
        free = [p for p in range(self.pages - 1, -1, -1) if not self._refs[p] and self._nodes[p] is None]
        surplus = max(0, len(free) - max(0, self.capacity - self._live - self._idle))
        self._retired, self._free = free[:surplus], free[surplus:]
        self._policy.resize(max(1, self.capacity))
        self._policy.clear()
        for node in nodes:
            self._policy.insert(node.key)
            if not node.children and not self._refs[node.page]:
                self._policy.offer(node.key)
        self._changing = False

    def _mend(self, sequence: int) -> None:
        """Make a sequence's pages as many as its tokens need."""
        held = self._held[sequence][: self._needed(self._tokens[sequence])]
        self._held[sequence] = held
        self._published[sequence] = sum(self._nodes[page] is not None for page in held)
        self._own[sequence] = len(held)
        self._table[sequence] = 0
        self._table[sequence, : len(held)] = held

    def _needed(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def _settle(self) -> None:
        if self._changing:
            self._derive()

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        self._settle()
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages that sequences hold."""
        self._settle()
        return self._live

    @property
    def cached(self) -> int:
        """Pages that no sequence holds, but that can be found by what they hold."""
        self._settle()
        return self._idle

    @property
    def available(self) -> int:
        """Pages that sequences could get now: free ones, and cached ones that can be evicted."""
        self._settle()
        return max(0, self.capacity - self._live)

    @property
    def resident(self) -> int:
        """Pages whose memory was used, and was not given back since."""
        return self._touched.count(1)

    def held(self, sequence: int) -> int:
        """Pages that a sequence holds."""
        self._settle()
        return len(self._held[sequence])

    def row(self, sequence: int) -> npt.NDArray[np.int32]:
        """The page table's row of a sequence: its pages, and then zeros. Not to be written."""
        self._settle()
        row: npt.NDArray[np.int32] = self._table[sequence]
        return row

    def tokens(self, sequence: int) -> int:
        """Tokens of a sequence, as it was resized to or adopted."""
        self._settle()
        return self._tokens[sequence]

    def resize(self, sequence: int, tokens: int, writable_from: int | None = None) -> None:
        """Give a sequence exactly the pages that ``tokens`` tokens need; what it keeps stays what it is.

        Args:
            sequence: a row of the page table.
            tokens: its new length.
            writable_from: positions from here on shall be written: their pages become the sequence's own, by a
                copy where they are shared. By default its length before.

        Raises:
            ContextError: more than a full context; nothing has changed then.
            PoolFullError: not enough pages are available; nothing has changed then.
        """
        if self._changing:
            self._derive()
        start = self._tokens[sequence] if writable_from is None else writable_from
        first, needed = start // self.page_tokens, -(-tokens // self.page_tokens)
        if needed == len(self._held[sequence]) and (first >= self._own[sequence] or tokens <= start):
            self._tokens[sequence] = tokens
        else:
            self._resize(sequence, tokens, needed, first if tokens > start else needed)

    def _resize(self, sequence: int, tokens: int, needed: int, first: int) -> None:
        held, refs, nodes = self._held[sequence], self._refs, self._nodes
        shared = [i for i in range(first, min(len(held), needed)) if refs[held[i]] > 1 or nodes[held[i]] is not None]
        missing = max(0, needed - len(held)) + len(shared)
        alone = self._check_room(sequence, tokens, needed, missing, shared)
        self._changing = True
        if alone is not None:  # no room for a copy, and no other sequence has it
            self._detach(nodes[held[alone]])
            shared = [i for i in shared if refs[held[i]] > 1 or nodes[held[i]] is not None]
        if needed < len(held):
            self._truncate(sequence, tokens, needed)
            held = self._held[sequence]
        kept = len(held)
        new = self._take(needed - kept + len(shared))
        pages = held + new[: needed - kept]
        for i, page in zip(shared, new[needed - kept :], strict=True):
            self._copy_page(held[i], page)
            pages[i] = page
        self._held[sequence] = pages
        self._tokens[sequence] = tokens
        start = shared[0] if shared else kept
        if start < needed:
            self._table[sequence, start:needed] = pages[start:]
        self._drop([held[i] for i in shared])
        self._published[sequence] = min(self._published[sequence], first)
        self._own[sequence] = min(self._own[sequence], first)
        self._changing = False

    def _check_room(self, sequence: int, tokens: int, needed: int, missing: int, shared: Sequence[int]) -> int | None:
        """Raise where a sequence cannot get what it needs.

        Returns:
            From which of its pages on it must be taken out of the tree for that; ``None`` for not at all.
        """
        possible, held, refs = self._table.shape[1], self._held[sequence], self._refs
        if needed > possible:
            raise ContextError(
                f"{tokens} tokens do not fit into a context of {possible * self.page_tokens}",
                hint="set a larger context (-c)",
            )
        room = max(0, self.capacity - self._live + sum(refs[page] == 1 for page in held[needed:]))
        if missing <= room:
            return None
        lonely = [i for i in shared if refs[held[i]] == 1]
        if missing - len(lonely) > room:
            raise PoolFullError(
                f"{tokens} tokens need {missing} more pages of the KV pool, but {room} are free",
                hint="end another sequence, or load the model with more pages",
            )
        return lonely[0]

    def _truncate(self, sequence: int, tokens: int, needed: int) -> None:
        held = self._held[sequence]
        self._tokens[sequence] = tokens
        self._held[sequence] = held[:needed]
        self._table[sequence, needed : len(held)] = 0
        self._drop(held[needed:])
        self._published[sequence] = min(self._published[sequence], needed)
        self._own[sequence] = min(self._own[sequence], needed)

    def match(self, ids: Ids, salt: str = "") -> int:
        """How many tokens at the start of ``ids`` :meth:`adopt` would find, in whole pages."""
        self._settle()
        root = self._tree.roots.get(salt)
        if root is None:
            return 0
        whole = min(len(ids) // self.page_tokens, self._table.shape[1])
        return len(self._tree.walk(root, self._tree.pages(ids, 0, whole))) * self.page_tokens

    def find(self, ids: Ids, salt: str = "") -> list[int]:
        """The pages that :meth:`adopt` would find."""
        self._settle()
        pages = self._tree.pages(ids, 0, len(ids) // self.page_tokens)
        return [node.page for node in self._tree.walk(self._tree.roots.get(salt), pages)]

    def in_use(self, ids: Ids, salt: str = "") -> int:
        """How many of the pages that :meth:`adopt` would find are held by sequences: they take no room."""
        return sum(self._refs[page] > 0 for page in self.find(ids, salt))

    def adopt(self, sequence: int, ids: Ids, salt: str = "", *, counted: bool = True) -> int:
        """Extend a sequence by cached pages that hold what comes next.

        Args:
            sequence: a row of the page table. What it holds is the beginning of ``ids``.
            ids: the tokens that it shall hold. Leave the last one out: nothing but a step gives its logits.
            salt: only pages that were published with the same salt are found.
            counted: whether ``queried_tokens`` and ``hit_tokens`` take notice.

        Returns:
            How many tokens the sequence has now.
        """
        self._settle()
        held, tokens, size = self._held[sequence], self._tokens[sequence], self.page_tokens
        if counted and not tokens:
            self.queried_tokens += len(ids)
        whole = min(len(ids) // size, self._table.shape[1])
        first = min(self._published[sequence], tokens // size)
        node = self._nodes[held[first - 1]] if first else self._tree.roots.get(salt)
        if whole * size <= tokens or node is None:
            return tokens
        found = self._tree.walk(node, self._tree.pages(ids, first, whole))
        end = first + len(found)
        if end * size <= tokens:
            return tokens
        self._changing = True
        self._replace(sequence, first, found)
        self._tokens[sequence] = end * size
        self._changing = False
        if counted:
            self.hit_tokens += end * size - tokens
        return end * size

    def _replace(self, sequence: int, first: int, found: Sequence[Node]) -> None:
        """Let pages of the tree follow a sequence's first pages, in place of what it has there."""
        held, end = self._held[sequence], first + len(found)
        for node in reversed(found):
            self._policy.hit(node.key)
            self._hold(node.page)
        pages = [node.page for node in found]
        self._held[sequence] = held[:first] + pages + held[end:]
        self._table[sequence, first:end] = pages
        self._drop(held[first:end])
        self._published[sequence] = max(self._published[sequence], end)
        self._own[sequence] = max(self._own[sequence], end)

    def publish(self, sequence: int, ids: Ids, salt: str = "") -> None:
        """Make the full pages of a sequence findable.

        Where the tree has a page of the same tokens already, the sequence takes that instead of its own.

        Args:
            sequence: a row of the page table.
            ids: what it holds; more than that is ignored.
            salt: see :meth:`adopt`; always the same for a sequence.
        """
        self._settle()
        held, first = self._held[sequence], self._published[sequence]
        full = min(len(ids), self._tokens[sequence]) // self.page_tokens
        if full <= first:
            return
        self._changing = True
        node = self._nodes[held[first - 1]] if first else self._tree.root(salt)
        contents = self._tree.pages(ids, first, full)
        found = self._tree.walk(node, contents)
        if found:
            self._replace(sequence, first, found)
            node, held = found[-1], self._held[sequence]
        for i in range(first + len(found), full):
            page = held[i]
            if node is None or self._nodes[page] is not None:  # it is known by another salt
                self._tree.prune()
                full = i
                break
            if self._refs[page] > 1:
                self._align(sequence, i)
            node = self._tree.insert(node, contents[i - first], page)
            self._nodes[page] = self._by_key[node.key] = node
            self._policy.insert(node.key)
        self._published[sequence] = full
        self._own[sequence] = max(self._own[sequence], full)
        self._changing = False

    def _align(self, sequence: int, i: int) -> None:
        """Before page ``i`` of a sequence goes into the tree: let all who hold it hold what comes before it there."""
        held = self._held[sequence]
        for other, pages in enumerate(self._held):
            if pages[i : i + 1] == [held[i]] and pages[:i] != held[:i]:
                for page in held[:i]:
                    self._hold(page)
                self._held[other] = held[:i] + pages[i:]
                self._table[other, :i] = held[:i]
                self._drop(pages[:i])

    def fork(self, source: int, target: int, tokens: int) -> None:
        """Let an empty sequence begin with the first tokens of another. A page is copied when one of them writes it."""
        self._settle()
        if self._held[target] or not 0 <= tokens <= self._tokens[source]:
            raise InternalError(f"KV pool: sequence {target} cannot fork {tokens} tokens of sequence {source}")
        pages = self._held[source][: self._needed(tokens)]
        self._changing = True
        for page in pages:
            self._refs[page] += 1
        self._held[target] = pages
        self._tokens[target] = tokens
        self._table[target, : len(pages)] = pages
        self._published[target] = min(self._published[source], tokens // self.page_tokens)
        self._own[target] = len(pages)
        self._own[source] = max(self._own[source], len(pages))
        self._changing = False

    def release(self, sequence: int) -> None:
        """End a sequence: its pages are free, but for those in the tree, which stay cached."""
        self._settle()
        self._changing = True
        self._truncate(sequence, 0, 0)
        self._changing = False

    def shrink(self, capacity: int, give_back: Callable[[list[int]], None] | None = None) -> None:
        """Let sequences and cache take so many pages at most; what sequences hold now stays.

        Args:
            capacity: pages; where sequences hold more, it comes into force as they end.
            give_back: gives the memory of pages back to the system; called with all pages that hold nothing, but did.
        """
        self._settle()
        self._changing = True
        self.capacity = min(max(capacity, 0), self.capacity)
        while self._idle and self._live + self._idle > self.capacity:
            self._evict()
        surplus = min(len(self._free), max(0, self._live + self._idle + len(self._free) - self.capacity))
        self._retired += self._free[:surplus]
        del self._free[:surplus]
        self._policy.resize(max(1, self.capacity))
        self._changing = False
        empty = [page for page in self._free + self._retired if self._touched[page]]
        if give_back is not None and empty:
            give_back(sorted(empty))
            for page in empty:
                self._touched[page] = 0

    def grow(self, capacity: int) -> None:
        """Let sequences and cache take so many pages again."""
        self._settle()
        self._changing = True
        self.capacity = max(self.capacity, min(capacity, self.pages))
        count = min(len(self._retired), max(0, self.capacity - self._live - self._idle - len(self._free)))
        back = len(self._retired) - count
        self._free[:0] = self._retired[back:]
        del self._retired[back:]
        self._policy.resize(max(1, self.capacity))
        self._changing = False

    def clear(self) -> None:
        """Forget what can be found: cached pages become free, sequences keep theirs."""
        self._changing = True
        self._tree.roots = {}
        self._derive()

    def check_integrity(self) -> None:
        """Check that everything that is kept about pages is true.

        Raises:
            InternalError: names what is not.
        """
        self._settle()
        integrity.check(
            integrity.Books(
                pages=self.pages,
                page_tokens=self.page_tokens,
                capacity=self.capacity,
                table=self._table,
                held=self._held,
                tokens=self._tokens,
                tree=self._tree,
                refs=self._refs,
                nodes=self._nodes,
                by_key=self._by_key,
                published=self._published,
                own=self._own,
                free=self._free,
                retired=self._retired,
                live=self._live,
                idle=self._idle,
                policy=self._policy,
            )
        )

    def _take(self, count: int) -> list[int]:
        """Pages that nobody holds, for a sequence."""
        if not count:
            return []
        free = self._free
        while len(free) < count:
            self._evict()
        pages = free[: -count - 1 : -1]
        del free[-count:]
        for page in pages:
            self._refs[page] = 1
            self._touched[page] = 1
        self._live += count
        return pages

    def _hold(self, page: int) -> None:
        self._refs[page] += 1
        if self._refs[page] == 1:
            self._live += 1
            node = self._nodes[page]
            if node is not None:
                self._idle -= 1
                if not node.children:
                    self._policy.withdraw(node.key)

    def _drop(self, pages: Sequence[int]) -> None:
        """A sequence no longer holds these; the last first, which makes it the oldest in the cache."""
        refs, nodes = self._refs, self._nodes
        for page in reversed(pages):
            node = nodes[page]
            if node is not None:
                self._policy.touch(node.key)
            refs[page] -= 1
            if not refs[page]:
                self._live -= 1
                if node is None:
                    self._free.append(page)
                else:
                    self._idle += 1
                    if not node.children:
                        self._policy.offer(node.key)

    def _evict(self) -> None:
        """Make a cached page free."""
        key = self._policy.evict()
        if key is None:
            raise InternalError("KV pool: pages are cached, but the policy offers none")
        node = self._by_key.pop(key)
        parent = node.parent
        self._tree.remove(node)
        self._nodes[node.page] = None
        self._idle -= 1
        self._free.append(node.page)
        self.evicted += 1
        if parent is not None and parent.page >= 0 and not parent.children and not self._refs[parent.page]:
            self._policy.offer(parent.key)

    def _detach(self, node: Node | None) -> None:
        """Take a page that one sequence holds out of the tree, with all below."""
        if node is None:
            return
        gone = list(below(node))
        self._tree.remove(node)
        for lost in gone:
            self._policy.remove(lost.key)
            del self._by_key[lost.key]
            self._nodes[lost.page] = None
            if not self._refs[lost.page]:
                self._idle -= 1
                self._free.append(lost.page)
