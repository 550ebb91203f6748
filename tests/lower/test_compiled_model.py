"""Compiled models against the ReferenceEvaluator, and the promise that batches do not change bits."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
from compiled import once, runnable_targets, write_bundle

from ryzc import models, targets
from ryzc.compiler import plan as plan_of
from ryzc.errors import ContextError, UsageError
from ryzc.graph.oracle import PagedOracle, logits
from ryzc.kv_formats import USUAL
from ryzc.passes import pipeline
from ryzc.runtime.step import CompiledModel
from ryzc.sources.checkpoint import Checkpoint

F32 = npt.NDArray[np.float32]
LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
FLOATS = ("f32", "f16")

CHECKPOINTS: dict[str, Callable[[], Checkpoint]] = {
    "llama-legacy": lambda: _alike(tiny_models.llama, LEGACY, 1),
    "llama-k": lambda: _alike(
        lambda **k: tiny_models.llama(hidden=256, heads=8, kv_heads=2, head_dim=32, feed_forward=512, **k), K_QUANTS, 2
    ),
    "llama-floats": lambda: _alike(tiny_models.llama, FLOATS, 3),
    "llama-mixed": lambda: tiny_models.llama(seed=7, mix=("q4_0", "q8_0", "f16")),
    "llama-wide": lambda: _alike(
        lambda **k: tiny_models.llama(hidden=128, heads=4, kv_heads=2, head_dim=32, feed_forward=160, **k), ("q8_0",), 2
    ),
    "llama-untied": lambda: _alike(lambda **k: tiny_models.llama(tied=False, kv_heads=4, vocab=77, **k), ("q8_0",), 4),
    "gemma3-legacy": lambda: _alike(tiny_models.gemma3, ("q5_0", "q8_0"), 5),
    "gemma3-k": lambda: _alike(
        lambda **k: tiny_models.gemma3(hidden=256, heads=4, head_dim=64, feed_forward=256, **k), ("q4_k", "q6_k"), 6
    ),
    "qwen3-legacy": lambda: _alike(tiny_models.qwen3, LEGACY, 8),
    "qwen3-k": lambda: _alike(
        lambda **k: tiny_models.qwen3(hidden=256, heads=4, kv_heads=1, head_dim=128, feed_forward=512, tied=False, **k),
        ("q4_k", "q6_k"),
        9,
    ),
}
TOKENS = 45


def _alike(make: Callable[..., Checkpoint], mix: tuple[str, ...], seed: int) -> Checkpoint:
    """A checkpoint of mixed formats whose gate and up share one, as in most files that quantizers write."""
    checkpoint = make(seed=seed, mix=mix)
    tensors = dict(checkpoint.tensors)
    rng = np.random.default_rng(seed)
    for name, gate in checkpoint.tensors.items():
        if name.endswith("ffn_gate.weight"):
            up = name.replace("gate", "up")
            tensors[up] = tiny_models.stored(rng, up, gate.format, gate.shape)
    return Checkpoint(checkpoint.path, checkpoint.architecture, checkpoint.metadata, tensors, checkpoint.vocabulary)


def _tokens(vocabulary: int, count: int = TOKENS, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, vocabulary, count)


def _feed(model: CompiledModel, tokens: npt.NDArray[np.int64], chunks: list[int], sequence: int = 0) -> F32:
    """Logits of every token, fed in chunks of these sizes."""
    found, start = [], 0
    for size in chunks:
        part = tokens[start : start + size]
        places = np.arange(start, start + len(part))
        result = model.step(part, places, np.full(len(part), sequence), np.arange(len(part)))
        found.append(result.all_logits.copy())
        start += size
    return np.concatenate(found)


def _open(path: Path, *, threads: int = 1, sequences: int = 1, seed: int = 0) -> CompiledModel:
    model = CompiledModel(path, context=128, threads=threads, sequences=sequences)
    order = np.random.default_rng(seed).permutation(model.pages).astype(np.int32)
    model.page_table[:] = order.reshape(model.page_table.shape)
    return model


USUAL_MODELS = ("gemma3-legacy", "llama-legacy", "llama-wide", "qwen3-legacy")


@pytest.fixture(
    scope="module",
    params=[
        *USUAL_MODELS,
        *(pytest.param(n, marks=pytest.mark.thorough) for n in sorted(set(CHECKPOINTS) - set(USUAL_MODELS))),
    ],
)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(name: str) -> Checkpoint:
    return CHECKPOINTS[name]()


Bundles = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def compiled(name: str, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """The checkpoint compiled for each instruction set that runs here, by how it keeps keys and values."""

    def bundles(kv: str) -> dict[str, Path]:
        return {
            target: once(
                tmp_path_factory,
                f"{name}-{kv}/{target}.ryzc",
                partial(write_bundle, checkpoint, target=target, kv=kv),
            )
            for target in runnable_targets()
        }

    return bundles


OTHER_CACHES = {
    "llama-untied": ("f16", "int8"),
    "llama-wide": ("f16", "int8", "int4"),
    "gemma3-k": ("f16", "int8", "int8-int4"),
    "qwen3-k": ("f16", "int8"),
}
"""Models that are compiled with other caches than the usual one, too. To these weight formats make no difference, but
the more of them a model has, the longer it takes to compile."""


@pytest.fixture(scope="module")
def bundles(compiled: Bundles) -> dict[str, Path]:
    """A bundle of each instruction set."""
    return compiled(USUAL)


@pytest.fixture(scope="module", params=runnable_targets())
def int8_bundle(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Path:
    return bundles[request.param]


@pytest.fixture(scope="module", params=["usual", "floats", "codes", "4 bits"])
def any_bundle(request: pytest.FixtureRequest, name: str, compiled: Bundles, int8_bundle: Path) -> Path:
    """A bundle of each instruction set, with each kind of cache."""
    kinds = dict(zip(("usual", "floats", "codes", "4 bits"), (USUAL, *OTHER_CACHES.get(name, ())), strict=False))
    if request.param not in kinds:
        pytest.skip("not for this model")
    return compiled(kinds[request.param])[int8_bundle.stem]


@pytest.fixture(params=runnable_targets())
def exact(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path: Path) -> Iterator[CompiledModel]:
    path = write_bundle(checkpoint, tmp_path / "tiny.ryzc", target=request.param, activations="f32")
    with _open(path) as model:
        yield model


def _relative(found: F32, expected: F32) -> float:
    """Root mean square of the difference, relative to that of what was expected."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def test_float_activations_equal_the_oracle(checkpoint: Checkpoint, exact: CompiledModel) -> None:
    tokens = _tokens(exact.vocab_size)
    expected = logits(models.load(checkpoint).ir_model, tokens.tolist())
    found = _feed(exact, tokens, [len(tokens)])
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= 1e-5
    # Where two logits are closer than the error, either may come first.
    runner_up = np.sort(expected, axis=1)[:, -2:]
    clear = runner_up[:, 1] - runner_up[:, 0] > 2e-5 * np.abs(expected).max()
    assert clear.mean() > 0.9
    assert np.array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def test_int8_activations_follow_the_final_graph(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With keys and values of float16, which round both to the same numbers. Instruction sets are compared below."""
    semantic = models.load(checkpoint).ir_model
    pipeline.run(semantic, kv_dtype="f16")
    path = write_bundle(checkpoint, tmp_path / "tiny.ryzc", target=runnable_targets()[0], kv="f16")
    with _open(path) as model:
        tokens = _tokens(model.vocab_size)
        expected = PagedOracle(semantic).prompt(tokens.tolist())
        found = _feed(model, tokens, [len(tokens)])
    # Both round activations to the same codes until float32 rounding tips a tie; from there on they are two
    # roundings of one model, as far apart as each is from float activations. Without rounded activations
    # only the halves of the cache (2**-11) are left. The first token has met almost no ties yet.
    cost = _relative(expected, logits(models.load(checkpoint).ir_model, tokens.tolist()))
    assert _relative(found, expected) <= cost + 2**-11
    assert _relative(found[:1], expected[:1]) <= 0.2 * cost + 2**-11


def test_a_cache_of_codes_follows_the_final_graph(name: str, checkpoint: Checkpoint, compiled: Bundles) -> None:
    """Codes tip over between oracle and kernels as those of activations do, so the bounds are alike."""
    tokens = _tokens(next(iter(checkpoint.tensors.values())).shape[0])
    exact = logits(models.load(checkpoint).ir_model, tokens.tolist())
    for kv in (USUAL, *(kv for kv in OTHER_CACHES.get(name, ()) if kv != "f16")):
        semantic = models.load(checkpoint).ir_model
        pipeline.run(semantic, kv_dtype=kv)
        expected = PagedOracle(semantic).prompt(tokens.tolist())
        cost = _relative(expected, exact)
        results = []
        for bundle in compiled(kv).values():
            with _open(bundle) as model:
                results.append(_feed(model, tokens, [len(tokens)]))
        for found in results:
            assert _relative(found, expected) <= cost
            assert np.array_equal(found, results[0])


def test_bits_do_not_depend_on_chunks_threads_or_neighbours(any_bundle: Path) -> None:
    with _open(any_bundle) as model:
        tokens = _tokens(model.vocab_size)
        whole = _feed(model, tokens, [TOKENS])
        for chunks in ([1] * TOKENS, [7] * 7, [32, 13], [1, 3, 5, 9, 27]):
            assert np.array_equal(_feed(model, tokens, chunks), whole)
    for threads in (2, 3):
        with _open(any_bundle, threads=threads, seed=threads) as model:
            assert np.array_equal(_feed(model, tokens, [TOKENS]), whole)
            assert np.array_equal(_feed(model, tokens, [1] * TOKENS), whole)
    with _open(any_bundle, threads=2, sequences=3, seed=9) as model:
        others = [_tokens(model.vocab_size, TOKENS, seed) for seed in (1, 2)]
        found = []
        for i in range(TOKENS):  # three sequences side by side, one of them ours
            batch = [others[0][i], tokens[i], others[1][i]]
            result = model.step(batch, [i] * 3, [0, 2, 1], [1])
            found.append(result.all_logits.copy())
        assert np.array_equal(np.concatenate(found), whole)


def test_a_prompt_chunk_rides_with_decodes(any_bundle: Path) -> None:
    with _open(any_bundle, sequences=2, threads=2) as model:
        tokens, other = _tokens(model.vocab_size), _tokens(model.vocab_size, seed=5)
        alone = _feed(model, tokens, [TOKENS], sequence=0)
        _feed(model, other, [20], sequence=1)
        batch = np.concatenate([other[20:21], tokens])
        places = np.concatenate([[20], np.arange(TOKENS)])
        owners = np.array([1] + [0] * TOKENS)
        mixed = model.step(batch, places, owners, np.arange(1, TOKENS + 1)).all_logits
        assert np.array_equal(mixed, alone)


def test_candidates_are_the_best_of_the_row(int8_bundle: Path) -> None:
    with _open(int8_bundle, threads=2) as model:
        tokens = _tokens(model.vocab_size)
        count = min(model.max_candidates, 25)
        result = model.step(tokens, np.arange(TOKENS), np.zeros(TOKENS), np.arange(10, 20), count)
        for row in range(10):
            full = result.full(row)
            order = np.argsort(-full, kind="stable")[:count]
            assert np.array_equal(result.ids[row], order)
            assert np.array_equal(result.logits[row], full[order])
            assert result.row_max[row] == full.max()
            exact_sum = np.exp(full.astype(np.float64) - full.max()).sum()
            assert abs(result.row_sum[row] / exact_sum - 1) < 1e-5


def test_stale_pages_of_others_change_nothing(any_bundle: Path) -> None:
    with _open(any_bundle) as model:
        tokens = _tokens(model.vocab_size)
        clean = _feed(model, tokens, [TOKENS])
    with _open(any_bundle) as model:
        model._kv[:] = 0xFF  # NaN in every slot of the pool
        assert np.array_equal(_feed(model, tokens, [TOKENS]), clean)
        assert np.array_equal(_feed(model, tokens, [1] * TOKENS), clean)


def test_what_does_not_fit_is_refused(int8_bundle: Path) -> None:
    with _open(int8_bundle, sequences=2) as model:
        with pytest.raises(UsageError, match="token ids"):
            model.step([model.vocab_size], [0], [0], [0])
        with pytest.raises(UsageError, match="token ids"):
            model.step([-1], [0], [0], [0])
        with pytest.raises(ContextError, match="outside the context"):
            model.step([1], [128], [0], [0])
        with pytest.raises(UsageError, match="sequences"):
            model.step([1], [0], [2], [0])
        with pytest.raises(UsageError, match="rows"):
            model.step([1], [0], [0], [1])
        with pytest.raises(UsageError, match="steps 1 to"):
            model.step(
                np.zeros(model.max_tokens + 1), np.zeros(model.max_tokens + 1), np.zeros(model.max_tokens + 1), []
            )
        model.page_table[0, 1] = model.pages
        model.step([1], [31], [0], [0])  # the page is not reached yet
        with pytest.raises(ContextError, match="outside the pool"):
            model.step([1], [32], [0], [0])


def test_instruction_sets_agree_bit_for_bit(bundles: dict[str, Path]) -> None:
    found = []
    for path in bundles.values():
        with _open(path) as model:
            tokens = _tokens(model.vocab_size)
            found.append(_feed(model, tokens, [TOKENS]))
    assert all(np.array_equal(other, found[0]) for other in found[1:])


def test_the_same_source_gives_the_same_plan(checkpoint: Checkpoint) -> None:
    assert plan_of(checkpoint).plan == plan_of(checkpoint).plan


def test_idle_threads_burn_no_cpu(int8_bundle: Path) -> None:
    with _open(int8_bundle, threads=4) as model:
        model.step([1], [0], [0], [0])
        time.sleep(0.2)  # workers spin for a while first
        before, start = time.process_time(), time.perf_counter()
        time.sleep(1.0)
        used, passed = time.process_time() - before, time.perf_counter() - start
        assert used < 0.02 * passed
        model.step([2], [1], [0], [0])  # and wake again


@pytest.mark.parametrize(("threads", "group"), [(2, 1), (4, 1), (4, 2), (5, 2), (5, 4), (4, 64)])
def test_bits_do_not_depend_on_how_threads_meet(int8_bundle: Path, threads: int, group: int) -> None:
    with _open(int8_bundle) as model:
        tokens = _tokens(model.vocab_size)
        expected = _feed(model, tokens, [TOKENS])
    with _open(int8_bundle, threads=threads) as model:
        model._set("group", group)
        assert np.array_equal(_feed(model, tokens, [20, *[1] * (TOKENS - 20)]), expected)


def test_the_number_of_threads_may_change_from_step_to_step(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _open(int8_bundle, threads=4) as model:
        tokens = _tokens(model.vocab_size)
        counts = [4, 1, 1, 2, 3, 1, 4, 2, 4]
        chosen = itertools.cycle(counts)
        monkeypatch.setattr(model._neighbours, "threads", lambda: next(chosen))
        found = _feed(model, tokens, [1] * TOKENS)
        for spin in (0, 20_000):  # asleep at once, or still looking when the next step comes
            model._set("spin", spin)
            assert np.array_equal(_feed(model, tokens, [1] * TOKENS), found)
        monkeypatch.setattr(model._neighbours, "threads", lambda: 1)
        assert np.array_equal(_feed(model, tokens, [1] * TOKENS), found)


def test_workers_that_are_left_out_sleep(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _open(int8_bundle, threads=4) as model:
        monkeypatch.setattr(model._neighbours, "threads", lambda: 1)
        model.step([1], [0], [0], [0])
        time.sleep(0.2)
        start, before = time.perf_counter(), (time.process_time(), time.thread_time())
        while time.perf_counter() - start < 0.5:
            model.step([1], [0], [0], [0])
        all_threads, caller = time.process_time() - before[0], time.thread_time() - before[1]
        assert all_threads - caller < 0.05
        monkeypatch.undo()
        model.step([1], [0], [0], [0])


def test_workers_keep_to_their_l3(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = targets.detect()
    usable = sorted(cpu.topology.usable)
    if len(usable) < 2:
        pytest.skip("needs two CPUs")
    domains = tuple(targets.Domain((targets.Core((number,)),)) for number in usable[:2])
    described = targets.Topology((targets.Package(domains),), frozenset(usable[:2]))
    monkeypatch.setattr("ryzc.targets.detect", lambda: replace(cpu, topology=described))
    with _open(int8_bundle, threads=4) as model:
        model.step([1], [0], [0], [0])
        allowed = {worker.name: os.sched_getaffinity(worker.native_id) for worker in model._workers if worker.native_id}
        first, second = ({number} for number in usable[:2])
        assert allowed == {"ryzc-worker-1": first, "ryzc-worker-2": second, "ryzc-worker-3": second}
        assert os.sched_getaffinity(0) == set(usable)  # the caller's thread is its own
        tokens = _tokens(model.vocab_size)
        found = _feed(model, tokens, [TOKENS])
    with _open(int8_bundle) as model:
        assert np.array_equal(_feed(model, tokens, [TOKENS]), found)


def test_threads_end_with_the_model(int8_bundle: Path) -> None:
    alive = threading.active_count()
    model = _open(int8_bundle, threads=3)
    assert threading.active_count() == alive + 2
    model.close()
    model.close()
    assert threading.active_count() == alive
    with pytest.raises(UsageError, match="closed"):
        model.step([1], [0], [0], [0])


def test_a_model_that_nobody_closed_ends_quietly(int8_bundle: Path) -> None:
    alive = threading.active_count()
    model = _open(int8_bundle, threads=3)
    model.step([1], [0], [0], [0])
    del model
    gc.collect()
    assert threading.active_count() == alive


def test_a_bundle_rebuilt_in_its_place_brings_its_own_code(tmp_path: Path) -> None:
    tokens, found = _tokens(40), []
    path = tmp_path / "tiny.ryzc"
    for hidden in (64, 96):  # the first model stays open, as in a server that reloads
        write_bundle(tiny_models.llama(hidden=hidden), path)
        model = _open(path)
        found.append(model)
        expected = models.load(tiny_models.llama(hidden=hidden)).ir_model
        assert _relative(_feed(model, tokens, [TOKENS]), logits(expected, tokens.tolist())) < 0.1
    for model in found:
        model.close()
