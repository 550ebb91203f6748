"""What can go wrong outside ryzc, through its command line: one clear message, exit code 1, and nothing left behind."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gguf_writer
import numpy as np
import pytest
import tiny_chat

from ryzc import cli
from ryzc.bundle import manifest as manifests
from ryzc.compiler import build
from ryzc.sources.checkpoint import Checkpoint, StoredTensor

RYZC = [sys.executable, "-m", "ryzc"]
Main = Callable[..., tuple[int, str, str]]


def command(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*RYZC, *map(str, arguments)],
        **{"capture_output": True, "text": True, "timeout": 120, "check": False, **options},
    )


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Main:
    """The command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, which must be empty again at the end."""
    path = tmp_path / "place"
    path.mkdir()
    yield path
    assert list(path.iterdir()) == []


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sound model as a file."""
    return gguf_writer.write_checkpoint(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_chat.checkpoint())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle; tests work on copies."""
    return tiny_chat.write(tmp_path_factory.mktemp("sound") / "tiny.ryzc")


@pytest.fixture(scope="module")
def smollm2_bundle(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(smollm2_path, tmp_path_factory.mktemp("smollm2") / "smollm2.ryzc")


@pytest.fixture(scope="module")
def smollm2_start(smollm2_path: Path) -> bytes:
    """The file of SmolLM2 up to some way into its first tensors."""
    with smollm2_path.open("rb") as file:
        return file.read(2 << 20)


def refused(code: int, out: str, err: str, *mentions: str) -> None:
    """One error and one hint at the end of stderr, nothing on stdout."""
    assert (code, out) == (1, ""), err
    assert f"\n{err}".count("\nerror: ") == 1
    assert err.count("\nhint: ") == 1, err
    assert "Traceback" not in err
    for mention in mentions:
        assert mention in err


# -- sources -----------------------------------------------------------------------------------------------------------


def test_the_sound_file_builds(tiny_gguf: Path, tmp_path: Path, main: Main) -> None:
    output = tmp_path / "x.ryzc"
    assert main("build", tiny_gguf, "-o", output) == (0, f"{output}\n", "")
    assert main("verify", output)[0] == 0
    assert sorted(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("size", [0, 1, 4, 23, 24, 100, 5000, 1_000_000, 1_500_000, 2_000_000])
def test_a_real_file_cut_short(size: int, smollm2_start: bytes, tmp_path: Path, place: Path, main: Main) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(smollm2_start[:size])
    refused(*main("build", path, "-o", place / "x.ryzc"), "cut.gguf")


# The magic, the version (3 becomes 2 by its lowest bit, which is fine), the counts of tensors and keys, the length of
# the first key.
@pytest.mark.parametrize("bit", [*range(0, 32, 5), 34, 40, 63, *range(64, 128, 9), *range(128, 192, 9), 195, 255])
def test_a_real_file_with_a_bit_flipped(
    bit: int, smollm2_path: Path, smollm2_start: bytes, tmp_path: Path, place: Path, main: Main
) -> None:
    path = tmp_path / "flipped.gguf"
    path.write_bytes(_flipped(smollm2_start, bit))
    os.truncate(path, smollm2_path.stat().st_size)  # a hole in place of the weights, so that only the bit is wrong
    refused(*main("build", path, "-o", place / "x.ryzc"))


def _flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


HOSTILE = {
    "nothing": b"",
    "text": b"This is no model at all.\n",
    "zeros": bytes(4096),
    "safetensors": b"\x08\0\0\0\0\0\0\0{}      ",
    "endless keys": gguf_writer.header(0, 2**63),
    "endless tensors": gguf_writer.header(2**63, 0),
    "no keys": gguf_writer.header(0, 0),
    "endless text": gguf_writer.header(0, 1) + b"\xff" * 8 + b"general.architecture",
    "big endian": b"GGUF" + (3).to_bytes(4, "big") + bytes(16),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("verb", ["build", "inspect", "run"])
def test_hostile_files(
    verb: str, name: str, tmp_path: Path, place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RYZC_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[name])
    rest = {"build": ["-o", str(place / "x.ryzc")], "inspect": [], "run": ["hello"]}[verb]
    refused(*main(verb, path, *rest), "hostile.gguf")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.name != "bundles"]


def _strange_format(checkpoint: Checkpoint) -> Checkpoint:
    name = "blk.0.attn_q.weight"
    data = np.zeros(checkpoint.tensors[name].shape[0] * 66, np.uint8)
    strange = StoredTensor(name, "iq2_xxs", (checkpoint.tensors[name].shape[0], 256), data)
    return replace(checkpoint, tensors={**checkpoint.tensors, name: strange})


UNKNOWN: dict[str, tuple[Callable[[Checkpoint], Checkpoint], str]] = {
    "architecture": (
        lambda c: replace(c, metadata={**c.metadata, "general.architecture": "mamba9"}),
        "mamba9",
    ),
    "format": (_strange_format, "iq2_xxs"),
    "pre-tokenizer": (lambda c: replace(c, vocabulary=replace(c.vocabulary, pre="martian")), "martian"),
    "tokenizer": (lambda c: replace(c, vocabulary=replace(c.vocabulary, model="wordpiece")), "wordpiece"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_sound_files_that_ryzc_does_not_know(what: str, tmp_path: Path, place: Path, main: Main) -> None:
    change, mention = UNKNOWN[what]
    path = gguf_writer.write_checkpoint(tmp_path / "strange.gguf", change(tiny_chat.checkpoint()))
    refused(*main("build", path, "-o", place / "x.ryzc"), mention)


def test_a_tensor_is_missing(tmp_path: Path, place: Path, main: Main) -> None:
    sound = tiny_chat.checkpoint()
    tensors = {name: t for name, t in sound.tensors.items() if name != "blk.1.ffn_down.weight"}
    path = gguf_writer.write_checkpoint(tmp_path / "m.gguf", replace(sound, tensors=tensors))
    refused(*main("build", path, "-o", place / "x.ryzc"), "blk.1.ffn_down.weight")


@pytest.mark.parametrize("source", ["no-such-file.gguf", ".", "/dev/null"])
def test_no_file(source: str, place: Path, main: Main) -> None:
    refused(*main("build", source, "-o", place / "x.ryzc"))


def test_anything_may_be_inspected(tiny_gguf: Path, smollm2_start: bytes, tmp_path: Path, main: Main) -> None:
    """Random damage to headers: an error of the user's or a report, never a fault of ryzc."""
    rng = random.Random(0)
    codes = []
    for i in range(200):
        raw = bytearray(smollm2_start if i % 8 == 0 else tiny_gguf.read_bytes())
        head = 4096 if i % 2 else len(raw)
        for _ in range(rng.choice([0, 1, 1, 2, 8])):
            raw[rng.randrange(min(head, len(raw)))] ^= 1 << rng.randrange(8)
        if i % 3 == 0:
            del raw[rng.randrange(len(raw)) :]
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(raw)
        code, _, err = main("inspect", path)
        assert code in (0, 1), (i, err)
        assert "Traceback" not in err
        if code:
            assert err.startswith("error: "), (i, err)
        path.unlink()
        codes.append(code)
    assert set(codes) == {0, 1}


