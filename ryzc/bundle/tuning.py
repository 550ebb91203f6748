"""``tuning.json``: what the tuner measured on the CPU that a bundle was tuned for, and what it chose.

The choices themselves stand in the plan, as the schedules of its kernels; nothing reads this file to run a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ryzc.bundle import strict_json
from ryzc.bundle.strict_json import REBUILD
from ryzc.errors import BundleError

FILE: Final = "tuning.json"


@dataclass(frozen=True)
class Trial:
    """How long a call took by a method: the median, in nanoseconds."""

    method: str
    ns: int


@dataclass(frozen=True)
class Choice:
    """A kernel at one batch size.

    Attributes:
        batch: tokens, or rows of logits for the head.
        read_ns: what reading the kernel's weights once would take at the machine's read bandwidth.
        int8_ns: what its multiply-accumulates would take at the machine's int8 peak.
        trials: one a method; those that were clearly slower were called less often.
        default: the method of a bundle that nobody tuned.
        chosen: the default, unless another was clearly faster.
    """

    batch: int
    read_ns: int
    int8_ns: int
    trials: tuple[Trial, ...]
    default: str
    chosen: str

    def ns(self, method: str) -> int:
        """How long a call took by a method that was tried."""
        return next(trial.ns for trial in self.trials if trial.method == method)


@dataclass(frozen=True)
class TunedKernel:
    """A kernel of the plan.

    Attributes:
        symbol: its name there.
        choices: by ascending batch size.
        schedule: what became of them, entries ``N:METHOD``.
    """

    symbol: str
    choices: tuple[Choice, ...]
    schedule: tuple[str, ...]


@dataclass(frozen=True)
class LayoutChoice:
    """How ternary weights of a shape lie, as measured at one token by some threads at once.

    Attributes:
        symbol: a kernel that reads such weights.
        rows, columns: their shape.
        threads: that shared the work.
        trials: one a layout (their ``method``), see :mod:`ryzc.formats.trits`.
        chosen: of these threads; a model takes the choice of the most.
    """

    symbol: str
    rows: int
    columns: int
    threads: int
    trials: tuple[Trial, ...]
    chosen: str


@dataclass(frozen=True)
class Tuning:
    """The tuner's record.

    Attributes:
        cpu: the CPU's name.
        target: the target that was tuned.
        cold_bytes: weights were read in turn from a region of this size.
        kernels: those that have several methods.
        layouts: of ternary weights.
    """

    cpu: str
    target: str
    cold_bytes: int
    kernels: tuple[TunedKernel, ...]
    layouts: tuple[LayoutChoice, ...]


def to_json(tuning: Tuning) -> str:
    """Text of a record."""
    return strict_json.dumps(tuning)


def from_json(text: str, where: str = FILE) -> Tuning:
    """The record that a text holds.

    Raises:
        BundleError: where a key, type or range is wrong, or a choice names a method that was not tried.
    """
    tuning = strict_json.decode(Tuning, strict_json.loads(text, where), where)
    for kernel in tuning.kernels:
        for choice in kernel.choices:
            methods = {trial.method for trial in choice.trials if trial.ns}
            if not {choice.default, choice.chosen} <= methods or choice.batch < 1:
                raise BundleError(f"{where}: {kernel.symbol}: a choice without a measurement", hint=REBUILD)
    return tuning
