"""What `ryzc inspect --memory` predicts, against processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf_writer
import pytest
import tiny_models
import tiny_vocabularies

from ryzc import cli
from ryzc.compiler import build

CONTEXT = 1024
FILL = """
import sys
from ryzc.cli import _memory, run
from ryzc.runtime import chat, model as runtime
bundle, way, context = sys.argv[1], sys.argv[2], int(sys.argv[3])
with runtime.load(bundle, context=context, weights=way, threads=2) as model:
    start = _memory.resident()
    answer = model.generate([5 + i % 100 for i in range(context - 2)], max_tokens=3, temperature=0, raw=True)
    assert len(list(answer)) <= 3 and answer.prompt_tokens == context - 2
    print(start, _memory.resident())
"""


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(smollm2_path, tmp_path_factory.mktemp("memory") / "smollm2.ryzc")


@pytest.mark.parametrize(("way", "total"), [("copy", "total_copied"), ("map", "total_mapped")])
def test_a_process_holds_what_was_predicted(
    way: str, total: str, smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(smollm2), "--memory", "-c", str(CONTEXT), "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    child = subprocess.run(
        [sys.executable, "-c", FILL, str(smollm2), way, str(CONTEXT)], capture_output=True, text=True, check=True
    )
    start, full = map(int, child.stdout.split())
    assert abs(full / predicted[total] - 1) < 0.1
    # Pages of the cache, the scratch and a mapped file appear when they are used.
    unused = predicted["keys_and_values"] + predicted["scratch"] + (predicted["weights"] if way == "map" else 0)
    assert abs(start / (predicted[total] - unused) - 1) < 0.1


def test_the_table(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(smollm2), "--memory", "-c", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "memory of a process whose context of 64 tokens is full"
    formats = lines.index("keys and values by --kv; this bundle has int16")
    rows = {line[2:24].strip(): line.split()[-2:] for line in lines[2:formats]}
    assert list(rows) == [
        "weights",
        "keys and values",
        "scratch",
        "code",
        "tokenizer",
        "Python and libraries",
        "total",
        "with an empty one",
    ]
    assert rows["keys and values"] == ["1.5", "MB"]
    by_format = {line.split()[0]: line.split()[1:] for line in lines[formats + 2 :]}
    assert list(by_format) == ["f32", "f16", "int16", "int8", "int8-int4", "int4"]
    assert by_format["f16"] == ["23.0", "kB", "1.5", "MB", "755.0", "MB"]
    assert by_format["int4"] == ["7.2", "kB", "460.8", "kB", "235.9", "MB"]


def test_a_source_is_no_process(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(smollm2_path), "--memory"]) == 1
    assert "ryzc build" in capsys.readouterr().err


BUILD = """
import re, sys
from ryzc.compiler import build
build(sys.argv[1], sys.argv[2])
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])  # ru_maxrss counts this test in
"""


def _peak_of_build(directory: Path, vocab: int, hidden: int, layers: int) -> tuple[int, int]:
    """Bytes of the bundle's weights, and the largest RSS of the process that built it."""
    characters = tiny_vocabularies.byte_characters()
    merges = [f"{a} {b}" for a in characters for b in characters][: vocab - 259]
    checkpoint = tiny_models.llama(
        layers=layers,
        hidden=hidden,
        heads=hidden // 64,
        kv_heads=2,
        head_dim=64,
        feed_forward=4 * hidden,
        vocab=vocab,
        mix=("q8_0",),
    )
    source = gguf_writer.write_checkpoint(
        directory / f"{hidden}.gguf", checkpoint, vocabulary=tiny_vocabularies.bpe(merges)
    )
    bundle = directory / f"{hidden}.ryzc"
    child = subprocess.run(
        [sys.executable, "-c", BUILD, str(source), str(bundle)], capture_output=True, text=True, check=True
    )
    return (bundle / "weights.safetensors").stat().st_size, int(child.stdout) << 10


@pytest.mark.slow
def test_a_build_stays_below_twice_the_weights(tmp_path: Path) -> None:
    """Proportions of a 2B model with a large vocabulary: a quarter of the weights is the embedding."""
    _, compiler = _peak_of_build(tmp_path, 259 + 1, 128, 2)
    weights, peak = _peak_of_build(tmp_path, 49152, 1024, 10)
    assert weights > 200e6
    assert peak - compiler < 2 * weights
