"""Greedy decoding of several requests at once, with drafts: the loop of an engine without its engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ryzc.runtime.speculation.speculator import Running, Speculator
from ryzc.runtime.step import StepResult


class Steps(Protocol):
    """What the loop needs of a model: :class:`ryzc.runtime.step.CompiledModel` or a toy."""

    max_tokens: int
    max_rows: int

    @property
    def step(self) -> Callable[..., StepResult]: ...


def cheap(tokens: int) -> float:
    """Seconds of a step that make every draft worthwhile."""
    return 1 + 0.001 * tokens


def decode(
    model: Steps,
    prompts: Sequence[Sequence[int]],
    count: int,
    speculator: Speculator,
    *,
    seconds: Callable[[int], float] = cheap,
    most: int = 16,
) -> list[list[int]]:
    """``count`` tokens after each prompt; sequence i of the model is prompt i, and has pages for all."""
    texts = [list(prompt) for prompt in prompts]
    running: list[Running] = []
    for i, prompt in enumerate(prompts):
        for first in range(0, len(prompt), model.max_tokens):
            part = prompt[first : first + model.max_tokens]
            rows = [len(part) - 1] if first + len(part) == len(prompt) else []
            result = step(model, part, range(first, first + len(part)), [i] * len(part), rows)
        running.append(speculator.open(prompt))
        speculator.extend(running[i], [int(result.ids[0, 0])], result.ids[:1].copy())
        texts[i].append(int(result.ids[0, 0]))
    while alive := [i for i, text in enumerate(texts) if len(text) - len(prompts[i]) < count]:
        room = [min(most, count - (len(texts[i]) - len(prompts[i])) - 1) for i in alive]
        drafts = speculator.draft(
            [running[i] for i in alive], room, most=min(model.max_tokens, model.max_rows) - len(alive)
        )
        tokens = [id_ for i, draft in zip(alive, drafts, strict=True) for id_ in (texts[i][-1], *draft)]
        places = [len(texts[i]) - 1 + j for i, draft in zip(alive, drafts, strict=True) for j in range(len(draft) + 1)]
        owners = [i for i, draft in zip(alive, drafts, strict=True) for _ in range(len(draft) + 1)]
        result = step(model, tokens, places, owners, range(len(tokens)), max(1, speculator.candidates))
        found = result.ids.copy()
        speculator.measured(len(tokens), len(tokens), seconds(len(tokens)))
        row = 0
        for i, draft in zip(alive, drafts, strict=True):
            drawn = found[row : row + len(draft) + 1, 0].tolist()
            right = next((j for j, id_ in enumerate(draft) if id_ != drawn[j]), len(draft))
            texts[i] += drawn[: right + 1]
            speculator.extend(running[i], drawn[: right + 1], found[row : row + len(draft) + 1])
            row += len(draft) + 1
    for one in running:
        speculator.close(one)
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def step(
    model: Steps,
    tokens: Sequence[int],
    positions: Sequence[int],
    sequences: Sequence[int],
    rows: Sequence[int],
    candidates: int = 1,
) -> StepResult:
    arrays = (np.asarray(values, np.int32) for values in (tokens, positions, sequences, rows))
    return model.step(*arrays, candidates)
