"""Responses that were given, for those that follow them: in memory, the oldest forgotten first."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ryzc.runtime.server.errors import ApiError

MAX_CHARACTERS = 1 << 25
"""Of everything that is kept."""


@dataclass(frozen=True)
class Kept:
    """A response.

    Attributes:
        document: as it was sent.
        items: its input, as it was understood.
        messages: the conversation up to its end, instructions left out.
    """

    document: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    messages: Sequence[Mapping[str, Any]]


class ResponseStore:
    """Keeps what fits into :data:`MAX_CHARACTERS`; used on the event loop alone."""

    def __init__(self, most: int = MAX_CHARACTERS) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[Kept, int]] = OrderedDict()
        self._size = 0

    def keep(self, kept: Kept) -> None:
        """Remember a response; one that is too large is not."""
        size = len(json.dumps([kept.document, kept.items, kept.messages]))
        if size > self._most:
            return
        self._kept[kept.document["id"]] = (kept, size)
        self._size += size
        while self._size > self._most:
            _, (_, freed) = self._kept.popitem(last=False)
            self._size -= freed

    def get(self, id_: str, param: str | None = None) -> Kept:
        """A response.

        Raises:
            ApiError: it was not kept, or is forgotten.
        """
        found = self._kept.get(id_)
        if found is None:
            raise ApiError(
                404 if param is None else 400, f"there is no response {id_!r}, or it is forgotten",
                code="response_not_found" if param is None else "previous_response_not_found", param=param,
            )  # fmt: skip
        return found[0]

    def forget(self, id_: str) -> None:
        """Forget a response.

        Raises:
            ApiError: as :meth:`get`.
        """
        self.get(id_)
        self._size -= self._kept.pop(id_)[1]
