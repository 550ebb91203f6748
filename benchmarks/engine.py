"""The engine against one request alone and against llama.cpp: ``python -m benchmarks.engine BUNDLE MODEL.gguf``.

A round decodes 8 requests together in ryzc's engine, one alone, and 8 sequences in llama.cpp, which are fed tokens
without sampling; then come 16 prompts that share 1,000 tokens. Ratios are taken within a round, their medians count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from string import Formatter
from typing import Any

from benchmarks import machine, marks
from benchmarks.compare import PAUSE
from benchmarks.worker import PeerError, Worker

TOGETHER, DEPTH, TOKENS = 8, 64, 96
SHARED, OWN, SHARING = 1000, 24, 16


def measure(bundle: Path, model: Path | None, threads: int, rounds: int) -> dict[str, Any]:
    """The figures of one number of threads."""
    with ExitStack() as stack:
        ours = stack.enter_context(
            Worker("ryzc_engine", bundle, threads=threads, context=2048, sequences=SHARING, each=2048)
        )
        peer, absent = None, ""
        if model is not None:
            try:
                peer = stack.enter_context(
                    Worker("llama_cpp", model, threads=threads, context=512, sequences=TOGETHER, each=DEPTH + TOKENS)
                )
            except (PeerError, FileNotFoundError) as error:
                absent = str(error)
        found: dict[str, list[float]] = {}

        def note(**values: float) -> None:
            for name, value in values.items():
                found.setdefault(name, []).append(value)

        for attempt in range(rounds + 1):
            time.sleep(PAUSE)
            many = ours.call("together", requests=TOGETHER, depth=DEPTH, tokens=TOKENS)
            time.sleep(PAUSE)
            alone = ours.call("together", requests=1, depth=DEPTH, tokens=TOKENS)
            speeds = [one["tokens"] / one["seconds"] for one in (many, alone)]
            theirs = None
            if peer is not None:
                time.sleep(PAUSE)
                prompt = list(range(100, 100 + DEPTH))
                peer.call("fill", tokens=prompt, sequences=TOGETHER, imitate=False)
                seconds = peer.call("decode", tokens=prompt[: TOKENS // 2], sequences=TOGETHER, at_once=1)
                theirs = TOGETHER * (TOKENS // 2) / seconds
            time.sleep(PAUSE)
            first = ours.call("first_tokens", requests=SHARING, shared=SHARED, own=OWN)
            if not attempt:
                continue  # warms up
            note(
                together=speeds[0],
                alone=speeds[1],
                times_alone=speeds[0] / speeds[1],
                schedule_share=many["schedule"] / many["seconds"],
                first_ms=1000 * first["first"],
                later_ms=1000 * first["later"],
                beside_ms=1000 * first["beside"],
                first_over_later=first["first"] / first["later"],
                pages=first["pages"],
            )
            if theirs is not None:
                note(llama_cpp=theirs, times_llama_cpp=speeds[0] / theirs)
    return {"threads": threads, "absent": absent, **{k: statistics.median(v) for k, v in found.items()}}


def table(found: Sequence[dict[str, Any]], bundle: Path) -> str:
    """Markdown of the figures, a column a number of threads."""
    facts = machine.facts()
    lines = [
        "| | " + " | ".join(f"{one['threads']} thread{'s' * (one['threads'] > 1)}" for one in found) + " |",
        "|---|" + "--:|" * len(found),
    ]
    for title, form in ROWS:
        if all(name in one for one in found for name in _names(form)):
            lines.append(f"| {title} | " + " | ".join(form.format(**one) for one in found) + " |")
    where = f"{bundle.name} on {facts['cpu']}, medians; ryzc {facts['commit']}, {facts['date']}"
    return "\n".join([*lines, "", f"{where}."])


ROWS = (
    (f"{TOGETHER} requests together, tok/s", "{together:.0f}"),
    ("one request alone, tok/s", "{alone:.0f}"),
    ("together ÷ alone", "{times_alone:.2f}×"),
    (f"llama.cpp, {TOGETHER} sequences, tok/s", "{llama_cpp:.0f}"),
    ("together ÷ llama.cpp", "{times_llama_cpp:.1f}×"),
    (f"time outside native code at {TOGETHER} requests", "{schedule_share:.1%}"),
    (f"first token of a prompt of {SHARED + OWN}, ms", "{first_ms:.0f}"),
    (f"the same where {SHARED} tokens are known, ms", "{later_ms:.0f}"),
    (f"the same beside up to {SHARING - 1} that decode, ms", "{beside_ms:.0f}"),
    ("first ÷ later", "{first_over_later:.0f}×"),
)


def _names(form: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(form) if name]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=(__doc__ or "").split(":")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("model", type=Path, nargs="?", help="the GGUF file for llama.cpp")
    parser.add_argument("-t", "--threads", default="1,2", help="by comma")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a page with marks to put the table between")
    arguments = parser.parse_args()
    found = []
    for threads in map(int, arguments.threads.split(",")):
        found.append(measure(arguments.bundle, arguments.model, threads, arguments.rounds))
        print(json.dumps(found[-1], indent=1), flush=True)
    if arguments.write:
        marks.put(arguments.write, table(found, arguments.bundle))


if __name__ == "__main__":
    main()
