"""One line an event, as ``key=value`` or JSON; nothing that a user wrote unless the log of prompts is asked for."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")


class Log:
    """Writes events to stderr.

    Attributes:
        level: events below it are left out.
        form: ``text`` or ``json``.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.level = "info"
        self.form = "text"
        self._out = out

    def write(self, level: str, event: str, **values: Any) -> None:
        """An event with its values."""
        if LEVELS.index(level) < LEVELS.index(self.level):
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        fields = {"time": stamp, "level": level, "event": event, **values}
        if self.form == "json":
            line = json.dumps(fields, ensure_ascii=True, default=str)
        else:
            line = " ".join(
                [stamp, level, _quoted(event), *(f"{key}={_quoted(value)}" for key, value in values.items())]
            )
        out = self._out or sys.stderr
        out.write(line + "\n")
        out.flush()

    def debug(self, event: str, **values: Any) -> None:
        self.write("debug", event, **values)

    def info(self, event: str, **values: Any) -> None:
        self.write("info", event, **values)

    def warning(self, event: str, **values: Any) -> None:
        self.write("warning", event, **values)

    def error(self, event: str, **values: Any) -> None:
        self.write("error", event, **values)


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(' "=') & set(text) and text
    return text if plain else json.dumps(text)


log = Log()
"""The server's."""
