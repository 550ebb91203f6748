"""Writes the measured numbers of README.md: ``python -m benchmarks.readme`` on an idle machine.

For each sample: ryzc beside llama.cpp on the same file, as :mod:`benchmarks.compare` measures them, the
build's time, and the perplexity of both engines on the golden windows. Everything between the two markers
is replaced; nothing else in the README is a figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ryzc
from benchmarks import peers
from benchmarks.compare import OURS, Row, Test, compare
from benchmarks.worker import PeerError
from ryzc.runtime.perplexity import of_tokens
from ryzc.sources import pull

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "reference"
START, END = "<!-- measured: start -->", "<!-- measured: end -->"
TESTS = [Test(prompt=512), Test(generate=128)]
SAMPLES = {"smollm2": "SmolLM2-135M-Instruct", "gemma3-270m": "Gemma 3 270M"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.readme", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-t", type=int, nargs="+", default=[1, 2], help="thread counts")
    parser.add_argument("-r", type=int, default=5, help="rounds")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    if END not in rest:
        sys.exit(f"error: README.md lacks the lines {START} and {END}")
    try:
        text = report(arguments.t, arguments.r)
    except PeerError as error:
        sys.exit(f"error: {error}")
    readme.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(text)


def report(threads: Sequence[int], rounds: int) -> str:
    """Markdown of everything measured."""
    speed = [
        "| model | threads | test | ryzc tok/s | llama.cpp tok/s | ratio | share of roofline |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    quality = ["| model | perplexity: float32 | llama.cpp | ryzc | build |", "|---|--:|--:|--:|--:|"]
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for sample, title in SAMPLES.items():
            source = pull(sample)
            start = time.perf_counter()
            bundle = ryzc.build(source, Path(scratch) / f"{sample}.ryzc")
            seconds = time.perf_counter() - start
            for count in threads:
                try:
                    facts, rows = compare(source, bundle, TESTS, names=peers.NAMES, threads=count, rounds=rounds)
                except PeerError as error:
                    notes.append(f"{title}, {count} threads: not measured: {error}.")
                    continue
                speed += _speed(title, count, rows)
                notes.append(_conditions(title, facts))
            quality.append(_quality(sample, title, bundle, seconds))
    return "\n".join([*speed, "", *quality, "", *(f"- {note}" for note in notes)])


def _speed(title: str, threads: int, rows: Sequence[Row]) -> list[str]:
    lines = []
    for test in dict.fromkeys(row.test for row in rows):
        ours, theirs = (next(r for r in rows if r.test == test and (r.engine == OURS) == own) for own in (True, False))
        lines.append(
            f"| {title} | {threads} | {test} | {ours.speed:.0f} | {theirs.speed:.0f} | {theirs.ratio:.1f}×"
            f" | {ours.roofline:.0%} |"
        )
    return lines


def _conditions(title: str, facts: Mapping[str, Any]) -> str:
    others = ", ".join(f"{e['engine']} {e['version']}" for name, e in facts["engines"].items() if name != OURS)
    return (
        f"{title}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}: {facts['model']}"
        f" ({facts['engines'][OURS]['formats']}) on {facts['cpu']}, target {facts['engines'][OURS]['target']}, read"
        f" bandwidth {facts['bandwidth'] / 1e9:.0f} GB/s, int8 peak {facts['int8_peak'] / 1e9:.0f} GMAC/s; medians of"
        f" {facts['rounds']} interleaved rounds ({facts['thrown_away']} thrown away); ryzc {facts['commit']} beside"
        f" {others}; {facts['date']}."
    )


def _quality(sample: str, title: str, bundle: Path, seconds: float) -> str:
    """Perplexity on the golden windows of 512 tokens, second half scored, beside the golden engines'."""
    golden = json.loads((GOLDEN / f"{sample}.json").read_text(encoding="utf-8"))["perplexity"]
    with np.load(GOLDEN / f"{sample}.npz") as arrays:
        windows = arrays["windows"]
    with ryzc.load(bundle) as model:
        ours = of_tokens(model, windows.ravel().tolist(), context=windows.shape[1]).value
    exact, theirs = (golden[engine]["perplexity"] for engine in ("transformers_float32", "llama_cpp_shipped"))
    return f"| {title} | {exact:.3f} | {theirs:.3f} | {ours:.3f} | {seconds:.1f} s |"


if __name__ == "__main__":
    main()
