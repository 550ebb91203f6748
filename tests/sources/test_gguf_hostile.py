"""Damaged and hostile GGUF files: a clear error each, soon, in little memory, and never anything but a RyzcError."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias, TypeVar

import gguf_writer
import numpy as np
import pytest
import tiny_models
import tiny_vocabularies
from gguf_writer import Tensor, Typed, header, info, pad, pair, text
from tokenizers import Tokenizer

from ryzc import models
from ryzc.compiler import plan
from ryzc.errors import RyzcError, SourceError, UnsupportedError
from ryzc.sources import Checkpoint, Vocabulary, gguf, tokenizers

T = TypeVar("T")
SECONDS = 1.0
MEMORY = 4 << 20
U63, U64 = 2**63, 2**64
KEYS: dict[str, gguf_writer.Value] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.list": [1.0, 2.0],
    "llama.flags": [True, False],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "é"],
    "tokenizer.ggml.token_type": Typed("i32", [1, 1, 3]),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
}
ROWS = np.arange(8 * 40, dtype=np.uint8).reshape(8, 40)
TENSORS = (
    Tensor("w", "q4_1", (8, 64), ROWS),
    Tensor("norm", "f32", (8,), bytes(32)),
    Tensor("x", "f16", (3, 5), b"x" * 30),
)
SOUND = gguf_writer.encode(KEYS, TENSORS)
HEAD = len(SOUND) - 320 - 32 - 32


class _Files:
    """Each file gets a new name, for one that is still mapped must not be cut short."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.count = 0

    def put(self, raw: bytes) -> Path:
        (self.directory / f"{self.count}.gguf").unlink(missing_ok=True)
        self.count += 1
        path = self.directory / f"{self.count}.gguf"
        path.write_bytes(raw)
        return path


@pytest.fixture
def files(tmp_path: Path) -> _Files:
    return _Files(tmp_path)


