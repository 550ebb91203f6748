"""LLVM IR text around the kernels: the worker pool, the barrier and the step."""

from __future__ import annotations

from importlib.resources import files

import jinja2

from ryzc.bundle import abi
from ryzc.bundle.plan import Plan
from ryzc.codegen.compile import TRIPLE


def step_text(plan: Plan) -> str:
    """LLVM IR of the entry points ``step``, ``worker`` and ``stop`` for a plan; kernels are declared."""
    source = files(__name__).joinpath("pool.ll.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    operands = {c.kernel: len(c.operands) for phase in plan.phases for c in phase}
    return environment.from_string(source).render(
        triple=TRIPLE,
        offset={f.name: f.offset for f in abi.FIELDS},
        kernels=[{"symbol": k.symbol, "operands": operands[k.symbol]} for k in plan.kernels],
        phases=plan.phases,
    )