# -- bundles -----------------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    path.write_bytes(_flipped(path.read_bytes(), path.stat().st_size * 4 + 1))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut": (_cut, manifests.WEIGHTS),
    "weights missing": (Path.unlink, manifests.WEIGHTS),
    "code flipped": (_flip, "kernels"),
    "code cut": (_cut, "kernels"),
    "code missing": (Path.unlink, "kernels"),
    "plan flipped": (_flip, manifests.PLAN),
    "plan emptied": (lambda path: os.truncate(path, 0), manifests.PLAN),
    "tokenizer flipped": (_flip, manifests.TOKENIZER),
    "tokenizer missing": (Path.unlink, manifests.TOKENIZER),
    "manifest flipped": (_flip, manifests.MANIFEST),
    "manifest cut": (_cut, manifests.MANIFEST),
}


def _in(bundle: Path, name: str) -> Path:
    path = bundle / name
    if path.is_dir():
        path = next(p for p in path.rglob("*.so"))
    return path


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("verb", ["run", "bench", "verify", "inspect", "eval perplexity"])
def test_damaged_bundles(verb: str, damage: str, sound: Path, tmp_path: Path, main: Main) -> None:
    bundle = tmp_path / "damaged.ryzc"
    shutil.copytree(sound, bundle)
    apply, name = DAMAGES[damage]
    path = _in(bundle, name)
    apply(path)
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 40)
    rest = {"run": ["hello"], "bench": ["-p", "8", "-n", "4"], "eval perplexity": ["--text", str(text)]}.get(verb, [])
    refused(*main(*verb.split(), bundle, *rest), path.name)


