"""The tuner's record for people and machines; ``ryzc inspect BUNDLE --tuning``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ryzc.cli import _terminal
from ryzc.errors import UsageError

if TYPE_CHECKING:
    from ryzc.bundle import Bundle
    from ryzc.bundle.tuning import Choice, Tuning

_HEADINGS = ["batch", "chosen", "µs", "default", "µs", "gain", "of bandwidth", "of int8 peak", "tried"]
_LAYOUT_HEADINGS = ["shape", "threads", "chosen", "µs", "gain"]


def read(bundle: Bundle) -> Tuning:
    """A bundle's record.

    Raises:
        UsageError: it was built without ``--tune``.
    """
    from ryzc.bundle import tuning

    if not bundle.has(tuning.FILE):
        raise UsageError(f"{bundle.path}: was not tuned", hint="build it with `ryzc build SRC --tune`")
    return tuning.from_json(bundle.text(tuning.FILE), str(bundle.path / tuning.FILE))


def report(tuning: Tuning) -> dict[str, Any]:
    """The record, with gains and shares of the machine's limits worked out."""
    return {
        "cpu": tuning.cpu,
        "target": tuning.target,
        "cold_bytes": tuning.cold_bytes,
        "kernels": [
            {
                "symbol": kernel.symbol,
                "schedule": list(kernel.schedule),
                "choices": [_choice(choice) for choice in kernel.choices],
            }
            for kernel in tuning.kernels
        ],
        "layouts": [
            {
                "symbol": choice.symbol,
                "rows": choice.rows,
                "columns": choice.columns,
                "threads": choice.threads,
                "chosen": choice.chosen,
                "ns": {trial.method: trial.ns for trial in choice.trials},
            }
            for choice in tuning.layouts
        ],
    }


def _choice(choice: Choice) -> dict[str, Any]:
    ns = choice.ns(choice.chosen)
    return {
        "batch": choice.batch,
        "chosen": choice.chosen,
        "default": choice.default,
        "gain": choice.ns(choice.default) / ns,
        "read_ns": choice.read_ns,
        "read_share": choice.read_ns / ns,
        "int8_ns": choice.int8_ns,
        "int8_share": choice.int8_ns / ns,
        "ns": {trial.method: trial.ns for trial in choice.trials},
    }


def text(found: dict[str, Any]) -> str:
    """The report for people: a table a kernel."""
    cold = _terminal.size(found["cold_bytes"])
    lines = [f"tuned for {found['target']} on {found['cpu']}: one thread, weights read in turn from {cold}"]
    for kernel in found["kernels"]:
        lines += ["", kernel["symbol"], _terminal.table([_HEADINGS, *map(_row, kernel["choices"])], indent="  ")]
    if found["layouts"]:
        lines += ["", "layouts of ternary weights, one token on so many threads"]
        lines += [_terminal.table([_LAYOUT_HEADINGS, *map(_layout_row, found["layouts"])], indent="  ")]
    return "\n".join(lines)


def _layout_row(choice: dict[str, Any]) -> list[str]:
    from ryzc.formats.trits import USUAL

    times = choice["ns"]
    shown = ", ".join(f"{name} {ns / 1000:.1f}" for name, ns in times.items())
    gain = times[USUAL] / times[choice["chosen"]]
    return [f"{choice['rows']} × {choice['columns']}", str(choice["threads"]), choice["chosen"], shown, f"{gain:.2f}×"]


def _row(choice: dict[str, Any]) -> list[str]:
    times = choice["ns"]
    return [
        str(choice["batch"]),
        choice["chosen"],
        f"{times[choice['chosen']] / 1000:.1f}",
        choice["default"],
        f"{times[choice['default']] / 1000:.1f}",
        f"{choice['gain']:.2f}×",
        f"{choice['read_share']:.0%}",
        f"{choice['int8_share']:.0%}",
        f"{len(times)} methods",
    ]
