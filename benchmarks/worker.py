"""A peer in a process of its own, driven over pipes one call at a time.

A worker waits in a read of its standard input between calls, so that an idle peer takes nothing from the one that
is being timed. Each line in is ``{"call": METHOD, "arguments": {…}}``, each line out ``{"result": …}`` or
``{"error": TEXT}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import peers

_ROOT = Path(__file__).resolve().parent.parent


class PeerError(Exception):
    """A peer failed; the text is its own."""


class Worker:
    """The near end of a worker: starts it, calls the methods of its peer, ends it.

    Args:
        name: of :data:`benchmarks.peers.NAMES`.
        model: what its ``load`` gets, with ``settings``.

    Raises:
        FileNotFoundError: where the peer is not built.
        PeerError: where it does not load.
    """

    def __init__(self, name: str, model: Path, **settings: int) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.worker", name, str(model), json.dumps(settings)]
        environment = os.environ | peers.environment(name)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment
        )
        self._read()

    def call(self, method: str, **arguments: Any) -> Any:
        """What ``method`` of the peer answers; raises :class:`PeerError` where it raises."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended before; reading says so
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self.name} ended with exit status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(name: str, model: Path, settings: dict[str, int]) -> None:
    """The far end: answer calls until the input ends."""
    # Whatever a library prints goes to stderr, so that it cannot mix with the answers.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def answer(**fields: Any) -> None:
            answers.write(json.dumps(fields) + "\n")
            answers.flush()

        try:
            peer = peers.loader(name)(model, **settings)
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")
            return
        answer(result=None)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer(result=getattr(peer, request["call"])(**request["arguments"]))
            except Exception as error:
                answer(error=f"{type(error).__name__}: {error}")
        peer.close()


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
