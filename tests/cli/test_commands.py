"""The commands on a real bundle, tiny and random."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ryzc
from ryzc import cli, targets
from ryzc.errors import ContextError, UsageError
from ryzc.runtime.perplexity import perplexity

TEXT = "She sells sea shells on the sea shore, and the shells she sells are sea shells. " * 40


def command(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "ryzc", *map(str, arguments)],
        **{"capture_output": True, "text": True, "timeout": 60, "check": False, **options},
    )


def test_greedy_text_is_what_the_logits_say(chat_bundle: Path) -> None:
    with ryzc.load(chat_bundle, threads=1) as model:
        assert model.context == 256
        prompt = model.tokenize("hello world")
        generation = model.generate(prompt, max_tokens=20, temperature=0)
        assert generation.text() == model.tokenizer.decode(generation.new_ids)
        logits = model.logits(generation.ids[:-1])
        assert logits.shape == (len(generation.ids) - 1, model.compiled.vocab_size)
        np.testing.assert_array_equal(logits.argmax(axis=1)[len(prompt) - 1 :], generation.new_ids)


def test_text_does_not_depend_on_threads_or_what_is_cached(chat_bundle: Path) -> None:
    texts = []
    for threads in (1, 2):
        with ryzc.load(chat_bundle, threads=threads, weights="map") as model:
            for _ in range(2):
                texts.append(model.generate("hello world", max_tokens=24, seed=3).text())
            model.logits(model.tokenize("hello and more", raw=True))
            texts.append(model.generate("hello world", max_tokens=24, seed=3).text())
    assert len(set(texts)) == 1


def test_load_refuses_contexts(chat_bundle: Path) -> None:
    for context in (0, -1, 257):
        with pytest.raises(UsageError, match=f"context of {context} tokens") as caught:
            ryzc.load(chat_bundle, context=context)
        assert "256" in str(caught.value.hint)
    with (
        ryzc.load(chat_bundle, context=16, threads=1) as model,
        pytest.raises(ContextError, match="but the context has 16"),
    ):
        model.generate("a text of more than sixteen tokens")


def test_models_may_be_dropped_without_closing(chat_bundle: Path) -> None:
    code = (
        "import ryzc, sys\n"
        "texts = {ryzc.load(sys.argv[1], threads=2).generate('x', max_tokens=4, seed=1).text() for _ in range(20)}\n"
        "print(len(texts))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(chat_bundle)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_perplexity_is_that_of_the_logits(chat_bundle: Path) -> None:
    with ryzc.load(chat_bundle, threads=1) as model:
        result = perplexity(model, TEXT, context=64, chunks=3)
        ids = model.tokenizer.encode(TEXT)
        costs = []
        for start in range(0, 192, 64):
            window = ids[start : start + 64]
            logits = model.logits(window).astype(np.float64)
            for position in range(32, 63):
                row = logits[position]
                costs.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[window[position + 1]])
    assert result.value == pytest.approx(np.exp(np.mean(costs)), rel=1e-5)
    assert result.scored == len(costs)


def test_run_answers_on_stdout(chat_bundle: Path) -> None:
    first = command("run", chat_bundle, "hello", "-n", "12", "-s", "5", "-t", "1")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.endswith("\n")
    assert len(first.stdout) > 5
    again = command("run", chat_bundle, "-n", "12", "-s", "5", "-v", input="hello\n")
    assert again.stdout == first.stdout
    assert "tok/s" in again.stderr


def test_run_without_template(base_bundle: Path) -> None:
    result = command("run", base_bundle, "hello", "-n", "4", "--temp", "0")
    assert result.returncode == 0
    assert result.stderr.count("no chat template") == 1


def test_run_imports_no_compiler(chat_bundle: Path) -> None:
    code = "import sys; from ryzc.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    arguments = ["run", str(chat_bundle), "hello", "-n", "2"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    loaded = set(result.stderr.split())
    assert not loaded & {"onnx", "onnx_ir", "llvmlite", "rich", "platformdirs", "safetensors", "ryzc.lower"}
    assert "ryzc.runtime.model" in loaded


@pytest.mark.skipif(targets.get("native").name == "x86-64-v3", reason="there is no lesser CPU than this one")
def test_a_cpu_that_cannot_run_it(chat_bundle: Path) -> None:
    result = command("run", chat_bundle, "hello", env={**os.environ, "RYZC_CPU": "x86-64-v3"})
    assert result.returncode == 1
    assert "needs" in result.stderr
    assert "hint: " in result.stderr


def test_a_damaged_bundle(chat_bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.ryzc"
    shutil.copytree(chat_bundle, damaged)
    weights = damaged / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    result = command("verify", damaged)
    assert (result.returncode, result.stdout) == (1, "")
    assert "weights.safetensors" in result.stderr
    (damaged / "tokenizer.json").write_text("{}")
    assert command("run", damaged, "hello").returncode == 1


def test_verify_lists_every_file(chat_bundle: Path) -> None:
    result = command("verify", chat_bundle)
    assert result.returncode == 0
    names = [line.split()[-1] for line in result.stdout.splitlines()]
    files = [p.relative_to(chat_bundle).as_posix() for p in chat_bundle.rglob("*") if p.is_file()]
    assert sorted([*names, "manifest.json"]) == sorted(files)
    assert "sound" in result.stderr


def test_interrupted_while_it_waits(chat_bundle: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ryzc", "run", str(chat_bundle)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_chat_on_a_terminal(chat_bundle: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ryzc", "run", str(chat_bundle), "-n", "6", "-c", "200"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb"},
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = b""

        def wait_for(prompts: int) -> None:
            nonlocal seen
            deadline = time.monotonic() + 30
            while seen.count(b"> ") < prompts:
                assert time.monotonic() < deadline, seen
                seen += os.read(ours, 4096)

        wait_for(1)
        for i, line in enumerate((b"hello\n", b"/clear\n", b"x" * 300 + b"\n")):
            os.write(ours, line)
            wait_for(i + 2)
        os.write(ours, b"\x04")
        assert process.wait(timeout=30) == 0
    os.close(ours)
    assert b"Ctrl-D leaves" in seen
    assert b"error: the prompt has" in seen


def test_bench_in_every_format(chat_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(chat_bundle), "-p", "32,0", "-n", "3", "-d", "0,9", "-t", "1", "-r", "2"]
    expected = ["pp32", "tg3", "pp32 @ d9", "tg3 @ d9"]

    def output(form: str) -> str:
        assert cli.main([*arguments, "-o", form]) == 0
        return capsys.readouterr().out

    header, rule, *rows = output("md").splitlines()
    assert header.split("|")[1:-1] == [cell for cell in header.split("|") if cell]
    assert set(rule) == set("|-: ")
    assert [row.split("|")[5].strip() for row in rows] == expected
    records = json.loads(output("json"))
    assert [record["test"] for record in records] == expected
    for record in records:
        assert len(record["samples_ts"]) == 2
        assert record["avg_ts"] == pytest.approx(np.mean(record["samples_ts"]))
        assert record["stddev_ts"] == pytest.approx(np.std(record["samples_ts"], ddof=1))
        assert record["read_bytes_per_s"] > 1e8
        assert record["int8_macs_per_s"] > 1e9
        shares = np.array(record["samples_ts"]) * record["bytes_per_token"] / record["samples_read"]
        assert record["read_share"] == pytest.approx(shares.mean())
    lines = list(csv.DictReader(io.StringIO(output("csv"))))
    assert [line["test"] for line in lines] == expected


def test_bench_counts_what_a_token_reads(chat_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "-p 0 -n 1 -d 0,99 -t 1 -r 1 -o json"
    assert cli.main(["bench", str(chat_bundle), *flags.split()]) == 0
    near, far = json.loads(capsys.readouterr().out)
    assert cli.main(["inspect", str(chat_bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    weights = report["memory"]["weights"]
    # The head reads the whole table that the embedding takes one row of.
    assert near["bytes_per_token"] == weights + report["kv_bytes_per_token"]
    assert far["bytes_per_token"] == weights + 100 * report["kv_bytes_per_token"]
    assert near["macs_per_token"] == report["macs_per_token"]


def test_bench_refuses_more_than_the_model_knows(chat_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(chat_bundle), "-p", "512", "-t", "1"]) == 1
    assert "context of 256" in capsys.readouterr().err


def test_eval(chat_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT)
    arguments = ["eval", "perplexity", str(chat_bundle), "--text", str(text), "-c", "64", "--chunks", "4", "-t", "1"]
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["windows"]) == 4
    assert report["scored_tokens"] == 4 * 31
    assert cli.main(arguments) == 0
    assert f"perplexity {report['perplexity']:.4f} ± {report['error']:.4f}" in capsys.readouterr().out
    text.write_text("too short")
    assert cli.main(arguments) == 1
    text.write_bytes(b"\xff\xfe")
    assert cli.main(arguments) == 1
    assert "not UTF-8 (byte 0)" in capsys.readouterr().err


def test_inspect_a_bundle(chat_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(chat_bundle), "-c", "64", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["architecture"] == "llama"
    assert report["memory"]["keys_and_values"] == 64 * report["kv_bytes_per_token"]
    assert report["memory"]["total"] == sum(v for k, v in report["memory"].items() if k != "total")
    assert {f["format"] for f in report["formats"]} >= {"q4_1", "q8_0"}
    assert report["files"]["weights.safetensors"] == (chat_bundle / "weights.safetensors").stat().st_size
    assert cli.main(["inspect", str(chat_bundle)]) == 0
    out = capsys.readouterr().out
    assert "llama" in out
    assert "memory at a context of 256 tokens" in out


def test_inspect_shows_assembly(chat_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["inspect", str(chat_bundle), "--json"])
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    symbol = next(k["symbol"] for k in kernels if k["family"] == "linear")
    assert cli.main(["inspect", str(chat_bundle), "--asm", symbol, "--target", "znver4"]) == 0
    znver4 = capsys.readouterr().out
    assert cli.main(["inspect", str(chat_bundle), "--asm", symbol, "--target", "znver2"]) == 0
    znver2 = capsys.readouterr().out
    assert "vpdpbusd" in znver4
    assert "zmm" in znver4
    assert "zmm" not in znver2
    assert cli.main(["inspect", str(chat_bundle), "--asm", "no-such-kernel"]) == 1
    assert symbol in capsys.readouterr().err
    assert cli.main(["inspect", str(chat_bundle), "--asm", symbol, "--target", "znver9"]) == 1
    assert "znver4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "257"],
        ["--after", "linear"],
        ["--memory", "--asm", "x"],
        ["--json", "--asm", "x"],
        ["--target", "znver4"],
        ["-c", "0"],
    ],
    ids=" ".join,
)
def test_inspect_refuses(arguments: list[str], chat_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(chat_bundle), *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "hint: " in err


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    known = {target["name"]: target for target in report["targets"]}
    assert {"znver1", "znver2", "znver3", "znver4", "znver5", "x86-64-v3", "x86-64-v4"} <= set(known)
    assert known[report["native"]]["missing_here"] == []
    assert report["cpu"]["threads"] >= 1
    assert cli.main(["targets"]) == 0
    out = capsys.readouterr().out
    assert report["cpu"]["name"] in out
    assert all(name in out for name in known)


def test_targets_of_a_lesser_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RYZC_CPU", "znver2")
    assert cli.main(["targets"]) == 0
    out = capsys.readouterr().out
    assert "taken for  znver2" in out
    assert any(line.startswith("znver4") and "lacks" in line for line in out.splitlines())
    monkeypatch.setenv("RYZC_CPU", "znver9")
    assert cli.main(["targets"]) == 1
