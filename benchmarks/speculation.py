"""What speculation brings: ``python -m benchmarks.speculation BUNDLE [--methods auto --mixes chat,edit,repeat -t 1]``.

Each prompt is read once; then its answer is decoded greedily without and with each method in turns, so that a drifting
machine meets all alike. The answers must be equal. A method meets the prompts of all mixes in order, as in an engine,
and begins anew with every round: otherwise it would copy the round before. A speed-up is the ratio of the medians over
the rounds. The mix ``random`` takes tokens that no model would say, so that every draft is refused: the worst case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ryzc.runtime import mixes, speculation
from ryzc.runtime import model as model_
from ryzc.runtime.kv import PagePool
from ryzc.runtime.speculation.cost import CostModel
from ryzc.runtime.speculation.draft_model import DraftModel
from ryzc.runtime.speculation.speculator import MOST, Speculator
from ryzc.runtime.step import I32, CompiledModel, StepResult

RANDOM = "random"
RANDOM_PROMPTS, RANDOM_TOKENS = 4, 192
CONTEXT = 2048


@dataclass
class Run:
    """A decoded answer.

    Attributes:
        ids: its tokens.
        seconds: of the tokens after the first.
        steps: how many those took.
        proposed, accepted: drafts.
    """

    ids: list[int]
    seconds: float
    steps: int
    proposed: int = 0
    accepted: int = 0


@dataclass
class Task:
    """A prompt in tokens.

    Attributes:
        forced: what is decoded whatever the model says; empty where the model decides.
        runs: by method.
    """

    name: str
    mix: str
    ids: list[int]
    max_tokens: int
    forced: list[int] = field(default_factory=list)
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))

    def speedup(self, method: str) -> float:
        """Against plain decoding."""
        plain, other = (statistics.median(run.seconds for run in self.runs[m]) for m in ("off", method))
        return plain / other


class Decoder:
    """Greedy decoding of one request after the other on a model's step."""

    def __init__(self, model: CompiledModel, eos_ids: frozenset[int]) -> None:
        self._model = model
        self._eos = eos_ids
        PagePool(model.pages, model.page_tokens, model.page_table).resize(0, model.context)

    def read(self, ids: Sequence[int]) -> int:
        """Read a prompt; the token after it."""
        most = self._model.max_tokens
        for first in range(0, len(ids), most):
            result = self._step(ids[first : first + most], first, rows=1)
        return int(result.ids[0, 0])

    def decode(self, task: Task, first: int, speculator: Speculator) -> Run:
        """Decode the answer to a prompt that was read and whose next token is known."""
        out = [task.forced[0] if task.forced else first]
        one = speculator.open(task.ids)
        speculator.extend(one, out, None)
        start, steps = time.perf_counter(), 0
        proposed, accepted = speculator.proposed, speculator.accepted
        while len(out) < task.max_tokens and (task.forced or out[-1] not in self._eos):
            position, left = len(task.ids) + len(out) - 1, task.max_tokens - len(out)
            drafts = speculator.draft([one], [left - 1])[0]
            begun = time.perf_counter()
            result = self._step([out[-1], *drafts], position, rows=1 + len(drafts))
            speculator.measured(1 + len(drafts), 1 + len(drafts), time.perf_counter() - begun)
            new = self._certain(task, out, drafts, result.ids[:, 0])
            speculator.extend(one, new, result.ids)
            out += new
            steps += 1
        seconds = time.perf_counter() - start
        speculator.close(one)
        return Run(out, seconds, steps, speculator.proposed - proposed, speculator.accepted - accepted)

    def _certain(self, task: Task, out: Sequence[int], drafts: Sequence[int], drawn: I32) -> list[int]:
        """The drawn tokens up to the first that is not the draft in its place, or that ends the answer."""
        found = task.forced[len(out) : len(out) + len(drafts) + 1] or drawn.tolist()
        new: list[int] = []
        for id_, draft in zip(found, [*drafts, -1], strict=True):
            new.append(id_)
            if id_ != draft or (not task.forced and id_ in self._eos):
                break
        return new

    def _step(self, ids: Sequence[int], first: int, *, rows: int) -> StepResult:
        tokens = np.asarray(ids, np.int32)
        positions = np.arange(first, first + len(tokens), dtype=np.int32)
        wanted = np.arange(len(tokens) - rows, len(tokens), dtype=np.int32)
        return self._model.step(tokens, positions, np.zeros_like(tokens), wanted)


