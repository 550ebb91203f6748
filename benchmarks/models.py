"""The models that are measured, made or fetched into the cache when they are asked for.

Requantized files are made by llama.cpp's own quantizer from SmolLM2's Q4_1, so that all engines run the same file;
their quality is that of a second rounding.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ryzc
from benchmarks import peers
from benchmarks.peers import build
from ryzc.sources.pull import cache_directory, pull

SAMPLES = {"smollm2": "smollm2", "gemma3-270m": "gemma3-270m"}
REQUANTIZED = {"smollm2-q4_0": "Q4_0", "smollm2-q8_0": "Q8_0", "smollm2-q4_k_m": "Q4_K_M"}
RANDOM = {
    "llama-1b-q4_0": ("LLAMA_3_2_1B", "q4_0"),
    "llama-1b-q8_0": ("LLAMA_3_2_1B", "q8_0"),
    "llama-1b-q4_k_m": ("LLAMA_3_2_1B", "q4_k_m"),
    "qwen3-0.6b-q4_k_m": ("QWEN3_0_6B", "q4_k_m"),
    "qwen3-0.6b-q8_0": ("QWEN3_0_6B", "q8_0"),
    "bitnet-2b-tq1_0": ("BITNET_2B_4T", "tq1_0"),
    "bitnet-2b-tq2_0": ("BITNET_2B_4T", "tq2_0"),
    "bitnet-2b-i2_s": ("BITNET_2B_4T", "i2_s"),
    "bitnet-2b-iq2_bn": ("BITNET_2B_4T", "iq2_bn"),
    "bitnet-135m-tq1_0": ("BITNET_135M", "tq1_0"),
    "bitnet-135m-tq2_0": ("BITNET_135M", "tq2_0"),
    "bitnet-135m-i2_s": ("BITNET_135M", "i2_s"),
    "bitnet-135m-iq2_bn": ("BITNET_135M", "iq2_bn"),
}
OWN = {"ik_llama_cpp": ("-tq2_0", "-iq2_bn")}
"""Engines that keep some weights in a format of their own: what stands for what in a model's name."""
NAMES = ("smollm2", *REQUANTIZED, "gemma3-270m", *RANDOM)


@dataclass(frozen=True)
class Model:
    """A file to measure.

    Attributes:
        speaks: whether it is a trained model, so that its perplexity means something.
    """

    name: str
    path: Path
    speaks: bool


def find(name: str) -> Model:
    """The model of a name, or the one in a GGUF file.

    Raises:
        FileNotFoundError: it is neither, or the peer that quantizes is not built.
    """
    if name in SAMPLES:
        return Model(name, pull(SAMPLES[name]), True)
    if name not in NAMES:
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"{name} is neither a file nor one of {', '.join(NAMES)}")
        return Model(path.stem, path.resolve(), True)
    place = cache_directory() / "benchmarks" / f"{name}.gguf"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        if name in RANDOM:
            from benchmarks import random_weights

            shape, mix = RANDOM[name]
            random_weights.write(place, getattr(random_weights, shape), mix)
        else:
            _requantize(pull("smollm2"), place, REQUANTIZED[name])
    return Model(name, place, name in REQUANTIZED)


def for_engine(model: Path, engine: str) -> Path:
    """The file that an engine gets: the same weights in its own format, where it has one for a random model."""
    known, own = OWN.get(engine.removesuffix("_avx2"), ("", ""))
    name = model.stem.replace(known, own) if known else model.stem
    return find(name).path if model.stem in RANDOM and name in RANDOM else model


def bundle(model: Path, names: Sequence[str]) -> Path:
    """Compile and tune a model for this CPU, or for AVX2 where that is what the engine's name asks for."""
    ours = next(filter(peers.is_ours, names))
    target = peers.AVX2_TARGET if ours.endswith("_avx2") else "native"
    place = Path(__file__).resolve().parent.parent / "build" / "benchmarks"
    place.mkdir(parents=True, exist_ok=True)
    return ryzc.build(model, place / f"{model.stem}-{target}.ryzc", targets=(target,), tune=True)


def _requantize(source: Path, place: Path, kind: str) -> None:
    """Let llama.cpp write ``source`` in another format; in a process that has its library on the path."""
    unfinished = place.with_name(f"{place.name}.{os.getpid()}")
    command = [sys.executable, "-c", "import sys; from benchmarks import models; models.quantize(*sys.argv[1:])"]
    environment = os.environ | build.environment("llama_cpp")
    root = Path(__file__).resolve().parent.parent
    subprocess.run([*command, str(source), str(unfinished), kind], check=True, cwd=root, env=environment)
    unfinished.rename(place)


def quantize(source: str, destination: str, kind: str) -> None:
    """Requantize a file with llama.cpp, which has to be importable."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(params)):
        sys.exit(f"error: llama.cpp does not requantize {source} as {kind}")
