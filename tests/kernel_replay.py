"""The code that kernels emit for a fixed set of models, as hashes: a change of it shows, and shows where.

What is hashed is LLVM IR text before any optimization, so it is the same on every machine. A kernel is known by its
family and parameters: its symbol, the models that ask for it and its place in their plans do not matter.
``golden/kernels.json`` holds the hashes, ``golden/make_kernels.py`` writes it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import bitnet_golden
import numpy as np
from llvmlite import ir
from ternary_models import write_gguf
from tiny_models import Make, available, gemma3, hollow, llama, qwen3

from ryzc import targets
from ryzc.bundle.plan import KernelSpec, Plan
from ryzc.codegen import isa as instruction_sets
from ryzc.codegen.isa import Isa
from ryzc.compiler import plan
from ryzc.errors import UnsupportedError
from ryzc.formats import trits
from ryzc.kv_formats import KV_FORMATS
from ryzc.sources import gguf
from ryzc.sources.checkpoint import StoredTensor
from ryzc.templates import scaffold
from ryzc.templates.kernels import from_spec

GOLDEN = Path(__file__).parent / "golden" / "kernels.json"
REGENERATE = "PYTHONPATH=tests python tests/golden/make_kernels.py"
STEP = "step"
"""Section of the file for the text around the kernels, by model; the other sections are instruction sets."""

Hashes: TypeAlias = dict[str, dict[str, str]]


def _formats(most: str, **others: str) -> Make:
    """Zeros in one format, but tensors whose names hold one of the keys in another."""

    def make(rng: np.random.Generator, name: str, format_: str, shape: tuple[int, ...]) -> StoredTensor:
        del format_
        return hollow(rng, name, next((f for key, f in others.items() if key in name), most), shape)

    return make


_SMOLLM2 = partial(llama, layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, feed_forward=1536, vocab=49152)
_LLAMA_1B = partial(llama, layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, feed_forward=8192, vocab=128256)
_GEMMA3 = partial(gemma3, layers=18, hidden=640, head_dim=256, heads=4, feed_forward=2048, vocab=262144, window=512)
_QWEN3 = partial(qwen3, layers=28, hidden=1024, heads=16, kv_heads=8, head_dim=128, feed_forward=3072, vocab=151936)
_TINY = partial(llama, hidden=256, heads=8, kv_heads=2, head_dim=32, feed_forward=256, tied=False)

CHECKPOINTS = {
    "smollm2-135m q4_1": partial(_SMOLLM2, make=_formats("q4_1", token_embd="q8_0")),
    "llama-1b q4_k": partial(
        _LLAMA_1B, factors=True, make=_formats("q4_k", token_embd="q6_k", attn_v="q6_k", ffn_down="q6_k")
    ),
    "gemma3-270m q4_k": partial(
        _GEMMA3, make=_formats("q5_0", token_embd="q8_0", attn_v="q8_0", attn_output="q4_k", ffn_down="q6_k")
    ),
    "qwen3-0.6b q8_0": partial(_QWEN3, make=_formats("q8_0")),
    **{f"tiny {name}": partial(_TINY, make=_formats("q4_0", token_embd=name, ffn_down=name)) for name in available()},
    "tiny gate apart": partial(_TINY, make=_formats("q4_0", ffn_gate="q5_0")),
}


def plans() -> dict[str, Plan]:
    """Models of published shapes in usual mixes of formats, and tiny ones with every format in some place."""
    found = {name: plan(make()).plan for name, make in CHECKPOINTS.items()}
    for kv in (name for name, format_ in KV_FORMATS.items() if format_.coded):
        found[f"llama {kv}"] = plan(llama(heads=6, kv_heads=2, head_dim=64, mix=("q8_0",), make=hollow), kv=kv).plan
    for make in (llama, gemma3, qwen3):
        model = make(mix=("q8_0",), make=hollow)
        found[f"{model.architecture} f32"] = plan(model, activations="f32").plan
    with tempfile.TemporaryDirectory() as folder:
        model = gguf.read(write_gguf(Path(folder) / "bitnet.gguf", bitnet_golden.made("bitnet"), "tq2_0"))
        found |= {f"bitnet {layout}": plan(model, ternary=layout).plan for layout in trits.LAYOUTS}
    return found


def hashes(models: Mapping[str, Plan]) -> Hashes:
    """Short hashes of what every kernel of the plans emits for every instruction set of the targets."""
    specs = {_described(spec): spec for model in models.values() for spec in model.kernels}
    found: Hashes = {STEP: {name: _hash(scaffold.step_text(model)) for name, model in models.items()}}
    for name in dict.fromkeys(targets.get(target).isa for target in targets.names()):
        isa = instruction_sets.BY_NAME[name]
        kernels = specs | {_described(spec): spec for spec in _methods(specs.values(), isa)}
        texts = {key: _emit(spec, isa) for key, spec in kernels.items()}
        found[name] = {key: _hash(text) for key, text in texts.items() if text is not None}
    return found


def differences(ours: Hashes, golden: Hashes) -> list[str]:
    """What changed, appeared or went, a line each: ``changed linear(...) on avx2``."""
    lines = []
    for section in sorted(ours.keys() | golden.keys()):
        mine, theirs = ours.get(section, {}), golden.get(section, {})
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                how = "new" if key not in theirs else "gone" if key not in mine else "changed"
                lines.append(f"{how} {key} on {section}" if section != STEP else f"{how} step of {key}")
    return lines


def read() -> Hashes:
    """The golden hashes."""
    found: Hashes = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


def write(found: Hashes) -> None:
    """Make these the golden hashes; a kernel is a line."""
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _described(spec: KernelSpec) -> str:
    return f"{spec.family}({', '.join(f'{key}={value}' for key, value in sorted(spec.parameters.items()))})"


def _methods(specs: Iterable[KernelSpec], isa: Isa) -> Iterator[KernelSpec]:
    """Every method that the tuner may choose, of one kernel a family."""
    for spec in {spec.family: spec for spec in specs}.values():
        for method in from_spec(spec).methods(isa):
            yield replace(spec, parameters={**spec.parameters, "schedule": (f"1:{method}",)})


def _emit(spec: KernelSpec, isa: Isa) -> str | None:
    """The text of a kernel; ``None`` where the instruction set has none of that layout."""
    module = ir.Module("kernel")
    try:
        from_spec(spec).emit(module, isa, "kernel")
    except UnsupportedError:
        return None
    return str(module)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
