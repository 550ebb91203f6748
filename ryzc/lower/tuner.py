"""The tuner: which method each kernel of a plan takes at which batch size, measured on this CPU.

Methods give the same bits, so a tuned bundle answers exactly as an untuned one does; only faster. The default
stays unless another method is faster by more than measuring is uncertain, and a method that was chosen for the
batch size before stays for the same reason: fewer methods are less code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from ryzc import targets
from ryzc.bundle.plan import Call, KernelSpec, PackedWeight, Plan
from ryzc.bundle.tuning import Choice, LayoutChoice, TunedKernel, Tuning
from ryzc.bundle.tuning import Trial as Record
from ryzc.codegen import isa as instruction_sets
from ryzc.codegen.isa import Isa
from ryzc.errors import InternalError, TargetError, UsageError
from ryzc.lower.planner import Lowered
from ryzc.lower.trial import Subject, Times, Trial
from ryzc.targets import Target
from ryzc.templates.kernels import from_spec

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 512)
"""What is measured in any case; a batch between two sizes takes what the larger one takes."""
GAIN = 0.03
"""By how much another method must be faster to be taken."""
MOST_COLD = 1 << 28
"""Bytes of weights kept in memory for a kernel's trial."""

Tell = Callable[[int, int], None]


def check(chosen: Sequence[Target]) -> None:
    """See whether a build for these targets can be tuned here.

    Raises:
        UsageError: it has several targets.
        TargetError: this CPU cannot run its target.
    """
    if len(chosen) != 1:
        raise UsageError(
            f"a build for {len(chosen)} targets cannot be tuned: methods are timed on one CPU",
            hint="build a bundle a target, each tuned on its own CPU",
        )
    cpu = targets.detect()
    missing = targets.runnable(chosen[0], cpu)
    if missing:
        raise TargetError(
            f"tuning runs the code, and this CPU ({cpu.name}) cannot run {chosen[0].name}: "
            f"it lacks {', '.join(sorted(missing))}",
            hint="tune on a CPU of that kind, or build without --tune",
        )


def tune(
    lowered: Lowered, target: Target, tell: Tell, layouts: tuple[LayoutChoice, ...] = ()
) -> tuple[Lowered, Tuning]:
    """Measure every kernel that has several methods, and give the plan the schedules that came out.

    Args:
        lowered: plan and weights; each kernel is tried on the first of the weights that it reads.
        target: the only one that the plan will be compiled for; see :func:`check`.
        tell: called with the batch sizes that are done and how many there are in all.
        layouts: how ternary weights were laid out before, for the record.

    Raises:
        InternalError: where two methods do not give the same bits.
    """
    plan, cpu = lowered.plan, targets.detect()
    cold = cold_bytes(plan, cpu)
    found = list(subjects(lowered, target))
    isa = instruction_sets.BY_NAME[target.isa]
    total = sum(len(batches(plan, spec, isa)) for spec, *_ in found)
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        tell(done, total)

    tuned = []
    for spec, call, weight, methods in found:
        packed = next(produce for known, produce in lowered.weights if known.name == weight.name)()
        tuned.append(_tune(Subject(plan, spec, call, weight, packed, methods), target, cold, told))
    return replace(lowered, plan=scheduled(plan, tuned)), Tuning(cpu.name, target.name, cold, tuple(tuned), layouts)


def _tune(subject: Subject, target: Target, cold: int, told: Callable[[], None]) -> TunedKernel:
    isa = instruction_sets.BY_NAME[target.isa]
    default, sizes = from_spec(subject.spec).default_schedule(isa), batches(subject.plan, subject.spec, isa)
    choices: list[Choice] = []
    with Trial(subject, target, cold) as trial:
        trial.check(sizes[-1])
        for size in sizes:
            usual = method_for(default, size)
            before = choices[-1].chosen if choices else usual
            choices.append(choose(size, trial.times(size, usual), usual, before))
            told()
    return TunedKernel(subject.spec.symbol, tuple(choices), schedule(choices))


def subjects(lowered: Lowered, target: Target) -> Iterator[tuple[KernelSpec, Call, PackedWeight, tuple[str, ...]]]:
    """The kernels that can be tried: their first call, the weight that it reads, and their methods."""
    isa = instruction_sets.BY_NAME[target.isa]
    calls = {call.kernel: call for phase in reversed(lowered.plan.phases) for call in reversed(phase)}
    weights = {weight.name: weight for weight in lowered.plan.weights}
    for spec in lowered.plan.kernels:
        methods = from_spec(spec).methods(isa)
        read = [weights[o.name] for o in calls[spec.symbol].operands if o.space == "weights"]
        if methods and read:
            yield spec, calls[spec.symbol], read[0], methods


def batches(plan: Plan, spec: KernelSpec, isa: Isa) -> tuple[int, ...]:
    """The batch sizes to measure: some that a kernel can meet, its default's bounds among them."""
    most = plan.max_rows if spec.parameters.get("count") == "row_count" else plan.max_tokens
    bounds = (int(entry.partition(":")[0]) for entry in from_spec(spec).default_schedule(isa))
    return (*sorted({size for size in (*BATCHES, *bounds) if size < most}), most)


def cold_bytes(plan: Plan, cpu: targets.Cpu) -> int:
    """A region that caches hold as little or as much of as of the model's weights."""
    l3 = max(domain.l3 for package in cpu.topology.packages for domain in package.domains)
    return min(sum(weight.bytes for weight in plan.weights), max(2 * l3, 1 << 26), MOST_COLD)


def choose(batch: int, times: Times, default: str, before: str) -> Choice:
    """What to take at a batch size, ``before`` being the choice at the one below."""
    best = min(times.by_method, key=lambda method: times.by_method[method])
    enough = times.by_method[best] * (1 + GAIN)
    chosen = next(m for m in (default, before, best) if times.by_method[m] <= enough)
    trials = tuple(Record(method, ns) for method, ns in times.by_method.items())
    return Choice(batch, times.read_ns, times.int8_ns, trials, default, chosen)


def schedule(choices: Sequence[Choice]) -> tuple[str, ...]:
    """Choices by ascending batch size as entries ``N:METHOD``, neighbours of one method joined."""
    last = choices[-1]
    kept = [choice for choice, larger in pairwise(choices) if choice.chosen != larger.chosen]
    return tuple(f"{choice.batch}:{choice.chosen}" for choice in (*kept, last))


def method_for(entries: Sequence[str], batch: int) -> str:
    """What a schedule takes for a batch size."""
    for entry in entries:
        size, _, method = entry.partition(":")
        if batch <= int(size):
            return method
    return method


def scheduled(plan: Plan, tuned: Sequence[TunedKernel]) -> Plan:
    """The plan with these kernels' schedules, all else and every symbol as it was."""
    schedules = {kernel.symbol: kernel.schedule for kernel in tuned}

    def with_schedule(spec: KernelSpec) -> KernelSpec:
        if spec.symbol not in schedules:
            return spec
        if "schedule" not in spec.parameters:
            raise InternalError(f"kernel family {spec.family} has methods but no schedule")
        return replace(spec, parameters={**spec.parameters, "schedule": schedules[spec.symbol]})

    return replace(plan, kernels=tuple(with_schedule(spec) for spec in plan.kernels))
