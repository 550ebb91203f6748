"""A picture of a run: the machine's roofline with every test of every engine under it, and the shares it reached."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import peers
from benchmarks.results import Result, Row, row

COLOURS = {"ryzc": "#d1495b", "llama_cpp": "#30638e", "ik_llama_cpp": "#5c9e82"}
MARKERS = {"ryzc": "o", "llama_cpp": "s", "ik_llama_cpp": "^"}
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
"""Behind text that a line may cross."""
INK, GREY = "#222222", "#888888"
SETTINGS: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "svg.hashsalt": "ryzc",
}


def draw(facts: Mapping[str, Any], measured: Sequence[Result], stem: Path) -> list[Path]:
    """Draw ``stem.png`` and ``stem.svg``; nothing where no test has figures."""
    good = [(result, row(result)) for result in measured if result.rounds]
    if not good:
        return []
    with plt.rc_context(SETTINGS):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(13, 2.6 + 0.42 * max(8, len(good))), width_ratios=[1.15, 1], layout="constrained"
        )
        _roofline(left, good)
        _shares(right, [line for _, line in good])
        ours = next(e for name, e in facts["engines"].items() if peers.is_ours(name))
        plural = "s" * (facts["threads"] != 1)
        figure.suptitle(f"{facts['model']}, {facts['threads']} thread{plural}", x=0.01, ha="left", fontweight="bold")
        others = ", ".join(f"{e['version']}" for name, e in facts["engines"].items() if not peers.is_ours(name))
        figure.text(
            0.01,
            -0.01,
            f"{facts['cpu']}, target {ours['target']}; weights {ours['formats']}; ryzc {facts['commit']}, {others}; "
            f"{facts['date']}. Medians of interleaved rounds.",
            color=GREY,
            fontsize=8,
            va="top",
        )
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15, metadata=metadata)
        plt.close(figure)
    return paths


def _base(name: str) -> str:
    return name.removesuffix("_avx2")


def _roofline(axes: Any, good: Sequence[tuple[Result, Row]]) -> None:
    """Multiply-accumulates a second over multiply-accumulates a byte, both of the linear layers."""
    rounds = [one for result, _ in good for one in result.rounds]
    bandwidth = statistics.median(one.bandwidth for one in rounds) / 1e9
    peak = statistics.median(one.int8_peak for one in rounds) / 1e9
    places = [result.work.linear_macs / result.work.bytes for result, _ in good]
    low, high = min(places) / 1.8, max(*places, peak / bandwidth) * 2.2
    x = np.geomspace(low, high, 400)
    roof = np.minimum(peak, bandwidth * x)
    axes.plot(x, roof, color=INK, linewidth=1.5, zorder=2)
    axes.fill_between(x, roof, roof.max() * 8, color="#f1f1ef", zorder=0)
    lowest, named = peak, set[str]()
    for place, (result, line) in zip(places, good, strict=True):
        axes.plot([place, place], [1e-6, min(peak, bandwidth * place)], color="#dddddd", linewidth=0.8, zorder=1)
        for name, speed in line.speeds.items():
            height = speed.median * result.work.linear_macs / result.test.total / 1e9
            lowest = min(lowest, height)
            style = {"color": COLOURS[_base(name)], "marker": MARKERS[_base(name)], "edgecolors": "white"}
            label = peers.title(name) if name not in named else None
            named.add(name)
            axes.scatter([place], [height], s=52, linewidths=0.7, zorder=4, label=label, **style)
    axes.legend(loc="lower right", framealpha=1, edgecolor="none")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(lowest / 2, peak * 7))
    _label_tests(axes, places, [line.test for _, line in good], peak * 1.5)
    middle = float(np.sqrt(low * peak / bandwidth)) * 1.3
    axes.annotate(
        f"read bandwidth {bandwidth:.0f} GB/s",
        (middle, bandwidth * middle),
        xytext=(-9, 9),
        textcoords="offset points",
        rotation=_slope(axes),
        rotation_mode="anchor",
        ha="center",
        color=INK,
    )
    axes.annotate(
        f"int8 peak {peak:.0f} GMAC/s",
        (high, peak),
        xytext=(-4, -12),
        textcoords="offset points",
        ha="right",
        color=INK,
    )
    axes.set_xlabel("multiply-accumulates a byte read (linear layers; weights once a step, and the KV cache)")
    axes.set_ylabel("GMAC/s in linear layers, all time counted")


def _slope(axes: Any) -> float:
    """Degrees on paper of a line that rises as its argument does."""
    box = axes.get_window_extent()
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    rise = box.height / np.log(y1 / y0) / (box.width / np.log(x1 / x0))
    return float(np.degrees(np.arctan(rise)))


def _label_tests(axes: Any, places: Sequence[float], names: Sequence[str], height: float) -> None:
    """Names over the roof, upright, moved apart where tests are close."""
    low, high = axes.get_xlim()
    apart = (high / low) ** 0.035
    at = 0.0
    for place, name in sorted(zip(places, names, strict=True)):
        at = max(place, at * apart)
        axes.annotate(
            name,
            (place, height / 1.45),
            xytext=(at, height),
            textcoords="data",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": "#cccccc", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _shares(axes: Any, lines: Sequence[Row]) -> None:
    """Bars: the share of its roofline that each engine reached in each test, labelled with its speed."""
    names = list(dict.fromkeys(name for line in lines for name in (*line.speeds, *line.failures)))
    width = 0.8 / len(names)
    longest = max([1.0, *(speed.share for line in lines for speed in line.speeds.values())])
    for index, line in enumerate(lines):
        for order, name in enumerate(names):
            middle = index + (order - (len(names) - 1) / 2) * width
            speed = line.speeds.get(name)
            if speed is None:
                axes.text(0.01, middle, "cannot", va="center", fontsize=7, color=GREY)
                continue
            colour = COLOURS[_base(name)]
            axes.barh(middle, speed.share, width * 0.92, color=colour, label=peers.title(name) if not index else None)
            text = f"{speed.median:,.0f} tok/s" if speed.median >= 100 else f"{speed.median:.1f} tok/s"
            axes.text(speed.share + 0.01, middle, text, va="center", fontsize=7, color=INK, bbox=PAPER)
    axes.axvline(1.0, color=INK, linewidth=1.2)
    bound = {"read": "reading", "int8": "int8"}
    axes.set_yticks(range(len(lines)), [f"{line.test}\n({bound[line.bound]})" for line in lines])
    axes.set(ylim=(len(lines) - 0.5, -0.5), xlim=(0, longest * 1.16))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of the roofline that bounds the test")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names), frameon=False)
