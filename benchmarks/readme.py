"""Writes the measured numbers of README.md: ``python -m benchmarks.readme`` on an idle machine.

For each sample: ryzc beside its peers on the same file, as :mod:`benchmarks.compare` measures them, the build's
time, and the perplexity of the engines and of transformers on the golden windows. Everything between the two
markers is replaced; nothing else in the README is a figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ryzc
from benchmarks import marks, peers, table, workload
from benchmarks.compare import Comparison, say
from benchmarks.results import Result, Row, row
from benchmarks.worker import PeerError
from ryzc.sources import pull

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "reference"
TESTS = workload.tests(["pp512", "tg128", "batch8", "verify4"])
WORK = {"pp512": "prompt of 512", "tg128": "one by one", "batch 8": "8 sequences", "verify 4": "verify 4 drafts"}
SAMPLES = {"smollm2": "SmolLM2-135M", "gemma3-270m": "Gemma 3 270M"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.readme", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-t", type=int, nargs="+", default=[1, 2], help="thread counts")
    parser.add_argument("-r", type=int, default=5, help="rounds")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    try:
        text = report(arguments.t, arguments.r)
    except PeerError as error:
        sys.exit(f"error: {error}")
    marks.put(readme, text)
    print(text)


def report(threads: Sequence[int], rounds: int) -> str:
    """Markdown of everything measured."""
    others = [name for name in peers.NATIVE if not peers.is_ours(name)]
    titles = " | ".join(f"{peers.title(name)} tok/s" for name in others)
    speed = [
        f"| model | threads | work | ryzc tok/s | {titles} | ryzc ÷ best | of roofline |",
        f"|---|--:|---|--:|{'--:|' * len(others)}--:|--:|",
    ]
    engines = " | ".join(peers.title(name) for name in peers.NATIVE)
    quality_ = [f"| model | perplexity: float32 | {engines} | build |", f"|---|--:|{'--:|' * len(peers.NATIVE)}--:|"]
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for sample, title in SAMPLES.items():
            source = pull(sample)
            start = time.perf_counter()
            bundle = ryzc.build(source, Path(scratch) / f"{sample}.ryzc", tune=True)
            seconds = time.perf_counter() - start
            with np.load(GOLDEN / f"{sample}.npz") as arrays:
                windows = arrays["windows"].tolist()
            found: dict[str, float | str] = {}
            for count in threads:
                say(f"{title}, {table.count(count, 'thread')}")
                with Comparison(source, bundle, TESTS, names=peers.NATIVE, threads=count) as comparison:
                    results = [comparison.run(test, rounds) for test in TESTS]
                    found = found or comparison.perplexities(windows)
                speed += [_speed(title, count, row(result), others) for result in results if result.rounds]
                notes.append(f"{title}: {table.conditions(comparison.facts, results)}")
                notes += _failures(title, results)
            golden = json.loads((GOLDEN / f"{sample}.json").read_text(encoding="utf-8"))["perplexity"]
            values = [golden["transformers_float32"]["perplexity"], *(found[name] for name in peers.NATIVE)]
            cells = [f"{v:.3f}" if isinstance(v, float) else "no" for v in values]
            quality_.append(f"| {title} | {' | '.join(cells)} | {seconds:.1f} s |")
    return "\n".join([*speed, "", *quality_, "", *(f"- {note}" for note in dict.fromkeys(notes))])


def _speed(title: str, threads: int, line: Row, others: Sequence[str]) -> str:
    ours = line.speeds["ryzc"]
    cells = [f"{line.speeds[name].median:.0f}" if name in line.speeds else "no" for name in others]
    best = f"{line.speeds[line.best_peer].behind:.1f}×" if line.best_peer else ""
    return (
        f"| {title} | {threads} | {WORK[line.test]} | {ours.median:.0f} | {' | '.join(cells)} | {best}"
        f" | {ours.share:.0%} |"
    )


def _failures(title: str, results: Sequence[Result]) -> list[str]:
    """Why cells say no."""
    return [f"{title}: {peers.title(n)} in {r.test.name}: {why}." for r in results for n, why in r.failures.items()]


if __name__ == "__main__":
    main()
