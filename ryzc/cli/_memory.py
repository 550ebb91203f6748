"""What a process that runs a bundle holds in memory (RSS), predicted.

What the plan says is computed: weights, keys and values, scratch, code. What depends on this machine's
Python and libraries, and the tokenizer, whose library tells nobody its size, are measured in a process
of their own that loads them and nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ryzc.bundle import Bundle
from ryzc.bundle.plan import KVSpec, Plan
from ryzc.cli import _terminal
from ryzc.errors import InternalError
from ryzc.kv_formats import KV_FORMATS, fits

LONG = 32768
"""A context that formats of keys and values are compared at, beside the one asked for."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of RSS once a context is full.

    Attributes:
        weights: held as a copy.
        mapped_weights: of the mapped file: a table of which only rows are looked up does not count.
        keys_and_values: of the whole context; pages appear as it fills.
        scratch: of a full step with one row of logits.
        code: kernels.
        tokenizer: it, the plan and the chat template.
        python: the interpreter and its libraries, with all that ryzc imports.
    """

    weights: int
    mapped_weights: int
    keys_and_values: int
    scratch: int
    code: int
    tokenizer: int
    python: int

    def total(self, way: str) -> int:
        """The RSS with weights held as ``copy`` or ``map``; what is mapped, processes share."""
        weights = self.weights if way == "copy" else self.mapped_weights
        return weights + self.keys_and_values + self.scratch + self.code + self.tokenizer + self.python


def predict(bundle: Bundle, context: int) -> Footprint:
    """The memory of ``ryzc run`` with a context of so many tokens.

    Raises:
        InternalError: the process that measures failed.
    """
    plan = bundle.plan
    code = bundle.kernel_path(_target(bundle))
    python, tokenizer = _measured(bundle.path)
    return Footprint(
        weights=sum(weight.bytes for weight in plan.weights),
        mapped_weights=sum(weight.bytes for weight in plan.weights if weight.name in _read_whole(plan)),
        keys_and_values=-(-context // plan.kv.page_tokens) * plan.kv.page_bytes,
        scratch=plan.arena_bytes - (plan.max_rows - 1) * 4 * plan.logits_stride,
        code=code.stat().st_size,
        tokenizer=tokenizer,
        python=python,
    )


def formats(kv: KVSpec) -> dict[str, int]:
    """Bytes of a token's keys and values, by how they can be kept."""
    return {
        name: replace(kv, dtype=name).token_bytes * kv.layers
        for name in sorted(KV_FORMATS, key=lambda name: -KV_FORMATS[name].key_bits - KV_FORMATS[name].value_bits)
        if fits(name, kv.head_dim)
    }


def report(footprint: Footprint, context: int, kv: KVSpec) -> dict[str, Any]:
    """For ``--json``; bytes."""
    totals = {"total_copied": footprint.total("copy"), "total_mapped": footprint.total("map")}
    return {"context": context, **asdict(footprint), **totals, "kv_bytes_per_token": formats(kv)}


def text(footprint: Footprint, context: int, kv: KVSpec) -> str:
    """For people: a column for each way of holding weights, and a line for each way of keeping keys and values."""
    f, size = footprint, _terminal.size
    both = {
        "keys and values": f.keys_and_values,
        "scratch": f.scratch,
        "code": f.code,
        "tokenizer": f.tokenizer,
        "Python and libraries": f.python,
    }
    rows = [
        ["", "weights copied", "mapped (--mmap)"],
        ["weights", size(f.weights), f"{size(f.mapped_weights)}, shared"],
        *([name, size(nbytes), size(nbytes)] for name, nbytes in both.items()),
        ["total", size(f.total("copy")), size(f.total("map"))],
        *[["with an empty one", *(size(f.total(way) - f.keys_and_values) for way in ("copy", "map"))]],
    ]
    kept = [
        ["", "a token", *(f"{tokens} tokens" for tokens in dict.fromkeys((context, LONG)))],
        *([name, *(size(n * each) for n in dict.fromkeys((1, context, LONG)))] for name, each in formats(kv).items()),
    ]
    return "\n".join(
        [
            f"memory of a process whose context of {context} tokens is full",
            _terminal.table(rows, indent="  "),
            f"keys and values by --kv; this bundle has {kv.dtype}",
            _terminal.table(kept, indent="  "),
        ]
    )


def _target(bundle: Bundle) -> str:
    from ryzc import targets
    from ryzc.errors import TargetError

    try:
        return bundle.choose(targets.detect()).name
    except TargetError:  # the others are about as large
        return bundle.targets[0]


def _read_whole(plan: Plan) -> set[str]:
    """Names of weights that some kernel reads from end to end."""
    tables = {kernel.symbol for kernel in plan.kernels if kernel.family == "embedding"}
    calls = (call for phase in plan.phases for call in phase if call.kernel not in tables)
    return {operand.name for call in calls for operand in call.operands if operand.space == "weights"}


def _measured(path: Path) -> tuple[int, int]:
    """RSS of a process that has imported what ``ryzc run`` imports, and what a bundle's small files add."""
    child = subprocess.run([sys.executable, "-m", __name__, str(path)], capture_output=True, text=True, check=False)
    if child.returncode:
        raise InternalError(f"measuring the memory of {path} failed: {child.stderr.strip()}")
    python, all_ = json.loads(child.stdout)
    return python, all_ - python


def resident(status: Path = Path("/proc/self/status")) -> int:
    """Bytes of RSS of a process, by default this one."""
    found = re.search(r"^VmRSS:\s*(\d+) kB$", status.read_text("ascii"), re.M)
    return int(found[1]) << 10 if found else 0


def _measure(path: str) -> None:
    """The child's part."""
    from ryzc.cli import run  # noqa: F401
    from ryzc.runtime import chat, loading, memory, model  # noqa: F401

    python = resident()
    bundle = Bundle.open(path)
    held = [loading.read_tokenizer(bundle), bundle]
    if bundle.has(loading.TEMPLATE_FILE):
        held.append(chat.ChatTemplate(bundle.text(loading.TEMPLATE_FILE), "", ""))
    memory.trim()
    sys.stdout.write(json.dumps([python, resident()]))


if __name__ == "__main__":
    _measure(sys.argv[1])
