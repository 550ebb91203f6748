"""Ternary models beside their peers, for docs/ternary.md: ``python -m benchmarks.ternary [-t 1 -r 3 --write]``.

Random weights of BitNet b1.58 2B4T's shape, and of a model of 135M, which caches hold. Each as ``planes`` and as the
tuner lays it out; ik_llama.cpp has the same weights in a format of its own. What a step reads is compared with reading
as many bytes again and again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ryzc
from benchmarks import marks, models, peers, table, workload
from benchmarks.compare import Comparison, say
from benchmarks.results import Row, row
from benchmarks.worker import PeerError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "ternary.md"
MODELS = {"bitnet-2b-tq2_0": "2B4T", "bitnet-135m-tq2_0": "135M"}
TESTS = workload.tests(["pp512", "tg64", "batch8"])
WORK = {"pp512": "prompt of 512", "tg64": "one by one", "batch 8": "8 sequences"}


def report(threads: Sequence[int], rounds: int, names: Sequence[str]) -> str:
    """Markdown of everything measured."""
    others = [name for name in peers.NATIVE if not peers.is_ours(name)]
    lines = [
        "| shape | threads | layout | work | ryzc tok/s | "
        + " | ".join(f"{peers.title(name)} tok/s" for name in others)
        + " | ryzc ÷ best | of roofline |",
        f"|---|--:|---|---|--:|{'--:|' * len(others)}--:|--:|",
    ]
    notes = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            model = models.find(name)
            for layout in ("planes", None):
                place = Path(scratch) / f"{name}-{layout}.ryzc"
                bundle = ryzc.build(model.path, place, tune=True, ternary=layout)
                for count in threads:
                    say(f"{name}, {layout or 'as tuned'}, {table.count(count, 'thread')}")
                    with Comparison(model.path, bundle, TESTS, names=peers.NATIVE, threads=count) as comparison:
                        results = [comparison.run(test, rounds) for test in TESTS]
                    for result in results:
                        if result.rounds:
                            lines.append(_line(MODELS[name], count, layout or "tuned", row(result), others))
                    notes.append(f"{MODELS[name]}: {table.conditions(comparison.facts, results)}")
    return "\n".join([*lines, "", *(f"- {note}" for note in dict.fromkeys(notes))])


def _line(title: str, threads: int, layout: str, found: Row, others: Sequence[str]) -> str:
    ours = found.speeds["ryzc"]
    cells = [f"{found.speeds[name].median:,.1f}" if name in found.speeds else "no" for name in others]
    best = f"{found.speeds[found.best_peer].behind:.2f}×" if found.best_peer else ""
    return (
        f"| {title} | {threads} | {layout} | {WORK[found.test]} | {ours.median:,.1f} | {' | '.join(cells)} | {best}"
        f" | {ours.share:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.ternary", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-t", type=int, nargs="+", default=[1], help="thread counts")
    parser.add_argument("-r", type=int, default=3, help="rounds")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    asked = parser.parse_args()
    try:
        text = report(asked.t, asked.r, asked.models)
    except PeerError as error:
        sys.exit(f"error: {error}")
    print(text)
    if asked.write:
        marks.put(PAGE, text)


if __name__ == "__main__":
    main()
