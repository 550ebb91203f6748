"""llama.cpp's server in its best setting for a CPU: ``python -m benchmarks.peers.llama_server MODEL.gguf``.

Weights are read into memory, not mapped; every slot has a cache of its own; batching is continuous, prompts are cached
and the model is warmed up, as by default; the log is silent. What else is given is passed on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.peers import build


def command(model: Path, *, port: int, slots: int, context: int, threads: int) -> list[str]:
    """What starts it.

    Args:
        model: a GGUF file.
        port: to listen on.
        slots: requests that run at the same time.
        context: tokens of each.
        threads: for prompts and for single tokens alike.

    Raises:
        FileNotFoundError: it is not built.
    """
    count = str(threads)
    return [
        *(str(build.program("llama_server")), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("--parallel", str(slots), "--ctx-size", str(slots * context), "--threads", count, "--threads-batch", count),
        *("--load-mode", "none", "--no-kv-unified", "--cont-batching", "--log-verbosity", "0"),
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.llama_server", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("-np", "--parallel", type=int, default=32)
    parser.add_argument("-c", "--ctx-size", type=int, default=1024, help="tokens of each request")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    chosen, more = parser.parse_known_args()
    asked = {"port": chosen.port, "slots": chosen.parallel, "context": chosen.ctx_size, "threads": chosen.threads}
    started = [*command(chosen.model, **asked), *more]
    os.execv(started[0], started)


if __name__ == "__main__":
    main()