def tasks(model: model_.Model, names: Sequence[str]) -> Iterator[Task]:
    """The prompts of several mixes."""
    for mix in names:
        if mix == RANDOM:
            generator = np.random.default_rng(0)
            for i in range(RANDOM_PROMPTS):
                ids = generator.integers(0, model.compiled.vocab_size, (2, RANDOM_TOKENS)).tolist()
                yield Task(f"random {i}", mix, ids[0], RANDOM_TOKENS, forced=ids[1])
        for prompt in mixes.prompts(mix):
            ids = model.tokenize(list(prompt.messages) if model.has_chat_template else prompt.text)
            yield Task(prompt.name, mix, ids, prompt.max_tokens)


class Comparison:
    """Every method on every prompt.

    Args:
        methods: names of drafters, or bundles of draft models.
    """

    def __init__(self, bundle: Path, methods: Sequence[str], *, threads: int | None) -> None:
        self.model = model_.load(bundle, context=CONTEXT, threads=threads)
        self.methods = [method for method in methods if method != "off"]
        self._decoder = Decoder(self.model.compiled, self.model.tokenizer.eos_ids)
        self._small: dict[str, DraftModel] = {}
        self.last: dict[str, Speculator] = {}

    def _drafter(self, method: str) -> speculation.Drafter:
        if method in speculation.names():
            return speculation.get(method)
        if method not in self._small:
            compiled = self.model.compiled
            self._small[method] = DraftModel.load(
                method, compiled.bundle, context=CONTEXT, sequences=1, threads=compiled.threads
            )
        return self._small[method]

    def run(self, wanted: Sequence[Task], rounds: int) -> None:
        """Decode every prompt so often with each method."""
        for _ in range(rounds):
            self.last = {m: Speculator(self._drafter(m), self._cost(m)) for m in ("off", *self.methods)}
            for task in wanted:
                first = self._decoder.read(task.ids)
                for method, speculator in self.last.items():
                    run = self._decoder.decode(task, first, speculator)
                    if task.runs["off"] and run.ids != task.runs["off"][0].ids:
                        raise SystemExit(f"{task.name}: {method} changed the answer")
                    task.runs[method].append(run)

    def _cost(self, method: str) -> CostModel | None:
        return self.last[method].cost if method in self.last else None

    def curve(self, method: str) -> list[float]:
        """What steps of one token and more cost, in steps of one token, as the method's cost model saw it."""
        curve = self.last[method].cost.curve
        return [curve(size) / curve(1) for size in range(1, MOST + 2)]


def table(done: Sequence[Task], methods: Sequence[str]) -> str:
    """Markdown: a line a prompt, and a mean a mix."""
    lines = [
        "| mix | prompt | tokens | off tok/s |" + "".join(f" {m} × | accepted | tokens/step |" for m in methods),
        "|---|---|--:|--:|" + "--:|--:|--:|" * len(methods),
    ]
    for task in done:
        plain = statistics.median(run.seconds for run in task.runs["off"])
        tokens = len(task.runs["off"][0].ids)
        cells = [task.mix, task.name, str(tokens), f"{(tokens - 1) / plain:.0f}"]
        for method in methods:
            run = task.runs[method][-1]
            share = run.accepted / run.proposed if run.proposed else 0.0
            cells += [
                f"{task.speedup(method):.2f}",
                f"{share:.0%} of {run.proposed}",
                f"{(tokens - 1) / run.steps:.2f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(done: Sequence[Task], methods: Sequence[str]) -> list[dict[str, str | float]]:
    """Mean, median and least speed-up of each method on each mix."""
    result: list[dict[str, str | float]] = []
    for method in methods:
        for mix in dict.fromkeys(task.mix for task in done):
            ratios = [task.speedup(method) for task in done if task.mix == mix]
            result.append(
                {
                    "method": method,
                    "mix": mix,
                    "mean": statistics.fmean(ratios),
                    "median": statistics.median(ratios),
                    "least": min(ratios),
                }
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.speculation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--methods", default="lookup,recycling,auto", help="by comma; a bundle drafts with its model")
    parser.add_argument("--mixes", default=",".join((*mixes.MIXES, RANDOM)), help="by comma")
    parser.add_argument("-t", type=int, help="threads")
    parser.add_argument("-r", type=int, default=3, help="rounds")
    parser.add_argument("--json", action="store_true", help="only the summary, as JSON")
    arguments = parser.parse_args()
    comparison = Comparison(arguments.bundle, arguments.methods.split(","), threads=arguments.t)
    done = list(tasks(comparison.model, arguments.mixes.split(",")))
    comparison.run(done, arguments.r)
    figures = summary(done, comparison.methods)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    print(table(done, comparison.methods), end="\n\n")
    for line in figures:
        print(
            f"{line['method']} on {line['mix']}: {line['mean']:.2f} (median {line['median']:.2f}, {line['least']:.2f})"
        )
    for method in comparison.methods:
        print(f"steps of 1, 2, … tokens, {method}: " + " ".join(f"{cost:.2f}" for cost in comparison.curve(method)))


if __name__ == "__main__":
    main()
