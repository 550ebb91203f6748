"""The harness's arithmetic: what tests need, what rounds say, and the files that it measures. Needs no peer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_models

import ryzc
from benchmarks import machine, models, peers, random_weights, table, workload
from benchmarks.peers.ryzc_ import Ryzc
from benchmarks.results import Result, Round, row
from benchmarks.workload import parse
from ryzc import formats, sources
from ryzc.bundle.plan import Plan
from ryzc.compiler import plan
from ryzc.graph import nodes
from ryzc.models import load
from ryzc.passes.pass_ import apply
from ryzc.passes.ternarize import Ternarize
from ryzc.runtime import bench
from ryzc.runtime.bench import Work

SMALL = random_weights.Shape("llama", "llama-bpe", 2, 256, 4, 2, 64, 512, 320, 4096, 500000.0, 1e-5)


def test_names_of_tests() -> None:
    assert parse("pp512").total == 512
    assert parse("tg32@4096").reach == 4128
    assert parse("tg128").start == 1, "a sequence has to begin with something"
    assert parse("batch8").total == 8 * parse("batch8").tokens
    assert parse("verify4").drafts == 4
    for name in ("pp0", "pp", "tg128@", "batch8@64", "pp512@64", "nothing"):
        with pytest.raises(ValueError, match="no test"):
            parse(name)
    assert {test.name for test in workload.tests(workload.FULL)} >= {"pp4096", "tg32 @ d16384", "batch 16"}


def test_steps() -> None:
    spans, rows = parse("pp700").steps(512)
    assert (spans, rows) == ([[(0, 512)], [(512, 188)]], [0, 1])
    spans, rows = parse("batch2").steps(512)
    first = workload.SHALLOW
    assert spans[:2] == [[(first, 1)] * 2, [(first + 1, 1)] * 2]
    assert rows == [2] * workload.STEPS
    spans, rows = parse("verify4").steps(512)
    assert spans[1] == [(first + 5, 5)]
    assert set(rows) == {5}


@pytest.fixture(scope="module")
def gemma() -> Plan:
    return plan(tiny_models.gemma3(window=5)).plan


def test_attention_is_counted_pair_by_pair(gemma: Plan) -> None:
    for first, count in [(0, 1), (0, 3), (0, 12), (3, 4), (7, 1), (20, 9)]:
        pairs = sum(
            1
            for window in gemma.kv.windows
            for query in range(first, first + count)
            for key in range(query + 1)
            if not window or query - key < window
        )
        assert bench.attention_macs(gemma, first, count) == pairs * 2 * 2 * 16  # heads, head_dim
        keys = sum(
            1
            for window in gemma.kv.windows
            for key in range(first + count)
            if not window or any(query - key < window for query in range(max(first, key), first + count))
        )
        # keys and values of head_dim 16-bit codes, and a scale of two bytes beside either
        assert bench.kv_bytes(gemma.kv, first, count) == keys * 2 * (16 * 2 + 2)


def test_a_step_reads_weights_once(gemma: Plan) -> None:
    one, two = (bench.step_work(gemma, [(8, 1)] * sequences, sequences) for sequences in (1, 2))
    assert two.bytes - one.bytes == bench.kv_bytes(gemma.kv, 8)
    assert two.linear_macs == 2 * one.linear_macs
    assert two.attention_macs == 2 * one.attention_macs
    silent = bench.step_work(gemma, [(8, 1)], 0)
    head = next(weight.bytes for weight in gemma.weights if "token_embd.weight" in weight.sources)
    assert one.bytes - silent.bytes == head
    assert one.linear_macs - silent.linear_macs == gemma.head_macs


def _result() -> Result:
    """Three rounds of 100 tokens whose limit is 1 s to read and half a second to compute, 2 s with attention."""
    rounds = [
        Round(10.0, 12.0, 100.0, 40.0, 1.0, {"ryzc": 2.0, "llama_cpp": 6.0}, {"ryzc": 1.0, "llama_cpp": 1.5}),
        Round(5.0, 12.0, 50.0, 20.0, 1.0, {"ryzc": 4.0, "llama_cpp": 16.0}, {"ryzc": 2.0, "llama_cpp": 4.0}),
        Round(10.0, 12.0, 100.0, 40.0, 1.0, {"ryzc": 2.5, "llama_cpp": 5.0}, {"ryzc": 1.0, "llama_cpp": 1.0}),
    ]
    test = workload.Test("verify 3", 100, 8, at_once=4)
    return Result(test, Work(10.0, 50.0, 150.0), rounds, 1, {"ik_llama_cpp": "it does not load"})


def test_figures_are_medians_within_rounds() -> None:
    line = row(_result())
    ours, theirs = line.speeds["ryzc"], line.speeds["llama_cpp"]
    assert (ours.median, ours.slowest, ours.fastest) == (40.0, 25.0, 50.0)
    assert theirs.behind == 3.0  # of 3, 4 and 2
    assert ours.share == 0.5  # 1 of 2 s, 2 of 4 s, 1 of 2.5 s
    assert ours.share_with_attention == 1.0
    assert ours.share_of_blocks == 0.625  # 1.25 of 2 s, 2.5 of 4 s, 1.25 of 2.5 s
    assert (ours.step_cost, theirs.step_cost) == (2.0, 4.0)
    assert (line.limit, line.bound, line.best_peer) == (100.0, "read", "llama_cpp")


def _facts() -> dict[str, object]:
    ours = {"engine": "ryzc", "version": "1", "target": "znver4", "formats": "q4_0 60 MB"}
    theirs = {"engine": "llama.cpp", "version": "2"}
    engines = {"ryzc": ours, "llama_cpp": theirs}
    perplexity = {"ryzc": 11.5, "llama_cpp": "it broke"}
    return machine.facts() | {"model": "a.gguf", "threads": 1, "engines": engines, "perplexity": perplexity}


def test_a_table_says_what_an_engine_cannot_do() -> None:
    text = table.as_markdown(_facts(), [_result()])
    assert (
        "| verify 3 | 100 (read) | 40.0 (25.0–50.0) (2.0 steps) | 16.7 (6.2–20.0) (4.0 steps) | no* | 3.00× |" in text
    )
    assert "* it does not load" in text
    assert "ryzc 11.500, llama.cpp: it broke" in text


def test_json_holds_every_sample() -> None:
    record = json.loads(json.dumps(table.as_json(_facts(), [_result()])))
    facts, results = table.from_json(record)
    assert results == [_result()]
    assert facts == _facts()


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    drawn = plot.draw(_facts(), [_result()], tmp_path / "a.b-t1")
    assert [path.name for path in drawn] == ["a.b-t1.png", "a.b-t1.svg"]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in drawn[1].read_text()


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q4_k", "q6_k", "tq1_0", "tq2_0"])
def test_random_weights_are_sane(name: str) -> None:
    stored = random_weights.stored(np.random.default_rng(1), name, 512)
    weights = formats.get(name).decode(stored)
    assert weights.shape == (random_weights.TILE, 512)
    assert abs(float(weights.mean())) < 0.05 / math.sqrt(512) + 0.6 * float(np.diff(np.unique(weights)).min())
    assert float(weights.std()) == pytest.approx(1 / math.sqrt(512), rel=0.1)


@pytest.mark.parametrize(("architecture", "mix"), [("llama", "q4_k_m"), ("qwen3", "q8_0")])
def test_ryzc_reads_what_is_written(architecture: str, mix: str, tmp_path: Path) -> None:
    shape = random_weights.Shape(**{**vars(SMALL), "architecture": architecture})
    checkpoint = sources.open(random_weights.write(tmp_path / "random.gguf", shape, mix))
    made = plan(checkpoint).plan
    assert (made.vocab_size, made.context_length) == (shape.vocab, shape.context)
    names = {tensor.format for tensor in checkpoint.tensors.values()}
    assert names == {"f32", "q4_k", "q6_k"} if mix == "q4_k_m" else {"f32", "q8_0"}


def test_ternary_models_of_all_mixes_are_the_same(tmp_path: Path) -> None:
    shape = random_weights.Shape(**{**vars(SMALL), "architecture": "bitnet"})
    rows = []
    for mix in ("tq1_0", "tq2_0", "i2_s"):
        graph = load(sources.open(random_weights.write(tmp_path / f"{mix}.gguf", shape, mix))).ir_model
        apply(Ternarize(), graph)
        stored = [nodes.operand(n, 0).const_value for n in nodes.nodes(graph.graph, "Dequantize_ternary")]
        rows.append([tensor.numpy().tobytes() for tensor in stored if tensor is not None])
    assert len(rows[0]) == 14
    assert rows[0] == rows[1] == rows[2]


def test_an_engine_of_ours(tmp_path: Path) -> None:
    model = random_weights.write(tmp_path / "random.gguf", SMALL, "q4_0")
    peer = Ryzc(ryzc.build(model, tmp_path / "random.ryzc"), threads=1, context=1100, sequences=3, each=40)
    tokens = [i % 300 for i in range(1100)]
    alone = tokens[:40]
    assert peer.prefill(alone) > 0
    peer.fill(alone[:30], 3, imitate=False)
    assert peer.decode(alone[30:], 3, 2) > 0
    with pytest.raises(Exception, match="context of"):
        peer.decode(tokens, 1, 1)
    peer.fill(tokens[:1024], 1, imitate=True)
    assert peer.decode(tokens[1024:1030], 1, 3) > 0
    windows = peer.windows("some words of a text " * 20, 32, 2)
    assert [len(window) for window in windows] == [32, 32]
    assert 0 < peer.nll(windows) < 100
    work = peer.work([[(0, 8)], [(8, 1)]], [0, 1])
    assert work["bytes"] > bench.weight_bytes(peer._model.plan)
    peer.close()


def test_a_peer_that_is_not_built_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYZC_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.peers\.build llama_cpp"):
        peers.environment("llama_cpp")
    assert peers.environment("ryzc") == {}
    assert peers.environment("ryzc_avx2") == {"RYZC_CPU": "znver3"}
    with pytest.raises(FileNotFoundError, match="one of smollm2"):
        models.find("no such model")
