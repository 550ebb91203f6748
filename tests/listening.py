"""A server in a process of its own, for tests: it never makes one wait without end, and never outlives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

START = 60.0
"""Seconds in which it has to listen."""

STOP = 20.0
"""Seconds in which it has to end."""


class Listening:
    """A program that tells on stderr where it listens (``url=…``); a context manager that kills it.

    Args:
        arguments: of Python.
        variables: for its environment.

    Attributes:
        process: it.
        url: where it listens.
        log: what it has told, line by line.

    Raises:
        AssertionError: it does not listen in time.
    """

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(variables or {})}
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        self.url = ""
        self.log: list[str] = []
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._told.wait(START) or not self.url:
            self.kill()
            raise AssertionError(f"{arguments} does not listen:\n{''.join(self.log)}")

    def _read(self) -> None:
        """All of it: a log that nobody reads would fill the pipe and hold the server."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if not self.url and (found := re.search(r'url="?(https?://[^" ]+)', line)):
                self.url = found[1]
                self._told.set()
        self._told.set()

    def stop(self) -> int:
        """SIGTERM; its exit code.

        Raises:
            AssertionError: it does not end in time.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server does not stop:\n{''.join(self.log[-20:])}") from None
        self._reader.join(STOP)
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(STOP)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
