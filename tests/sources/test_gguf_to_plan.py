"""Sound files that say absurd things: reader, tokenizer and planner answer with a plan or a RyzcError, soon."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gguf_writer
import pytest
import tiny_chat
import tiny_models
import tiny_vocabularies
from gguf_writer import Tensor, Typed, Value

from ryzc.compiler import plan
from ryzc.errors import SourceError, UnsupportedError
from ryzc.sources import Checkpoint, gguf, tokenizers

SECONDS = 5.0
ABSURD: list[Value] = [
    *(0, 1, 2, 3, 7, 33, 1000, 2**31 - 1, 2**31, 2**32 - 1, -1),
    *(Typed("u64", 2**63), Typed("u64", 2**64 - 1), Typed("i64", -(2**63)), Typed("f64", 1e300)),
    *(0.0, -1.0, 1e-30, 1e38, math.nan, math.inf, -math.inf),
    *(True, False, "", "x", "llama", "gemma3", "qwen3", "../x", "linear", "yarn"),
    *([1, 2], [0.5], ["a"], [True], Typed("u32", []), [2**31] * 3),
]
ELEMENTS: dict[str, list[str | int | float]] = {
    "string": ["", "\0", "a", "Ġ", "é" * 50, "<s>", " ", "x x", "  ", "\U0010ffff"],
    "i32": [-1, 0, 5, 6, 99, 2**31 - 1],
    "f32": [math.nan, math.inf, 1e38, -0.0],
}
ADDED = (
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.expert_count",
    "gemma3.rope.scaling.type",
    "gemma3.attention.sliding_window",
    "gemma3.final_logit_softcapping",
    "qwen3.rope.scaling.type",
    "qwen3.expert_count",
)


def absurd(model: Checkpoint, rng: random.Random) -> tuple[dict[str, Value], list[Tensor], list[str]]:
    """A model's keys and tensors with one or two changes, and what they are."""
    keys: dict[str, Value] = {**model.metadata, **gguf_writer.vocabulary_keys(model.vocabulary)}
    tensors = [Tensor(t.name, t.format, t.shape, t.data) for t in model.tensors.values()]
    changes = []
    for _ in range(rng.randint(1, 2)):
        match rng.randrange(6):
            case 0 | 1:
                key = rng.choice([*keys, *ADDED])
                keys[key] = rng.choice(ABSURD)
                changes.append(f"{key} = {str(keys[key])[:60]}")
            case 2:
                key = rng.choice(list(keys))
                del keys[key]
                changes.append(f"without {key}")
            case 3:
                tensor = tensors.pop(rng.randrange(len(tensors)))
                changes.append(f"without {tensor.name}")
            case 4:
                i = rng.randrange(len(tensors))
                shape = list(tensors[i].shape)
                at = rng.randrange(len(shape))
                shape[at] = max(1, rng.choice([shape[at] * 2, shape[at] // 2, 32, 1]))
                shape = [1] * rng.randrange(2) + shape
                tensors[i] = Tensor(tensors[i].name, "f32", tuple(shape), bytes(4 * math.prod(shape)))
                changes.append(f"{tensors[i].name} of shape {shape}")
            case _:
                key = rng.choice(["tokens", "token_type", "scores" if model.vocabulary.model == "llama" else "merges"])
                listed = keys.get(f"tokenizer.ggml.{key}")
                if isinstance(listed, Typed) and isinstance(listed.value, (list, tuple)) and listed.value:
                    values, at = list(listed.value), rng.randrange(len(listed.value))
                    values[at : at + rng.randrange(3)] = [rng.choice(ELEMENTS[listed.kind])]
                    keys[f"tokenizer.ggml.{key}"] = Typed(listed.kind, values)
                    changes.append(f"{key}[{at}] = {values[at]!r}")
    return keys, tensors, changes


def outcomes(directory: Path, cases: int, seed: int) -> Counter[str]:
    gemma3 = replace(tiny_models.gemma3(vocab=263, layers=2), vocabulary=tiny_vocabularies.spm())
    qwen3 = replace(tiny_models.qwen3(vocab=264), vocabulary=tiny_vocabularies.bpe(pre="qwen2"))
    models, found = (tiny_chat.checkpoint(), gemma3, qwen3), Counter[str]()
    for case in range(cases):
        keys, tensors, changes = absurd(models[case % 3], random.Random(f"{seed} {case}"))
        path, start = gguf_writer.write(directory / f"{case}.gguf", keys, tensors), time.process_time()
        stage = "read"
        try:
            checkpoint = gguf.read(path)
            stage = "tokenizer"
            tokenizers.build(checkpoint.vocabulary)
            stage = "plan"
            plan(checkpoint)
            stage = "planned"
        except (SourceError, UnsupportedError):
            pass  # as it should be
        except BaseException as error:
            error.add_note(f"seed {seed}, case {case}: {'; '.join(changes)}")
            raise
        assert time.process_time() - start < SECONDS, changes
        found[stage] += 1
        path.unlink()
    return found


def test_absurd_models(tmp_path: Path) -> None:
    found = outcomes(tmp_path, 300, 1)
    assert set(found) == {"read", "tokenizer", "plan", "planned"}  # else the changes do not reach every stage


@pytest.mark.slow
def test_many_absurd_models(tmp_path: Path) -> None:
    outcomes(tmp_path, 10_000, 2)
