"""LLVM IR text around the kernels: the worker pool, the barrier and the step; and the tuner's loop."""

from __future__ import annotations

from importlib.resources import files

import jinja2

from ryzc.bundle import abi
from ryzc.bundle.plan import Plan
from ryzc.codegen.compile import TRIPLE


def step_text(plan: Plan) -> str:
    """LLVM IR of the entry points ``step``, ``worker`` and ``stop`` for a plan; kernels are declared."""
    operands = {c.kernel: len(c.operands) for phase in plan.phases for c in phase}
    return _template("pool.ll.j2").render(
        triple=TRIPLE,
        offset={f.name: f.offset for f in abi.FIELDS},
        kernels=[{"symbol": k.symbol, "operands": operands[k.symbol]} for k in plan.kernels],
        phases=plan.phases,
    )


def repeat_text(operands: int) -> str:
    """LLVM IR of ``repeat``, which calls a kernel of so many operands again and again."""
    return _template("repeat.ll.j2").render(triple=TRIPLE, operands=operands)


def _template(name: str) -> jinja2.Template:
    source = files(__name__).joinpath(name).read_text(encoding="utf-8")
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(source)
