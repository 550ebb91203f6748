"""Everything, or a part of it: ``python -m benchmarks.suite [--models … -t 1,2 --out build/benchmarks]``.

Each model at each number of threads is a run of :mod:`benchmarks.compare` that leaves a JSON file with every sample in
the output folder. A test's figures are written when it is done and replace older ones of the same test, so a long suite
can be run in pieces. In the end the tables of all JSON files in the folder go to ``report.md``, with a picture of each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import compare, models, peers, plot, table, workload
from benchmarks.worker import PeerError
from benchmarks.workload import Test

ROOT = Path(__file__).resolve().parent.parent


def run(model: models.Model, tests: Sequence[Test], place: Path, *, threads: int, rounds: int, windows: int) -> None:
    """One run; what is measured goes to the JSON file ``place``, beside what it holds already."""
    names = peers.AVX2 if place.stem.endswith("-avx2") else peers.NATIVE
    bundle = models.bundle(model.path, names)
    earlier, results = table.from_json(json.loads(place.read_text())) if place.is_file() else ({}, [])
    with compare.Comparison(model.path, bundle, tests, names=names, threads=threads) as comparison:
        facts = earlier | comparison.facts
        if windows and model.speaks:
            compare.say("perplexity")
            facts["perplexity"] = comparison.perplexities(windows)
        for test in tests:
            compare.say(test.name)
            results = [r for r in results if r.test.name != test.name] + [comparison.run(test, rounds)]
            place.write_text(json.dumps(table.as_json(facts, results), indent=1) + "\n", encoding="utf-8")


def report(folder: Path) -> Path:
    """Tables of all runs in a folder, in one file, and a picture of each."""
    parts = ["# ryzc beside its peers", table.LEGEND.replace("\n", " ")]
    for file in sorted(folder.glob("*.json"), key=_order):
        facts, results = table.from_json(json.loads(file.read_text(encoding="utf-8")))
        pictures = plot.draw(facts, results, file.with_suffix(""))
        parts += [f"## {file.stem}", table.as_markdown(facts, results)]
        parts += [f"![roofline of {file.stem}]({path.name})" for path in pictures[:1]]
    place = folder / "report.md"
    place.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return place


def _order(file: Path) -> tuple[str, int, str]:
    """AVX2 runs last, then by threads, then as the models are listed."""
    name, _, rest = file.stem.rpartition("-t")
    known = models.NAMES.index(name) if name in models.NAMES else len(models.NAMES)
    return rest, known, name


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.suite", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default=",".join(models.NAMES), help="by comma; by default all")
    parser.add_argument("--tests", default=",".join(workload.FULL), help=f"by comma, e.g. {workload.FORM}")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(workload.QUICK)}")
    parser.add_argument("-t", default="1", help="threads, by comma")
    parser.add_argument("-r", type=int, default=5, help="rounds")
    parser.add_argument("-w", type=int, default=10, help="windows of 512 tokens for the perplexity; 0 for none")
    parser.add_argument("--avx2", action="store_true", help="hold every engine to AVX2, as on Zen 2 and Zen 3")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="the output folder")
    parser.add_argument("--report", action="store_true", help="only write the report again")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = []
    if not arguments.report:
        try:
            tests = workload.tests(workload.QUICK if arguments.quick else arguments.tests.split(","))
        except ValueError as error:
            parser.error(str(error))
        for threads in map(int, arguments.t.split(",")):
            for name in arguments.models.split(","):
                compare.say(f"{name}, {table.count(threads, 'thread')}")
                stem = name if name in models.NAMES else Path(name).stem
                place = arguments.out / f"{stem}-t{threads}{'-avx2' * arguments.avx2}.json"
                try:
                    model = models.find(name)
                    run(model, tests, place, threads=threads, rounds=arguments.r, windows=arguments.w)
                except (PeerError, FileNotFoundError) as error:
                    failed.append(f"{name}: {error}")
    print(report(arguments.out))
    if failed:
        sys.exit("error: " + "\nerror: ".join(failed))


if __name__ == "__main__":
    main()