def soon(action: Callable[[], T]) -> T:
    """What it returns; fails when it takes more than :data:`SECONDS` of processor time each time, or hangs.

    What blows up does so again, while a machine that stood still under us, and had it counted as our time, moves on.
    """

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 30 * SECONDS)
    try:
        for _ in range(3):
            start = time.process_time()
            outcome = action()
            taken = time.process_time() - start
            if taken < SECONDS:
                return outcome
        raise AssertionError(f"takes {taken:.3f} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(path: Path) -> Checkpoint | RyzcError:
    """Read a file and touch all its tensors' bytes; any other exception escapes and fails the test."""

    def read() -> Checkpoint | RyzcError:
        try:
            checkpoint = gguf.read(path)
        except (SourceError, UnsupportedError) as error:
            return error
        for tensor in checkpoint.tensors.values():
            assert tensor.data.size * 8 >= np.prod(tensor.shape, dtype=object)
            int(tensor.data.sum())
        return checkpoint

    return soon(read)


# -- named cases -------------------------------------------------------------------------------------------------------


def keyed(*pairs: bytes, tensors: int = 0, infos: bytes = b"", body: bytes = b"") -> bytes:
    """A file of the least keys and more; ``infos`` are the entries of its tensors, ``body`` their bytes."""
    keys = [pair(k, v) for k, v in KEYS.items()] + list(pairs)
    head = header(tensors, len(keys)) + b"".join(keys) + infos
    return pad(head) + body if tensors else head


def but(**changes: gguf_writer.Value | None) -> bytes:
    """A sound file with keys replaced, or left out where they are ``None``; ``__`` stands for a dot."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return gguf_writer.encode({k: v for k, v in {**KEYS, **named}.items() if v is not None}, TENSORS)


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return text("x") + struct.pack("<IIQ", 9, kind, count) + body


def raw_value(kind: int, body: bytes = b"") -> bytes:
    return text("x") + struct.pack("<I", kind) + body


def one(name: str = "t", dimensions: tuple[int, ...] = (8,), type_id: int = 0, offset: int = 0) -> bytes:
    """A file of one tensor, 32 bytes long."""
    return keyed(tensors=1, infos=info(name, dimensions, type_id, offset), body=bytes(32))


def two(first: int, second: int) -> bytes:
    """A file of two tensors of 64 bytes each at these places, in 128 bytes."""
    infos = info("a", (16,), 0, first) + info("b", (16,), 0, second)
    return keyed(tensors=2, infos=infos, body=bytes(128))


Case: TypeAlias = tuple[bytes, type[RyzcError], str]
CASES: dict[str, Case] = {
    # the header
    "empty": (b"", SourceError, "is empty"),
    "magic cut short": (b"GGU", SourceError, "not a GGUF file"),
    "magic only": (b"GGUF", SourceError, "version needs 4 bytes"),
    "another magic": (b"GGML" + SOUND[4:], SourceError, "starts with"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", SourceError, "Git LFS"),
    "zip": (b"PK\3\4" + bytes(99), SourceError, "zip archive"),
    "web page": (b"<!DOCTYPE html>", SourceError, "web page"),
    "before gguf": (b"tjgg" + bytes(99), SourceError, "before GGUF"),
    "version 0": (header(0, 0, 0), UnsupportedError, "version 0"),
    "version 1": (header(0, 0, 1), UnsupportedError, "version 1"),
    "version 4": (header(0, 0, 4), UnsupportedError, "version 4"),
    "version of all ones": (header(0, 0, 2**32 - 1), UnsupportedError, "version 4294967295"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), UnsupportedError, "big-endian"),
    "tensors near 2^63": (header(U63 - 1, 0), SourceError, "only 0 remain"),
    "tensors of all ones": (header(U64 - 1, 1) + bytes(99), SourceError, "only 99 remain"),
    "tensors whose bytes wrap": (header(2**61, 1) + bytes(99), SourceError, "only 99 remain"),
    "keys near 2^63": (header(0, U63 - 1) + bytes(99), SourceError, "only 99 remain"),
    "keys whose bytes wrap": (header(0, pow(13, -1, U64)) + bytes(99), SourceError, "only 99 remain"),
    "one key too many": (SOUND[:16] + struct.pack("<Q", len(KEYS) + 1) + SOUND[24:], SourceError, "byte"),
    "one key too few": (SOUND[:16] + struct.pack("<Q", len(KEYS) - 1) + SOUND[24:], SourceError, "tensor"),
    "no keys": (header(0, 0), SourceError, "lacks tokenizer|lacks general.architecture"),
    # keys and values
    "key near 2^63": (header(0, 1) + struct.pack("<Q", U63 - 1) + bytes(99), SourceError, "key 0 is"),
    "key past the end": (header(0, 1) + struct.pack("<Q", 100) + bytes(99), SourceError, "key 0 needs 100"),
    "key too long": (keyed(pair("k" * 65537, 1)), SourceError, "more than 65536"),
    "key not UTF-8": (keyed(pair(b"\xff", 1)), SourceError, "not UTF-8"),
    "key of a surrogate": (keyed(pair(b"\xed\xa0\x80", 1)), SourceError, "not UTF-8"),
    "key overlong": (keyed(pair(b"\xc0\x80", 1)), SourceError, "not UTF-8"),
    "key twice": (keyed(pair("llama.block_count", 2)), SourceError, "'llama.block_count' appears twice"),
    "long key twice": (keyed(pair("k" * 60000, 2), pair("k" * 60000, 2)), SourceError, "appears twice"),
    "text near 2^63": (keyed(raw_value(8, struct.pack("<Q", U63 - 1))), SourceError, "value of 'x' needs"),
    "text of all ones": (keyed(raw_value(8, struct.pack("<Q", U64 - 1))), SourceError, "value of 'x' needs"),
    "text one too long": (keyed(raw_value(8, struct.pack("<Q", 4) + b"abc")), SourceError, "only 3 remain"),
    "text not UTF-8": (keyed(raw_value(8, text(b"\x80"))), SourceError, "not UTF-8"),
    "value of an unknown kind": (keyed(raw_value(13, bytes(99))), SourceError, "unknown type 13"),
    "value of the last kind": (keyed(raw_value(2**32 - 1, bytes(99))), SourceError, "unknown type 4294967295"),
    "value cut short": (keyed(raw_value(12, bytes(7))), SourceError, "only 7 remain"),
    "truth value of 2": (keyed(raw_value(7, b"\2")), SourceError, "neither 0 nor 1"),
    # arrays
    "array near 2^63": (keyed(array(0, U63 - 1)), SourceError, "only 0 remain"),
    "array whose bytes wrap to none": (keyed(array(10, 2**61)), SourceError, "only 0 remain"),
    "array whose bytes wrap to few": (keyed(array(4, 2**62 + 1, bytes(4))), SourceError, "only 4 remain"),
    "array one too long": (keyed(array(6, 3, bytes(11))), SourceError, "only 11 remain"),
    "texts near 2^63": (keyed(array(8, U63 - 1, bytes(64))), SourceError, "only 64 remain"),
    "texts whose bytes wrap": (keyed(array(8, 2**61 + 1, bytes(64))), SourceError, "only 64 remain"),
    "texts cut short": (keyed(array(8, 2, text("abcdefgh"))), SourceError, "ends after 1 of 2"),
    "one of the texts near 2^63": (keyed(array(8, 1, struct.pack("<Q", U63 - 1))), SourceError, "string 0"),
    "one of the texts not UTF-8": (keyed(array(8, 2, text("a") + text(b"\xff"))), SourceError, "string 1 .* not UTF-8"),
    "truth values near 2^63": (keyed(array(7, U63 - 1)), SourceError, "only 0 remain"),
    "truth values of 2": (keyed(array(7, 2, b"\1\2")), SourceError, "neither 0 nor 1"),
    "elements of an unknown kind": (keyed(array(13, 1, bytes(99))), SourceError, "unknown type 13"),
    "array of arrays": (keyed(array(9, 1, struct.pack("<IQ", 0, 1) + b"1")), UnsupportedError, "array of arrays"),
    "arrays nested deep": (keyed(array(9, 1, struct.pack("<IQ", 9, 1) * 10_000)), UnsupportedError, "array of arrays"),
    # alignment
    "alignment 0": (but(general__alignment=0), SourceError, "general.alignment is 0"),
    "alignment 1": (but(general__alignment=1), SourceError, "general.alignment is 1"),
    "alignment 48": (but(general__alignment=48), SourceError, "general.alignment is 48"),
    "alignment 2^31": (but(general__alignment=2**31), SourceError, "general.alignment is"),
    "alignment below 0": (but(general__alignment=-32), SourceError, "general.alignment is -32"),
    "alignment of 2^63": (but(general__alignment=Typed("u64", U63)), SourceError, "general.alignment is"),
    "alignment a text": (but(general__alignment="32"), SourceError, "general.alignment is a text"),
    "alignment a truth value": (but(general__alignment=True), SourceError, "general.alignment is a truth value"),
    "alignment a list": (but(general__alignment=[32]), SourceError, "general.alignment is a list"),
    # splits
    "split": (but(split__count=2), UnsupportedError, "one of several parts"),
    "split of a text": (but(split__count="2"), SourceError, "split.count is a text"),
    # tensors
    "no dimensions": (one(dimensions=()), SourceError, "0 dimensions"),
    "five dimensions": (one(dimensions=(8, 1, 1, 1, 1)), SourceError, "5 dimensions"),
    "dimensions of all ones": (
        keyed(tensors=1, infos=text("t") + struct.pack("<I", 2**32 - 1) + bytes(64)),
        SourceError,
        "4294967295 dimensions",
    ),
    "a dimension of 0": (one(dimensions=(8, 0)), SourceError, "shape \\[0, 8\\]"),
    "a dimension near 2^63": (one(dimensions=(U63 - 8,)), SourceError, "past the file"),
    "a product that wraps to 0": (one(dimensions=(2**32, 2**32)), SourceError, "past the file"),
    "a product that wraps to fit": (one(dimensions=(8, 2**61 + 1)), SourceError, "past the file"),
    "bytes that wrap to fit": (one(dimensions=(2**62 + 8,)), SourceError, "past the file"),
    "an end that wraps": (one(offset=U64 - 32), SourceError, "past the file"),
    "a place near 2^63": (one(offset=U63), SourceError, "past the file"),
    "a place past the end": (one(offset=32), SourceError, "past the file"),
    "a place not aligned": (one(offset=8), SourceError, "not aligned"),
    "rows of broken blocks": (one(dimensions=(33,), type_id=3), SourceError, "whole blocks"),
    "one element too many": (one(dimensions=(9,)), SourceError, "past the file"),
    "an unknown type": (one(type_id=200), UnsupportedError, "tensor type 200"),
    "a type of all ones": (one(type_id=2**32 - 1), UnsupportedError, "tensor type 4294967295"),
    "a type without a format": (one(type_id=16), UnsupportedError, "iq2_xxs"),
    "a type long gone": (one(type_id=4), UnsupportedError, "q4_2"),
    "a type of whole numbers": (one(type_id=26), UnsupportedError, "i32"),
    "a tensor twice": (
        keyed(tensors=2, infos=info("t", (8,), 0, 0) * 2, body=bytes(32)),
        SourceError,
        "tensor 't' appears twice",
    ),
    "one place for two": (two(0, 0), SourceError, "overlap"),
    "overlap by a half": (two(32, 0), SourceError, "'b' and 'a' overlap"),
    "a name not UTF-8": (
        keyed(tensors=1, infos=info(b"\xff", (8,), 0, 0), body=bytes(32)),
        SourceError,
        "name of tensor 0 is not UTF-8",
    ),
    "a name near 2^63": (
        keyed(tensors=1, infos=struct.pack("<Q", U63 - 1) + bytes(64)),
        SourceError,
        "name of tensor 0 is",
    ),
    "bytes that nothing accounts for": (SOUND + b"\0", SourceError, "follow the last tensor"),
    "a file twice": (SOUND + SOUND, SourceError, "follow the last tensor"),
    "a sound end missing": (SOUND[:-3], SourceError, "past the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_named_case(name: str, files: _Files) -> None:
    raw, kind, told = CASES[name]
    path = files.put(raw)
    outcome = attempt(path)
    assert isinstance(outcome, kind)
    message = str(outcome)
    assert re.search(told, message)
    assert str(path) in message
    assert len(message) < 500
    assert outcome.hint


@pytest.mark.parametrize("name", CASES)
def test_named_case_takes_little_memory(name: str, files: _Files) -> None:
    path = files.put(CASES[name][0])
    tracemalloc.start()
    try:
        outcome = attempt(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(outcome, RyzcError)
    assert peak < MEMORY


def test_the_sound_file_is_sound(files: _Files) -> None:
    checkpoint = gguf.read(files.put(SOUND))
    assert np.array_equal(checkpoint.tensors["w"].data, ROWS)
    assert len(SOUND[:HEAD]) % 32 == 0


NEEDED = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type")


@pytest.mark.parametrize("key", [*NEEDED, "tokenizer.ggml.merges"])
def test_a_missing_key_is_named(key: str, files: _Files) -> None:
    with pytest.raises(SourceError, match=f"lacks {key}"):
        gguf.read(files.put(but(**{key.replace(".", "__"): None})))


def test_sentencepiece_needs_scores(files: _Files) -> None:
    with pytest.raises(SourceError, match=r"lacks tokenizer\.ggml\.scores"):
        gguf.read(files.put(but(tokenizer__ggml__model="llama")))


WRONG: dict[str, list[gguf_writer.Value]] = {
    "general.architecture": [1, True, ["llama"], 1.0],
    "tokenizer.ggml.model": [1, ["gpt2"]],
    "tokenizer.ggml.pre": [1, False],
    "tokenizer.ggml.tokens": ["a", [1, 2], [True], 7],
    "tokenizer.ggml.token_type": [1, ["1"], [1.0], [True]],
    "tokenizer.ggml.merges": ["a b", [1], [True]],
    "tokenizer.ggml.scores": [1.0, ["1"], [1]],
    "tokenizer.ggml.bos_token_id": ["1", 1.0, True, [1]],
    "tokenizer.ggml.add_bos_token": [1, "true", [True]],
    "tokenizer.chat_template": [1, ["{{ messages }}"], False],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_key_of_the_wrong_type_is_named(key: str, value: gguf_writer.Value, files: _Files) -> None:
    with pytest.raises(SourceError, match=f"{key} is") as caught:
        gguf.read(files.put(but(**{key.replace(".", "__"): value})))
    assert caught.value.hint


# -- systematic and random damage --------------------------------------------------------------------------------------


def test_cut_anywhere(files: _Files) -> None:
    for length in range(len(SOUND) - 2):  # the last two bytes only pad
        assert isinstance(attempt(files.put(SOUND[:length])), SourceError), length


def test_any_bit_flipped(files: _Files) -> None:
    outcomes = {True: 0, False: 0}
    for at in range(HEAD):
        for bit in range(8):
            damaged = bytearray(SOUND)
            damaged[at] ^= 1 << bit
            outcomes[isinstance(attempt(files.put(bytes(damaged))), RyzcError)] += 1
    # Flips within names and texts are invisible to a reader; those in numbers must be seen.
    assert outcomes[True] > HEAD * 8 // 4


NUMBERS = [
    0,
    1,
    7,
    8,
    9,
    13,
    31,
    33,
    255,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**61,
    2**62,
    U63 - 1,
    U63,
    U64 - 32,
    U64 - 1,
]


def mutate(raw: bytes, rng: random.Random, head: int) -> bytes:
    """One to four blows to the first ``head`` bytes of a file."""
    damaged = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(4, head)
        match rng.randrange(6):
            case 0:
                damaged[at] = rng.randrange(256)
            case 1:
                damaged[at : at + 8] = struct.pack("<Q", rng.choice([*NUMBERS, len(raw), len(raw) - at]))
            case 2:
                damaged[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
            case 3:
                damaged[at:at] = rng.randbytes(rng.randint(1, 16))
            case 4:
                del damaged[at : at + rng.randint(1, 16)]
            case _:
                source = rng.randrange(4, head)
                piece = damaged[source : source + rng.randint(1, 64)]
                damaged[at : at + rng.choice([0, len(piece)])] = piece
    return bytes(damaged)


def fuzz(raw: bytes, head: int, files: _Files, cases: int, seed: int) -> tuple[int, int]:
    """Numbers of mutated files that were refused and that were read."""
    refused = read = 0
    for case in range(cases):
        path = files.put(mutate(raw, random.Random(f"{seed} {case}"), head))
        try:
            outcome = attempt(path)
        except BaseException as error:
            error.add_note(f"seed {seed}, case {case}")
            raise
        refused, read = (refused + 1, read) if isinstance(outcome, RyzcError) else (refused, read + 1)
    return refused, read


def test_fuzz(files: _Files) -> None:
    refused, read = fuzz(SOUND, HEAD, files, 4000, 1)
    assert refused > 1000
    assert read > 10  # else the blows are too hard to reach what lies behind the header


@pytest.mark.slow
def test_fuzz_long(files: _Files) -> None:
    fuzz(SOUND, HEAD, files, 100_000, 2)


def test_fuzz_a_real_header(smollm2_path: Path, files: _Files) -> None:
    with smollm2_path.open("rb") as file:
        real = file.read(2 << 20)
    fuzz(real, 1 << 20, files, 40, 3)
    for length in range(0, len(real), len(real) // 20):
        assert isinstance(attempt(files.put(real[:length])), SourceError)


# -- what reads, and what a build makes of it --------------------------------------------------------------------------


def whole(model: Checkpoint, vocabulary: Vocabulary) -> tuple[dict[str, gguf_writer.Value], list[Tensor]]:
    """Keys and tensors of a model that builds."""
    keys = {**model.metadata, **gguf_writer.vocabulary_keys(vocabulary), "tokenizer.chat_template": "{{ messages }}"}
    return keys, [Tensor(t.name, t.format, t.shape, t.data) for t in model.tensors.values()]


BPE, SPM = tiny_vocabularies.bpe(), tiny_vocabularies.spm()
SMALL: dict[str, Any] = {"hidden": 32, "heads": 2, "kv_heads": 1, "feed_forward": 32}
WHOLE = {
    "llama": whole(tiny_models.llama(layers=1, vocab=len(BPE.tokens), tied=False, factors=True, **SMALL), BPE),
    "gemma3": whole(tiny_models.gemma3(layers=1, vocab=len(SPM.tokens), rope_factor=8.0, **SMALL), SPM),
}


def built(path: Path, *, planned: bool = False) -> RyzcError | None:
    """Take a file as far as a build does before it compiles; what is no error of the source escapes."""

    def read() -> RyzcError | None:
        try:
            checkpoint = gguf.read(path)
            Tokenizer.from_str(tokenizers.build(checkpoint.vocabulary)).encode("a text")
            tokenizers.settings(checkpoint.vocabulary)
            models.load(checkpoint)
            if planned:
                plan(checkpoint)
        except (SourceError, UnsupportedError) as error:
            return error
        return None

    return soon(read)


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_models_build(name: str, files: _Files) -> None:
    assert built(files.put(gguf_writer.encode(*WHOLE[name])), planned=True) is None


ODD: list[gguf_writer.Value] = [
    *("", "no such", "\0", "a" * 5000, True, -1, 0, 1, 2, 3, 7, 2**31, 2**32 - 1, Typed("u64", U64 - 1)),
    *(Typed("i64", -U63), 0.0, -1.0, 1e-40, 1e30, float("inf"), float("nan"), Typed("f64", 1e308)),
    *([1], [1.5], ["a", "b"], [True], Typed("string", []), Typed("i32", []), Typed("f32", []), ["a b"] * 3),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_any_odd_value_of_any_key(name: str, files: _Files) -> None:
    keys, stored = WHOLE[name]
    for key in keys:
        for i, value in enumerate(ODD):
            try:
                built(files.put(gguf_writer.encode({**keys, key: value}, stored)), planned=True)
            except BaseException as error:
                error.add_note(f"{key}, odd value {i}")
                raise


def fuzz_whole(name: str, files: _Files, cases: int, seed: int) -> int:
    """Number of mutated whole models that still build."""
    keys, stored = WHOLE[name]
    raw, sound = gguf_writer.encode(keys, stored), 0
    head = len(raw) - sum(len(pad(tensor.raw)) for tensor in stored)
    for case in range(cases):
        rng = random.Random(f"{seed} {name} {case}")
        try:
            if case % 2:
                damaged = mutate(raw, rng, head)
            else:  # a change that keeps all lengths is more likely to reach what lies behind the reader
                flipped = bytearray(raw)
                for _ in range(rng.randint(1, 3)):
                    flipped[rng.randrange(24, len(raw) if case % 4 else head)] ^= 1 << rng.randrange(8)
                damaged = bytes(flipped)
            sound += built(files.put(damaged), planned=case % 8 == 0) is None
        except BaseException as error:
            error.add_note(f"seed {seed}, case {case}")
            raise
    return sound


@pytest.mark.parametrize("name", WHOLE)
def test_fuzz_whole_models(name: str, files: _Files) -> None:
    sound = fuzz_whole(name, files, 400, 4)
    assert 20 < sound < 380


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_fuzz_whole_models_long(name: str, files: _Files) -> None:
    fuzz_whole(name, files, 5000, 5)


# -- proportion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda n: keyed(array(8, n // 8, bytes(n))),
        lambda n: keyed(array(0, n, bytes(n))),
        lambda n: header(0, n // 20) + b"".join(pair(f"{i:07}", Typed("u8", 1)) for i in range(n // 20)),
    ],
    ids=["empty texts", "bytes", "keys"],
)
def test_cost_is_in_proportion_to_size(build: Callable[[int], bytes], files: _Files) -> None:
    raw = build(1 << 20)
    path = files.put(raw)
    tracemalloc.start()
    try:
        with contextlib.suppress(SourceError):
            gguf.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * len(raw)
