"""The container of native code: relocatable objects to a shared object, one file a platform's format.

A shared object made here is loaded by ``ctypes.CDLL`` on a machine with neither linker nor LLVM.
"""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType

from ryzc.codegen.container import elf
from ryzc.errors import InternalError

__all__ = ["link", "symbols"]

_FORMATS = (elf,)


def link(first: bytes, *others: bytes, exports: Collection[str] | None = None) -> bytes:
    """Turn relocatable objects that need nothing but each other into a shared object of the same platform.

    Args:
        exports: the functions that are found by name in it; ``None`` is all global ones.

    Raises:
        InternalError: where one is malformed or of an unknown format, or needs anything outside of them, or where
            none defines an export.
    """
    result: bytes = _format_of(first).link(first, *others, exports=exports)
    return result


def symbols(shared_object: bytes) -> dict[str, tuple[int, int]]:
    """The functions in a shared object, internal ones included: name to (file offset, bytes of code).

    Raises:
        InternalError: where it is malformed or of an unknown format.
    """
    found: dict[str, tuple[int, int]] = _format_of(shared_object).symbols(shared_object)
    return found


def _format_of(data: bytes) -> ModuleType:
    for container in _FORMATS:
        if data.startswith(container.MAGIC):
            return container
    raise InternalError(f"object: starts with {data[:4].hex() or 'nothing'}, which is no known container format")