@pytest.mark.parametrize("verb", ["run", "bench", "verify"])
def test_a_bundle_without_its_manifest(verb: str, sound: Path, tmp_path: Path, main: Main) -> None:
    bundle = tmp_path / "damaged.ryzc"
    shutil.copytree(sound, bundle)
    (bundle / manifests.MANIFEST).unlink()
    refused(*main(verb, bundle, *(["hello"] if verb == "run" else [])), "damaged.ryzc")


def test_flipped_weights_are_found_by_verify(sound: Path, tmp_path: Path, main: Main) -> None:
    bundle = tmp_path / "damaged.ryzc"
    shutil.copytree(sound, bundle)
    path = bundle / manifests.WEIGHTS
    path.write_bytes(_flipped(path.read_bytes(), path.stat().st_size * 8 - 4000))
    refused(*main("verify", bundle), manifests.WEIGHTS)


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_file_that_may_not_grow(tiny_gguf: Path, place: Path) -> None:
    done = command(
        "build",
        tiny_gguf,
        "-o",
        place / "x.ryzc",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    refused(done.returncode, done.stdout, done.stderr, "File too large", "ulimit")


def _mounted(directory: Path, options: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command where a file system of its own lies at a directory; lists on stdout what it left there."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    script = f'mount -t tmpfs -o {options} none "$0" || exit 77; "$@"; code=$?; ls -A "$0"; exit $code'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, str(directory), *RYZC, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("this machine allows no mounts to its users")
    return done


@pytest.mark.parametrize("size", ["8k", "60k", "120k"])
def test_a_full_disk(size: str, tiny_gguf: Path, place: Path) -> None:
    done = _mounted(place, f"size={size}", "build", tiny_gguf, "-o", place / "x.ryzc")
    refused(done.returncode, done.stdout, done.stderr, "No space left on device", "free some space")


def test_a_disk_that_cannot_be_written(tiny_gguf: Path, place: Path) -> None:
    done = _mounted(place, "ro", "build", tiny_gguf, "-o", place / "x.ryzc")
    refused(done.returncode, done.stdout, done.stderr, "Read-only file system")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_that_may_not_be_written(tiny_gguf: Path, place: Path, main: Main) -> None:
    place.chmod(0o555)
    try:
        refused(*main("build", tiny_gguf, "-o", place / "x.ryzc"), "Permission denied")
    finally:
        place.chmod(0o755)


def test_places_that_are_none(tiny_gguf: Path, place: Path, main: Main) -> None:
    refused(*main("build", tiny_gguf, "-o", place / "no" / "such" / "x.ryzc"), "does not exist", "mkdir -p")
    refused(*main("build", tiny_gguf, "-o", tiny_gguf / "x.ryzc"))
    refused(*main("build", tiny_gguf, "-o", "/proc/x.ryzc"))


def _occupy_with_file(path: Path) -> None:
    path.write_text("precious")


def _occupy_with_directory(path: Path) -> None:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "notes.txt").write_text("precious")


def _occupy_with_forgery(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"format": "something else"}')
    (path / "precious").write_text("precious")


@pytest.mark.parametrize("occupy", [_occupy_with_file, _occupy_with_directory, _occupy_with_forgery])
def test_what_is_no_bundle_stays_as_it_is(
    occupy: Callable[[Path], None], tiny_gguf: Path, tmp_path: Path, main: Main
) -> None:
    output = tmp_path / "x.ryzc"
    occupy(output)
    before = _contents(tmp_path)
    refused(*main("build", tiny_gguf, "-o", output), "already exists", "-o")
    assert _contents(tmp_path) == before


def test_a_bundle_with_a_stranger_s_file_stays(tiny_gguf: Path, sound: Path, tmp_path: Path, main: Main) -> None:
    output = tmp_path / "x.ryzc"
    shutil.copytree(sound, output)
    (output / "notes.txt").write_text("precious")
    before = _contents(tmp_path)
    refused(*main("build", tiny_gguf, "-o", output), "already exists")
    assert _contents(tmp_path) == before


def test_the_source_is_never_the_output(tiny_gguf: Path, main: Main) -> None:
    before = tiny_gguf.read_bytes()
    refused(*main("build", tiny_gguf, "-o", tiny_gguf))
    assert tiny_gguf.read_bytes() == before


def test_a_failed_build_leaves_the_old_bundle(sound: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.ryzc"
    shutil.copytree(sound, output)
    before = _contents(tmp_path)
    done = command(
        "build",
        tiny_gguf,
        "-o",
        output,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert _contents(tmp_path) == before


def _contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# -- interruptions -----------------------------------------------------------------------------------------------------


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < end
        time.sleep(0.002)


def _interrupt(process: subprocess.Popen[bytes], by: signal.Signals = signal.SIGINT) -> bytes:
    """Ctrl-C, or another signal; returns stderr."""
    process.send_signal(by)
    start = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + by
    assert time.monotonic() - start < 5
    assert b"Traceback" not in err
    assert b"Exception" not in err
    return err


@pytest.mark.parametrize("later", [0.0, 0.7, 1.4])
def test_interrupted_while_it_compiles(later: float, smollm2_path: Path, place: Path) -> None:
    with _build(smollm2_path, place) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        _wait_for(lambda: "llvmlite" in maps.read_text(), process)
        time.sleep(later)
        _interrupt(process)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("size", [1, 20 << 20])
def test_interrupted_while_it_packs(size: int, by: signal.Signals, smollm2_path: Path, place: Path) -> None:
    def packing() -> bool:
        files = place.glob(f".x.ryzc.*.partial/{manifests.WEIGHTS}")
        return any(file.stat().st_size >= size for file in files)

    with _build(smollm2_path, place) as process:
        _wait_for(packing, process)
        _interrupt(process, by)


def _build(source: Path, place: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*RYZC, "build", str(source), "-o", str(place / "x.ryzc")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("threads", ["1", "2"])
def test_interrupted_while_it_answers(threads: str, smollm2_bundle: Path) -> None:
    with _talk(smollm2_bundle, threads) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        _interrupt(process)


def _talk(bundle: Path, threads: str = "1") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*RYZC, "run", str(bundle), "Once upon a time", "--raw", "--temp", "0", "-n", "4000", "-t", threads],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def test_nobody_reads_the_answer(smollm2_bundle: Path) -> None:
    with _talk(smollm2_bundle) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("verb", ["inspect", "verify", "targets"])
def test_nobody_reads_the_report(verb: str, sound: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stdout:
        done = command(verb, *([] if verb == "targets" else [sound]), capture_output=False, stdout=stdout,
                       stderr=subprocess.PIPE)  # fmt: skip
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("verb", ["inspect", "targets", "run"])
def test_the_report_cannot_be_written(verb: str, sound: Path) -> None:
    rest = {"inspect": [str(sound)], "targets": [], "run": [str(sound), "hello"]}[verb]
    with open("/dev/full", "w") as stdout:
        done = command(verb, *rest, capture_output=False, stdout=stdout, stderr=subprocess.PIPE)
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--raw"]])
def test_a_prompt_longer_than_the_context(options: list[str], sound: Path, main: Main) -> None:
    prompt = "x" * 100
    refused(*main("run", sound, prompt, "-c", "64", *options), "64", "tokens", "-c")
    code, _, err = main("run", sound, prompt, "-c", "64", "--raw")
    assert code == 1
    assert any(count in err for count in ("100", "101")), err  # a token a letter, and maybe the start


def test_a_context_longer_than_the_model_s(sound: Path, main: Main) -> None:
    refused(*main("run", sound, "hello", "-c", "100000"), "100000", "256")


@pytest.mark.parametrize("threads", ["0", "-1", "many"])
def test_senseless_threads(threads: str, sound: Path, main: Main) -> None:
    refused(*main("run", sound, "hello", "-t", threads))


def test_too_many_threads(sound: Path, main: Main) -> None:
    refused(*main("run", sound, "hello", "-t", "100000"))
