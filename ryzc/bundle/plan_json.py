"""A plan as text and back, checked as strictly as a stranger's file must be."""

from __future__ import annotations

from collections.abc import Iterable

from ryzc.bundle import strict_json
from ryzc.bundle.plan import LAYOUTS, KVSpec, Operand, Plan
from ryzc.errors import BundleError
from ryzc.kv_formats import KV_FORMATS

ALIGNMENT = 64


def to_json(plan: Plan) -> str:
    """Text of a plan; equal plans give equal text.

    Raises:
        InternalError: where a parameter is of no type that JSON keeps.
    """
    return strict_json.dumps(plan)


def from_json(text: str, where: str = "plan.json") -> Plan:
    """The plan that a text holds.

    Raises:
        BundleError: where a key, type or range is wrong, or a reference leads nowhere; names the place.
    """
    plan = strict_json.decode(Plan, strict_json.loads(text, where), where)
    check(plan, where)
    return plan


def check(plan: Plan, where: str = "plan.json") -> None:
    """Hold a plan's numbers and references against one another.

    Raises:
        BundleError: where a size is impossible, a region reaches outside, or a name is unknown.
    """
    _require(plan.vocab_size >= 1 and plan.logits_stride >= plan.vocab_size, where, "its vocabulary is impossible")
    _require(plan.context_length >= 1, where, "its context is empty")
    _require(min(plan.max_tokens, plan.max_rows) >= 1, where, "it steps no tokens or rows")
    _require(1 <= plan.max_candidates <= plan.vocab_size, where, "its number of candidates is impossible")
    _require(bool(plan.phases), where, "it has no phases")
    _check_kv(plan.kv, f"{where}: kv")
    _check_weights(plan, where)
    _check_buffers(plan, where)
    _require_unique((k.symbol for k in plan.kernels), f"{where}: kernels")
    kernels = {k.symbol for k in plan.kernels}
    spans = {("arena", b.name): (b.offset, b.offset + b.bytes) for b in plan.buffers}
    spans |= {("weights", w.name): (w.offset, w.offset + w.bytes) for w in plan.weights}
    for i, phase in enumerate(plan.phases):
        for j, call in enumerate(phase):
            at = f"{where}: phases[{i}][{j}]"
            _require(call.kernel in kernels, at, f"kernel {call.kernel!r} is not in the plan")
            for operand in call.operands:
                start, end = _span_of(operand, plan, spans, at)
                _require(start <= operand.offset < end, at, f"operand {operand.name!r} lies outside its region")


def _span_of(
    operand: Operand, plan: Plan, spans: dict[tuple[str, str], tuple[int, int]], where: str
) -> tuple[int, int]:
    if operand.space == "kv":
        return 0, plan.kv.page_bytes
    span = spans.get((operand.space, operand.name))
    if span is None:
        raise BundleError(f"{where}: there is no {operand.name!r} in {operand.space!r}", hint=strict_json.REBUILD)
    return span


def _check_kv(kv: KVSpec, where: str) -> None:
    _require(kv.dtype in KV_FORMATS, where, f"pages of {kv.dtype!r} are not known")
    _require(min(kv.layers, kv.kv_heads, kv.head_dim, kv.page_tokens) >= 1, where, "its pages are empty")
    _require(len(kv.windows) == kv.layers, where, "not every layer has a window")
    needed = kv.layers * kv.layer_bytes
    _require(kv.page_bytes >= needed, where, f"a page needs {needed} bytes, not {kv.page_bytes}")
    _require(kv.page_bytes % ALIGNMENT == 0, where, f"pages of {kv.page_bytes} bytes are not aligned")


def _check_weights(plan: Plan, where: str) -> None:
    _require_unique((w.name for w in plan.weights), f"{where}: weights")
    end = 0
    for weight in plan.weights:
        at = f"{where}: weight {weight.name!r}"
        _require(weight.offset % ALIGNMENT == 0 and weight.offset >= end, at, f"offset {weight.offset} is misplaced")
        _require(min(weight.bytes, weight.rows, weight.columns) >= 1, at, "it is empty")
        _require(weight.layout in LAYOUTS, at, f"layout {weight.layout!r} is not known")
        end = weight.offset + weight.bytes
    _require(end <= strict_json.LARGEST, where, "its weights are too large")


def _check_buffers(plan: Plan, where: str) -> None:
    _require_unique((b.name for b in plan.buffers), f"{where}: buffers")
    for buffer in plan.buffers:
        at = f"{where}: buffer {buffer.name!r}"
        _require(buffer.offset % ALIGNMENT == 0, at, f"offset {buffer.offset} is not aligned")
        _require(buffer.offset + buffer.bytes <= plan.arena_bytes, at, "it reaches past the arena")
        _require(buffer.first <= buffer.last < len(plan.phases), at, "it lives outside the phases")


def _require_unique(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        _require(name not in seen, where, f"{name!r} appears twice")
        seen.add(name)


def _require(condition: bool, where: str, fault: str) -> None:
    if not condition:
        raise BundleError(f"{where}: {fault}", hint=strict_json.REBUILD)
