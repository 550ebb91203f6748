"""What speculation brings on this machine: the same prompts with and without it, through the engine.

Each prompt is answered greedily by each method in turns, so that a drifting machine meets all alike; answers that
differ are an error. A method keeps what it learned from prompt to prompt, as in a running engine, but begins anew with
each repetition, or it would copy the one before; only what steps cost stays known. Times are those of the tokens after
the first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ryzc.bundle import Bundle
from ryzc.errors import InternalError
from ryzc.runtime import mixes
from ryzc.runtime.engine import Engine
from ryzc.runtime.request import Options
from ryzc.runtime.sampling import SamplingParams

CONTEXT = 2048


@dataclass(frozen=True)
class Answer:
    """A prompt answered once.

    Attributes:
        tokens: after the first.
        seconds: that they took.
        steps: in which they came.
        proposed, accepted: drafts.
    """

    tokens: int
    seconds: float
    steps: int
    proposed: int
    accepted: int


@dataclass(frozen=True)
class Row:
    """A prompt, and its answers by method: one a repetition."""

    prompt: str
    mix: str
    answers: dict[str, tuple[Answer, ...]]

    def speed(self, method: str) -> float:
        """Median tokens/s."""
        return statistics.median(a.tokens / a.seconds for a in self.answers[method])

    def speedup(self, method: str) -> float:
        """Against plain decoding, in the median; 1 where the answer is a single token."""
        plain = self.speed(PLAIN)
        return self.speed(method) / plain if plain else 1.0


PLAIN = "off"


def compare(
    bundle: Bundle | str | Path,
    methods: Sequence[str],
    *,
    wanted: Sequence[str] = mixes.MIXES,
    draft: Bundle | str | Path | None = None,
    threads: int | None = None,
    repetitions: int = 3,
    tell: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], dict[str, list[float]]]:
    """Answer all prompts of some mixes with each method and without.

    Args:
        methods: names of drafters.
        draft: a bundle that drafts as one more method, named ``draft``.
        tell: called with how many prompts are done, and of how many.

    Returns:
        The rows, and what a step of 1, 2, ... tokens costs in steps of one, as the last method saw it.

    Raises:
        UsageError: a method is not known, or the draft's vocabulary is another.
        InternalError: a method changed an answer.
    """
    prompts = [prompt for mix in wanted for prompt in mixes.prompts(mix)]
    with Engine(bundle, context=CONTEXT, sequences=1, threads=threads, background=False, speculate=PLAIN) as engine:
        speculators = {PLAIN: None, **{m: engine.open_speculator(m) for m in methods if m != PLAIN}}
        if draft is not None:
            speculators["draft"] = engine.open_speculator("auto", draft)  # learns from no text but the request's
        answers: list[dict[str, list[Answer]]] = [{m: [] for m in speculators} for _ in prompts]
        for repetition in range(repetitions):
            for name, known in speculators.items():
                fresh = engine.open_speculator(name) if known is not None and name != "draft" else None
                if known is not None and fresh is not None:
                    fresh.cost = known.cost
                    speculators[name] = fresh
            for i, prompt in enumerate(prompts):
                ids = engine.tokenize(list(prompt.messages) if engine.has_chat_template else prompt.text, raw=True)
                said = None
                for method, speculator in speculators.items():
                    engine.speculator = speculator
                    answer, found = _answer(engine, ids, prompt.max_tokens)
                    if said is not None and found != said:
                        raise InternalError(f"{prompt.name}: {method} changed the answer")
                    said = found
                    answers[i][method].append(answer)
                if tell is not None:
                    tell(repetition * len(prompts) + i + 1, repetitions * len(prompts))
        costs = {
            name: [speculator.cost.curve(size) / speculator.cost.curve(1) for size in range(1, 10)]
            for name, speculator in speculators.items()
            if speculator is not None and speculator.cost.curve(1)
        }
    rows = [
        Row(prompt.name, prompt.mix, {m: tuple(found) for m, found in by_method.items()})
        for prompt, by_method in zip(prompts, answers, strict=True)
    ]
    return rows, costs


def _answer(engine: Engine, ids: list[int], max_tokens: int) -> tuple[Answer, list[int]]:
    """Answer a prompt, and time all but the first token."""
    stream = engine.enqueue(ids, Options(sampling=SamplingParams(temperature=0), max_tokens=max_tokens))
    found = list(next(stream).ids)
    metrics = engine.metrics
    before = (metrics.steps, metrics.drafts_proposed, metrics.drafts_accepted)
    start = time.perf_counter()
    for delta in stream:
        found += delta.ids
    seconds = time.perf_counter() - start
    after = (metrics.steps, metrics.drafts_proposed, metrics.drafts_accepted)
    steps, proposed, accepted = (b - a for a, b in zip(before, after, strict=True))
    return Answer(len(found) - 1, seconds, steps, proposed, accepted), found
