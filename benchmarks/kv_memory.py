"""What keys and values take: ``python -m benchmarks.kv_memory [--write docs/kv-cache.md]``.

Arithmetic only: bytes that a token of context takes in every format, for the shapes of models that people run, and what
a context of 32,768 tokens takes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.engine import write
from ryzc.bundle.plan import KVSpec
from ryzc.kv_formats import KV_FORMATS

SHAPES = {
    "SmolLM2-135M": (30, 3, 64),
    "Gemma 3 270M": (18, 1, 256),
    "Llama 3.2 1B": (16, 8, 64),
    "Qwen3 0.6B": (28, 8, 128),
}
"""Layers, KV heads, elements of a head."""
CONTEXT = 32_768
LIMIT = 200_000_000


def token_bytes(shape: tuple[int, int, int], dtype: str) -> int:
    """Bytes of a token's keys and values over all layers."""
    layers, kv_heads, head_dim = shape
    return layers * KVSpec(layers, kv_heads, head_dim, 32, dtype, (0,) * layers, 0).token_bytes


def table() -> str:
    """Markdown: a line a model, a column a format."""
    names = [name for name in KV_FORMATS if name != "f32"]
    lines = [f"| model | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for model, shape in SHAPES.items():
        cells = []
        for name in names:
            each = token_bytes(shape, name)
            total = f"{each * CONTEXT / 1e6:,.0f} MB"
            cells.append(f"{each:,} B, {f'**{total}**' if each * CONTEXT < LIMIT else total}")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_memory", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--write", type=Path, help="a page with marks to put the table between")
    arguments = parser.parse_args()
    print(table())
    if arguments.write:
        write(arguments.write, table())


if __name__ == "__main__":
    main()
