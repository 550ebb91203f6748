"""Writes the tables of docs/kv-cache.md: ``python -m benchmarks.kv_cache [--measure]``.

What a context takes is arithmetic. ``--measure`` compiles two samples with every format as well and measures perplexity
and speed: at 8,000 tokens of context a step of one token, all formats in turn within each round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import ryzc
from benchmarks import machine, marks
from benchmarks.peers.ryzc_ import Ryzc
from ryzc.bundle.plan import KVSpec
from ryzc.kv_formats import KV_FORMATS
from ryzc.runtime import kv_quality
from ryzc.sources import pull

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kv-cache.md"
LONG, ROOM = 32768, 200e6
SHAPES = {
    "Gemma 3 270M": (18, 1, 256, 32768),
    "SmolLM2 135M": (30, 3, 64, 8192),
    "Gemma 3 1B": (26, 1, 256, 32768),
    "TinyLlama 1.1B": (22, 4, 64, 2048),
    "Llama 3.2 1B": (16, 8, 64, 131072),
    "Qwen3 0.6B": (28, 8, 128, 40960),
    "Llama 3.1 8B": (32, 8, 128, 131072),
}
"""Layers, KV heads, elements of a head and trained context, as their publishers' configurations say."""
FORMATS = ("f16", "int16", "int8", "int8-int4", "int4")
"""What is measured, the reference first; the arithmetic leaves that out."""
SAMPLES = {"smollm2": "SmolLM2 135M", "gemma3-270m": "Gemma 3 270M"}


def token_bytes(layers: int, kv_heads: int, head_dim: int, name: str) -> int:
    """Bytes of a token's keys and values."""
    return KVSpec(layers, kv_heads, head_dim, 32, name, (0,) * layers, 0).token_bytes * layers


def arithmetic() -> str:
    """Markdown: bytes a token, and a long context, by model and format."""
    formats = FORMATS[1:]
    titles = " | ".join(formats)
    lines = [
        f"| model | layers × heads × elements | {titles} | at {LONG:,} tokens: {titles} | trained for |",
        f"|---|---|{'--:|' * (2 * len(formats) + 1)}",
    ]
    for model, (layers, heads, size, context) in SHAPES.items():
        each = [token_bytes(layers, heads, size, name) for name in formats]
        whole = [_megabytes(LONG * n) for n in each]
        cells = [model, f"{layers} × {heads} × {size}", *(f"{n / 1000:.1f} kB" for n in each), *whole, f"{context:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _megabytes(nbytes: float) -> str:
    """A size, in bold where it is within what there shall be room for."""
    text = f"{nbytes / 1e6:,.0f} MB"
    return f"**{text}**" if nbytes <= ROOM else text


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.kv_cache", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help="perplexity and speed, too")
    parser.add_argument("--windows", type=int, default=100, help="of 512 tokens")
    arguments = parser.parse_args()
    parts = {"arithmetic": arithmetic()}
    if arguments.measure:
        parts["measured"] = "\n\n".join(measured(arguments.windows))
    for name, text in parts.items():
        marks.put(PAGE, text, name)


def measured(windows: int) -> Iterator[str]:
    """A table a sample."""
    for sample, title in SAMPLES.items():
        with tempfile.TemporaryDirectory() as place:
            source = pull(sample)
            places = [(name, Path(place) / f"{name}.ryzc") for name in FORMATS]
            bundles = [ryzc.build(source, path, kv=name, force=True, tune=True) for name, path in places]
            yield _table(title, bundles, windows)


def _table(title: str, bundles: Sequence[Path], windows: int) -> str:
    """Perplexities and speeds of bundles, the reference first."""
    steps = _steps(bundles)
    found = [kv_quality.measure(bundle, windows=windows, threads=1) for bundle in bundles]
    lines = [
        f"{title}, {machine.facts()['cpu']}, one thread, {len(found[0].windows)} windows of {found[0].context} tokens:",
        "",
        f"| --kv | perplexity | cost | bound | a step at {DEPTH:,} tokens | against f16 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, each, times in zip(FORMATS, found, steps, strict=True):
        cost = kv_quality.cost(name, each, found[0])
        bound = KV_FORMATS[name].bound
        ratio = statistics.median(a / b for a, b in zip(steps[0], times, strict=True))
        said = [f"{cost.share:+.2%} ± {cost.error:.2%}", f"{bound:.1%}"] if bound else ["", ""]
        cells = [name, f"{each.value:.4f}", *said, f"{statistics.median(times) * 1e3:.2f} ms", f"{ratio:.2f} ×"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


DEPTH, STEPS, ROUNDS = 8000, 4, 7


def _steps(bundles: Sequence[Path]) -> list[list[float]]:
    """Seconds of a step of one token, of each bundle in each round."""
    found: list[list[float]] = [[] for _ in bundles]
    models = [Ryzc(bundle, threads=1, context=DEPTH + STEPS) for bundle in bundles]
    tokens = [100 + i % 1000 for i in range(DEPTH)]
    for _ in range(ROUNDS):
        for model, times in zip(models, found, strict=True):
            model.fill(tokens, 1, imitate=True)
            times.append(model.decode(tokens[:STEPS], 1, 1) / STEPS)
    return found


if __name__ == "__main__":
    main()
