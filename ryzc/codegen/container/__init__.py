"""The container of native code: relocatable object to shared object, one file a platform's format.

A shared object made here is loaded by ``ctypes.CDLL`` on a machine with neither linker nor LLVM.
"""

from __future__ import annotations

from types import ModuleType

from ryzc.codegen.container import elf
from ryzc.errors import InternalError

__all__ = ["link", "symbols"]

_FORMATS = (elf,)


def link(object_bytes: bytes) -> bytes:
    """Turn one self-contained relocatable object into a shared object of the same platform.

    Raises:
        InternalError: where the object is malformed, of an unknown format, or needs anything outside itself.
    """
    result: bytes = _format_of(object_bytes).link(object_bytes)
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
