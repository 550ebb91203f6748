"""A server's process of its own, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "serve_fake.py"


class Process:
    """A server's process; ``url`` is where it listens."""

    def __init__(self, bundle: Path, pause: float, *names: str, **variables: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(bundle), str(pause), *names],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r'url="?(https?://[^" ]+)', line):
                self.url = found[1]
                return
        raise AssertionError("".join(self.lines))

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)
