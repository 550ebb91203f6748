"""A small but complete bundle, and the arguments that write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ryzc import bundle
from ryzc.bundle import abi
from ryzc.bundle.plan import Buffer, Call, KernelSpec, KVSpec, Operand, PackedWeight, Plan


def tiny_plan() -> Plan:
    """One of everything that a plan can hold."""
    sizes = [("blk.0.norm", 4 * 100), ("blk.0.qkv", 1280), ("rope", 8 * 4), ("head é", 640)]
    at = bundle.assign_offsets(sizes)
    weights = (
        PackedWeight("blk.0.norm", ("blk.0.norm",), "f32", 1, 100, "plain", at[0], sizes[0][1]),
        PackedWeight("blk.0.qkv", ("q", "k", "v"), "q4_1", 32, 64, "tiles", at[1], sizes[1][1]),
        PackedWeight("rope", ("rope",), "f64", 1, 4, "plain", at[2], sizes[2][1]),
        PackedWeight("head é", ("head é",), "q4_1", 20, 32, "tiles", at[3], sizes[3][1]),
    )
    operands = (Operand("arena", 64, "x"), Operand("weights", at[1], "blk.0.qkv"), Operand("kv", 128, "layer 0"))
    return Plan(
        abi=abi.VERSION,
        architecture="llama",
        activations="int8",
        vocab_size=20,
        logits_stride=128,
        context_length=2048,
        max_tokens=8,
        max_rows=2,
        max_candidates=4,
        arena_bytes=1088,
        macs_per_token=2048,
        head_macs=640,
        kv=KVSpec(1, 1, 4, 8, "f16", (0,), 128 + 64),
        kernels=(
            KernelSpec(
                "linear", "linear", {"n": 32, "formats": ("q4_1",), "scale": 0.1, "gated": False, "cuts": (1, 2)}
            ),
            KernelSpec("norm", "activations", {"epsilon": 1e-5, "none": (), "name": "n", "down": -1}),
        ),
        weights=weights,
        buffers=(Buffer("logits", 64, 1024, 0, 1), Buffer("x", 0, 128, 0, 0)),
        phases=((Call("norm", operands, "n0"), Call("linear", operands, "n1")), (Call("linear", (), "n2"),)),
        notes={"fuse": '{"matches": 3}', "passes": ("a", "b")},
    )


def contents(weight: PackedWeight) -> npt.NDArray[np.uint8]:
    """Reproducible bytes for a weight."""
    return np.random.default_rng(weight.offset + 1).integers(0, 256, weight.bytes).astype(np.uint8)


def arguments(plan: Plan | None = None) -> dict[str, Any]:
    """Arguments of ``bundle.write`` for the tiny plan."""
    plan = plan or tiny_plan()

    def producer(weight: PackedWeight) -> Callable[[], npt.NDArray[np.uint8]]:
        return lambda: contents(weight)

    return {
        "plan": plan,
        "weights": [(w, producer(w)) for w in plan.weights],
        "kernels": {"znver4": b"\x7fELF four" * 50, "znver3": b"\x7fELF three" * 50},
        "required": {"znver4": ["avx512f", "avx2"], "znver3": ["avx2"]},
        "tokenizer_json": '{"model": "é"}',
        "tokenizer_config": {"bos": 1, "add_bos": True, "pad": None},
        "chat_template": "{{ messages }}\n",
        "generation_config": {"temperature": 0.5},
        "provenance": {"source": "tiny.gguf", "bytes": 123},
        "files": {"report.html": b"<p>", "extra/graph.onnx": b"\0\1"},
    }


def write_tiny(path: Path, **changes: Any) -> Path:
    """Write the tiny bundle, some arguments changed."""
    bundle.write(path, **{**arguments(), **changes})
    return path
