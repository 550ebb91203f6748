"""Memory of a loaded model: regions in huge pages, and its weights, mapped or copied."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ryzc.bundle import Bundle
from ryzc.errors import BundleError, UsageError
from ryzc.targets import free_memory

HUGE_PAGE = 1 << 21
WAYS = ("auto", "map", "copy")
_PART = 4 * HUGE_PAGE


def anonymous(nbytes: int) -> npt.NDArray[np.uint8]:
    """Zeroed memory of its own, in huge pages where the system gives them; pages appear when touched."""
    size = max(nbytes, 1)
    huge = size >= HUGE_PAGE
    region = mmap.mmap(-1, size + (HUGE_PAGE if huge else 0), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(region, np.uint8)
    start = -raw.ctypes.data % HUGE_PAGE if huge else 0
    return raw[start : start + size]


def give_back(region: npt.NDArray[np.uint8], pages: Iterable[int], page_bytes: int) -> int:
    """Give the memory of some pages of a region of :func:`anonymous` back to the system; they read as zeros then.

    What shares a page of the system with other pages of the region stays.

    Args:
        region: pages of ``page_bytes`` bytes each.
        pages: their numbers, ascending.

    Returns:
        Bytes that were given back.
    """
    libc, address, given = ctypes.CDLL(None, use_errno=True), region.ctypes.data, 0
    for first, end in _runs(pages):
        start = -(-(address + first * page_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (address + end * page_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if size > 0 and not libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED):
            given += size
    return given


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and one past the last of each run of consecutive numbers."""
    first = end = None
    for number in numbers:
        if number != end:
            if first is not None and end is not None:
                yield first, end
            first = number
        end = number + 1
    if first is not None and end is not None:
        yield first, end


def choose(way: str, nbytes: int) -> str:
    """How to hold weights of so many bytes: ``map`` or ``copy``.

    A copy is faster to read than the mapped file (the tables of huge pages are small, and no page is
    ever taken back), and costs a fraction of what reading the file does; so ``auto`` copies where there is
    memory for a second set of weights beside the file's pages, which are then left to the system.

    Raises:
        UsageError: the way is not known.
    """
    if way not in WAYS:
        raise UsageError(f"weights={way!r}: {', '.join(map(repr, WAYS))} are possible")
    if way != "auto":
        return way
    free = free_memory()
    return "map" if free is not None and 2 * nbytes > free else "copy"


def read_weights(bundle: Bundle, way: str, threads: int) -> npt.NDArray[np.uint8]:
    """The data section of the weights file, ``map``ped or ``copy``ed by so many threads.

    Raises:
        BundleError: the file is shorter than it was when the bundle was opened.
    """
    start, path = bundle.weights_data_offset, bundle.weights_path
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size - start
        if way == "map":
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)[start:]
        region = anonymous(size)
        view = region.data

        def fill(at: int) -> None:
            end = min(at + _PART, size)
            while at < end:
                got = os.preadv(file.fileno(), [view[at:end]], start + at)
                if not got:
                    raise BundleError(f"{path}: ends after {at} of {size} bytes", hint="build the bundle again")
                at += got

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(0, size, _PART)))
    return region


def trim() -> None:
    """Give back what parsing left behind: a tokenizer's library leaves a third of what it used."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if give_back is not None:
        give_back(0)


def huge_bytes() -> int:
    """Bytes of this process that lie in huge pages now; 0 also where the system doesn't tell."""
    try:
        found = re.search(r"^AnonHugePages:\s*(\d+) kB$", Path("/proc/self/smaps_rollup").read_text("ascii"), re.M)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0
